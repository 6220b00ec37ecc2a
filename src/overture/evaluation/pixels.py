"""Images as bytes and as numbers in [-1, 1] (Prologue, section 2 of the spec)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_float", "to_uint8"]


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float, unclamped -> uint8: ``clamp(127.5 * x + 128, 0, 255)``, truncated."""
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)
