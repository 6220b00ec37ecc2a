"""The transformer that encoder, decoder and prior share ("Prologue", arXiv 2605.06137; docs/prologue.md, section 3).

Norm scales and residual gates are linear maps of a condition vector. Tokenizer and prior only ever run it with the
unconditional class (the prior's class enters as its first token), so the condition is a constant: it is computed once
per forward and never per position; sampling folds it into the weights (:mod:`overture.nn.packed`).

Shapes: B batch, L positions, D channels, C condition channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from overture.errors import UsageError
from overture.nn.attention import Attention
from overture.nn.norm import ConditionalScale, RMSNorm, rms_normalize
from overture.nn.rope import Rotary

__all__ = [
    "BlockScales",
    "OutputHead",
    "Recompute",
    "Transformer",
    "TransformerConfig",
    "fresh_queries",
    "initialize",
    "set_recompute",
]

Recompute = Literal["nothing", "elementwise", "blocks"]
"""What a block computes again in the backward pass instead of keeping it: nothing; norms, rotations, gates and
activation functions, while the results of matrix products and of attention are kept; or everything."""

PRODUCTS = {
    getattr(torch.ops.aten, name).default
    for name in (
        "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(torch.ops.aten, name)
}  # fmt: skip
"""The operations whose results ``elementwise`` recomputation keeps, for they are most of a block's work."""


Init = Literal["released", "fan-in"]


@dataclass(frozen=True)
class TransformerConfig:
    """Size of a transformer. ``ratio`` is the feed-forward width over ``dim``, before gating.

    ``gate`` is where the gates of the residual branches start (with bias only). At 0, as in the release, blocks pass on
    what they get, so that learned queries start out the same for every image; at 1 they depend on it from the start.

    ``init`` is the deviation of fresh linear weights: ``released`` 0.02 whatever the width, made for widths of 768 and
    more; ``fan-in`` 1 / sqrt(inputs), and learned queries of deviation 1, as large as what stands beside them. A 1D tokenizer
    of width 64 needs fewer batches with the second (docs/experiments/codebooks.md); 2D tokenizers and priors get worse.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    ratio: float = 8 / 3
    condition_dim: int = 32
    gate: float = 0.0
    init: Init = "released"

    def __post_init__(self) -> None:
        if self.dim < 1 or self.depth < 1 or self.heads < 1 or self.condition_dim < 1:
            raise UsageError("transformer: dim, depth, heads and condition_dim need to be at least 1")
        if max(self.dim, self.condition_dim) > 2**16 or self.depth > 2**10 or not 0 < self.ratio <= 64:
            raise UsageError(
                f"transformer: dim {self.dim}, condition_dim {self.condition_dim}, depth {self.depth}, ratio {self.ratio}; "
                "at most 65536, 65536, 1024 and 64"
            )
        if self.init not in get_args(Init):
            raise UsageError(f"transformer: init is '{self.init}', needs to be {' or '.join(get_args(Init))}")
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UsageError(f"transformer: dim {self.dim} over {self.heads} heads does not give an even head size")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        """Channels inside the feed-forward."""
        return round(self.dim * self.ratio)

    def build(self, num_classes: int, *, bias: bool, causal: bool = False, dropout: float = 0.0) -> Transformer:
        """Make the module, with fresh weights."""
        return Transformer(self, num_classes, bias=bias, causal=causal, dropout=dropout)


class BlockScales(NamedTuple):
    """What one block takes from the condition: ``[D]`` each, or ``[B, 1, D]`` under condition dropout."""

    attention_norm: Tensor
    attention_gate: Tensor
    feed_forward_norm: Tensor
    feed_forward_gate: Tensor


class Condition(nn.Module):
    """The condition vector of the unconditional class: gelu(rmsnorm(Linear(one-hot))), ``[C]``.

    The matrix has a column for every class and one (the last) for "unconditional", as in the released weights.
    """

    def __init__(self, num_classes: int, condition_dim: int, dropout: float) -> None:
        super().__init__()
        self.classes = nn.Linear(num_classes + 1, condition_dim)
        self.norm = RMSNorm(condition_dim)
        self.dropout = dropout

    def forward(self, batch: int) -> Tensor:
        """``[C]``; under dropout ``[B, 1, C]``, for each sample has its own."""
        if not (self.training and self.dropout):
            return self.constant()
        return self._activate(F.dropout(self._unconditional().expand(batch, 1, -1), self.dropout))

    def constant(self) -> Tensor:
        """``[C]`` without dropout, in training or not."""
        return self._activate(self._unconditional())

    def _unconditional(self) -> Tensor:
        return self.classes.weight[:, -1] + self.classes.bias

    def _activate(self, vector: Tensor) -> Tensor:
        return F.gelu(self.norm(vector), approximate="tanh")


class FeedForward(nn.Module):
    """GEGLU: one projection to twice the hidden width, whose second half gates the first."""

    def __init__(self, dim: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 2 * hidden, bias=bias)
        self.output = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        value, gate = self.input(x_BLD).chunk(2, dim=-1)
        return self.output(value * F.gelu(gate, approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and gated after."""

    def __init__(self, config: TransformerConfig, *, bias: bool, causal: bool, dropout: float) -> None:
        super().__init__()
        dim, condition_dim = config.dim, config.condition_dim
        self.attention_norm = ConditionalScale(condition_dim, dim)
        self.attention = Attention(dim, config.heads, bias=bias, causal=causal)
        self.attention_gate = ConditionalScale(condition_dim, dim, bias=bias)
        self.feed_forward_norm = ConditionalScale(condition_dim, dim)
        self.feed_forward = FeedForward(dim, config.hidden, bias=bias)
        self.feed_forward_gate = ConditionalScale(condition_dim, dim, bias=bias)
        self.dropout = dropout

    def scales(self, condition: Tensor) -> BlockScales:
        return BlockScales(
            self.attention_norm(condition),
            self.attention_gate(condition),
            self.feed_forward_norm(condition),
            self.feed_forward_gate(condition),
        )

    def forward(self, x_BLD: Tensor, scales: BlockScales, rotary: Rotary) -> Tensor:
        branch = self.attention(rms_normalize(x_BLD, scales.attention_norm), rotary)
        x_BLD = x_BLD + F.dropout(scales.attention_gate.to(branch.dtype) * branch, self.dropout, self.training)
        branch = self.feed_forward(rms_normalize(x_BLD, scales.feed_forward_norm))
        return x_BLD + F.dropout(scales.feed_forward_gate.to(branch.dtype) * branch, self.dropout, self.training)


class Transformer(nn.Module):
    """A stack of blocks under one condition vector. Embeddings and output heads belong to whoever uses it."""

    def __init__(
        self, config: TransformerConfig, num_classes: int, *, bias: bool, causal: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute: Recompute = "nothing"
        self.condition = Condition(num_classes, config.condition_dim, dropout)
        self.blocks = nn.ModuleList(
            Block(config, bias=bias, causal=causal, dropout=dropout) for _ in range(config.depth)
        )
        initialize(self, config.init)
        if config.gate:
            if not bias:
                raise UsageError(f"transformer: gates that start at {config.gate} need bias, and this one has none")
            for block in self.blocks:
                for gate in (block.attention_gate, block.feed_forward_gate):
                    nn.init.constant_(gate.bias, config.gate)  # type: ignore[union-attr, arg-type]

    def scales(self, condition: Tensor) -> list[BlockScales]:
        """Every block's scales for a condition from ``self.condition``."""
        return [block.scales(condition) for block in self.blocks]  # type: ignore[operator]

    def forward(self, x_BLD: Tensor, rotary: Rotary, *, condition: Tensor | None = None) -> Tensor:
        """``[B, L, D] -> [B, L, D]``; ``condition`` may be passed by callers who already have it."""
        scales = self.scales(self.condition(len(x_BLD)) if condition is None else condition)
        for block, block_scales in zip(self.blocks, scales, strict=True):
            if self.recompute != "nothing" and torch.is_grad_enabled():
                contexts = _keep_products if self.recompute == "elementwise" else noop_context_fn
                x_BLD = checkpoint(block, x_BLD, block_scales, rotary, use_reentrant=False, context_fn=contexts)
            else:
                x_BLD = block(x_BLD, block_scales, rotary)
        return x_BLD


class TiedProjection(nn.Module):
    """A projection without weights of its own: its matrix is a table of embeddings, which stays the table's parameter."""

    bias = None

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._table = (embedding,)  # in a tuple, so that its weight has one name alone

    @property
    def weight(self) -> Tensor:
        """``[outputs, dim]``."""
        return self._table[0].weight

    def forward(self, x_BLD: Tensor) -> Tensor:
        """``[B, L, D] -> [B, L, outputs]``."""
        return F.linear(x_BLD, self.weight)


class OutputHead(nn.Module):
    """The last norm and the projection to the output, both in float32 whatever the autocast."""

    def __init__(self, config: TransformerConfig, outputs: int, *, bias: bool, weight_scale: float = 1.0) -> None:
        super().__init__()
        self.norm = ConditionalScale(config.condition_dim, config.dim)
        self.projection: nn.Linear | TiedProjection = nn.Linear(config.dim, outputs, bias=bias)
        initialize(self, config.init)
        with torch.no_grad():
            self.projection.weight.mul_(weight_scale)

    def forward(self, x_BLD: Tensor, condition: Tensor) -> Tensor:
        """``[B, L, D] -> [B, L, outputs]``."""
        return self.project(self.normalize(x_BLD, condition))

    def normalize(self, x_BLD: Tensor, condition: Tensor) -> Tensor:
        """The norm alone, ``[B, L, D]``."""
        return rms_normalize(x_BLD.float(), self.norm(condition))

    def project(self, x_BLD: Tensor) -> Tensor:
        """The projection alone."""
        with torch.autocast(x_BLD.device.type, enabled=False):
            return self.projection(x_BLD.float())


def set_recompute(module: nn.Module, recompute: Recompute) -> None:
    """Let all transformers inside ``module`` trade time for the memory of their activations; no number changes."""
    for part in module.modules():
        if isinstance(part, Transformer):
            part.recompute = recompute


def _keep_products() -> Any:
    """Contexts for :func:`checkpoint` under which only :data:`PRODUCTS` are kept."""

    def policy(_: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def fresh_queries(count: int, size: TransformerConfig) -> nn.Parameter:
    """Learned tokens ``[count, D]`` that stand beside embedded ones."""
    return nn.Parameter(torch.randn(count, size.dim) * (0.02 if size.init == "released" else 1.0))


def initialize(module: nn.Module, init: Init = "released") -> None:
    """Truncated normal for linear weights (of deviation 0.02 times 1e-5 where they make scales), zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            usual = init == "released" or isinstance(part, ConditionalScale)
            nn.init.trunc_normal_(part.weight, std=0.02 if usual else part.in_features**-0.5)
            if isinstance(part, ConditionalScale):
                with torch.no_grad():
                    part.weight.mul_(1e-5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
