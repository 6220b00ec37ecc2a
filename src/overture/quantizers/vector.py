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
from overture.processes import Processes, placed, widest_float
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
    """Steps since each code was last chosen; only where dead codes are revived, as the two below."""
    by_size_L: Tensor
    """Positions from the largest codebook to the smallest."""
    reaching_K: Tensor
    """How many positions each code belongs to: they are the first of ``by_size_L``."""

    def __init__(self, config: VectorConfig, dim: int, sizes: Sequence[int]) -> None:
        super().__init__(config.z_dim, dim, sizes)
        self.config = config
        self._last: tuple[Tensor, Tensor] | None = None
        if config.revive_after:
            self.register_buffer("idle", torch.zeros(max(sizes), dtype=torch.int32))
            sizes_L, codes = torch.tensor(self.sizes), torch.arange(max(sizes))
            reaching_K = len(sizes_L) - torch.searchsorted(sizes_L.sort().values, codes, right=True)
            self.register_buffer("by_size_L", sizes_L.argsort(descending=True, stable=True), persistent=False)
            self.register_buffer("reaching_K", reaching_K, persistent=False)

    def forward(self, features_BLD: Tensor) -> Quantized:
        z_BLZ, codes_KZ = self.project(features_BLD), self.unit_codes()
        ids_BL = nearest_codes(z_BLZ, codes_KZ, self.sizes)
        chosen_BLZ = F.embedding(ids_BL, codes_KZ)
        self._last = (z_BLZ.detach(), ids_BL) if self.training else None
        loss = self.config.commitment * F.mse_loss(z_BLZ, chosen_BLZ.detach()) + F.mse_loss(chosen_BLZ, z_BLZ.detach())
        return Quantized(ids_BL, z_BLZ + (chosen_BLZ - z_BLZ).detach(), loss)

    @torch.no_grad()
    def maintain(self, seed: int, step: int, processes: Processes = Processes()) -> int | Tensor:
        """Move codes that have been idle for too long onto encoder outputs of the last (global) batch.

        Every process draws the same places from ``(seed, step)`` and sees the outputs of all processes, in rank order,
        so the codebook stays the same on all of them and is what a single process would have made. How many codes
        are dead is known on the device alone: every code gets a place, and the dead ones take it.
        """
        if not self.config.revive_after or self._last is None:
            return 0
        z_BLZ, ids_BL = (processes.gather(part) for part in self._last)
        self.idle += 1
        self.idle.index_fill_(0, ids_BL.flatten(), 0)
        dead_K = self.idle >= self.config.revive_after
        replacements_KZ = self._replacements(z_BLZ, dead_K, seed, step).to(self.codebook.dtype)
        self.codebook.copy_(torch.where(dead_K[:, None], replacements_KZ, self.codebook))
        self.idle.masked_fill_(dead_K, 0)
        return dead_K.sum()

    def _replacements(self, z_BLZ: Tensor, dead_K: Tensor, seed: int, step: int) -> Tensor:
        """For every code an encoder output, drawn among the positions whose codebook reaches it.

        Of R dead codes the i-th takes the drawn numbers i and R + i; what the others get is not used.
        """
        device = z_BLZ.device
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        drawn = torch.rand(2 * len(dead_K), generator=generator, dtype=torch.double)
        drawn = placed(drawn.to(widest_float(device)), device)
        before_K = dead_K.cumsum(dim=0) - dead_K.long()
        place_K = (drawn[before_K] * self.reaching_K).long()
        image_K = (drawn[before_K + dead_K.sum()] * len(z_BLZ)).long().clamp(max=len(z_BLZ) - 1)
        return z_BLZ[image_K, self.by_size_L[torch.minimum(place_K, self.reaching_K - 1)]]


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
