"""Image files in folders and zip files: one folder per class, the images right in it."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overture.data.base import CorruptImage, Source, decode_image, digest
from overture.data.order import some_of
from overture.errors import OvertureError, UsageError, near, nearest

__all__ = ["FolderSource", "ZipSource"]

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"
)  # fmt: skip
MAX_MEMBER = 2**29
"""Bytes of an image file, packed or not: 512 MB."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class FolderSource(Source):
    """A folder with one sub-folder per class; classes are sorted by name, numbers in them by their value.

    Not ``labelled``, images may lie anywhere in it, and are all of one class.
    """

    def __init__(self, name: str, root: Path, labelled: bool = True) -> None:
        self.name, self.root = name, root
        try:
            found = sorted(_scan(root, depth=3 if labelled else 10))
        except OSError as error:
            raise OvertureError(f"{error.filename or root}: cannot list this folder ({error.strerror})") from error
        self.classes, self.labels, self._files, self.notes = _arrange(name, found, labelled)

    def read(self, index: int) -> Image.Image:
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_MEMBER + 1)
        except OSError as error:
            raise OvertureError(f"{path}: cannot read this image ({error.strerror})") from error
        if len(data) > MAX_MEMBER:
            raise CorruptImage(f"{path}: is larger than {MAX_MEMBER:,} bytes")
        return decode_image(data, path)

    def path(self, index: int) -> str:
        return str(self.root / os.fsdecode(self._files[index]))

    def fingerprint(self) -> str:
        """Of names, and of sizes and beginnings of some files: two folders that change places are not missed."""
        try:
            paths = [self.root / os.fsdecode(file) for file in self._files]
            sizes = np.array([paths[place].stat().st_size for place in some_of(len(paths), 5000)], np.int64)
            beginnings = []
            for place in some_of(len(paths), 200):
                with paths[place].open("rb") as file:
                    beginnings.append(file.read(2**16))
        except OSError as error:
            raise OvertureError(f"{error.filename}: cannot read this image ({error.strerror})") from error
        return "files-" + digest(b"\n".join(self._files), sizes.data, *beginnings)


class ZipSource(Source):
    """A zip file, or a folder in it, with one sub-folder per class.

    The central directory is read once. Where each image lies is kept in arrays, so that a worker process only opens
    the file again, and a zip of 150 GB costs it nothing. Not ``labelled``, images may lie anywhere in it.
    """

    def __init__(self, name: str, file: Path, folder: str = "", labelled: bool = True) -> None:
        self.name, self.file, self.folder = name, file, folder.strip("/")
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
                listed = archive.namelist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise OvertureError(f"{file}: cannot read this zip file ({error})") from error
        prefix = f"{self.folder}/" if self.folder else ""
        inside = {entry[len(prefix) :] for entry in listed if entry.startswith(prefix)}
        if prefix and not inside:
            folders = {str(Path(member).parent) for member in members} - {"."}
            folders |= {str(parent) for folder in folders for parent in Path(folder).parents} - {"."}
            raise UsageError(f"{name}: no folder '{self.folder}' in {file.name}{_folders(self.folder, folders)}")
        self.classes, self.labels, self._members, self.notes = _arrange(name, sorted(inside), labelled)
        chosen = [members[prefix + os.fsdecode(member)] for member in self._members]
        length = file.stat().st_size
        for info in chosen:
            if info.file_size > MAX_MEMBER or not 0 <= info.compress_size <= length - info.header_offset:
                raise OvertureError(
                    f"{file}/{info.filename}: {info.file_size:,} bytes from {info.compress_size:,}, more than the file can "
                    f"hold or than {MAX_MEMBER:,}; zip the images again"
                )
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = "encrypted" if info.flag_bits & 1 else "compressed with an unusual method"
                raise OvertureError(f"{file}/{info.filename} is {how}: zip the images again, stored or deflated")
        self._offsets = np.array([info.header_offset for info in chosen], np.int64)
        self._stored = np.array([info.compress_size for info in chosen], np.int64)
        self._sizes = np.array([info.file_size for info in chosen], np.int64)
        self._deflated = np.array([info.compress_type == zipfile.ZIP_DEFLATED for info in chosen])
        self._checksums = np.array([info.CRC for info in chosen], np.uint32)
        self._handle: tuple[int, BinaryIO] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def read(self, index: int) -> Image.Image:
        where = self.path(index)
        return decode_image(self._bytes(index, where), where)

    def path(self, index: int) -> str:
        return "/".join(part for part in (str(self.file), self.folder, os.fsdecode(self._members[index])) if part)

    def fingerprint(self) -> str:
        return digest(b"\n".join(self._members), self._sizes.data, self._checksums.data)

    def _bytes(self, index: int, where: str) -> bytes:
        try:
            handle = self._open()
            handle.seek(int(self._offsets[index]))
            header = handle.read(_LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
                raise CorruptImage(f"{where}: damaged zip entry (no header)")
            _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            handle.seek(name_length + extra_length, os.SEEK_CUR)
            data = handle.read(int(self._stored[index]))
        except OSError as error:
            raise OvertureError(f"{self.file}: cannot read this zip file ({error.strerror})") from error
        if self._deflated[index]:
            try:
                # No more than the file says of itself: a small member may unpack to gigabytes.
                data = zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(data, int(self._sizes[index]) + 1)
            except zlib.error as error:
                raise CorruptImage(f"{where}: damaged zip entry (cannot decompress)") from error
        if zlib.crc32(data) != self._checksums[index]:
            raise CorruptImage(f"{where}: damaged zip entry (wrong checksum)")
        return data

    def _open(self) -> BinaryIO:
        """This process's own handle: one inherited over a fork would share its position with the parent."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), self.file.open("rb"))
        return self._handle[1]


def _scan(root: Path, depth: int = 3, prefix: str = "") -> Iterable[str]:
    """Every file down to ``depth`` levels, as a path relative to ``root``; of every folder its path with ``/`` at the end."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_file():  # no pipes, no devices: reading one may wait for ever
                yield prefix + entry.name
            elif entry.is_dir() and depth > 1:
                yield f"{prefix}{entry.name}/"
                yield from _scan(Path(entry.path), depth - 1, f"{prefix}{entry.name}/")


Arrangement = tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.bytes_], tuple[str, ...]]


def _arrange(name: str, files: Sequence[str], labelled: bool) -> Arrangement:
    """Classes, labels, the image files (as bytes) among ``CLASS/IMAGE`` paths, and notes; refuses other arrangements."""
    images = [file for file in files if file.lower().endswith(SUFFIXES) and not _hidden(file)]
    levels = Counter(file.count("/") for file in images)
    if images and not labelled:
        return ("images",), np.zeros(len(images), np.int64), np.array([os.fsencode(file) for file in images]), ()
    if not images:
        kinds = Counter(Path(file).suffix.lower() for file in files if not file.endswith("/") and not _hidden(file))
        here = f"; here are {', '.join(f'{n} {kind}' for kind, n in kinds.most_common(3))} files" if kinds else ""
        raise OvertureError(
            f"{name}: no images here{here}; it needs one folder of images ({', '.join(SUFFIXES[:5])}, ...) per class"
        )
    if not levels[1] and levels[0]:
        raise OvertureError(
            f"{name}: {levels[0]} images lie here without class folders; put them into one folder per class (all into one "
            "folder, if they have no classes)"
        )
    deeper = [file for file in images if file.count("/") > 1]
    if deeper:
        folders = sorted({file.split("/")[0] for file in deeper})
        raise OvertureError(
            f"{name}: {deeper[0]} lies deeper than CLASS/IMAGE, give the folder of the class folders"
            f" (perhaps {' or '.join(f'{name}/{folder}' for folder in folders[:3])})"
        )
    images = [file for file in images if "/" in file]
    classes = sorted({file.split("/")[0] for file in images}, key=natural)
    place = {folder: label for label, folder in enumerate(classes)}
    labels = np.array([place[file.split("/")[0]] for file in images], np.int64)
    # An array of bytes pickles fast and, unlike a list of strings, is not copied by forked workers.
    return tuple(classes), labels, np.array([os.fsencode(file) for file in images]), _left_out(files, place, levels[0])


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by their value: 2 comes before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if place % 2 else (0, part) for place, part in enumerate(parts)]


def _left_out(files: Sequence[str], classes: Container[str], loose: int) -> tuple[str, ...]:
    """What lies beside the classes and is not read."""
    kinds: dict[str, set[str]] = {}
    for file in files:
        folder = file.split("/")[0]
        if "/" in file and folder not in classes and not _hidden(file):
            here = kinds.setdefault(folder, set())
            here |= set() if file.endswith("/") else {Path(file).suffix.lower() or "no suffix"}
    notes = [
        f"folder {folder} holds no images ({', '.join(sorted(k)[:4]) or 'it is empty'}) and is left out"
        for folder, k in kinds.items()
    ]
    if loose:
        notes.append(f"{loose} images beside the class folders are left out")
    return tuple(notes)


def _hidden(file: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in file.split("/"))


def _folders(wanted: str, folders: set[str]) -> str:
    """What there is instead; a zip may hold thousands of folders, so only the top ones are listed."""
    top = sorted(folder for folder in folders if "/" not in folder)[:10]
    return near(wanted, folders) or nearest(wanted, top)
