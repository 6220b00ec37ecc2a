"""From continuous encoder outputs to ids and back, under a codebook size per position."""

from overture.quantizers.finite_scalar import FiniteScalarConfig
from overture.quantizers.lookup_free import LookupFreeConfig
from overture.quantizers.quantizer import Quantized, Quantizer, QuantizerConfig
from overture.quantizers.vector import SoftConfig, VectorConfig

__all__ = [
    "FiniteScalarConfig",
    "LookupFreeConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "SoftConfig",
    "VectorConfig",
]
