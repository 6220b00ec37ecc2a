"""A causal transformer in the form it is sampled in: constants computed once, matrices laid out for few rows.

While sampling, weights are constant and a step has few rows, so a step costs what it takes to read the weights. On a
CPU, matrices are therefore stored in the blocked order that oneDNN likes best for that number of rows. An accelerator
gains nothing from it: there the product is ``F.linear``. Query, key and value are one matrix; norm scales and gates,
functions of the constant condition, are vectors.

There are two ways through the blocks. A *pass* takes any number of new positions and looks at exactly what the cache
holds. A *step* takes one, and what changes from step to step is in tensors: shapes stay those of a bucket of the cache,
so that a step can be compiled, and captured as a graph on an accelerator.

A packed form is a snapshot: make one for every generation. Packing takes about as long as three steps; remembering it
would double the memory of an idle model and go stale without a trace when weights are written through ``.data``.

Shapes: N batch rows, L new positions, D channels, H heads, E channels of a head, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overture.nn.kv_cache import KVCache, attend_bucket
from overture.nn.norm import rms_normalize
from overture.nn.rope import Rotary
from overture.nn.transformer import Block, BlockScales, OutputHead, Transformer

__all__ = ["TILE", "PackedHead", "PackedLinear", "PackedTransformer", "can_pack"]

TILE = 1024
"""Rows of an output matrix that are packed together: what a position with fewer ids computes in vain, at most."""

GRAPHS = 64
"""So many forms of a step may be compiled."""

BACKEND = "inductor"
"""What compiles a step."""


class PackedLinear:
    """A constant linear map ``[N, L, D] -> [N, L, O]`` in type ``dtype``, made for one new position (L = 1) at a time.

    The blocked order is that of oneDNN's 1 x 1 convolution over N pixels, which reads the weights up to 1.4 times as
    fast as its linear layer. It depends on N, and a product in another's order is very slow: the matrix is packed when
    the first rows come, and again when their number changes. Passes over several positions are rare and take the
    matrix as it is, so it is kept. Without ``pack`` it is never packed: a compiler cannot read blocked tensors.
    """

    def __init__(
        self, weight_OD: Tensor, bias_O: Tensor | None = None, *, dtype: torch.dtype, pack: bool = True
    ) -> None:
        self.dtype = dtype
        self.bias = None if bias_O is None else bias_O.detach().to(dtype)
        self.weight = weight_OD.detach().to(dtype)
        self.packs = pack and can_pack(self.weight)
        self.rows = 0
        """The number of rows that ``packed`` is for."""

    def __call__(self, x_NLD: Tensor) -> Tensor:
        """The map of ``x``, in ``dtype``."""
        x_NLD = x_NLD.to(self.dtype)
        if not self.packs or x_NLD.shape[1] != 1:
            return F.linear(x_NLD, self.weight, self.bias)
        if len(x_NLD) != self.rows:
            self._pack(len(x_NLD))
        pixels = x_NLD.permute(1, 2, 0)[..., None]
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            pixels, self.packed, self.bias, [0, 0], [1, 1], [1, 1], 1, "none", [], ""
        )
        return out[..., 0].permute(2, 0, 1)

    def _pack(self, rows: int) -> None:
        image = [1, self.weight.shape[1], rows, 1]
        kernel = self.weight[:, :, None, None].contiguous()
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(kernel, [0, 0], [1, 1], [1, 1], 1, image)
        self.rows = rows


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has a blocked order for this matrix here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or weight.numel() == 0:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Stores new keys and values and mixes what their queries may see: three ``[N, L, H, E]`` to one."""


class PackedTransformer:
    """A causal transformer that takes new positions and finds the earlier ones in a cache.

    ``dtype`` is the type of matrices and their inputs; norms, rotary and the residual stream are float32, as they are
    under autocast in training. There is no dropout, whatever the mode of the module. With ``compiled`` the blocks of a
    step are one compiled function.
    """

    def __init__(self, transformer: Transformer, rotary: Rotary, dtype: torch.dtype, *, compiled: bool = False) -> None:
        scales = transformer.scales(transformer.condition.constant())
        self.blocks = [
            PackedBlock(block, scale, dtype, pack=not compiled)  # type: ignore[arg-type]
            for block, scale in zip(transformer.blocks, scales, strict=True)
        ]
        # Positions come first, then the two axes that queries and keys have between position and channel.
        self.rotary = Rotary(rotary.cos[:, None, None], rotary.sin[:, None, None])
        self.places = torch.arange(len(rotary.cos), device=rotary.cos.device)
        self.block_step = compiled_block_step(BACKEND) if compiled else block_step

    def __call__(self, x_NLD: Tensor, cache: KVCache, rows: slice, start: int) -> Tensor:
        """A pass: float32 ``[N, L, D] -> [N, L, D]`` for positions ``start`` to ``start + L`` of batch ``rows``."""
        part = slice(start, start + x_NLD.shape[1])
        turns = Rotary(self.rotary.cos[part], self.rotary.sin[part])
        for layer, block in enumerate(self.blocks):
            x_NLD = block(x_NLD, turns, functools.partial(cache.attend, layer, rows, start))
        return x_NLD

    def step(self, x_N1D: Tensor, cache: KVCache, rows: slice, position_1: Tensor, length: int) -> Tensor:
        """A step: float32 ``[N, 1, D] -> [N, 1, D]`` for the position in a tensor ``[1]``, which is below ``length``.

        Only the first ``length`` positions of the cache are read.
        """
        turns = Rotary(*(part.index_select(0, position_1) for part in self.rotary))
        visible_M = self.places[:length] <= position_1
        for layer, block in enumerate(self.blocks):
            key, value = cache.data[layer, :, rows, :length]
            x_N1D = self.block_step(block, x_N1D, turns, key, value, visible_M, position_1)
        return x_N1D


class PackedBlock:
    """One block of a :class:`PackedTransformer`."""

    def __init__(self, block: Block, scales: BlockScales, dtype: torch.dtype, *, pack: bool) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        linear = functools.partial(PackedLinear, dtype=dtype, pack=pack)
        self.scales, self.heads = scales, attention.heads
        # One product instead of two: the input is read once, and each call has a fixed cost.
        self.query_key_value = linear(torch.cat([attention.query.weight, attention.key_value.weight]))
        self.query_key_norm = torch.stack([attention.query_norm.weight, attention.key_norm.weight])[:, None]
        self.mix = linear(attention.output.weight, attention.output.bias)
        self.widen = linear(feed_forward.input.weight, feed_forward.input.bias)
        self.narrow = linear(feed_forward.output.weight, feed_forward.output.bias)

    def __call__(self, x_NLD: Tensor, turns: Rotary, attend: Attend) -> Tensor:
        return self.feed_forward(self.attention(x_NLD, turns, attend))

    def attention(self, x_NLD: Tensor, turns: Rotary, attend: Attend) -> Tensor:
        y_NLD = rms_normalize(x_NLD, self.scales.attention_norm)
        y_NL3HE = self.query_key_value(y_NLD).unflatten(-1, (3, self.heads, -1))
        # Query and key share their norm and their rotation: both at once, in float32 as in training.
        query, key = turns.apply(rms_normalize(y_NL3HE[:, :, :2].float(), self.query_key_norm)).unbind(2)
        mixed_NLHE = attend(query, key, y_NL3HE[:, :, 2])
        return torch.addcmul(x_NLD, self.scales.attention_gate, self.mix(mixed_NLHE.flatten(2)).float())

    def feed_forward(self, x_NLD: Tensor) -> Tensor:
        value, gate = self.widen(rms_normalize(x_NLD, self.scales.feed_forward_norm)).chunk(2, dim=-1)
        branch = self.narrow(value * F.gelu(gate, approximate="tanh"))
        return torch.addcmul(x_NLD, self.scales.feed_forward_gate, branch.float())


def block_step(
    block: PackedBlock,
    x_N1D: Tensor,
    turns: Rotary,
    key_NMHE: Tensor,
    value_NMHE: Tensor,
    visible_M: Tensor,
    position_1: Tensor,
) -> Tensor:
    """One block at one position: a function of tensors alone, the same for all blocks and all positions of a bucket."""
    attend = functools.partial(attend_bucket, key_NMHE, value_NMHE, visible_M, position_1)
    return block(x_N1D, turns, attend)


@functools.cache
def compiled_block_step(backend: str) -> Callable[..., Tensor]:
    """:func:`block_step`, compiled once for all blocks; a break in its graph is an error.

    Priors of other sizes, types and batches are other graphs of it, of which torch would allow eight.
    """
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(getattr(config, name), GRAPHS))
    return torch.compile(block_step, fullgraph=True, backend=backend)


class PackedHead:
    """The last norm and the output matrix, float32, for whatever range of outputs a step asks for.

    A packed matrix cannot be sliced, so it is packed in tiles, and a step runs the tiles that its range touches.
    """

    def __init__(self, head: OutputHead, condition: Tensor, *, pack: bool = True) -> None:
        self.scale_D = head.norm(condition)
        self.weight = head.projection.weight.detach().float()
        self.bias = None if head.projection.bias is None else head.projection.bias.detach().float()
        self.tiles: list[PackedLinear] = []
        if pack and can_pack(self.weight):
            for start in range(0, len(self.weight), TILE):
                tile = slice(start, start + TILE)
                bias = None if self.bias is None else self.bias[tile]
                self.tiles.append(PackedLinear(self.weight[tile], bias, dtype=torch.float32))

    def __call__(self, x_ND: Tensor, outputs: slice) -> Tensor:
        """``[N, D] -> [N, outputs]`` for a slice with both ends given."""
        x_ND = rms_normalize(x_ND.float(), self.scale_D)
        if not self.tiles:
            return F.linear(x_ND, self.weight[outputs], None if self.bias is None else self.bias[outputs])
        first, last = outputs.start // TILE, (outputs.stop - 1) // TILE
        logits = torch.cat([tile(x_ND[:, None])[:, 0] for tile in self.tiles[first : last + 1]], dim=-1)
        return logits[:, outputs.start - first * TILE : outputs.stop - first * TILE]
