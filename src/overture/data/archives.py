"""Image files in folders and zip files: one folder per class, the images right in it; or ImageNet as Kaggle ships it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from overture.data.arrangement import SUFFIXES, Names, arrange
from overture.data.base import CorruptImage, Source, decode_image, digest
from overture.data.class_lists import KAGGLE, Lookup, in_folders, list_folders
from overture.data.order import some_of
from overture.data.zip_directory import MAX_MEMBER, Members, read_directory
from overture.errors import OvertureError, UsageError, near, nearest

__all__ = ["FolderSource", "ZipSource"]

CHECKED_NAMES = 10_000


class FolderSource(Source):
    """A folder with one sub-folder per class; classes are sorted by name, numbers in them by their value.

    Or ImageNet's validation images, flat, with ``LOC_val_solution.csv`` beside them.
    Not ``labelled``, images may lie anywhere in it, and are all of one class.
    """

    def __init__(self, name: str, root: Path, labelled: bool = True) -> None:
        self.name, self.root = name, root
        try:
            found = sorted(_scan(root, depth=3 if labelled else 10))
        except OSError as error:
            raise OvertureError(f"{error.filename or root}: cannot list this folder ({error.strerror})") from error
        if labelled and f"{KAGGLE.split('/')[0]}/" in found and (root / KAGGLE).is_dir():
            raise UsageError(f"{name}: holds Kaggle's ImageNet, write {name}/train or {name}/val")
        arranged = arrange(name, found, labelled, in_folders(list_folders(root)))
        self.classes, self.labels, self.notes = arranged.classes, arranged.labels, arranged.notes
        self._files, self._listed = Names.of(arranged.files), arranged.listed

    def read(self, index: int) -> Image.Image:
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(size) if size <= MAX_MEMBER else b""
        except OSError as error:
            raise OvertureError(f"{path}: cannot read this image ({error.strerror})") from error
        if size > MAX_MEMBER:
            raise CorruptImage(f"{path}: is larger than {MAX_MEMBER:,} bytes")
        return decode_image(data, path)

    def path(self, index: int) -> str:
        return os.path.join(self.root, self._files[index])

    def fingerprint(self) -> str:
        """Of names, and of sizes and beginnings of some files: two folders that change places are not missed."""
        try:
            some = some_of(len(self), 5000).tolist()
            sizes = np.array([os.stat(self.path(place)).st_size for place in some], np.int64)
            beginnings = []
            for place in some_of(len(self), 200).tolist():
                with open(self.path(place), "rb") as file:
                    beginnings.append(file.read(2**16))
        except OSError as error:
            raise OvertureError(f"{error.filename}: cannot read this image ({error.strerror})") from error
        labels = [self.labels.data] if self._listed else []  # else the names say them
        return "files-" + digest(self._files.joined, sizes.data, *beginnings, *labels)


class ZipSource(Source):
    """A zip file, or a folder in it, with one sub-folder per class; or ImageNet as Kaggle ships it.

    The central directory is read once. Where each image lies is kept in arrays, so that a worker process only opens
    the file again, and a zip of 150 GB costs it nothing. Not ``labelled``, images may lie anywhere in it. Of Kaggle's
    zip, the folders ``train`` and ``val`` are those that lie deep in it.
    """

    def __init__(self, name: str, file: Path, folder: str = "", labelled: bool = True) -> None:
        self.name, self.file = name, file
        names, members = read_directory(file)
        self.folder = _chosen_folder(name, file, folder.strip("/"), names, labelled)
        prefix = self._prefix
        # Of two members of one name the last one counts.
        inside = {entry[len(prefix) :]: place for place, entry in enumerate(names) if entry.startswith(prefix)}
        arranged = arrange(name, sorted(inside), labelled, _lists(file, names, members))
        self.classes, self.labels, self.notes = arranged.classes, arranged.labels, arranged.notes
        self._files, self._listed = Names.of(arranged.files), arranged.listed
        places = np.fromiter((inside[entry] for entry in arranged.files), np.int64, len(arranged.files))
        self._members = members.at(places)
        self._members.check(file, [names[place] for place in places])
        others = [place for place, entry in enumerate(names) if _no_image(entry)]
        if len(others) > CHECKED_NAMES:  # in Kaggle's zip half a million drawings of boxes
            others = [place for place in others if names[place].startswith(prefix)][:CHECKED_NAMES]
        members.check_names(file, names, others)
        self._handle: tuple[int, BinaryIO] | None = None

    @property
    def _prefix(self) -> str:
        return f"{self.folder}/" if self.folder else ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def read(self, index: int) -> Image.Image:
        where = self.path(index)
        try:
            data = self._members.read(self._open(), index, f"{self._prefix}{self._files[index]}", where)
        except OSError as error:
            raise OvertureError(f"{self.file}: cannot read this zip file ({error.strerror})") from error
        return decode_image(data, where)

    def path(self, index: int) -> str:
        return "/".join(part for part in (str(self.file), self.folder, self._files[index]) if part)

    def fingerprint(self) -> str:
        labels = [self.labels.data] if self._listed else []  # else the names say them
        return digest(self._files.joined, self._members.sizes.data, self._members.checksums.data, *labels)

    def _open(self) -> BinaryIO:
        """This process's own handle: one inherited over a fork would share its position with the parent."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), self.file.open("rb"))
        return self._handle[1]


def _chosen_folder(name: str, file: Path, folder: str, names: list[str], labelled: bool) -> str:
    """The folder of a zip that is meant: ``folder`` itself, or the one of that name in Kaggle's tree."""
    if any(entry.startswith(f"{KAGGLE}/") for entry in names):
        deep = f"{KAGGLE}/{folder}"
        if not folder and labelled:
            raise UsageError(f"{name}: is Kaggle's ImageNet, write {name}/train or {name}/val")
        if folder and any(entry.startswith(f"{deep}/") for entry in names):
            return deep
    if folder and not any(entry.startswith(f"{folder}/") for entry in names):
        folders = {entry.rpartition("/")[0] for entry in names if not entry.endswith("/")} - {""}
        folders |= {str(parent) for inner in folders for parent in Path(inner).parents} - {"."}
        raise UsageError(f"{name}: no folder '{folder}' in {file.name}{_folders(folder, folders)}")
    return folder


def _lists(file: Path, names: list[str], members: Members) -> Lookup:
    """Finds ImageNet's lists in a zip (nearest to its top), or beside it."""
    beside = in_folders([file.parent])

    def lookup(wanted: str) -> tuple[str, bytes] | None:
        ways = [(entry.count("/"), place) for place, entry in enumerate(names) if entry.rpartition("/")[2] == wanted]
        if not ways:
            return beside(wanted)
        place = min(ways)[1]
        where = f"{file}/{names[place]}"
        only = members.at(np.array([place]))
        only.check(file, [names[place]])
        with file.open("rb") as handle:
            return where, only.read(handle, 0, names[place], where)

    return lookup


def _no_image(entry: str) -> bool:
    return not entry.lower().endswith(SUFFIXES) and entry[-1:] != "/"


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


def _folders(wanted: str, folders: set[str]) -> str:
    """What there is instead; a zip may hold thousands of folders, so only the top ones are listed."""
    top = sorted(folder for folder in folders if "/" not in folder)[:10]
    return near(wanted, folders) or nearest(wanted, top)
