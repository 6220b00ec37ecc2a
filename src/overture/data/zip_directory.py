"""The members of a zip file as arrays: two million of them, as in Kaggle's ImageNet, are read in seconds.

``zipfile`` makes an object of every member, a gigabyte of them; here each takes 33 bytes.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from overture.data.base import CorruptImage
from overture.errors import OvertureError

__all__ = ["MAX_MEMBER", "Members", "read_directory"]

MAX_MEMBER, MAX_RATIO = 2**29, 50
"""Bytes of an image file, packed or not: 512 MB; and how many times its size one may unpack to, beyond 64 MB."""

_LOCAL_HEADER = struct.Struct("<4s2xH18xHH")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = np.dtype([
    ("magic", "S4"), ("made", "<u2"), ("needs", "<u2"), ("flags", "<u2"), ("method", "<u2"), ("time", "<u4"),
    ("checksum", "<u4"), ("stored", "<u4"), ("size", "<u4"), ("name", "<u2"), ("extra", "<u2"), ("comment", "<u2"),
    ("disk", "<u2"), ("inner", "<u2"), ("outer", "<u4"), ("offset", "<u4"),
])  # fmt: skip
_FULL = 0xFFFFFFFF


@dataclass(frozen=True)
class Members:
    """Where the members of a zip lie: arrays ``[N]`` in the order of its directory."""

    offsets: NDArray[np.int64]
    """Of their headers."""
    stored: NDArray[np.int64]
    """Bytes in the file."""
    sizes: NDArray[np.int64]
    """Bytes when unpacked."""
    methods: NDArray[np.uint16]
    flags: NDArray[np.uint16]
    checksums: NDArray[np.uint32]

    def at(self, places: NDArray[np.int64]) -> Members:
        """Some of them."""
        return Members(*(getattr(self, field.name)[places] for field in fields(self)))

    def check(self, file: Path, names: Sequence[str]) -> None:
        """Refuse members that are no images: by what the directory says of them, before anything is unpacked."""
        plain = self.methods == zipfile.ZIP_STORED
        most = np.where(plain, self.stored, np.maximum(2**26, MAX_RATIO * self.stored))
        wrong = (self.stored > file.stat().st_size - self.offsets) | (plain & (self.sizes != self.stored))
        wrong |= self.sizes > np.minimum(most, MAX_MEMBER)
        if wrong.any():
            odd = int(wrong.argmax())
            raise OvertureError(
                f"{file}/{names[odd]}: {self.sizes[odd]:,} bytes from {self.stored[odd]:,}, more than the file can "
                "hold or than an image takes; zip the images again"
            )
        locked = (self.flags & 1) != 0
        if (strange := locked | ~(plain | (self.methods == zipfile.ZIP_DEFLATED))).any():
            odd = int(strange.argmax())
            how = "encrypted" if locked[odd] else "compressed with an unusual method"
            raise OvertureError(f"{file}/{names[odd]} is {how}: zip the images again, stored or deflated")

    def check_names(self, file: Path, names: Sequence[str], places: Sequence[int]) -> None:
        """Refuse a directory in which a damaged name hides an image: names of ``places`` that differ beside the data."""
        try:
            with file.open("rb") as handle:
                for place in places:
                    handle.seek(int(self.offsets[place]))
                    _, flags, name_length, _ = _LOCAL_HEADER.unpack(handle.read(_LOCAL_HEADER.size))
                    if not _same_name(handle.read(name_length), flags, names[place]):
                        raise OvertureError(f"{file}: damaged ({names[place]} is called otherwise beside its data)")
        except (OSError, ValueError, struct.error) as error:
            raise OvertureError(f"{file}: cannot read this zip file ({error})") from error

    def read(self, handle: BinaryIO, index: int, name: str, where: str) -> bytes:
        """Member ``index``, called ``name``, unpacked; raises :class:`CorruptImage` where it is damaged."""
        handle.seek(int(self.offsets[index]))
        header = handle.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise CorruptImage(f"{where}: damaged zip entry (no header)")
        _, flags, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if not _same_name(handle.read(name_length), flags, name):
            raise CorruptImage(f"{where}: damaged zip entry (the file calls it otherwise)")
        handle.seek(extra_length, os.SEEK_CUR)
        data = handle.read(int(self.stored[index]))
        if self.methods[index] == zipfile.ZIP_DEFLATED:
            try:
                # No more than the file says of itself: a small member may unpack to gigabytes.
                data = zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(data, int(self.sizes[index]) + 1)
            except zlib.error as error:
                raise CorruptImage(f"{where}: damaged zip entry (cannot decompress)") from error
        if len(data) != self.sizes[index] or zlib.crc32(data) != self.checksums[index]:
            raise CorruptImage(f"{where}: damaged zip entry (wrong checksum)")
        return data


def read_directory(file: Path) -> tuple[list[str], Members]:
    """The names of all members of a zip file, folders too, and where they lie."""
    try:
        with file.open("rb") as handle:
            data, shift, length = _directory_bytes(handle)
        places, lengths = _places(data)
        packed = bytearray().join(data[start : start + _ENTRY.itemsize] for start in places)
        table = np.frombuffer(packed, _ENTRY)
        starts = [place + _ENTRY.itemsize for place in places]
        names = [
            _text(data[start : start + length], flags)
            for start, length, flags in zip(starts, lengths, table["flags"].tolist(), strict=True)
        ]
        sizes, stored, offsets = (table[key].astype(np.int64) for key in ("size", "stored", "offset"))
        extras_at = np.array(starts, np.int64) + lengths
        _read_large(data, extras_at, table["extra"], sizes, stored, offsets)
        offsets += shift
        if len(names) and (min(offsets.min(), stored.min(), sizes.min()) < 0 or offsets.max() >= length):
            raise zipfile.BadZipFile("members lie outside of the file")
    except (OSError, ValueError, zipfile.BadZipFile, struct.error) as error:
        raise OvertureError(f"{file}: cannot read this zip file ({error})") from error
    return names, Members(
        offsets, stored, sizes, table["method"].copy(), table["flags"].copy(), table["checksum"].copy()
    )


def _directory_bytes(handle: BinaryIO) -> tuple[bytes, int, int]:
    """The directory, how far the members lie behind where it says (other data may stand before a zip), and the length."""
    length = handle.seek(0, os.SEEK_END)
    tail_start = max(length - _END.size - 0xFFFF, 0)
    handle.seek(tail_start)
    tail = handle.read()
    found = tail.rfind(b"PK\x05\x06", 0, max(len(tail) - _END.size + 4, 0))
    if found < 0:
        raise zipfile.BadZipFile("File is not a zip file")
    _, disk, first_disk, _, count, size, offset, _ = _END.unpack_from(tail, found)
    end = tail_start + found
    handle.seek(max(end - _LOCATOR.size, 0))
    locator = handle.read(_LOCATOR.size)
    if locator[:4] == b"PK\x06\x07":
        # The record lies right before its locator; the place that the locator tells is wrong in a zip with a preface.
        end -= _LOCATOR.size + _END_64.size
        handle.seek(max(end, 0))
        magic, _, _, _, disk, first_disk, _, count, size, offset = _END_64.unpack(handle.read(_END_64.size))
        if magic != b"PK\x06\x06":
            raise zipfile.BadZipFile("its large end record is damaged")
    if disk or first_disk:
        raise zipfile.BadZipFile("it is one of several parts")
    shift = end - size - offset
    if shift < 0 or count * _ENTRY.itemsize > size:
        raise zipfile.BadZipFile("its directory lies outside of the file")
    handle.seek(offset + shift)
    return handle.read(size), shift, length


def _places(data: bytes) -> tuple[list[int], list[int]]:
    """Where the entries of a directory begin, and how long their names are."""
    places, names, lengths = [], [], struct.Struct("<HHH")
    start, fixed, end = 0, _ENTRY.itemsize, len(data)
    while start < end:
        if data[start : start + 4] != b"PK\x01\x02":
            raise zipfile.BadZipFile("its directory is damaged")
        name, extra, comment = lengths.unpack_from(data, start + 28)
        places.append(start)
        names.append(name)
        start += fixed + name + extra + comment
    if start != end:
        raise zipfile.BadZipFile("its directory ends early")
    return places, names


def _read_large(
    data: bytes,
    extras_at: NDArray[np.int64],
    extras: NDArray[np.uint16],
    sizes: NDArray[np.int64],
    stored: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> None:
    """Replace what does not fit into 32 bits by what the extra field of its entry holds."""
    large = np.flatnonzero((sizes == _FULL) | (stored == _FULL) | (offsets == _FULL))
    for place in large.tolist():
        at = int(extras_at[place])
        end = at + int(extras[place])
        while at + 4 <= end:
            kind, length = struct.unpack_from("<HH", data, at)
            if kind == 1:
                break
            at += 4 + length
        else:
            raise zipfile.BadZipFile("a size of 64 bits is missing")
        at += 4
        for values in (sizes, stored, offsets):
            if values[place] == _FULL:
                if at + 8 > end:
                    raise zipfile.BadZipFile("a size of 64 bits is missing")
                value = struct.unpack_from("<Q", data, at)[0]
                if value >= 2**63:
                    raise zipfile.BadZipFile("a size is larger than any file")
                values[place], at = value, at + 8


def _text(name: bytes, flags: int) -> str:
    return name.decode("utf-8" if flags & 0x800 or name.isascii() else "cp437")


def _same_name(stored: bytes, flags: int, name: str) -> bool:
    """Whether the name beside the data is the one in the directory of the zip: no checksum covers it."""
    return stored.decode("utf-8" if flags & 0x800 else "cp437", "replace") == name
