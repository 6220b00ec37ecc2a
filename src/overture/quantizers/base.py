"""What every quantizer offers, whatever its codes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import UsageError

__all__ = ["Quantized", "Quantizer"]


class Quantized(NamedTuple):
    """A quantizer's answer in training: ids ``[B, L]``, codes ``[B, L, Z]`` that carry gradient, the scalar loss."""

    ids: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """Turns encoder outputs ``[B, L, D]`` into ids ``[B, L]`` with ``id < sizes[l]``, and ids into codes ``[B, L, Z]``.

    ``sizes`` gives the codebook size of every position: all equal for a plain codebook, growing for VCQ.
    """

    z_dim: int

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        if not sizes:
            raise UsageError("a quantizer needs at least one position")
        self.sizes = tuple(sizes)

    def forward(self, features_BLD: Tensor) -> Quantized:
        """Quantize for training."""
        raise NotImplementedError

    def encode(self, features_BLD: Tensor) -> Tensor:
        """Ids only."""
        raise NotImplementedError

    def codes(self, ids_BL: Tensor) -> Tensor:
        """The code vectors ``[B, L, Z]`` of ids ``[B, L]``."""
        raise NotImplementedError

    def embed(self, features_BLD: Tensor, ids_BL: Tensor, rows_KD: Tensor) -> Tensor:
        """A prior's input embeddings of these tokens, ``rows[ids]`` ``[B, L, D]``: constants to the encoder, unless
        the quantizer is soft in the backward pass."""
        return F.embedding(ids_BL, rows_KD)

    def maintain(self, seed: int, step: int) -> int:
        """Housekeeping after an optimiser step (reviving dead codes); returns how many codes it moved."""
        return 0
