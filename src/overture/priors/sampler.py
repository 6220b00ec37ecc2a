"""Sampling from a prior: one preallocated cache, and only the work a step needs.

At every position only the output rows that the layout allows are computed. Where the guidance scale is 1 the
unconditional half is not run; it catches up in one pass when a later step needs it. Separators are not sampled: the
layout leaves them one id.

Shapes: B images, L sequence positions, D channels, S ids a position may hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from overture.errors import UsageError
from overture.nn.attention import KVCache
from overture.nn.packed import PackedHead, PackedTransformer
from overture.priors.guidance import Guidance
from overture.priors.model import Prior

__all__ = ["generate", "restrict", "step_temperatures"]


def generate(
    prior: Prior,
    class_ids: Tensor | Sequence[int],
    *,
    guidance: Guidance | float | None = None,
    temperature: float | Mapping[str, float] = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prefix: Tensor | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sample sequences ``[B, L]`` for ``class_ids`` ``[B]``.

    ``temperature`` is one number or one per segment name. ``top_k`` 0 and ``top_p`` 1 keep all ids; ``top_k`` 1 is
    greedy. ``prefix`` ``[B, P]`` or ``[P]`` holds sequence ids to continue. ``generator`` makes the result
    reproducible for a given batch. ``dtype`` is the type of the transformer's matrices and of the cache; the output
    head stays float32. The mode of the module does not matter: there is no dropout here.
    """
    with torch.inference_mode():
        run = _Run(prior, class_ids, Guidance.of(guidance).scales(prior.layout), dtype)
        temperatures = step_temperatures(prior, temperature)
        if top_k < 0 or not 0 < top_p <= 1:
            raise UsageError(f"sampling: top_k is {top_k} (needs >= 0), top_p is {top_p} (needs 0 < top_p <= 1)")
        given = run.set_prefix(prefix)
        for step in range(given, prior.layout.sequence_length if run.batch else 0):
            position = prior.layout.positions[step]
            if position.high - position.low == 1:
                run.sequence[:, step] = position.low
                continue
            logits_BS = run.logits(step)
            if temperatures[step] != 1:
                logits_BS = logits_BS / temperatures[step]
            if top_k == 1:
                choice = logits_BS.argmax(dim=-1)
            else:
                probability = restrict(logits_BS, top_k, top_p).softmax(dim=-1)
                choice = torch.multinomial(probability, 1, generator=generator)[:, 0]
            run.sequence[:, step] = choice + position.low
    return run.sequence.clone()  # outside of inference mode: a tensor that training may use


def step_temperatures(prior: Prior, temperature: float | Mapping[str, float]) -> list[float]:
    """The temperature of every sequence position."""
    layout = prior.layout
    named = dict.fromkeys(layout.names, temperature) if isinstance(temperature, int | float) else dict(temperature)
    by_segment = [1.0] * len(layout.segments)
    for name, value in named.items():
        if not value > 0:
            raise UsageError(f"temperature is {value}, needs > 0 (for the likeliest id at every step use top_k 1)")
        by_segment[layout.index(name)] = float(value)
    return [by_segment[position.segment] for position in layout.positions]


def restrict(logits_BS: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with all but the ``top_k`` largest, then all outside the ``top_p`` nucleus, set to -inf.

    Exactly ``top_k`` survive, ties or not. The nucleus is the smallest set of likeliest ids whose probability reaches
    ``top_p``; of equally likely ids the lower one comes first.
    """
    if 0 < top_k < logits_BS.shape[-1]:
        largest = logits_BS.topk(top_k, dim=-1)
        logits_BS = torch.full_like(logits_BS, -torch.inf).scatter(-1, largest.indices, largest.values)
    if top_p < 1:
        ordered, order = logits_BS.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(dim=-1)
        outside = probability.cumsum(dim=-1) - probability >= top_p
        logits_BS = logits_BS.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits_BS


class _Run:
    """One batch on its way through the sequence: rows 0..B are conditional, rows B..2B unconditional."""

    def __init__(
        self, prior: Prior, class_ids: Tensor | Sequence[int], scales: Sequence[float], dtype: torch.dtype | None
    ) -> None:
        device = prior.token_embedding.weight.device
        self.prior, self.scales = prior, scales
        self.classes = torch.as_tensor(class_ids, dtype=torch.long, device=device).reshape(-1)
        prior.check_classes(self.classes)
        self.batch, self.guided = len(self.classes), any(scale != 1 for scale in scales)
        length = prior.layout.sequence_length
        self.sequence = torch.zeros(self.batch, length, dtype=torch.long, device=device)
        if self.guided:
            self.classes = torch.cat([self.classes, torch.full_like(self.classes, prior.unconditional)])
        dtype = dtype or prior.token_embedding.weight.dtype
        if not dtype.is_floating_point:
            raise UsageError(f"sampling: dtype is {dtype}, needs a floating-point type")
        self.transformer = PackedTransformer(prior.transformer, prior.rotary, dtype)
        self.head = PackedHead(prior.head, prior.transformer.condition.constant())
        size = prior.config.transformer
        self.cache = KVCache(
            size.depth, len(self.classes), size.heads, length, size.head_dim, dtype=dtype, device=device
        )
        self.filled = [0, 0]
        """Positions in the cache of the conditional and of the unconditional half."""

    def set_prefix(self, prefix: Tensor | None) -> int:
        """Put given ids at the front; returns how many."""
        if prefix is None:
            return 0
        layout = self.prior.layout
        prefix = torch.as_tensor(prefix, device=self.sequence.device)
        prefix = prefix.expand(self.batch, -1) if prefix.ndim == 1 else prefix
        if prefix.ndim != 2 or prefix.shape[0] != self.batch or prefix.shape[1] > layout.sequence_length:
            raise UsageError(
                f"prefix is {list(prefix.shape)}, needs [{self.batch}, at most {layout.sequence_length}] ids"
            )
        if prefix.dtype.is_floating_point:
            raise UsageError(f"prefix holds {str(prefix.dtype)[6:]} numbers, needs integer ids of the sequence view")
        for step, position in enumerate(layout.positions[: prefix.shape[1]]):
            column = prefix[:, step]
            if ((column < position.low) | (column >= position.high)).any():
                raise UsageError(f"prefix: position {step} holds an id outside {position.low}..{position.high - 1}")
        self.sequence[:, : prefix.shape[1]] = prefix
        return prefix.shape[1]

    def logits(self, step: int) -> Tensor:
        """Guided logits of the ids that position ``step`` may hold, ``[B, S]`` float32."""
        position, scale = self.prior.layout.positions[step], self.scales[step]
        x_ND = self._outputs(step, both=scale != 1)
        logits_NS = self.head(x_ND, slice(position.low, position.high))
        if scale == 1:
            return logits_NS
        conditional, unconditional = logits_NS.split(self.batch)
        return scale * conditional + (1 - scale) * unconditional

    def _outputs(self, step: int, *, both: bool) -> Tensor:
        """Run every half that is needed up to input position ``step``; its outputs there, ``[B or 2B, D]``."""
        if not both:
            return self._advance(0, slice(0, self.batch), step)
        if self.filled[0] == self.filled[1]:
            self.filled[1] = step + 1
            return self._advance(0, slice(0, 2 * self.batch), step)
        first = self._advance(0, slice(0, self.batch), step)
        return torch.cat([first, self._advance(1, slice(self.batch, 2 * self.batch), step)])

    def _advance(self, half: int, rows: slice, step: int) -> Tensor:
        start = self.filled[half]
        x_NLD = self.transformer(self._embed(rows, start, step + 1), self.cache, rows, start)
        self.filled[half] = step + 1
        return x_NLD[:, -1]

    def _embed(self, rows: slice, start: int, end: int) -> Tensor:
        """Input embeddings of positions ``start`` to ``end``: the class at 0, then the tokens before each position."""
        repeats = (rows.stop - rows.start) // self.batch
        tokens = self.prior.token_embedding(self.sequence[:, max(start - 1, 0) : end - 1].repeat(repeats, 1))
        if start == 0:
            tokens = torch.cat([self.prior.class_embedding(self.classes[rows])[:, None], tokens], dim=1)
        return tokens.float()
