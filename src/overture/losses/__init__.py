"""Losses of the tokenizer: reconstruction, perceptual, adversarial.

Terms carry the same names everywhere, in metrics too: ``l1``, ``l2``, ``perceptual``, ``adversarial``,
``discriminator``, ``lecam``, ``r1``. A dictionary of terms holds them unweighted, and their weighted sum as ``total``.
"""

from overture.losses.adversarial import Adversarial, AdversarialConfig, PatchDiscriminator
from overture.losses.global_batch_norm import GlobalBatchNorm2d
from overture.losses.perceptual import (
    ConvNextConfig,
    DomainConfig,
    FeatureDistance,
    LogitDistance,
    Lpips,
    LpipsConfig,
    NoPerceptual,
    Perceptual,
    PerceptualConfig,
)
from overture.losses.reconstruction import Reconstruction, ReconstructionConfig

__all__ = [
    "Adversarial",
    "AdversarialConfig",
    "ConvNextConfig",
    "DomainConfig",
    "FeatureDistance",
    "GlobalBatchNorm2d",
    "LogitDistance",
    "Lpips",
    "LpipsConfig",
    "NoPerceptual",
    "PatchDiscriminator",
    "Perceptual",
    "PerceptualConfig",
    "Reconstruction",
    "ReconstructionConfig",
]
