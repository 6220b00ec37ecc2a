"""The key-value cache of sampling, and attention over it.

Shapes: B batch, L positions, H heads, E channels of a head, N layers, M positions the cache can hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KVCache", "attend_bucket"]

_GROUP = 8
"""Batch rows whose products of query and keys are held at a time on a CPU; many more would leave its cache."""


class KVCache:
    """Keys and values of every layer, allocated once: ``[N, 2, B, M, H, E]``."""

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
        # Zeros: a bucket's unfilled end is multiplied by weights of zero, which would not hide NaN.
        self.data = torch.zeros(layers, 2, batch, length, heads, head_dim, dtype=dtype, device=device)
        rows = torch.arange(min(batch, _GROUP) * length * heads, device=device).view(-1, length, heads)
        self.rows_BHM = rows.transpose(1, 2).contiguous()
        """Where the value of (batch row, head, position) lies among those of a group of rows."""

    def attend(
        self, layer: int, rows: slice, start: int, query_BLHE: Tensor, key_BLHE: Tensor, value_BLHE: Tensor
    ) -> Tensor:
        """Store the positions from ``start`` on, and let their queries look at all positions so far, ``[B, L, H, E]``.

        ``rows`` are the batch rows of the cache that the arguments belong to.
        """
        end = start + key_BLHE.shape[1]
        key, value = self.data[layer, :, rows]
        key[:, start:end] = key_BLHE
        value[:, start:end] = value_BLHE
        query = query_BLHE.to(key.dtype)  # in bfloat16 the cache is, too
        if end - start == 1 and query.device.type == "cpu":
            groups = zip(query.split(_GROUP), key[:, :end].split(_GROUP), value.split(_GROUP), strict=True)
            return torch.cat([_attend_one(*group, self.rows_BHM[: len(group[0]), :, :end]) for group in groups])
        mask = None
        if end - start > 1:  # a single new position sees everything
            mask = torch.ones(end - start, end, dtype=torch.bool, device=key.device).tril(start)
        query, key, value = (part.transpose(1, 2) for part in (query, key[:, :end], value[:, :end]))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def attend_bucket(
    key_BMHE: Tensor,
    value_BMHE: Tensor,
    visible_M: Tensor,
    position_1: Tensor,
    query_B1HE: Tensor,
    new_key_B1HE: Tensor,
    new_value_B1HE: Tensor,
) -> Tensor:
    """Store one position of one layer, and let its query look at the ``visible`` ones among the first M, ``[B, 1, H, E]``.

    Which position it is stands in a tensor ``[1]``, so that the shapes, and the operations, are the same for all
    positions of a bucket. ``key`` and ``value`` are views of a cache's ``data``; they need to be finite everywhere.
    """
    key_BMHE.index_copy_(1, position_1, new_key_B1HE.to(key_BMHE.dtype))
    value_BMHE.index_copy_(1, position_1, new_value_B1HE.to(value_BMHE.dtype))
    query, key, value = (part.transpose(1, 2) for part in (query_B1HE.to(key_BMHE.dtype), key_BMHE, value_BMHE))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible_M[None]).transpose(1, 2)


def _attend_one(query_B1HE: Tensor, key_BLHE: Tensor, value_BMHE: Tensor, rows_BHL: Tensor) -> Tensor:
    """Attention of one query over the first L positions, for a CPU.

    Its matrix products have one row each, for which BLAS is slow (and very slow in bfloat16). Plain products and sums,
    and the weighted sum of table rows that ``embedding_bag`` is, read keys and values about once.
    """
    batch, heads, length = rows_BHL.shape
    head_dim = query_B1HE.shape[-1]
    score_BLH = ((query_B1HE * head_dim**-0.5) * key_BLHE).sum(dim=-1)
    weight_BHL = score_BLH.transpose(1, 2).softmax(dim=-1)
    mixed = F.embedding_bag(
        rows_BHL.reshape(batch * heads, length),
        value_BMHE.view(-1, head_dim),
        per_sample_weights=weight_BHL.reshape(batch * heads, length),
        mode="sum",
    )
    return mixed.view(batch, 1, heads, head_dim)
