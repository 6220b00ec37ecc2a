"""Codebook usage, position by position: an average over positions hides dead tails (VCQ)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from overture.errors import OvertureError
from overture.layout import Layout
from overture.processes import Processes

__all__ = ["CodebookUsage", "SegmentUsage", "UsageMeter"]


@dataclass(frozen=True)
class SegmentUsage:
    """Usage of one segment: of its shared codebook, and of what each of its positions may use of it."""

    name: str
    used: float
    """Share of the segment's codebook that occurs anywhere."""
    perplexity: float
    """2 to the entropy of the segment's ids, all positions together: how many codes are used as if evenly."""
    used_per_position: tuple[float, ...]
    """Share of its own K_t that occurs at each position."""
    perplexity_per_position: tuple[float, ...]


@dataclass(frozen=True)
class CodebookUsage:
    """Usage of every segment of a layout over ``images`` images."""

    images: int
    segments: tuple[SegmentUsage, ...]

    @property
    def used_per_position(self) -> tuple[float, ...]:
        """Over all local positions, in order."""
        return tuple(value for segment in self.segments for value in segment.used_per_position)

    @property
    def perplexity_per_position(self) -> tuple[float, ...]:
        """Over all local positions, in order."""
        return tuple(value for segment in self.segments for value in segment.perplexity_per_position)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        segments = {
            segment.name: {
                "used": segment.used,
                "perplexity": segment.perplexity,
                "used_per_position": list(segment.used_per_position),
                "perplexity_per_position": list(segment.perplexity_per_position),
            }
            for segment in self.segments
        }
        return {"images": self.images, "segments": segments}


class UsageMeter:
    """Counts every code at every position of a layout, batch by batch."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.images = 0
        # One long row of counters, position after position: K_1 + .. + K_T of them.
        self._starts = np.concatenate([[0], np.cumsum(layout.sizes)])
        self._counts = np.zeros(self._starts[-1], dtype=np.int64)

    def update(self, ids: Any) -> None:
        """Add local ids ``[B, T]``, numpy or torch."""
        self.layout.check(ids, "codebook usage: ids")
        array_BT = ids if isinstance(ids, np.ndarray) else ids.detach().cpu().numpy()
        if array_BT.ndim != 2:
            raise OvertureError(f"codebook usage: ids have shape {array_BT.shape}, need [N, {self.layout.length}]")
        for position, (start, size) in enumerate(zip(self._starts, self.layout.sizes, strict=False)):
            self._counts[start : start + size] += np.bincount(array_BT[:, position], minlength=size)
        self.images += len(array_BT)

    def all_reduce(self, processes: Processes) -> None:
        """Add what all other processes have seen."""
        self.images = int(processes.sum(torch.tensor(self.images)))
        self._counts = processes.sum(torch.from_numpy(self._counts)).numpy()

    def result(self) -> CodebookUsage:
        """Usage of everything seen so far."""
        if self.images == 0:
            raise OvertureError("codebook usage: no ids were given")
        per_position = np.split(self._counts, self._starts[1:-1])
        segments = []
        for segment in self.layout.segments:
            whole = np.zeros(segment.codebook_size, dtype=np.int64)
            rows = per_position[self.layout.slice(segment.name)]
            for counts in rows:
                whole[: len(counts)] += counts
            segments.append(
                SegmentUsage(
                    name=segment.name,
                    used=_used(whole),
                    perplexity=_perplexity(whole),
                    used_per_position=tuple(map(_used, rows)),
                    perplexity_per_position=tuple(map(_perplexity, rows)),
                )
            )
        return CodebookUsage(self.images, tuple(segments))


def _used(counts: np.ndarray) -> float:
    return np.count_nonzero(counts) / len(counts)


def _perplexity(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return math.exp(-float((share * np.log(share)).sum()))
