"""Pixel losses: mean absolute and mean squared difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overture.errors import UsageError

__all__ = ["Reconstruction", "ReconstructionConfig", "l1", "l2"]


def l1(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over everything, in float32."""
    return (reconstruction.float() - target.float()).abs().mean()


def l2(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference over everything, in float32."""
    return (reconstruction.float() - target.float()).square().mean()


@dataclass(frozen=True)
class ReconstructionConfig:
    """Weights of the pixel losses; Prologue (arXiv 2605.06137) uses L1 alone."""

    l1: float = 1.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        if self.l1 < 0 or self.l2 < 0:
            raise UsageError(f"reconstruction: the weights l1 = {self.l1} and l2 = {self.l2} need to be >= 0")

    def build(self) -> Reconstruction:
        """The loss; it has no parameters."""
        return Reconstruction(self)


class Reconstruction(nn.Module):
    """The pixel losses whose weight is not zero, and their weighted sum."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, reconstruction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images ``[B, C, H, W]`` -> ``l1`` and ``l2`` (each unweighted, absent at weight 0) and the weighted ``total``."""
        terms = {}
        total = torch.zeros((), device=reconstruction.device)
        if self.config.l1:
            terms["l1"] = l1(reconstruction, target)
            total = total + self.config.l1 * terms["l1"]
        if self.config.l2:
            terms["l2"] = l2(reconstruction, target)
            total = total + self.config.l2 * terms["l2"]
        return {**terms, "total": total}
