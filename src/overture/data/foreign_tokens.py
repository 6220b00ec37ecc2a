"""Tokens of other tokenizers, from ``.npy`` and ``.npz`` files into a token file. Nothing is unpickled.

The file is read twice, a block of rows at a time: to know the ids (their range, a fingerprint), and to write them.
Shapes: N rows, C crops of each, T positions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overture.data.ids import KEYS, LABEL_KEYS
from overture.data.npz import ArrayEntry, array_entries, read_array
from overture.data.token_files import TokenFile, TokenHeader, TokenWriter
from overture.errors import OvertureError, UsageError
from overture.files import near_path
from overture.layout import Layout

__all__ = ["IMPORTED", "ForeignTokens", "check_layout", "default_layout", "import_tokens", "open_foreign"]

IMPORTED = "imported"
"""What a token file's header says in place of the hash of a tokenizer of ours."""

BLOCK_IDS = 2**22
"""Ids that are read, and written, at a time."""
LARGEST_LABEL = 2**24 - 1


@dataclass(frozen=True)
class ForeignTokens:
    """An array of ids ``[N, T]`` or ``[N, C, T]`` and its labels ``[N]`` (0 where there are none), seen through once."""

    entry: ArrayEntry
    labels: NDArray[np.int64]
    labelled: bool
    largest_T: NDArray[np.int64]
    """The largest id of every position."""
    fingerprint: str
    """Of the ids and the labels."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.entry.file

    @property
    def rows(self) -> int:
        """N."""
        return self.entry.shape[0]

    @property
    def crops(self) -> int:
        """C."""
        return self.entry.shape[1] if len(self.entry.shape) == 3 else 1

    @property
    def positions(self) -> int:
        """T."""
        return self.entry.shape[-1]

    def blocks(self) -> Iterator[tuple[range, NDArray[np.integer[Any]]]]:
        """Rows and their ids ``[n, C, T]``, a block at a time."""
        return _blocks(self.entry)


def open_foreign(path: Path | str, array: str = "", labels: str = "") -> ForeignTokens:
    """Find and check the ids (and labels) in a ``.npy`` or ``.npz`` file.

    In an ``.npz``: the array called ``array``, else ``ids``, ``tokens`` or ``arr_0``, else the only one of integers with
    two or three axes. ``labels`` is the name of an array, or a ``.npy`` file; not given, the array called ``labels``,
    or ``arr_1`` if it has one integer per row.

    Raises :class:`~overture.errors.OvertureError` for what are no ids: floats, objects, negative or empty ones, labels of
    another length; :class:`~overture.errors.UsageError` for files and names that are not there.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file '{path}'{near_path(path)}")
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(f"{path}: tokens are read from .npy and .npz files")
    entries = array_entries(path)
    name = array or _found(path, entries)
    if name not in entries:
        raise UsageError(f"{path}: holds no array '{name}', only {_listed(entries)}")
    entry = entries[name]
    where = f"{path}: {name}" if entry.member else str(path)
    if entry.dtype.kind not in "iu":
        kind = "Python objects, which are never read" if entry.dtype.hasobject else str(entry.dtype)
        raise OvertureError(f"{where} holds {kind}; token ids are integers")
    if len(entry.shape) not in (2, 3) or 0 in entry.shape:
        raise OvertureError(f"{where} has shape {entry.shape}, needs [rows, positions] or [rows, crops, positions]")
    entry.check()
    found = _labels(path, entries, labels, entry.shape[0])
    values = np.zeros(entry.shape[0], np.int64) if found is None else found
    largest_T, fingerprint = _see_through(entry, where, values)
    return ForeignTokens(entry, values, found is not None, largest_T, fingerprint)


def default_layout(tokens: ForeignTokens) -> Layout:
    """One segment of K codes at every position: the largest id + 1, rounded up to a power of two."""
    size = 1 << int(tokens.largest_T.max()).bit_length()
    return Layout.single((size,) * tokens.positions, "imported")


def import_tokens(
    tokens: ForeignTokens, layout: Layout, out: Path, *, done: Callable[[int], object] = lambda rows: None
) -> TokenFile:
    """Write a token file; one that was interrupted goes on. ``done`` hears of every block's rows.

    Raises :class:`~overture.errors.OvertureError` for an id that the layout does not allow, with its row and position,
    before anything is written.
    """
    if out.exists() and out.resolve() == tokens.path.resolve():
        raise UsageError(f"--out {out}: is the file that is read")
    check_layout(tokens, layout)
    header = TokenHeader(
        layout, IMPORTED, "center" if tokens.crops == 1 else f"random-{tokens.crops}", tokens.crops, tokens.rows,
        int(tokens.labels.max()) + 1, tokens.path.name, tokens.fingerprint,
    )  # fmt: skip
    writer = TokenWriter(out, header, block=_block(tokens.entry))
    missing = {rows.start for rows in writer.missing()}
    for rows, ids in tokens.blocks():
        if rows.start in missing:
            writer.write(rows, ids, tokens.labels[rows.start : rows.stop])
        done(len(rows))
    return writer.finish()


def check_layout(tokens: ForeignTokens, layout: Layout) -> None:
    """Refuse ids that a layout does not allow, naming the first of them."""
    if layout.length != tokens.positions:
        raise UsageError(f"{tokens.path}: has {tokens.positions} positions, the layout {layout.length}")
    if (tokens.largest_T >= np.array(layout.sizes)).any():
        for rows, ids in tokens.blocks():
            for crop in range(tokens.crops):
                _check_block(tokens, layout, rows, ids, crop)


def _check_block(tokens: ForeignTokens, layout: Layout, rows: range, ids: NDArray[np.integer[Any]], crop: int) -> None:
    """Refuse an id outside its codebook."""
    wrong = ids[:, crop] >= np.array(layout.sizes)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        of_crop = f", crop {crop}" if tokens.crops > 1 else ""
        raise OvertureError(
            f"{tokens.path}: id {ids[row, crop, column]} at row {rows.start + row}{of_crop}, position {column} is outside "
            f"0..{layout.sizes[column] - 1}; every segment counts from 0, and --layout says its sizes"
        )


def _block(entry: ArrayEntry) -> int:
    """Rows of a block: at most 4096, fewer where they are long."""
    return max(1, min(4096, BLOCK_IDS // math.prod(entry.shape[1:])))


def _blocks(entry: ArrayEntry) -> Iterator[tuple[range, NDArray[np.integer[Any]]]]:
    start = 0
    for ids in entry.rows(0, entry.shape[0], _block(entry)):
        yield range(start, start + len(ids)), ids.reshape(len(ids), -1, entry.shape[-1])
        start += len(ids)


def _see_through(entry: ArrayEntry, where: str, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """The largest id of every position, and a fingerprint of all; refuses ids below 0 and beyond all codebooks."""
    state = hashlib.sha256(labels.astype("<i8").tobytes())
    largest_T = np.zeros(entry.shape[-1], np.int64)
    for rows, ids in _blocks(entry):
        for row, crop, column in np.argwhere((ids < 0) | (ids >= 2**31))[:1]:
            value, what = (
                ids[row, crop, column],
                "ids count from 0" if ids[row, crop, column] < 0 else "ids are below 2^31",
            )
            raise OvertureError(f"{where} holds {value} at row {rows.start + row}, position {column}; {what}")
        largest_T = np.maximum(largest_T, ids.max(axis=(0, 1)).astype(np.int64))
        state.update(ids.astype("<u4").tobytes())
    return largest_T, state.hexdigest()[:16]


def _found(path: Path, entries: dict[str, ArrayEntry]) -> str:
    """The name of the ids, where nobody says it."""
    known = next((key for key in KEYS if key in entries), None)
    integers = [key for key, entry in entries.items() if len(entry.shape) in (2, 3) and entry.dtype.kind in "iu"]
    if known is None and len(integers) != 1:
        many = "several arrays could be ids" if integers else "none of its arrays are integers [rows, positions]"
        raise UsageError(f"{path}: {many} ({_listed(entries)}); name one with --array")
    return known or integers[0]


def _labels(path: Path, entries: dict[str, ArrayEntry], labels: str, rows: int) -> NDArray[np.int64] | None:
    """Labels ``[N]``, or None where there are none."""
    if labels in entries and path.suffix == ".npz":
        entry, where = entries[labels], f"{path}: {labels}"
    elif labels:
        if not Path(labels).is_file() or Path(labels).suffix != ".npy":
            raise UsageError(f"--labels {labels}: neither an array of {path} ({_listed(entries)}) nor a .npy file")
        (entry,), where = array_entries(Path(labels)).values(), labels
    else:
        named, plain = (entries.get(key) for key in LABEL_KEYS)
        fits = plain is not None and plain.shape == (rows,) and plain.dtype.kind in "iu"
        if named is None and not fits:
            return None
        entry, where = (named or plain, f"{path}: labels")  # type: ignore[assignment]
    if entry.dtype.kind not in "iu":
        kind = "Python objects, which are never read" if entry.dtype.hasobject else str(entry.dtype)
        raise OvertureError(f"{where} holds {kind}; labels are integers")
    if entry.shape != (rows,):
        raise OvertureError(f"{where} has shape {entry.shape}, needs one label for each of {rows:,} rows")
    values = read_array(entry)
    for row in np.flatnonzero((values < 0) | (values > LARGEST_LABEL))[:1]:
        raise OvertureError(f"{where} holds {values[row]} at row {row}; labels are 0..{LARGEST_LABEL}")
    return values.astype(np.int64)


def _listed(entries: dict[str, ArrayEntry]) -> str:
    return ", ".join(f"{key} {entry.dtype} {list(entry.shape)}" for key, entry in entries.items()) or "nothing"
