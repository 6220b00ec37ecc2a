"""Self-attention, and the one key-value cache.

Shapes: B batch, L positions, D channels, H heads, E channels of a head, N layers, M positions the cache can hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.nn.norm import RMSNorm
from overture.nn.rope import Rotary

__all__ = ["Attention", "KVCache", "KVSlot"]


class KVCache:
    """Keys and values of every layer, allocated once: ``[N, 2, B, H, M, E]``."""

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.data = torch.zeros(layers, 2, batch, heads, length, head_dim, dtype=dtype, device=device)

    def slot(self, layer: int, rows: slice, start: int) -> KVSlot:
        """The part of one layer that the given batch rows use, with ``start`` positions already filled."""
        return KVSlot(self.data[layer, :, rows], start)


class KVSlot:
    """One layer's keys and values ``[2, B, H, M, E]``, and how many positions are filled."""

    def __init__(self, data: Tensor, start: int) -> None:
        self.data, self.start = data, start

    def append(self, key_BHLE: Tensor, value_BHLE: Tensor) -> tuple[Tensor, Tensor]:
        """Store new positions; return all keys and values so far, as views."""
        end = self.start + key_BHLE.shape[2]
        self.data[0, :, :, self.start : end] = key_BHLE
        self.data[1, :, :, self.start : end] = value_BHLE
        return self.data[0, :, :, :end], self.data[1, :, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and rotary positions (spec section 3).

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

    def forward(self, x_BLD: Tensor, rotary: Rotary, slot: KVSlot | None = None) -> Tensor:
        """Mix positions. With a cache slot, ``x_BLD`` holds only the new positions, and ``rotary`` their factors."""
        query = rotary.apply(self.query_norm(self._heads(self.query(x_BLD))))
        key, value = self.key_value(x_BLD).chunk(2, dim=-1)
        key = rotary.apply(self.key_norm(self._heads(key)))
        value = self._heads(value)
        if slot is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        else:
            key, value = slot.append(key.to(slot.data.dtype), value.to(slot.data.dtype))
            query = query.to(key.dtype)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=_causal_mask(query, key))
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _causal_mask(query_BHLE: Tensor, key_BHLE: Tensor) -> Tensor | None:
    """Which keys each new position may see; ``None`` for a single new position, which sees all."""
    new, total = query_BHLE.shape[2], key_BHLE.shape[2]
    if new == 1:
        return None
    return torch.ones(new, total, dtype=torch.bool, device=query_BHLE.device).tril(total - new)
