"""Vector quantization on the unit sphere: straight-through for visual tokens, soft-backward for the prologue.

Source: "Prologue" (arXiv 2605.06137), docs/prologue.md, section 5; sizes per position: "Taming the Entropy Cliff" (2605.06207).
Shapes: B images, L positions, D encoder channels, K codes, Z channels of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import UsageError
from overture.processes import Processes
from overture.quantizers.code_search import nearest_codes, soft_lookup
from overture.quantizers.quantizer import Quantized, Quantizer, QuantizerConfig

__all__ = ["SoftConfig", "SoftQuantizer", "VectorConfig", "VectorQuantizer"]


@dataclass(frozen=True)
class VectorConfig(QuantizerConfig):
    """Straight-through vector quantizer.

    ``commitment`` weighs the pull of the encoder towards its code. A code that no position has chosen for
    ``revive_after`` steps is moved onto an encoder output of the batch, one from a position that may use it
    (0: never).
    """

    z_dim: int = 14
    commitment: float = 0.25
    revive_after: int = 0

    def __post_init__(self) -> None:
        if self.z_dim < 1 or self.commitment < 0 or self.revive_after < 0:
            raise UsageError("vector quantizer: needs z_dim >= 1, commitment >= 0 and revive_after >= 0")

    def build(self, dim: int, sizes: Sequence[int]) -> VectorQuantizer:
        """Make the module for encoder outputs of ``dim`` channels."""
        return VectorQuantizer(self, dim, sizes)


class CodebookQuantizer(Quantizer):
    """One shared codebook; position l chooses among its first ``sizes[l]`` entries by the largest dot product."""

    def __init__(self, z_dim: int, dim: int, sizes: Sequence[int]) -> None:
        super().__init__(dim, z_dim, sizes)
        self.codebook = nn.Parameter(torch.randn(max(sizes), z_dim) * z_dim**-0.5)

    def project(self, features_BLD: Tensor) -> Tensor:
        """Encoder outputs as unit vectors ``[B, L, Z]``, float32."""
        return F.normalize(super().project(features_BLD), dim=-1)

    def unit_codes(self) -> Tensor:
        """The codebook as unit vectors ``[K, Z]``."""
        return F.normalize(self.codebook.float(), dim=-1)

    def encode(self, features_BLD: Tensor) -> Tensor:
        return nearest_codes(self.project(features_BLD), self.unit_codes(), self.sizes)

    def codes(self, ids_BL: Tensor) -> Tensor:
        return F.embedding(ids_BL, self.unit_codes())


class VectorQuantizer(CodebookQuantizer):
    """Straight-through: the gradient of a code goes to the encoder output unchanged, codes learn from the loss."""

    idle: Tensor
    """Steps since each code was last chosen; only where dead codes are revived."""

    def __init__(self, config: VectorConfig, dim: int, sizes: Sequence[int]) -> None:
        super().__init__(config.z_dim, dim, sizes)
        self.config = config
        self._last: tuple[Tensor, Tensor] | None = None
        if config.revive_after:
            self.register_buffer("idle", torch.zeros(max(sizes), dtype=torch.int32))

    def forward(self, features_BLD: Tensor) -> Quantized:
        z_BLZ, codes_KZ = self.project(features_BLD), self.unit_codes()
        ids_BL = nearest_codes(z_BLZ, codes_KZ, self.sizes)
        chosen_BLZ = F.embedding(ids_BL, codes_KZ)
        self._last = (z_BLZ.detach(), ids_BL) if self.training else None
        loss = self.config.commitment * F.mse_loss(z_BLZ, chosen_BLZ.detach()) + F.mse_loss(chosen_BLZ, z_BLZ.detach())
        return Quantized(ids_BL, z_BLZ + (chosen_BLZ - z_BLZ).detach(), loss)

    @torch.no_grad()
    def maintain(self, seed: int, step: int, processes: Processes) -> int:
        """Move codes that have been idle for too long onto encoder outputs of the last (global) batch.

        Every process draws the same places from ``(seed, step)`` and sees the outputs of all processes, in rank order,
        so the codebook stays the same on all of them and is what a single process would have made.
        """
        if not self.config.revive_after or self._last is None:
            return 0
        z_BLZ, ids_BL = (processes.gather(part) for part in self._last)
        self.idle += 1
        self.idle[ids_BL.unique()] = 0
        dead = (self.idle >= self.config.revive_after).nonzero().flatten()
        if len(dead):
            self.codebook[dead] = self._replacements(z_BLZ, dead, seed, step).to(self.codebook.dtype)
            self.idle[dead] = 0
        return len(dead)

    def _replacements(self, z_BLZ: Tensor, dead_R: Tensor, seed: int, step: int) -> Tensor:
        """For every dead code an encoder output, drawn among the positions whose codebook reaches it."""
        sizes_L = torch.tensor(self.sizes)
        by_size_L = sizes_L.argsort(descending=True, stable=True)
        reaching_R = (sizes_L[None] > dead_R.cpu()[:, None]).sum(dim=1)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        uniform_2R = torch.rand(2, len(dead_R), generator=generator, dtype=torch.double)
        place_R = by_size_L[(uniform_2R[0] * reaching_R).long()].to(z_BLZ.device)
        image_R = (uniform_2R[1] * len(z_BLZ)).long().to(z_BLZ.device)
        return z_BLZ[image_R, place_R]


@dataclass(frozen=True)
class SoftConfig(QuantizerConfig):
    """The prologue's quantizer: hard code forward, softmax of this ``temperature`` backward, no loss of its own."""

    z_dim: int = 14
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.z_dim < 1 or not self.temperature > 0:
            raise UsageError("soft quantizer: needs z_dim >= 1 and temperature > 0")

    def build(self, dim: int, sizes: Sequence[int]) -> SoftQuantizer:
        """Make the module for encoder outputs of ``dim`` channels."""
        return SoftQuantizer(self, dim, sizes)


class SoftQuantizer(CodebookQuantizer):
    """Codes are chosen as by :class:`VectorQuantizer`; the gradient is that of a softmax over the codes."""

    def __init__(self, config: SoftConfig, dim: int, sizes: Sequence[int]) -> None:
        super().__init__(config.z_dim, dim, sizes)
        self.config = config

    def forward(self, features_BLD: Tensor) -> Quantized:
        z_BLZ, codes_KZ = self.project(features_BLD), self.unit_codes()
        ids_BL = nearest_codes(z_BLZ, codes_KZ, self.sizes)
        chosen_BLZ = soft_lookup(z_BLZ, codes_KZ, codes_KZ, ids_BL, self.sizes, self.config.temperature)
        return Quantized(ids_BL, chosen_BLZ, chosen_BLZ.new_zeros(()))

    def embed(self, features_BLD: Tensor, ids_BL: Tensor, rows_KD: Tensor) -> Tensor:
        """``one_hot @ rows`` ``[B, L, D]``: how the prior's cross-entropy reaches the encoder."""
        z_BLZ, codes_KZ = self.project(features_BLD), self.unit_codes()
        return soft_lookup(z_BLZ, codes_KZ, rows_KD, ids_BL, self.sizes, self.config.temperature)
