"""Sampling from a prior: one preallocated cache, and only the work a step needs.

At every position only the output rows that the layout allows are computed. Where the guidance scale is 1 the
unconditional half is not run; it catches up in one pass when a later step needs it. Separators are not sampled: the
layout leaves them one id. A batch that does not fit into memory is split.

The draws of an image are a function of (seed, index of the image), so it is the same in a batch of any size, up to the
float rounding of the logits: a draw that falls within rounding of the border between two ids may take either.

Shapes: B images, L sequence positions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import get_args

import torch
from torch import Tensor

from overture.errors import OvertureError, UsageError, nearest
from overture.layout import Layout
from overture.priors.batch_memory import images_that_fit
from overture.priors.decoding import Decoding, Execution, Snapshot
from overture.priors.draws import image_draws
from overture.priors.model import Prior
from overture.priors.sampling import Sampling
from overture.processes import widest_float

__all__ = ["Sampler", "generate", "keep_segments"]


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
    execution: Execution | None = None,
) -> Tensor:
    """Sample sequences ``[B, L]`` for ``class_ids`` ``[B]``: images ``first``, ``first + 1``, ... of a ``seed``.

    The parameters are those of :class:`Sampler` and of its call; for many batches make a sampler once.
    """
    sampler = Sampler(prior, sampling, dtype=dtype, execution=execution)
    return sampler(class_ids, seed=seed, first=first, prefix=prefix, fixed=fixed)


class Sampler:
    """A prior ready to be sampled from, as its weights are now: what is prepared serves all batches.

    ``dtype`` is the type of the transformer's matrices and of the cache; the output head stays float32. The mode of
    the module does not matter: there is no dropout here. ``execution`` is how positions follow each other
    (:data:`overture.priors.decoding.Execution`). If not given, it is ``growing`` on a CPU, and on an accelerator
    ``compiled``, or ``static`` where torch has no compiler for it.
    """

    def __init__(
        self,
        prior: Prior,
        sampling: Sampling = Sampling(),
        *,
        dtype: torch.dtype | None = None,
        execution: Execution | None = None,
    ) -> None:
        dtype = dtype or prior.token_embedding.weight.dtype
        if not dtype.is_floating_point:
            raise UsageError(f"sampling: dtype is {dtype}, needs a floating-point type")
        if execution is not None and execution not in get_args(Execution):
            raise UsageError(f"sampling: no execution '{execution}'{nearest(execution, get_args(Execution))}")
        with torch.inference_mode():
            execution = execution or default_execution(prior.token_embedding.weight.device)
            self.snapshot = Snapshot(prior, sampling, dtype, execution)
        self.most = images_that_fit(prior, guided=self.snapshot.guided, dtype=dtype)
        self.decoding: Decoding | None = None

    def __call__(
        self,
        class_ids: Tensor | Sequence[int],
        *,
        seed: int = 0,
        first: int = 0,
        prefix: Tensor | None = None,
        fixed: Tensor | None = None,
    ) -> Tensor:
        """Sample sequences ``[B, L]`` for ``class_ids`` ``[B]``: images ``first``, ``first + 1``, ... of a ``seed``.

        ``prefix`` ``[B, P]`` or ``[P]`` holds sequence ids to continue. ``fixed`` ``[B, L]`` or ``[L]`` holds ids to
        keep wherever they stand, and -1 where to sample: any subset of positions can be kept and the rest resampled
        (see :func:`keep_segments`).
        """
        with torch.inference_mode():
            given = self._given(class_ids, seed, first, prefix, fixed)
            count = len(given[0])
            size = -(-count // -(-count // (self.most or count))) if count else 1  # the parts are equally large
            batches = zip(*(part.split(size) for part in given), strict=True)
            parts = [self._sample(*batch) for batch in batches] if count else [given[1]]
        return torch.cat(parts).clone()  # outside of inference mode: a tensor that training may use

    @torch.inference_mode()
    def growing(
        self,
        class_ids: Tensor | Sequence[int],
        *,
        seed: int = 0,
        first: int = 0,
        prefix: Tensor | None = None,
        fixed: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """As a call, position by position: the ids ``[B, l]`` so far for l = 1..L; the last are those that a call gives.

        The batch is not split, so it has to fit into memory. One at a time may be under way.
        """
        given = self._given(class_ids, seed, first, prefix, fixed)
        decoding = self._begun(*given)
        for filled in decoding.walk():
            yield decoding.sequence[: len(given[0]), :filled].clone()
        self._check_finite(decoding)

    def _given(
        self, class_ids: Tensor | Sequence[int], seed: int, first: int, prefix: Tensor | None, fixed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a batch is made of, checked: classes ``[B]``, ids to keep ``[B, L]``, draws ``[B, L]``."""
        prior, device = self.snapshot.prior, self.snapshot.device
        classes_B = torch.as_tensor(class_ids, dtype=torch.long, device=device).reshape(-1)
        prior.check_classes(classes_B)
        count, length = len(classes_B), prior.layout.sequence_length
        draws_BL = torch.from_numpy(image_draws(seed, first, count, length)).to(device, widest_float(device))
        return classes_B, kept_ids(prior.layout, count, device, prefix, fixed), draws_BL

    def _sample(self, classes_B: Tensor, fixed_BL: Tensor, draws_BL: Tensor) -> Tensor:
        decoding = self._begun(classes_B, fixed_BL, draws_BL)
        decoding.run()
        self._check_finite(decoding)
        return decoding.sequence[: len(classes_B)].clone()

    def _begun(self, classes_B: Tensor, fixed_BL: Tensor, draws_BL: Tensor) -> Decoding:
        count = len(classes_B)
        decoding = self._decoding(count)
        # A smaller batch than the graphs are of is filled up with its last image; images do not know of each other.
        rows_B = torch.arange(decoding.batch, device=classes_B.device).clamp(max=count - 1)
        decoding.begin(classes_B[rows_B], fixed_BL[rows_B], draws_BL[rows_B])
        return decoding

    def _check_finite(self, decoding: Decoding) -> None:
        if not decoding.finite:
            self.decoding = None  # its cache is not finite either
            raise OvertureError(
                "sampling: the prior's logits are not finite; lower guidance or temperature, or train it again"
            )

    def _decoding(self, count: int) -> Decoding:
        """The last batch's state if it has room for ``count`` images and not twice as much, else a new one."""
        if self.snapshot.execution == "growing":
            return Decoding(self.snapshot, count)
        if self.decoding is None or not count <= self.decoding.batch < 2 * count:
            self.decoding = None  # its memory comes first
            self.decoding = Decoding(self.snapshot, count)
        return self.decoding


def default_execution(device: torch.device) -> Execution:
    """How positions follow each other on a device if nobody says."""
    if device.type != "cuda":
        return "growing"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    able = find_spec("triton") and compiler and torch.cuda.get_device_capability(device) >= (7, 0)
    return "compiled" if able else "static"


def kept_ids(layout: Layout, count: int, device: torch.device, prefix: Tensor | None, fixed: Tensor | None) -> Tensor:
    """The ids to keep, ``[B, L]``, -1 where to sample; refuses ids that a position may not hold."""
    kept_BL = torch.full((count, layout.sequence_length), -1, device=device)
    for name, given in (("prefix", prefix), ("fixed", fixed)):
        if given is None:
            continue
        ids = torch.as_tensor(given, device=device)
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise UsageError(f"{name} is {ids.dtype}, needs integer ids")
        ids = ids.long()
        ids = ids.expand(count, -1) if ids.ndim == 1 else ids
        width = ids.shape[1]
        if ids.shape[0] != count or width > layout.sequence_length:
            raise UsageError(f"{name} is {list(ids.shape)}, needs [{count}, at most {layout.sequence_length}] ids")
        low, high = (
            torch.tensor([getattr(position, end) for position in layout.positions[:width]], device=device)
            for end in ("low", "high")
        )
        wrong = ((ids < low) | (ids >= high)) & ~((ids == -1) & (name == "fixed"))
        if wrong.any():
            step = int(wrong.any(dim=0).nonzero()[0])
            raise UsageError(f"{name}: position {step} holds an id outside {low[step]}..{high[step] - 1}")
        kept_BL[:, :width] = torch.where(ids >= 0, ids, kept_BL[:, :width])
    return kept_BL


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
