"""Reads anyone's tokens: our token files, and integer arrays in ``.npy`` and ``.npz`` files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import cast

import numpy as np
from numpy.typing import NDArray

from overture.data.npz import ArrayEntry, array_entries, read_array
from overture.data.token_files import MAGIC, TokenFile
from overture.errors import OvertureError, UsageError
from overture.files import near_path
from overture.layout import Layout

__all__ = ["LoadedIds", "load_ids"]

KEYS = ("ids", "tokens", "arr_0")
LABEL_KEYS = ("labels", "arr_1")


@dataclass(frozen=True)
class LoadedIds:
    """Token ids ``[N, T]`` in the integer type of the file (a memory map where the file allows one: ids at the size of
    ImageNet are not read twice), with the labels ``[N]`` and the layout where the file has them."""

    ids: NDArray[np.integer]
    labels: NDArray[np.int64] | None = None
    layout: Layout | None = None


def load_ids(path: Path | str, crop: int | None = None) -> LoadedIds:
    """The ids in a token file (of one ``crop`` of every image: the central one unless told), a ``.npy`` or a ``.npz`` file.

    In an ``.npz``: the array called ``ids``, ``tokens`` or ``arr_0``, else the only 2-D array of integers; labels are
    the array called ``labels`` or ``arr_1``, when it has one integer per row.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise UsageError(f"no file '{path}'{near_path(path)}") from None
    except OSError as error:
        raise OvertureError(f"{path}: cannot read it ({error.strerror})") from error
    if start == MAGIC:
        tokens = TokenFile.open(path)
        crop = tokens.central_crop if crop is None else crop
        if not 0 <= crop < tokens.crops:
            raise UsageError(f"{path}: no crop {crop}, it has {tokens.crops} (counted from 0)")
        return LoadedIds(tokens.stored[:, crop], tokens.labels, tokens.layout)
    if start[:6] == b"\x93NUMPY":
        return LoadedIds(_check(path, "the array", _mapped(path)))
    if start[:4] == b"PK\x03\x04":
        return _from_archive(path, array_entries(path))
    raise OvertureError(f"{path}: neither a token file nor a .npy or .npz file")


def _mapped(path: Path) -> NDArray[np.generic]:
    """The array of a ``.npy`` file, of which only what is asked for is read."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, RecursionError, TokenError) as error:
        raise OvertureError(f"{path}: cannot read it ({' '.join(str(error).split())})") from error


def _from_archive(path: Path, entries: dict[str, ArrayEntry]) -> LoadedIds:
    matrices = [key for key, entry in entries.items() if len(entry.shape) == 2 and entry.dtype.kind in "iu"]
    known = next((key for key in KEYS if key in entries), None)
    if known is None and len(matrices) > 1:
        raise OvertureError(
            f"{path}: {len(matrices)} matrices of integers ({', '.join(matrices)}); call the one of token ids '{KEYS[0]}'"
        )
    if known is None and not matrices:
        shapes = ", ".join(f"{key} {entry.dtype} {entry.shape}" for key, entry in entries.items())
        raise OvertureError(f"{path}: no 2-D array of integers here, only {shapes or 'nothing'}")
    name = known or matrices[0]
    ids = _check(path, name, read_array(entries[name]))
    for key in LABEL_KEYS:
        entry = entries.get(key)
        if entry is not None and entry.shape == ids.shape[:1] and entry.dtype.kind in "iu":
            return LoadedIds(ids, read_array(entry).astype(np.int64))
    return LoadedIds(ids)


def _check(path: Path, name: str, array: NDArray[np.generic]) -> NDArray[np.integer]:
    if array.dtype.kind not in "iu":
        raise OvertureError(f"{path}: {name} is {array.dtype}, token ids are integers")
    if array.ndim != 2 or 0 in array.shape:
        raise OvertureError(f"{path}: {name} has shape {array.shape}, needs [images, positions]")
    ids = cast(NDArray[np.integer], array)
    if ids.dtype.kind == "i" and int(ids.min()) < 0:
        row, column = np.argwhere(ids < 0)[0]
        raise OvertureError(
            f"{path}: {name} holds {ids[row, column]} at row {row}, position {column}; ids count from 0"
        )
    return ids
