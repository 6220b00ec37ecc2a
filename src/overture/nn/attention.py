"""Self-attention.

Shapes: B batch, L positions, D channels, H heads, E channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.nn.norm import RMSNorm
from overture.nn.rope import Rotary

__all__ = ["Attention"]


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and rotary positions (docs/prologue.md, section 3).

    Queries come from one bias-free projection, keys then values from another; per-head RMS norm on queries and keys,
    then rotary, then scaled dot-product attention, then the output projection.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.query_norm = RMSNorm(dim // heads)
        self.key_norm = RMSNorm(dim // heads)
        self.output = nn.Linear(dim, dim, bias=bias)

    def forward(self, x_BLD: Tensor, rotary: Rotary) -> Tensor:
        """Mix positions, ``[B, L, D] -> [B, L, D]``."""
        query, key, value = self._parts(x_BLD, rotary)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def weights(self, x_BLD: Tensor, rotary: Rotary) -> Tensor:
        """How much every position looks at every other one, ``[B, H, L, L]``; rows sum to 1. For pictures."""
        query, key, _ = self._parts(x_BLD, rotary)
        scores_BHLL = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if self.causal:
            later = torch.ones(scores_BHLL.shape[-2:], dtype=torch.bool, device=x_BLD.device).triu(1)
            scores_BHLL = scores_BHLL.masked_fill(later, -torch.inf)
        return scores_BHLL.softmax(dim=-1)

    def _parts(self, x_BLD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, H, L, E]``."""
        query = rotary.apply(self.query_norm(self._heads(self.query(x_BLD))))
        key, value = self.key_value(x_BLD).chunk(2, dim=-1)
        return query, rotary.apply(self.key_norm(self._heads(key))), self._heads(value)

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
