"""The entropy instrument: how many bits each token adds to what the tokens before it already say.

N training images hold at most log2 N bits of "which image is it". Once the prefix names the image, every later token
follows from it and a prior can only memorise: the entropy cliff of "Taming the Entropy Cliff" (arXiv 2605.06207).
This file measures where that happens for any token matrix, by the exact plug-in estimate

    H_t = H(x_t | x_<t) = H(x_1 .. x_t) - H(x_1 .. x_t-1),   H(x_1 .. x_t) = log2 N - 1/N * sum of c log2 c

over the counts c of the distinct prefixes. In rows sorted lexicographically a prefix is a run of neighbours, so the
counts of every position can be read off a sort. The rows are sorted by as many columns as fit into one 64-bit key at a
time; rows whose prefix is unique drop out, and groups of equal rows that a key does not split are not sorted again.

Shapes: N rows (images), T positions, C columns of a block, A rows that are still active (their prefix is not unique).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.schedules import predicted_cliff

__all__ = ["CLIFF_SHARES", "ConditionalEntropy", "conditional_entropy", "has_collapsed"]

CLIFF_SHARES = (0.9, 0.95, 0.99)
"""The measured cliff is where the prefix holds this share of the entropy of whole rows: the last of them, where one
number is asked for. It follows the tail (images that are nearly alike are told apart late); the others show how far."""

COLLAPSED_BITS = 1.0
"""Tokens that hold less tell at most two kinds of image apart: their tokenizer has collapsed."""

KEY_BITS = 63  # of an int64 that stays positive
BLOCK_BYTES = 64  # of a row that are read at a time: one cache line
CHUNK_ROWS = 4096  # rows that are transposed at a time: they fit a core's cache


@dataclass(frozen=True, eq=False)
class ConditionalEntropy:
    """What the tokens of ``rows`` images say, position by position. Positions are counted from 1 in both cliffs."""

    bits: np.ndarray
    """``[T]`` float64: H(x_t | x_<t) in bits, plug-in estimate. Never above log2 K_t, and their sum never above log2 N."""
    prefixes: np.ndarray
    """``[T]`` int64: distinct values of x_1 .. x_t, position t included."""
    unique_share: np.ndarray
    """``[T]`` float64: share of the rows whose x_1 .. x_t no other row has."""
    rows: int
    """N."""
    sizes: tuple[int, ...]
    """Codebook size of every position: given, or for all positions the largest id + 1."""
    predicted_cliff: int | None
    """t*: the smallest t with K_1 * .. * K_t >= N (spec: the paper's ceil(log2 N / log2 K)); ``None`` if there is none."""
    per_class: dict[int, ConditionalEntropy] = field(default_factory=dict)
    """The same of each class alone, if labels were given."""

    @property
    def positions(self) -> int:
        """T."""
        return len(self.bits)

    @property
    def log2_n(self) -> float:
        """Bits that name one of N images: the ceiling of ``total_bits``."""
        return math.log2(self.rows)

    @property
    def cumulative_bits(self) -> np.ndarray:
        """``[T]`` float64: H(x_1 .. x_t), the bits of "which image is it" that the first t tokens hold."""
        return np.cumsum(self.bits)

    @property
    def total_bits(self) -> float:
        """Entropy of whole rows: log2 N if no two rows are equal."""
        return float(self.cumulative_bits[-1])

    @property
    def cliff(self) -> int:
        """The measured cliff at 99 % of ``total_bits``, see :meth:`cliff_at`."""
        return self.cliff_at(CLIFF_SHARES[-1])

    def cliff_at(self, share: float) -> int:
        """The smallest t whose first t tokens hold this share of ``total_bits``.

        1 if all rows are equal, as there is nothing to tell apart.
        """
        return int(np.argmax(self.cumulative_bits >= share * self.total_bits)) + 1

    @property
    def cliffs(self) -> dict[str, int]:
        """The measured cliff at 90, 95 and 99 percent."""
        return {f"{share:.0%}": self.cliff_at(share) for share in CLIFF_SHARES}

    @property
    def collapsed(self) -> bool:
        """Whether the tokens tell almost nothing of the images, see :func:`has_collapsed`."""
        return has_collapsed(self.total_bits, self.log2_n)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; per-class results only if there are any, under the class number as text."""
        result: dict[str, Any] = {
            "rows": self.rows,
            "positions": self.positions,
            "conditional_entropy_bits": self.bits.tolist(),
            "cumulative_bits": self.cumulative_bits.tolist(),
            "total_bits": self.total_bits,
            "log2_n": self.log2_n,
            "prefixes": self.prefixes.tolist(),
            "unique_share": self.unique_share.tolist(),
            "cliff": self.cliff,
            "cliffs": self.cliffs,
            "predicted_cliff": self.predicted_cliff,
            "sizes": list(self.sizes),
        }
        if self.per_class:
            result["per_class"] = {str(label): each.to_dict() for label, each in self.per_class.items()}
        return result


def has_collapsed(total_bits: float, log2_n: float) -> bool:
    """Whether tokens that hold so many bits tell almost nothing of images that ``log2_n`` bits tell apart."""
    return total_bits < COLLAPSED_BITS and log2_n >= 2 * COLLAPSED_BITS


def conditional_entropy(
    ids: Any,
    *,
    layout: Layout | None = None,
    sizes: Sequence[int] | int | None = None,
    labels: Any = None,
) -> ConditionalEntropy:
    """Conditional entropy of every position of ``ids`` ``[N, T]``: numpy or torch integers, memory maps, any strides.

    The codebook sizes serve the predicted cliff only: from ``layout``, or ``sizes`` (one per position, or one for
    all), or else one K for all positions, the largest id + 1. ``labels`` ``[N]`` adds the same for each class.

    The estimate is exact for the N rows at hand; it says nothing of rows not seen. Time: about a sort of N keys for
    each 63 bits of ids until the rows are unique. Memory beyond the input: about 200 bytes a row.

    Raises :class:`~overture.errors.OvertureError` for ids that are no integer matrix, are negative or outside their
    codebook, and for labels that do not fit.
    """
    ids_NT = _integers(ids, "ids")
    if ids_NT.ndim != 2 or 0 in ids_NT.shape:
        raise OvertureError(
            f"entropy: ids have shape {list(ids_NT.shape)}, need [N, T] with at least one row and column"
        )
    checked_sizes = _check_sizes(ids_NT, layout, sizes)
    whole = _measure(ids_NT, checked_sizes)
    if labels is None:
        return whole
    labels_N = _integers(labels, "labels")
    if labels_N.shape != ids_NT.shape[:1]:
        raise OvertureError(
            f"entropy: labels have shape {list(labels_N.shape)}, need one for each of {len(ids_NT)} rows"
        )
    for label in np.unique(labels_N):
        whole.per_class[int(label)] = _measure(ids_NT[labels_N == label], checked_sizes)
    return whole


# -- input --------------------------------------------------------------------------------------------------------


def _integers(values: Any, what: str) -> np.ndarray:
    """Numpy or torch, or nested lists -> an array of integers, not copied if it is one."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        if values.is_floating_point() or values.is_complex():
            raise OvertureError(f"entropy: {what} are {values.dtype}, need integers")
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise OvertureError(f"entropy: {what} are no array of integers ({str(error).splitlines()[0]})") from error
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise OvertureError(f"entropy: {what} are {array.dtype}, need integers")
    return array


def _check_sizes(ids_NT: np.ndarray, layout: Layout | None, sizes: Sequence[int] | int | None) -> tuple[int, ...]:
    """The codebook size of every position; refuses ids outside 0 .. K_t - 1."""
    if layout is not None and sizes is not None:
        raise UsageError("entropy: give either a layout or sizes, not both")
    positions = ids_NT.shape[1]
    largest_T = ids_NT.max(axis=0)
    if np.issubdtype(ids_NT.dtype, np.signedinteger) and (smallest_T := ids_NT.min(axis=0)).min() < 0:
        column = int(np.argmax(smallest_T < 0))
        row = int(np.argmax(ids_NT[:, column] < 0))
        raise OvertureError(f"entropy: id {ids_NT[row, column]} at row {row}, position {column} is negative")
    if layout is not None:
        sizes = layout.sizes
    elif sizes is None:
        sizes = int(largest_T.max()) + 1
    result = (sizes,) * positions if isinstance(sizes, int) else tuple(int(size) for size in sizes)
    if len(result) != positions:
        raise OvertureError(f"entropy: ids have {positions} positions, {len(result)} codebook sizes were given")
    if min(result) < 1:
        raise UsageError(f"entropy: codebook size {min(result)}, needs >= 1")
    for column, (largest, size) in enumerate(zip(largest_T.tolist(), result, strict=True)):
        if largest >= size:
            row = int(ids_NT[:, column].argmax())
            raise OvertureError(f"entropy: id {largest} at row {row}, position {column} is outside 0..{size - 1}")
    return result


# -- measurement ----------------------------------------------------------------------------------------------------


def _measure(ids_NT: np.ndarray, sizes: tuple[int, ...]) -> ConditionalEntropy:
    rows, positions = ids_NT.shape
    tally = _Tally(rows, positions)
    _refine(ids_NT, tally)
    before = np.concatenate([[_sum_c_log_c(np.array([rows]))], tally.c_log_c[:-1]])
    return ConditionalEntropy(
        bits=np.maximum(before - tally.c_log_c, 0.0) / rows,
        prefixes=tally.prefixes,
        unique_share=tally.unique / rows,
        rows=rows,
        sizes=sizes,
        predicted_cliff=predicted_cliff(sizes, rows),
    )


class _Tally:
    """What is known of each position. A change at a position holds for all later ones until the next change."""

    def __init__(self, rows: int, positions: int) -> None:
        self.dropped = 0  # rows that were unique and are no longer counted
        self.prefixes = np.empty(positions, dtype=np.int64)
        self.unique = np.empty(positions, dtype=np.int64)
        self.c_log_c = np.empty(positions, dtype=np.float64)
        self.set(0, np.array([rows]))

    def set(self, position: int, counts: np.ndarray) -> None:
        """From ``position`` on the active rows form groups of these sizes."""
        self.prefixes[position:] = self.dropped + len(counts)
        self.unique[position:] = self.dropped + np.count_nonzero(counts == 1)
        self.c_log_c[position:] = _sum_c_log_c(counts)


def _sum_c_log_c(counts: np.ndarray) -> float:
    # By the histogram of the counts: few terms, and the same sum in whatever order the rows came.
    histogram = np.bincount(counts)
    sizes = np.flatnonzero(histogram)
    return float((histogram[sizes] * (sizes * np.log2(sizes))).sum())


def _refine(ids_NT: np.ndarray, tally: _Tally) -> None:
    """Split the rows into groups of equal prefixes, position by position, and tally the groups.

    ``rows_A`` holds the active rows, sorted by prefix; ``group_A`` numbers their groups 0, 1, 2, .. in that order. A
    block of columns is read once; while it is worked on, ``place_A`` says where in it each active row is.
    """
    rows, positions = ids_NT.shape
    columns = max(1, BLOCK_BYTES // ids_NT.dtype.itemsize)
    rows_A, group_A = np.arange(rows), np.zeros(rows if rows > 1 else 0, dtype=np.int64)
    for start in range(0, positions, columns):
        if len(group_A) == 0:
            return
        block_CA = _read_columns(ids_NT, rows_A, start, min(start + columns, positions))
        place_A = np.arange(len(rows_A))
        column = 0
        while column < len(block_CA) and len(group_A):
            key_A, shifts = _pack(group_A, place_A, block_CA[column:])
            slots = _slots_to_sort(group_A, key_A)
            if len(slots):
                # Groups keep their slots: only rows of a group that splits change places, among themselves.
                order = slots[np.argsort(key_A[slots])]
                key_A[slots], place_A[slots] = key_A[order], place_A[order]
                difference = key_A[1:] ^ key_A[:-1]
                for offset, shift in enumerate(shifts):
                    # Two neighbours share a prefix if their keys differ in lower bits only.
                    edges = np.flatnonzero(difference >> shift) + 1
                    counts = np.diff(edges, prepend=0, append=len(key_A))
                    tally.set(start + column + offset, counts)
                repeated = counts > 1  # nothing can split the other groups: they drop out
                tally.dropped += len(counts) - int(np.count_nonzero(repeated))
                place_A = place_A[np.repeat(repeated, counts)]
                group_A = np.repeat(np.arange(np.count_nonzero(repeated)), counts[repeated])
            column += len(shifts)
        rows_A = rows_A[place_A]


def _read_columns(ids_NT: np.ndarray, rows_A: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Columns ``start .. stop`` of some rows, ``[C, A]``: each column contiguous."""
    block_CA = np.empty((stop - start, len(rows_A)), dtype=ids_NT.dtype)
    columns_NC = ids_NT[:, start:stop]
    for first in range(0, len(rows_A), CHUNK_ROWS):
        chunk = slice(first, first + CHUNK_ROWS)
        block_CA[:, chunk] = columns_NC[rows_A[chunk]].T
    return block_CA


def _pack(group_A: np.ndarray, place_A: np.ndarray, block_CA: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Group number and as many columns as fit, highest bits first, in one key per row.

    Also returns, for each column taken, how many bits of the key come after it.
    """
    key_A = group_A.copy()
    free = KEY_BITS - int(group_A[-1]).bit_length()
    widths: list[int] = []
    for column_A in block_CA:
        values_A = column_A[place_A]
        width = int(values_A.max()).bit_length()
        if width > free:
            if widths:
                break
            # One column alone does not fit: huge ids. Their ranks do.
            values_A = np.unique(values_A, return_inverse=True)[1]
            width = int(values_A.max()).bit_length()
        key_A <<= width
        key_A |= values_A.astype(np.int64, copy=False)
        widths.append(width)
        free -= width
    return key_A, [sum(widths[place + 1 :]) for place in range(len(widths))]


def _slots_to_sort(group_A: np.ndarray, key_A: np.ndarray) -> np.ndarray:
    """Slots of the rows whose group holds more than one key."""
    split = (key_A[1:] != key_A[:-1]) & (group_A[1:] == group_A[:-1])
    mixed = np.zeros(int(group_A[-1]) + 1, dtype=np.bool_)
    mixed[group_A[1:][split]] = True
    return np.flatnonzero(mixed[group_A])
