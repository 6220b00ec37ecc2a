"""Lookup-free quantization: a code is the signs of its channels, an id is their bits.

Source: MAGVIT-v2 (arXiv 2310.05737). Under a layout whose sizes grow, K_l = 2^b means: position l uses the first b bits.
Shapes: B images, L positions, D encoder channels, Z = log2 K_max bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from overture.errors import UsageError
from overture.quantizers.quantizer import Quantized, Quantizer, QuantizerConfig

__all__ = ["LookupFreeConfig", "LookupFreeQuantizer"]


@dataclass(frozen=True)
class LookupFreeConfig(QuantizerConfig):
    """Lookup-free quantizer.

    ``entropy`` weighs (mean entropy of a sample's bits - entropy of a bit's mean over the batch), which makes bits
    decided yet evenly used; bits are treated as independent. ``temperature`` is that of the bit probabilities.
    """

    commitment: float = 0.25
    entropy: float = 0.1
    temperature: float = 0.25

    def build(self, dim: int, sizes: Sequence[int]) -> LookupFreeQuantizer:
        """Make the module for encoder outputs of ``dim`` channels."""
        return LookupFreeQuantizer(self, dim, sizes)


class LookupFreeQuantizer(Quantizer):
    """Codes are ``+-1 / sqrt(Z)`` in the bits a position uses and 0 in the others."""

    used_LZ: Tensor

    def __init__(self, config: LookupFreeConfig, dim: int, sizes: Sequence[int]) -> None:
        wrong = [size for size in sizes if size < 2 or size & (size - 1)]
        if wrong:
            raise UsageError(
                f"lookup-free quantizer: codebook size {wrong[0]} is not a power of two; the schedules uniform and steps "
                "give such sizes"
            )
        super().__init__(dim, max(sizes).bit_length() - 1, sizes)
        self.config = config
        bits_L = torch.tensor([size.bit_length() - 1 for size in sizes])
        self.register_buffer("used_LZ", (torch.arange(self.z_dim) < bits_L[:, None]).float(), persistent=False)

    def project(self, features_BLD: Tensor) -> Tensor:
        """Encoder outputs ``[B, L, Z]``, 0 in the bits that a position does not use."""
        return super().project(features_BLD) * self.used_LZ

    def _signs(self, z_BLZ: Tensor) -> Tensor:
        return torch.where(z_BLZ > 0, 1.0, -1.0) * self.used_LZ * self.z_dim**-0.5

    def _ids(self, z_BLZ: Tensor) -> Tensor:
        weights_Z = 2 ** torch.arange(self.z_dim, device=z_BLZ.device)
        return ((z_BLZ > 0) & self.used_LZ.bool()).long().mul(weights_Z).sum(dim=-1)

    def forward(self, features_BLD: Tensor) -> Quantized:
        z_BLZ = self.project(features_BLD)
        codes_BLZ = self._signs(z_BLZ)
        loss = self.config.commitment * F.mse_loss(z_BLZ, codes_BLZ)
        if self.config.entropy:
            loss = loss + self.config.entropy * self._entropy_gap(z_BLZ)
        return Quantized(self._ids(z_BLZ), z_BLZ + (codes_BLZ - z_BLZ).detach(), loss)

    def codes(self, ids_BL: Tensor) -> Tensor:
        bits_BLZ = (ids_BL[..., None] >> torch.arange(self.z_dim, device=ids_BL.device)) & 1
        return (2.0 * bits_BLZ - 1.0) * self.used_LZ * self.z_dim**-0.5

    def _entropy_gap(self, z_BLZ: Tensor) -> Tensor:
        """Mean entropy of the bits minus the entropy of the mean bits, in nats per used bit."""
        on_BLZ = torch.sigmoid(z_BLZ / self.config.temperature)
        gap_LZ = _bernoulli_entropy(on_BLZ).mean(dim=0) - _bernoulli_entropy(on_BLZ.mean(dim=0))
        return (gap_LZ * self.used_LZ).sum() / self.used_LZ.sum()


def _bernoulli_entropy(p: Tensor) -> Tensor:
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())
