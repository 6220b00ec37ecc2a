"""Arrays in ``.npz`` and ``.npy`` files, read piece by piece: a file of many gigabytes is never held in memory.

Nothing pickled is read. In an array that is stored uncompressed any place is reached at once; a compressed one is read
from its beginning.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from overture.errors import OvertureError
from overture.files import replacing

__all__ = ["ArrayEntry", "array_entries", "read_array", "write_arrays", "zip_entries"]

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LONGEST_END = 22 + 2**16
"""Bytes of the record at the end of a zip, with its comment."""
_FAILURES = (
    ValueError, EOFError, KeyError, TypeError, SyntaxError, OverflowError, RecursionError, NotImplementedError,
    RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error, lzma.LZMAError,
)  # fmt: skip
MAX_UNPACKED = 2**28
MAX_RATIO = 50
"""An array may unpack to 256 MB, or to 50 times its size in the file: what is larger is no data but a trap."""


@dataclass(frozen=True)
class ArrayEntry:
    """Where one array lies, and what it is."""

    file: Path
    member: str
    """Its name in the ``.npz``; empty for a ``.npy`` file."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None
    """Where its first number lies in the file; None when it is compressed."""
    fortran: bool = False
    """Stored column by column."""

    def check(self) -> None:
        """Refuse an array that :meth:`rows` cannot read, and stored bytes that their own checksum denies."""
        with _failures(self.file):
            self._check_form()
            if self.member and self.offset is not None:
                with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as stream:
                    while stream.read(1 << 22):  # compares the checksum at the end
                        pass

    def _check_form(self) -> None:
        if self.fortran:
            raise ValueError("an array is stored column by column; save it again with numpy.ascontiguousarray")
        if self.dtype.hasobject:
            raise ValueError("an array holds Python objects, which are never read")

    def rows(self, start: int, stop: int, step: int) -> Iterator[NDArray[Any]]:
        """Rows ``start .. stop`` in pieces of at most ``step`` rows."""
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with _failures(self.file):
            self._check_form()
        with _failures(self.file), self._open(start * row_bytes) as stream:
            for first in range(start, stop, step):
                count = min(step, stop - first)
                data = stream.read(count * row_bytes)
                if len(data) < count * row_bytes:
                    raise EOFError(f"'{self.member}' ends early")
                yield np.frombuffer(bytearray(data), self.dtype).reshape(count, *self.shape[1:])

    @contextmanager
    def _open(self, skipped: int) -> Iterator[IO[bytes]]:
        """The bytes of the array from the ``skipped``-th on."""
        if self.offset is not None:
            with self.file.open("rb") as stream:
                stream.seek(self.offset + skipped)
                yield stream
            return
        with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as packed:
            _read_header(packed)
            _skip(packed, skipped)
            yield packed


def array_entries(file: Path) -> dict[str, ArrayEntry]:
    """The arrays of a ``.npz`` by name (of a ``.npy``: one, called ``arr_0``), by their headers alone."""
    with _failures(file):
        with file.open("rb") as stream:
            single = stream.read(6) == b"\x93NUMPY"
        if single:
            with file.open("rb") as stream:
                shape, dtype, fortran = _read_header(stream)
                held = file.stat().st_size - stream.tell()
                if not dtype.hasobject and held < math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"holds {held:,} bytes, not its {shape} {dtype}")
                return {"arr_0": ArrayEntry(file, "", shape, dtype, stream.tell(), fortran)}
        entries = {}
        with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
            for info in zip_entries(archive, raw):
                with archive.open(info) as stream:  # compares the name with the one that lies beside the data
                    if not info.filename.endswith(".npy"):
                        continue
                    shape, dtype, fortran = _read_header(stream)
                    header = stream.tell()
                if not dtype.hasobject and info.file_size - header != math.prod(shape) * dtype.itemsize:
                    raise ValueError(
                        f"'{info.filename}' holds {info.file_size - header:,} bytes, not its {shape} {dtype}"
                    )
                if info.file_size > max(MAX_UNPACKED, MAX_RATIO * info.compress_size):
                    raise ValueError(
                        f"'{info.filename}' unpacks {info.compress_size:,} bytes to {info.file_size:,}; save it with "
                        "numpy.savez, which does not compress"
                    )
                offset = None
                if info.compress_type == zipfile.ZIP_STORED:
                    raw.seek(info.header_offset)
                    _, name_length, extra_length = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
                    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length + header
                name = info.filename.removesuffix(".npy")
                entries[name] = ArrayEntry(file, info.filename, shape, dtype, offset, fortran)
        return entries


def zip_entries(archive: zipfile.ZipFile, file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """Everything that a zip holds; refuses a directory of which entries cannot be read any more."""
    found = archive.infolist()
    file.seek(max(0, file.seek(0, io.SEEK_END) - _LONGEST_END))
    end = file.read()
    (told,) = struct.unpack_from("<H", end, end.rfind(b"PK\x05\x06") + 10)
    if told not in (0xFFFF, len(found) % 2**16):  # the first: more than two bytes can count
        raise zipfile.BadZipFile(f"its directory counts {told:,} entries, {len(found):,} can be read")
    return found


def read_array(entry: ArrayEntry) -> NDArray[Any]:
    """The whole array."""
    with _failures(entry.file):
        if entry.dtype.hasobject:
            raise ValueError("an array holds Python objects, which are never read")
        if not entry.member:
            return np.asarray(np.load(entry.file, allow_pickle=False))
        with zipfile.ZipFile(entry.file) as archive, archive.open(entry.member) as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an uncompressed ``.npz``; unlike ``numpy.savez``, the same arrays give the same bytes."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {shape} is negative")
    return shape, dtype, fortran and len(shape) > 1


def _skip(stream: IO[bytes], count: int) -> None:
    while count:
        piece = len(stream.read(min(count, 1 << 22)))
        if not piece:
            raise EOFError("an array ends early")
        count -= piece


@contextmanager
def _failures(file: Path) -> Iterator[None]:
    """Damage of any kind as one line that names the file."""
    try:
        yield
    except OSError as error:
        raise OvertureError(f"{file}: cannot read this file ({error.strerror or error})") from error
    except _FAILURES as error:
        raise OvertureError(f"{file}: not a readable .npz or .npy file ({' '.join(str(error).split())})") from error
