"""Finite scalar quantization: each channel is rounded to one of a few levels; no codebook, no loss.

Source: FSQ (arXiv 2309.15505). Under a layout whose sizes grow, position l uses the first channels only, as many as
multiply to K_l; the first channel is the least significant digit of an id, so its ids are the first K_l.
Shapes: B images, L positions, D encoder channels, Z channels of a code.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overture.errors import UsageError
from overture.quantizers.quantizer import Quantized, Quantizer, QuantizerConfig

__all__ = ["FiniteScalarConfig", "FiniteScalarQuantizer"]


@dataclass(frozen=True)
class FiniteScalarConfig(QuantizerConfig):
    """Finite scalar quantizer with ``levels`` per channel; sizes must be products of their first few."""

    levels: tuple[int, ...] = (8, 8, 8, 5, 5)

    def build(self, dim: int, sizes: Sequence[int]) -> FiniteScalarQuantizer:
        """Make the module for encoder outputs of ``dim`` channels."""
        return FiniteScalarQuantizer(self, dim, sizes)


class FiniteScalarQuantizer(Quantizer):
    """Codes lie in [-1, 1], and are 0 in the channels a position does not use."""

    used_LZ: Tensor
    levels_Z: Tensor
    strides_Z: Tensor

    def __init__(self, config: FiniteScalarConfig, dim: int, sizes: Sequence[int]) -> None:
        if not config.levels or min(config.levels) < 2:
            raise UsageError(f"finite-scalar quantizer: levels {config.levels} need to be at least 2 each")
        products = list(itertools.accumulate(config.levels, operator.mul))
        wrong = [size for size in sizes if size not in products]
        if wrong:
            raise UsageError(
                f"finite-scalar quantizer: codebook size {wrong[0]} is not a product of the first levels "
                f"{config.levels} (possible: {', '.join(map(str, products))})"
            )
        super().__init__(dim, products.index(max(sizes)) + 1, sizes)
        self.config = config
        levels_Z = torch.tensor(config.levels[: self.z_dim])
        channels_L = torch.tensor([products.index(size) + 1 for size in sizes])
        self.register_buffer("levels_Z", levels_Z, persistent=False)
        self.register_buffer("strides_Z", torch.tensor([1, *products[: self.z_dim - 1]]), persistent=False)
        self.register_buffer("used_LZ", (torch.arange(self.z_dim) < channels_L[:, None]).float(), persistent=False)

    def _bounded(self, features_BLD: Tensor) -> Tensor:
        """Encoder outputs squeezed to the span of the levels: rounding gives -(n // 2) .. (n - 1) // 2."""
        half_Z = (self.levels_Z - 1) * (1 + 1e-3) / 2
        # An even number of levels has no middle one: they lie half a step lower, and the start is moved to the level 0.
        # Of two levels that one is at the edge of tanh, where it has no slope: these two start between them.
        lower_Z = torch.where(self.levels_Z % 2 == 0, 0.5, 0.0)
        start_Z = torch.where(self.levels_Z > 2, torch.atanh(lower_Z / half_Z), 0.0)
        return torch.tanh(self.project(features_BLD) + start_Z) * half_Z - lower_Z

    def forward(self, features_BLD: Tensor) -> Quantized:
        bounded_BLZ = self._bounded(features_BLD)
        rounded_BLZ = bounded_BLZ + (bounded_BLZ.round() - bounded_BLZ).detach()
        codes_BLZ = rounded_BLZ / (self.levels_Z // 2) * self.used_LZ
        return Quantized(self._ids(bounded_BLZ.detach()), codes_BLZ, codes_BLZ.new_zeros(()))

    def _ids(self, bounded_BLZ: Tensor) -> Tensor:
        digits_BLZ = bounded_BLZ.round().long() + self.levels_Z // 2
        return (digits_BLZ * self.strides_Z * self.used_LZ.long()).sum(dim=-1)

    def codes(self, ids_BL: Tensor) -> Tensor:
        digits_BLZ = (ids_BL[..., None] // self.strides_Z) % self.levels_Z
        return (digits_BLZ - self.levels_Z // 2).float() / (self.levels_Z // 2) * self.used_LZ
