"""What every quantizer offers, whatever its codes are. A new one is a config and a module, see docs/extending.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import UsageError
from overture.processes import Processes
from overture.registry import OpenList

__all__ = ["Quantized", "Quantizer", "QuantizerConfig"]


@dataclass(frozen=True)
class QuantizerConfig:
    """The settings of a quantizer; ``build`` makes it. Subclasses are frozen dataclasses too."""

    components: ClassVar[OpenList] = OpenList(
        "quantizer",
        {
            "vector": "overture.quantizers.vector:VectorConfig",
            "soft": "overture.quantizers.vector:SoftConfig",
            "lookup-free": "overture.quantizers.lookup_free:LookupFreeConfig",
            "finite-scalar": "overture.quantizers.finite_scalar:FiniteScalarConfig",
        },
        kind="overture.quantizers.quantizer:QuantizerConfig",
    )

    def build(self, dim: int, sizes: Sequence[int]) -> Quantizer:
        """Make the module for encoder outputs of ``dim`` channels and these codebook sizes, one per position."""
        raise NotImplementedError


class Quantized(NamedTuple):
    """A quantizer's answer in training: ids ``[B, L]``, codes ``[B, L, Z]`` that carry gradient, the scalar loss."""

    ids: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """Turns encoder outputs ``[B, L, D]`` into ids ``[B, L]`` with ``id < sizes[l]``, and ids into codes ``[B, L, Z]``.

    ``sizes`` gives the codebook size of every position: all equal for a plain codebook, growing for VCQ. A subclass
    says what :meth:`forward` and :meth:`codes` do.
    """

    def __init__(self, dim: int, z_dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        if not sizes:
            raise UsageError("a quantizer needs at least one position")
        self.sizes, self.z_dim = tuple(sizes), z_dim
        self.projection = nn.Linear(dim, z_dim)
        nn.init.trunc_normal_(self.projection.weight, std=0.02)
        nn.init.zeros_(self.projection.bias)

    def project(self, features_BLD: Tensor) -> Tensor:
        """Encoder outputs in the space of the codes, ``[B, L, Z]`` float32 whatever the autocast."""
        with torch.autocast(features_BLD.device.type, enabled=False):
            return self.projection(features_BLD.float())

    def forward(self, features_BLD: Tensor) -> Quantized:
        """Quantize for training."""
        raise NotImplementedError

    def codes(self, ids_BL: Tensor) -> Tensor:
        """The code vectors ``[B, L, Z]`` of ids ``[B, L]``."""
        raise NotImplementedError

    def encode(self, features_BLD: Tensor) -> Tensor:
        """Ids only."""
        return self(features_BLD).ids

    def embed(self, features_BLD: Tensor, ids_BL: Tensor, rows_KD: Tensor) -> Tensor:
        """A prior's input embeddings of these tokens, ``rows[ids]`` ``[B, L, D]``: constants to the encoder, unless
        the quantizer is soft in the backward pass."""
        return F.embedding(ids_BL, rows_KD)

    def maintain(self, seed: int, step: int, processes: Processes = Processes()) -> int | Tensor:
        """Housekeeping after an optimizer step (reviving dead codes); returns how many codes it moved.

        That number may lie on an accelerator: whoever looks at it waits.
        """
        return 0
