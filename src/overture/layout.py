"""The layout: the contract between tokenizer, token files, prior, sampler and analysis.

A layout is an ordered list of segments. Each has a name, the codebook size of every one of its positions (so VCQ is
only a layout whose sizes grow), and whether a separator token follows it. No other module asks "is this Prologue?":
it asks the layout.

Two views of ids:

* *local* ``[N, T]``: each segment counts its ids from 0 and there are no separators. This is what
  ``Tokenizer.encode`` gives and what token files hold.
* *sequence* ``[N, L]``: offsets added and separators put in. This is what the prior sees.

Vocabulary: the **last** segment's ids start at 0, each earlier segment's follow, and the separators come last. The
ids of a plain tokenizer are therefore also the visual ids of a Prologue built on it (as in the released weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from overture.errors import OvertureError, UsageError, nearest
from overture.schedules import predicted_cliff

__all__ = ["Layout", "Position", "Segment"]

MAX_POSITIONS, MAX_SIZE = 2**20, 2**31
"""Of a segment: more than any model has, and few enough that a damaged file cannot ask for all memory."""

Ids = TypeVar("Ids")
"""A numpy array or a torch tensor of integers; what goes in comes out."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens that belong together: name, codebook size of every position, a separator after it or not."""

    name: str
    sizes: tuple[int, ...]
    separator: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.name.isidentifier():
            raise UsageError(f"segment name '{self.name}' must be a plain word")
        if not self.sizes or min(self.sizes) < 1:
            raise UsageError(f"segment '{self.name}' needs at least one position and sizes >= 1")
        if len(self.sizes) > MAX_POSITIONS or max(self.sizes) > MAX_SIZE:
            raise UsageError(
                f"segment '{self.name}' has {len(self.sizes):,} positions of up to {max(self.sizes):,} codes; at most "
                f"{MAX_POSITIONS:,} and {MAX_SIZE:,}"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def codebook_size(self) -> int:
        """Entries of the shared codebook: the largest size."""
        return max(self.sizes)


@dataclass(frozen=True)
class Position:
    """One position of the sequence: the segment it belongs to and the ids ``low <= id < high`` it may hold."""

    segment: int
    step: int
    """Counted from the segment's start; the separator after a segment is step 0 of the next one (docs/prologue.md, section 9)."""
    low: int
    high: int
    is_separator: bool


@dataclass(frozen=True)
class Layout:
    """An ordered list of segments, and everything that follows from it."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        names = [segment.name for segment in self.segments]
        if not names:
            raise UsageError("a layout needs at least one segment")
        if len(set(names)) != len(names):
            raise UsageError(f"a layout's segments need different names, got {', '.join(names)}")
        if self.segments[-1].separator:
            raise UsageError(f"the last segment '{names[-1]}' cannot be followed by a separator")

    @classmethod
    def single(cls, sizes: Sequence[int], name: str = "visual") -> Layout:
        """A layout of one segment."""
        return cls((Segment(name, tuple(sizes)),))

    # -- the local view ---------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the segments, in order."""
        return tuple(segment.name for segment in self.segments)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The codebook size of every local position."""
        return tuple(size for segment in self.segments for size in segment.sizes)

    @property
    def length(self) -> int:
        """T, the number of tokens of an image, separators not counted."""
        return len(self.sizes)

    @property
    def total_bits(self) -> float:
        """Bits an image's tokens can hold."""
        return math.fsum(math.log2(size) for size in self.sizes)

    def cliff(self, images: int) -> int | None:
        """t*: how many tokens (counted from 1) suffice to name each of ``images`` images; ``None`` if all do not."""
        return predicted_cliff(self.sizes, images)

    def index(self, name: str) -> int:
        """The place of the segment called ``name``."""
        if name not in self.names:
            raise UsageError(f"no segment '{name}' in this layout{nearest(name, self.names)}")
        return self.names.index(name)

    def slice(self, name: str) -> slice:
        """Where the segment called ``name`` lies among the local positions."""
        place = self.index(name)
        start = sum(len(segment) for segment in self.segments[:place])
        return slice(start, start + len(self.segments[place]))

    # -- the sequence view ------------------------------------------------------------------------------------------

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """What each segment adds to its local ids: the last segment starts at 0, earlier ones follow it."""
        sizes = [segment.codebook_size for segment in self.segments]
        return tuple(sum(sizes[place + 1 :]) for place in range(len(sizes)))

    @cached_property
    def vocabulary_size(self) -> int:
        """V: codes of all segments, then one id for every separator."""
        return sum(segment.codebook_size for segment in self.segments) + sum(s.separator for s in self.segments)

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """Every position of the sequence in order, with the ids it may hold."""
        return tuple(self._positions())

    def _positions(self) -> Iterator[Position]:
        separator_id = sum(segment.codebook_size for segment in self.segments)
        pending = 0  # 1 while a separator stands as step 0 of the segment that comes next
        for place, (segment, offset) in enumerate(zip(self.segments, self.offsets, strict=True)):
            for step, size in enumerate(segment.sizes, start=pending):
                yield Position(place, step, offset, offset + size, False)
            pending = 0
            if segment.separator:
                yield Position(place + 1, 0, separator_id, separator_id + 1, True)
                separator_id += 1
                pending = 1

    @property
    def sequence_length(self) -> int:
        """L, the number of tokens the prior sees, separators counted."""
        return len(self.positions)

    @cached_property
    def steps_per_segment(self) -> tuple[int, ...]:
        """Sequence steps of each segment, where a separator counts as the first step of the segment it opens."""
        counts = [0] * len(self.segments)
        for position in self.positions:
            counts[position.segment] += 1
        return tuple(counts)

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sequence index of every local position, its offset, and a sequence of separators alone (0 elsewhere)."""
        places = np.array([place for place, position in enumerate(self.positions) if not position.is_separator])
        offsets = np.repeat(self.offsets, [len(segment) for segment in self.segments])
        separators = np.array([position.low if position.is_separator else 0 for position in self.positions])
        return places, offsets, separators

    @cached_property
    def _columns_by_device(self) -> dict[Any, tuple[Any, ...]]:
        return {}

    def _columns_on(self, device: Any) -> tuple[Any, ...]:
        """The same as tensors; copied to a device once, for a copy at every step would wait for an accelerator."""
        import torch

        if device not in self._columns_by_device:
            self._columns_by_device[device] = tuple(torch.as_tensor(part, device=device) for part in self._columns)
        return self._columns_by_device[device]

    def to_sequence(self, ids: Ids) -> Ids:
        """Local ids ``[..., T]`` (numpy or torch) -> sequence ids ``[..., L]``, int64."""
        array: Any = ids
        self._check_width(array, self.length, "local ids")
        if isinstance(array, np.ndarray):
            places, offsets, separators = self._columns
            out = np.broadcast_to(separators, (*array.shape[:-1], self.sequence_length)).copy()
            out[..., places] = array + offsets
            return out  # type: ignore[return-value]
        places, offsets, separators = self._columns_on(array.device)
        filled = separators.expand(*array.shape[:-1], -1).clone()
        filled[..., places] = array.long() + offsets
        return filled

    def from_sequence(self, sequence: Ids) -> Ids:
        """Sequence ids ``[..., L]`` -> local ids ``[..., T]``; the inverse of :meth:`to_sequence`."""
        array: Any = sequence
        self._check_width(array, self.sequence_length, "sequence ids")
        places, offsets, _ = self._columns if isinstance(array, np.ndarray) else self._columns_on(array.device)
        return array[..., places] - offsets

    def check(self, ids: Any, what: str = "ids") -> None:
        """Refuse local ids ``[N, T]`` that this layout does not allow, naming the first offender."""
        array = ids if isinstance(ids, np.ndarray) else ids.detach().cpu().numpy()
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise OvertureError(f"{what} are {array.dtype} of shape {list(array.shape)}, need integers [N, T]")
        self._check_width(ids, self.length, what)
        if len(ids) == 0:
            return
        wrong = (array < 0) | (array >= np.array(self.sizes))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            last = self.sizes[column] - 1
            raise OvertureError(f"{what}: id {array[row, column]} at row {row}, position {column} is outside 0..{last}")

    @staticmethod
    def _check_width(array: Any, width: int, what: str) -> None:
        if array.shape[-1] != width:
            raise OvertureError(f"{what} have {array.shape[-1]} positions, this layout has {width}")

    # -- as data ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A plain form for JSON headers."""
        return {"segments": [{"name": s.name, "sizes": list(s.sizes), "separator": s.separator} for s in self.segments]}

    @classmethod
    def from_dict(cls, data: Any) -> Layout:
        """The inverse of :meth:`to_dict`."""
        try:
            return cls(tuple(Segment(s["name"], tuple(s["sizes"]), bool(s["separator"])) for s in data["segments"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise OvertureError(f"not a layout: {error!r}") from error

    def __str__(self) -> str:
        parts = []
        for segment in self.segments:
            low, high = min(segment.sizes), max(segment.sizes)
            parts.append(f"{len(segment)} {segment.name} tokens of K {low if low == high else f'{low}..{high}'}")
        return " + ".join(parts)
