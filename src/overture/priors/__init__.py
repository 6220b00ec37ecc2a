"""The prior over token sequences, its sampler and its guidance."""

from overture.priors.guidance import Curve, Guidance
from overture.priors.model import Prior, PriorConfig
from overture.priors.sampling import Sampling

__all__ = ["Curve", "Guidance", "Prior", "PriorConfig", "Sampling"]
