"""Where the images of a webdataset tar lie: read once from the tar, then from a small file beside it.

A sample is a ``KEY.jpg`` (or another image) and a ``KEY.cls`` with its label. The index makes a tar what a zip is: images
in any order, so that shuffling and resuming stay exact.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from overture.data.arrangement import SUFFIXES, Names
from overture.data.known_sets import data_root
from overture.data.npz import array_entries, read_array, write_arrays
from overture.data.order import some_of
from overture.data.zip_directory import MAX_MEMBER
from overture.errors import OvertureError

__all__ = ["TarIndex", "open_index"]

BLOCK, MAX_LABEL, MAX_NAME = 512, 256, 2**16
VERSION = 1
_ZIPPED = {b"\x1f\x8b": "gzip -d", b"BZ": "bzip2 -d", b"\xfd7": "xz -d", b"\x28\xb5": "zstd -d"}


@dataclass(frozen=True)
class TarIndex:
    """The images of a tar, in its order."""

    names: Names
    offsets: NDArray[np.int64]
    """Of their bytes ``[N]``."""
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    """Which of the ``words`` is the label of each image ``[N]``."""
    words: tuple[str, ...]
    """The labels that occur, as they are written, sorted."""


def open_index(tar: Path) -> TarIndex:
    """The index of a tar; made where there is none, or only one of another state of the tar.

    It lies beside the tar, or, where nothing may be written there, in ``indexes`` of the data cache.
    """
    beside = tar.with_name(f"{tar.name}.index.npz")
    cached = data_root() / "indexes" / f"{hashlib.sha256(str(tar.absolute()).encode()).hexdigest()[:16]}.npz"
    for path in (beside, cached):
        if path.is_file() and (index := _load(path, tar)) is not None:
            return index
    index = _make(tar)
    for path in (beside, cached):
        with contextlib.suppress(OvertureError):  # without a file the index is made again next time
            _save(path, tar, index)
            break
    return index


def _save(path: Path, tar: Path, index: TarIndex) -> None:
    arrays = {
        "state": _state(tar),
        "heads": _heads(tar, index.offsets),
        "names": np.frombuffer(index.names.joined, np.uint8),
        "lengths": index.names.lengths,
        "offsets": index.offsets,
        "sizes": index.sizes,
        "labels": index.labels,
        "words": np.frombuffer("\n".join(index.words).encode(), np.uint8),
    }
    write_arrays(path, arrays)


def _load(path: Path, tar: Path) -> TarIndex | None:
    """The index in a file; None if it is damaged, or of another state of the tar."""
    try:
        arrays = {key: read_array(entry) for key, entry in array_entries(path).items()}
        lengths, offsets, sizes, labels = (
            arrays[key].astype(np.int64, casting="safe") for key in ("lengths", "offsets", "sizes", "labels")
        )
        names = Names(arrays["names"].tobytes(), np.cumsum(lengths + 1) - 1)
        words = tuple(arrays["words"].tobytes().decode().split("\n"))
        whole = (
            np.array_equal(arrays["state"], _state(tar))
            and len(lengths) == len(offsets) == len(sizes) == len(labels) > 0
            and len(names.joined) == lengths.sum() + len(lengths) - 1
            and min(lengths.min(), offsets.min() - BLOCK, sizes.min(), labels.min()) >= 0
            and sizes.max() <= MAX_MEMBER
            and (offsets + sizes).max() <= arrays["state"][1]
            and labels.max() < len(words)
            and np.array_equal(arrays["heads"], _heads(tar, offsets))
        )
    except (OvertureError, OSError, KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None
    return TarIndex(names, offsets, sizes, labels, words) if whole else None


def _state(tar: Path) -> NDArray[np.int64]:
    """What changes when a tar is written anew."""
    found = tar.stat()
    return np.array([VERSION, found.st_size, found.st_mtime_ns], np.int64)


def _heads(tar: Path, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A hash of the headers before some of the images, for a tar that was changed without its time."""
    state = hashlib.sha256()
    with tar.open("rb") as file:
        for place in some_of(len(offsets), 64).tolist():
            file.seek(int(offsets[place]) - BLOCK)
            state.update(file.read(BLOCK))
    return np.frombuffer(state.digest(), np.uint8)


def _make(tar: Path) -> TarIndex:
    """Read the headers of all members, and the labels."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tar.open("rb") as file:
            for name, offset, size in _members(file, tar):
                folder, slash, base = name.rpartition("/")
                stem, _, kind = base.partition(".")
                key, kind = f"{folder}{slash}{stem}", f".{kind.lower()}"
                if not stem:  # hidden
                    continue
                if kind == ".cls":
                    labels[key] = _label(file, tar, name, offset, size)
                elif kind in SUFFIXES:
                    if key in images:
                        raise OvertureError(f"{tar}: two images of one key ({images[key][0]}, {name})")
                    if size > MAX_MEMBER:
                        raise OvertureError(f"{tar}: {name} is larger than {MAX_MEMBER:,} bytes, which is no image")
                    images[key] = (name, offset, size)
    except OSError as error:
        raise OvertureError(f"{tar}: cannot read this tar file ({error.strerror})") from error
    _check_pairs(tar, images, labels)
    words = sorted(set(labels.values()))
    place = {word: number for number, word in enumerate(words)}
    _, offsets, sizes = zip(*images.values(), strict=True)
    return TarIndex(
        Names.of([name for name, _, _ in images.values()]),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array([place[labels[key]] for key in images], np.int64),
        tuple(words),
    )


def _check_pairs(tar: Path, images: dict[str, tuple[str, int, int]], labels: dict[str, str]) -> None:
    """Refuse a tar in which an image or a label misses the other."""
    if not images or not labels:
        what = f"{len(images)} images and no labels" if images else f"no images and {len(labels)} labels"
        raise OvertureError(f"{tar}: holds {what}; a sample is KEY.jpg (or another image) and KEY.cls")
    for here, other, kind in ((images, labels, "label (.cls)"), (labels, images, "image")):
        alone = [key for key in here if key not in other]
        if alone:
            raise OvertureError(
                f"{tar}: {len(alone)} samples have no {kind}, the first: {alone[0]}; write the tar again"
            )


def _label(file: BinaryIO, tar: Path, name: str, offset: int, size: int) -> str:
    word = _read_at(file, min(size, MAX_LABEL), offset).strip()
    try:
        text = word.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or size > MAX_LABEL or not text.isprintable():
        raise OvertureError(f"{tar}: {name} is no label, but {size:,} bytes; it needs a number or a name")
    return text


def _read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    file.seek(offset)  # Windows
    return file.read(size)


def _members(file: BinaryIO, tar: Path) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of every plain file in a tar (ustar, GNU or pax)."""
    length = os.fstat(file.fileno()).st_size
    start, long_name, long_size = 0, "", -1
    while start + BLOCK <= length:
        head = _read_at(file, BLOCK, start)
        if not head.strip(b"\0"):
            return
        if not start and (tool := _ZIPPED.get(head[:2])):
            raise OvertureError(
                f"{tar}: is compressed, and only a plain tar is read in any order: unpack it with {tool}"
            )
        if sum(head) - sum(head[148:156]) + 256 != _number(head[148:156]):
            raise OvertureError(f"{tar}: {'damaged' if start else 'no tar file'} (no header at byte {start:,})")
        size, kind, offset = _number(head[124:136]), head[156:157], start + BLOCK
        size = long_size if long_size >= 0 and kind not in b"xgLK" else size
        if not 0 <= size <= length - offset:
            raise OvertureError(f"{tar}: ends early, in the member at byte {start:,}; copy it again")
        start = offset + -(-size // BLOCK) * BLOCK
        if kind in (b"L", b"x"):
            if size > MAX_NAME:
                raise OvertureError(f"{tar}: damaged (a name of {size:,} bytes)")
            data = _read_at(file, size, offset)
            if kind == b"L":
                long_name = os.fsdecode(data.rstrip(b"\0"))
            else:
                long_name, long_size = _extended(data, tar)
        elif kind not in (b"g", b"K"):
            if kind in (b"0", b"\0", b"7"):
                yield long_name or _name(head), offset, size
            long_name, long_size = "", -1
    raise OvertureError(f"{tar}: ends early, without the blocks of zeros at its end; copy it again")


def _name(head: bytes) -> str:
    """The name in a header; ustar (not GNU) keeps what is long of it in two parts."""
    name = head[:100].partition(b"\0")[0]
    prefix = head[345:500].partition(b"\0")[0] if head[257:263] == b"ustar\0" else b""
    return os.fsdecode(prefix + b"/" + name if prefix else name)


def _number(field: bytes) -> int:
    """Octal digits, or for sizes of 8 GB and more bytes after a mark; -1 for what is no number."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _extended(data: bytes, tar: Path) -> tuple[str, int]:
    """The name and the size in a pax header (``LENGTH KEY=VALUE`` and a line break); empty and -1 for what it has not."""
    name, size = "", -1
    try:
        while data:
            digits, _, _ = data.partition(b" ")
            length = int(digits)
            key, found, value = data[len(digits) + 1 : length].rstrip(b"\n").partition(b"=")
            if length <= len(digits) or not found:
                raise ValueError
            name = os.fsdecode(value) if key == b"path" else name
            size = int(value) if key == b"size" else size
            data = data[length:]
    except ValueError as error:
        raise OvertureError(f"{tar}: damaged (a header of long names)") from error
    return name, size
