"""Root-mean-square norms: with a learned scale, or a scale computed from the condition vector.

Shapes: B batch, L positions, D channels, C condition channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConditionalScale", "RMSNorm", "rms_normalize"]

_TINY = 1e-24
"""Keeps a row of zeros at zero; far below anything that would change a number."""


def rms_normalize(x: Tensor, scale: Tensor) -> Tensor:
    """``x / rms(x) * (1 + scale)`` over the last axis, computed in float32 and cast back to the type of ``x``.

    ``scale`` is ``[D]``, or anything that broadcasts against ``x``.
    """
    if scale.ndim == 1:
        return F.rms_norm(x.float(), x.shape[-1:], 1 + scale.float(), _TINY).to(x.dtype)
    return (F.rms_norm(x.float(), x.shape[-1:], None, _TINY) * (1 + scale.float())).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm whose scale is ``1 + weight``, with ``weight`` starting at zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., D]``."""
        return rms_normalize(x, self.weight)


class ConditionalScale(nn.Linear):
    """The ``scale`` of a norm, or the gate of a branch, as a linear map of the condition vector: ``[.., C] -> [.., D]``.

    Starts (nearly) at zero: weights are drawn as everywhere and multiplied by 1e-5.
    """

    def forward(self, condition: Tensor) -> Tensor:
        """Always float32: these maps are tiny and set the scale of everything else."""
        with torch.autocast(condition.device.type, enabled=False):
            return super().forward(condition.float())
