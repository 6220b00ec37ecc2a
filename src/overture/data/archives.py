"""Image files in folders and zip files: one folder per class, the images right in it."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from overture.data.base import CorruptImage, Source, decode_image, digest
from overture.errors import OvertureError, UsageError, nearest

__all__ = ["FolderSource", "ZipSource"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class FolderSource(Source):
    """A folder with one sub-folder per class; classes and files are sorted by name.

    Not ``labelled``, images may lie anywhere in it, and are all of one class.
    """

    def __init__(self, name: str, root: Path, labelled: bool = True) -> None:
        self.name, self.root = name, root
        try:
            found = sorted(_scan(root, depth=3 if labelled else 10))
        except OSError as error:
            raise OvertureError(f"{error.filename or root}: cannot list this folder ({error.strerror})") from error
        self.classes, self.labels, self._files = _arrange(name, found, labelled)

    def read(self, index: int) -> Image.Image:
        path = self.path(index)
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise OvertureError(f"{path}: cannot read this image ({error.strerror})") from error
        return decode_image(data, path)

    def path(self, index: int) -> str:
        return str(self.root / self._files[index].decode())

    def fingerprint(self) -> str:
        try:
            sizes = np.array([(self.root / file.decode()).stat().st_size for file in self._files], np.int64)
        except OSError as error:
            raise OvertureError(f"{error.filename}: cannot read this image ({error.strerror})") from error
        return digest(b"\n".join(self._files), sizes.data)


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
        except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
            raise OvertureError(f"{file}: cannot read this zip file ({error})") from error
        prefix = f"{self.folder}/" if self.folder else ""
        inside = [member[len(prefix) :] for member in members if member.startswith(prefix)]
        if prefix and not inside:
            folders = {str(Path(member).parent) for member in members} - {"."}
            folders |= {str(parent) for folder in folders for parent in Path(folder).parents} - {"."}
            raise UsageError(f"{name}: no folder '{self.folder}' in {file.name}{_folders(self.folder, folders)}")
        self.classes, self.labels, self._members = _arrange(name, sorted(inside), labelled)
        chosen = [members[prefix + member.decode()] for member in self._members]
        for info in chosen:
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
        return "/".join(part for part in (str(self.file), self.folder, self._members[index].decode()) if part)

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
                data = zlib.decompress(data, wbits=-zlib.MAX_WBITS)
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
    """Every file down to ``depth`` levels, as a path relative to ``root``."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield prefix + entry.name
            elif depth > 1:
                yield from _scan(Path(entry.path), depth - 1, f"{prefix}{entry.name}/")


def _arrange(name: str, files: Sequence[str], labelled: bool) -> tuple[tuple[str, ...], Any, Any]:
    """Classes, labels and the image files (as bytes) among ``CLASS/IMAGE`` paths; refuses any other arrangement."""
    images = [file for file in files if file.lower().endswith(SUFFIXES) and not _hidden(file)]
    levels = Counter(file.count("/") for file in images)
    if images and not labelled:
        return ("images",), np.zeros(len(images), np.int64), np.array([file.encode() for file in images])
    if not images:
        raise OvertureError(f"{name}: no images here, it needs one folder of images per class")
    if not levels[1] and levels[0]:
        raise OvertureError(f"{name}: {levels[0]} images lie here without class folders, put them in one per class")
    deeper = [file for file in images if file.count("/") > 1]
    if deeper:
        folders = sorted({file.split("/")[0] for file in deeper})
        raise OvertureError(
            f"{name}: {deeper[0]} lies deeper than CLASS/IMAGE, give the folder of the class folders"
            f" (perhaps {' or '.join(f'{name}/{folder}' for folder in folders[:3])})"
        )
    images = [file for file in images if "/" in file]
    classes = sorted({file.split("/")[0] for file in images})
    place = {folder: label for label, folder in enumerate(classes)}
    labels = np.array([place[file.split("/")[0]] for file in images], np.int64)
    # An array of bytes pickles fast and, unlike a list of strings, is not copied by forked workers.
    return tuple(classes), labels, np.array([file.encode() for file in images])


def _hidden(file: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in file.split("/"))


def _folders(wanted: str, folders: set[str]) -> str:
    """What there is instead; a zip may hold thousands of folders, so only the top ones are listed."""
    hint = nearest(wanted, folders)
    if "did you mean" in hint:
        return hint
    return nearest("", sorted(folder for folder in folders if "/" not in folder)[:10])
