"""From continuous encoder outputs to ids and back, under a codebook size per position."""

from overture.quantizers.finite_scalar import FiniteScalarConfig, FiniteScalarQuantizer
from overture.quantizers.lookup_free import LookupFreeConfig, LookupFreeQuantizer
from overture.quantizers.quantizer import Quantized, Quantizer, QuantizerConfig
from overture.quantizers.vector import SoftConfig, SoftQuantizer, VectorConfig, VectorQuantizer

__all__ = [
    "FiniteScalarConfig",
    "FiniteScalarQuantizer",
    "LookupFreeConfig",
    "LookupFreeQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "SoftConfig",
    "SoftQuantizer",
    "VectorConfig",
    "VectorQuantizer",
]
