"""Self-attention, and the one key-value cache.

Shapes: B batch, L positions, D channels, H heads, E channels of a head, N layers, M positions the cache can hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.nn.norm import RMSNorm
from overture.nn.rope import Rotary

__all__ = ["Attention", "KVCache"]


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

    def attend(
        self, layer: int, rows: slice, start: int, query_BLHE: Tensor, key_BLHE: Tensor, value_BLHE: Tensor
    ) -> Tensor:
        """Store the positions from ``start`` on, and let their queries look at all positions so far, ``[B, L, H, E]``.

        ``rows`` are the batch rows of the cache that the arguments belong to.
        """
        end = start + key_BLHE.shape[1]
        key, value = self.data[layer, :, rows, :, :end]
        key[:, :, start:] = key_BLHE.transpose(1, 2)
        value[:, :, start:] = value_BLHE.transpose(1, 2)
        query = query_BLHE.transpose(1, 2).to(key.dtype)
        mask = None
        if end - start > 1:  # a single new position sees everything
            mask = torch.ones(end - start, end, dtype=torch.bool, device=key.device).tril(start)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


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

    def forward(self, x_BLD: Tensor, rotary: Rotary) -> Tensor:
        """Mix positions, ``[B, L, D] -> [B, L, D]``."""
        query = rotary.apply(self.query_norm(self._heads(self.query(x_BLD))))
        key, value = self.key_value(x_BLD).chunk(2, dim=-1)
        key = rotary.apply(self.key_norm(self._heads(key)))
        value = self._heads(value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
