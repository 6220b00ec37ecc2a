"""A causal transformer in the form it is sampled in: constants computed once, matrices laid out for few rows.

While sampling, weights are constant and a step has few rows, so a step costs what it takes to read the weights. On a
CPU, matrices are therefore stored in oneDNN's blocked order: for a few rows that is two to three times as fast as
``F.linear``. An accelerator gains nothing from that order: there the product is ``F.linear``. Query, key and value are
one matrix; norm scales and gates, functions of the constant condition, are vectors.

A packed form is a snapshot: make one for every generation. Packing takes about as long as three steps; remembering it
would double the memory of an idle model and go stale without a trace when weights are written through ``.data``.

Shapes: N batch rows, L new positions, D channels, H heads, E channels of a head, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overture.nn.kv_cache import KVCache
from overture.nn.norm import rms_normalize
from overture.nn.rope import Rotary
from overture.nn.transformer import Block, BlockScales, OutputHead, Transformer

__all__ = ["PackedHead", "PackedLinear", "PackedTransformer", "can_pack"]

_TILE = 1024
"""Rows of an output matrix that are packed together: what a position with fewer ids computes in vain, at most."""


class PackedLinear:
    """A constant linear map ``[..., D] -> [..., O]`` in type ``dtype``."""

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None = None, *, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.bias = None if bias_O is None else bias_O.detach().to(dtype)
        self.weight = weight_OD.detach().to(dtype)
        self.packed = can_pack(self.weight)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), None)

    def __call__(self, x: Tensor) -> Tensor:
        """The map of ``x``, in ``dtype``."""
        x = x.to(self.dtype)
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        return F.linear(x, self.weight, self.bias)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has a blocked order for this matrix here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or weight.numel() == 0:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PackedTransformer:
    """A causal transformer that takes new positions and finds the earlier ones in a cache.

    ``dtype`` is the type of matrices and their inputs; norms, rotary and the residual stream are float32, as they are
    under autocast in training. There is no dropout, whatever the mode of the module.
    """

    def __init__(self, transformer: Transformer, rotary: Rotary, dtype: torch.dtype) -> None:
        scales = transformer.scales(transformer.condition.constant())
        self.blocks = [
            PackedBlock(block, scale, dtype)  # type: ignore[arg-type]
            for block, scale in zip(transformer.blocks, scales, strict=True)
        ]
        # A rotation of channel pairs is a product of complex numbers: one operation instead of five.
        self.turns = torch.complex(rotary.cos, rotary.sin)[:, None, None]

    def __call__(self, x_NLD: Tensor, cache: KVCache, rows: slice, start: int) -> Tensor:
        """Float32 ``[N, L, D] -> [N, L, D]`` for positions ``start`` to ``start + L`` of the cache's batch ``rows``."""
        turns = self.turns[start : start + x_NLD.shape[1]]
        for layer, block in enumerate(self.blocks):
            x_NLD = block.attend(x_NLD, turns, cache, layer, rows, start)
            x_NLD = block.feed_forward(x_NLD)
        return x_NLD


class PackedBlock:
    """One block of a :class:`PackedTransformer`."""

    def __init__(self, block: Block, scales: BlockScales, dtype: torch.dtype) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.scales, self.heads = scales, attention.heads
        # One product instead of two: the input is read once, and each call has a fixed cost.
        query_key_value = torch.cat([attention.query.weight, attention.key_value.weight])
        self.query_key_value = PackedLinear(query_key_value, dtype=dtype)
        self.query_key_norm = torch.stack([attention.query_norm.weight, attention.key_norm.weight])[:, None]
        self.mix = PackedLinear(attention.output.weight, attention.output.bias, dtype=dtype)
        self.widen = PackedLinear(feed_forward.input.weight, feed_forward.input.bias, dtype=dtype)
        self.narrow = PackedLinear(feed_forward.output.weight, feed_forward.output.bias, dtype=dtype)

    def attend(self, x_NLD: Tensor, turns: Tensor, cache: KVCache, layer: int, rows: slice, start: int) -> Tensor:
        y_NLD = rms_normalize(x_NLD, self.scales.attention_norm)
        y_NL3HE = self.query_key_value(y_NLD).unflatten(-1, (3, self.heads, -1))
        # Query and key share their norm and their rotation: both at once, in float32 as in training.
        query_key = rms_normalize(y_NL3HE[:, :, :2].float(), self.query_key_norm)
        pairs = torch.view_as_complex(query_key.unflatten(-1, (-1, 2)))
        query, key = torch.view_as_real(pairs * turns).flatten(-2).unbind(2)
        mixed_NLHE = cache.attend(layer, rows, start, query, key, y_NL3HE[:, :, 2])
        return torch.addcmul(x_NLD, self.scales.attention_gate, self.mix(mixed_NLHE.flatten(2)).float())

    def feed_forward(self, x_NLD: Tensor) -> Tensor:
        value, gate = self.widen(rms_normalize(x_NLD, self.scales.feed_forward_norm)).chunk(2, dim=-1)
        branch = self.narrow(value * F.gelu(gate, approximate="tanh"))
        return torch.addcmul(x_NLD, self.scales.feed_forward_gate, branch.float())


class PackedHead:
    """The last norm and the output matrix, float32, for whatever range of outputs a step asks for.

    A packed matrix cannot be sliced, so it is packed in tiles, and a step runs the tiles that its range touches.
    """

    def __init__(self, head: OutputHead, condition: Tensor) -> None:
        self.scale_D = head.norm(condition)
        self.weight = head.projection.weight.detach().float()
        self.bias = None if head.projection.bias is None else head.projection.bias.detach().float()
        self.tiles: list[PackedLinear] = []
        if can_pack(self.weight):
            for start in range(0, len(self.weight), _TILE):
                tile = slice(start, start + _TILE)
                bias = None if self.bias is None else self.bias[tile]
                self.tiles.append(PackedLinear(self.weight[tile], bias, dtype=torch.float32))

    def __call__(self, x_ND: Tensor, outputs: slice) -> Tensor:
        """``[N, D] -> [N, outputs]`` for a slice with both ends given."""
        x_ND = rms_normalize(x_ND.float(), self.scale_D)
        if not self.tiles:
            return F.linear(x_ND, self.weight[outputs], None if self.bias is None else self.bias[outputs])
        first, last = outputs.start // _TILE, (outputs.stop - 1) // _TILE
        logits = torch.cat([tile(x_ND) for tile in self.tiles[first : last + 1]], dim=-1)
        return logits[:, outputs.start - first * _TILE : outputs.stop - first * _TILE]
