"""Rotary position embedding over several axes.

A head's channels are split over axes (``axes_dim``, e.g. 20/20/24 for row, column, index). Within an axis, channel
pairs (2i, 2i + 1) turn by ``position * theta ** (-2i / axis_dim)``; an axis at position 0 leaves its channels as they
are. Which token stands at which position is the business of the tokenizer and the prior.

Shapes: L positions, A axes, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from overture.errors import UsageError

__all__ = ["Rotary", "concatenate", "default_axes", "grid_positions", "index_positions", "rotary"]


class Rotary(NamedTuple):
    """Cosines and sines of the turning angles, both ``[L, E / 2]`` float32."""

    cos: Tensor
    sin: Tensor

    def apply(self, x_BHLE: Tensor) -> Tensor:
        """Turn the channel pairs of queries or keys ``[B, H, L, E]``; float32 inside, the type of ``x`` outside."""
        pairs = x_BHLE.float().unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():  # the compiler has no complex numbers
            even, odd = pairs.unbind(-1)
            turned = torch.stack((even * self.cos - odd * self.sin, even * self.sin + odd * self.cos), -1)
        else:  # four times as fast on a CPU
            turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(self.cos, self.sin))
        return turned.flatten(-2).to(x_BHLE.dtype)


def rotary(positions_LA: Tensor, axes_dim: Sequence[int], theta: float) -> Rotary:
    """The rotary factors of tokens at ``positions_LA`` (one column per axis)."""
    if len(axes_dim) != positions_LA.shape[1] or any(dim < 0 or dim % 2 for dim in axes_dim):
        raise UsageError(f"rotary axes {tuple(axes_dim)} need one even size for each of {positions_LA.shape[1]} axes")
    angles = [
        positions_LA[:, axis, None].double() * theta ** (-torch.arange(0, dim, 2, dtype=torch.double) / dim)
        for axis, dim in enumerate(axes_dim)
        if dim
    ]
    angles_LE = torch.cat(angles, dim=1)
    return Rotary(angles_LE.cos().float(), angles_LE.sin().float())


def concatenate(parts: Sequence[Rotary]) -> Rotary:
    """The factors of one run of tokens after another."""
    return Rotary(torch.cat([part.cos for part in parts]), torch.cat([part.sin for part in parts]))


def default_axes(head_dim: int) -> tuple[int, int, int]:
    """How a head is split over (row, column, index): 20/20/24 of 64 channels as in the paper, in that proportion else."""
    spatial = head_dim * 20 // 64 // 2 * 2
    return spatial, spatial, head_dim - 2 * spatial


def grid_positions(rows: int, columns: int, axes: Sequence[str]) -> Tensor:
    """Positions ``[rows * columns, A]`` of patches in raster order; ``axes`` names the columns of the result."""
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    named = {"row": row, "column": column, "index": torch.zeros_like(row)}
    return torch.stack([named[axis] for axis in axes], dim=1)


def index_positions(length: int, axes: Sequence[str]) -> Tensor:
    """Positions ``[length, A]`` of tokens that only have a place in the sequence."""
    index = torch.arange(length)
    return torch.stack([index if axis == "index" else torch.zeros_like(index) for axis in axes], dim=1)
