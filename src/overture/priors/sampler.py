"""Sampling from a prior: one preallocated cache, and only the work a step needs.

At every position only the output rows that the layout allows are computed. Where the guidance scale is 1 the
unconditional half is not run; it catches up in one pass when a later step needs it. Separators are not sampled: the
layout leaves them one id.

The draws of an image are a function of (seed, index of the image), so it is the same in a batch of any size, up to the
float rounding of the logits: a draw that falls within rounding of the border between two ids may take either.

Shapes: B images, L sequence positions, D channels, S ids a position may hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from overture.data.order import generator
from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.nn.kv_cache import KVCache
from overture.nn.packed import PackedHead, PackedTransformer
from overture.priors.model import Prior
from overture.priors.sampling import Sampling

__all__ = ["generate", "keep_segments", "restrict"]


def generate(
    prior: Prior,
    class_ids: Tensor | Sequence[int],
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    first: int = 0,
    prefix: Tensor | None = None,
    fixed: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sample sequences ``[B, L]`` for ``class_ids`` ``[B]``: images ``first``, ``first + 1``, ... of a ``seed``.

    ``prefix`` ``[B, P]`` or ``[P]`` holds sequence ids to continue. ``fixed`` ``[B, L]`` or ``[L]`` holds ids to keep
    wherever they stand, and -1 where to sample: any subset of positions can be kept and the rest resampled (see
    :func:`keep_segments`). ``dtype`` is the type of the transformer's matrices and of the cache; the output head stays
    float32. The mode of the module does not matter: there is no dropout here.
    """
    layout = prior.layout
    with torch.inference_mode():
        run = _Run(prior, class_ids, sampling.guidance.scales(layout), dtype)
        temperatures = sampling.step_temperatures(layout)
        fixed_BL = run.keep(prefix, fixed)
        settled = (fixed_BL >= 0).all(dim=0).tolist()
        draws_BL = torch.from_numpy(image_draws(seed, first, run.batch, layout.sequence_length))
        draws_BL = draws_BL.to(run.sequence.device)
        for step, position in enumerate(layout.positions if run.batch else ()):
            if settled[step]:  # kept in every image: no logits are needed
                run.sequence[:, step] = fixed_BL[:, step]
                continue
            if position.high - position.low == 1:  # a separator, or a codebook of one code
                run.sequence[:, step] = position.low
                continue
            logits_BS = run.logits(step) / temperatures[step]
            run.finite.append(logits_BS.isfinite().all())
            if sampling.top_k == 1:
                choice = logits_BS.argmax(dim=-1)
            else:
                choice = draw(restrict(logits_BS, sampling.top_k, sampling.top_p), draws_BL[:, step])
                choice = choice.clamp(max=position.high - position.low - 1)  # NaN has no id, and is told below
            kept = fixed_BL[:, step]
            run.sequence[:, step] = torch.where(kept >= 0, kept, choice + position.low)
        if run.finite and not torch.stack(run.finite).all():
            raise OvertureError(
                "sampling: the prior's logits are not finite; lower guidance or temperature, or train it again"
            )
    return run.sequence.clone()  # outside of inference mode: a tensor that training may use


def image_draws(seed: int, first: int, count: int, length: int) -> np.ndarray:
    """Numbers in [0, 1) ``[count, length]`` float64: row i is a function of (seed, first + i) alone."""
    if seed < 0:
        raise UsageError(f"seed is {seed}, needs >= 0")
    rows = [generator("sample", seed, first + row).random(length) for row in range(count)]
    return np.stack(rows) if rows else np.empty((0, length))


def draw(logits_BS: Tensor, draws_B: Tensor) -> Tensor:
    """The id at which the cumulative probability passes each draw: an inverse of the distribution function, ``[B]``."""
    double = torch.float32 if logits_BS.device.type == "mps" else torch.float64  # MPS knows no float64
    cumulative_BS = logits_BS.to(double).softmax(dim=-1).cumsum(dim=-1)
    # Scaled to the last sum, which rounding leaves near 1, and below it: ids of probability 0 are never chosen.
    total_B1 = cumulative_BS[:, -1:]
    threshold_B1 = torch.minimum(draws_B.to(double)[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BS, threshold_B1, right=True)[:, 0]


def keep_segments(layout: Layout, ids: Tensor, keep: Mapping[str, Sequence[int] | bool]) -> Tensor:
    """What to pass as ``fixed`` to keep parts of local ids ``[B, T]`` and resample the rest.

    ``keep`` names segments, each with ``True`` (all of it) or the positions of it to keep, counted from 0. "Keep the
    prologue, resample the rest" of an image is ``keep_segments(layout, tokenizer.encode(image), {"prologue": True})``.
    """
    kept_T = torch.zeros(layout.length, dtype=torch.bool)
    for name, which in keep.items():
        part = layout.slice(name)
        positions = range(part.stop - part.start) if isinstance(which, bool) else which
        for position in positions if which is not False else ():
            if not 0 <= position < part.stop - part.start:
                raise UsageError(f"segment '{name}' has no position {position}, it has {part.stop - part.start}")
            kept_T[part.start + position] = True
    sequence_BL = layout.to_sequence(ids)
    kept_L = layout.to_sequence(kept_T.long()[None])[0] - layout.to_sequence(torch.zeros_like(kept_T).long()[None])[0]
    return torch.where(kept_L.to(ids.device) > 0, sequence_BL, -1)


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
        # The probability of all likelier ids: the id that crosses top_p is still inside.
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
        self.finite: list[Tensor] = []
        """Whether the logits of each step were finite; looked at once, for looking waits for an accelerator."""
        self.filled = [0, 0]
        """Positions in the cache of the conditional and of the unconditional half."""

    def keep(self, prefix: Tensor | None, fixed: Tensor | None) -> Tensor:
        """The ids to keep, ``[B, L]``, -1 where to sample; refuses ids that a position may not hold."""
        layout = self.prior.layout
        kept_BL = torch.full_like(self.sequence, -1)
        for name, given in (("prefix", prefix), ("fixed", fixed)):
            if given is None:
                continue
            ids = torch.as_tensor(given, device=self.sequence.device)
            if ids.is_floating_point() or ids.dtype == torch.bool:
                raise UsageError(f"{name} is {ids.dtype}, needs integer ids")
            ids = ids.long()
            ids = ids.expand(self.batch, -1) if ids.ndim == 1 else ids
            width = ids.shape[1]
            if ids.shape[0] != self.batch or width > layout.sequence_length:
                raise UsageError(
                    f"{name} is {list(ids.shape)}, needs [{self.batch}, at most {layout.sequence_length}] ids"
                )
            low, high = (
                torch.tensor([getattr(position, end) for position in layout.positions[:width]], device=ids.device)
                for end in ("low", "high")
            )
            wrong = ((ids < low) | (ids >= high)) & ~((ids == -1) & (name == "fixed"))
            if wrong.any():
                step = int(wrong.any(dim=0).nonzero()[0])
                raise UsageError(f"{name}: position {step} holds an id outside {low[step]}..{high[step] - 1}")
            kept_BL[:, :width] = torch.where(ids >= 0, ids, kept_BL[:, :width])
        return kept_BL

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
        if self.filled[0] == self.filled[1]:  # both halves in one pass: the weights are read once
            self.filled[1] = step + 1
            return self._advance(0, slice(0, 2 * self.batch), step)
        # The unconditional half has been left out at some steps and catches up on them first.
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
