"""From continuous encoder outputs to ids and back, under a codebook size per position."""

from overture.quantizers.base import Quantized, Quantizer
from overture.quantizers.finite_scalar import FiniteScalarConfig
from overture.quantizers.lookup_free import LookupFreeConfig
from overture.quantizers.vector import SoftConfig, VectorConfig

QuantizerConfig = VectorConfig | SoftConfig | LookupFreeConfig | FiniteScalarConfig

__all__ = [
    "FiniteScalarConfig",
    "LookupFreeConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "SoftConfig",
    "VectorConfig",
]
