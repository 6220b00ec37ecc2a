"""Webdataset tars as a data source whose images are read in any order, by an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overture.data.arrangement import Names, natural
from overture.data.arrays import counted_classes
from overture.data.base import CorruptImage, Source, decode_image, digest
from overture.data.class_lists import class_names, in_folders, synset_folders
from overture.data.order import some_of
from overture.data.tar_index import TarIndex, open_index
from overture.errors import OvertureError

__all__ = ["TarSource"]

MAX_OPEN = 64
"""Files that a process holds open."""


class TarSource(Source):
    """Tars with a ``KEY.jpg`` and a ``KEY.cls`` of every sample. Labels are numbers from 0, or names.

    Where the labels are numbers, and ImageNet's ``LOC_synset_mapping.txt`` lies beside the tars, it names the classes.
    """

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name, self.files = name, tuple(files)
        indexes = [open_index(file) for file in self.files]
        self._ends = np.cumsum([len(index.offsets) for index in indexes], dtype=np.int64)
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._sizes = np.concatenate([index.sizes for index in indexes])
        self._names = Names.joining([index.names for index in indexes])
        self.labels, self.classes, self.notes = _classes(name, indexes, self.files[0].parent)
        self._handles: dict[int, BinaryIO] = {}
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}, "_owner": 0}

    def read(self, index: int) -> Image.Image:
        where = self.path(index)
        return decode_image(self._bytes(index, int(self._sizes[index]), where), where)

    def path(self, index: int) -> str:
        return f"{self.files[self._file(index)]}/{self._names[index]}"

    def fingerprint(self) -> str:
        """Of names, sizes and labels, and of the beginnings of some images."""
        beginnings = [
            self._bytes(place, min(int(self._sizes[place]), 2**16), self.path(place))
            for place in some_of(len(self), 200).tolist()
        ]
        classes = repr(self.classes).encode()
        return "tar-" + digest(self._names.joined, self._sizes.data, self.labels.data, classes, *beginnings)

    def _file(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _bytes(self, index: int, size: int, where: str) -> bytes:
        """The first ``size`` bytes of an image."""
        file = self._file(index)
        if self._owner != os.getpid():  # handles inherited over a fork share their positions with the parent
            self._handles, self._owner = {}, os.getpid()
        try:
            if file not in self._handles:
                while len(self._handles) >= MAX_OPEN:
                    self._handles.pop(next(iter(self._handles))).close()
                self._handles[file] = self.files[file].open("rb")
            self._handles[file].seek(int(self._offsets[index]))
            data = self._handles[file].read(size)
        except OSError as error:
            raise OvertureError(f"{self.files[file]}: cannot read this tar file ({error.strerror})") from error
        if len(data) < size:
            raise CorruptImage(f"{where}: the tar ends in it")
        return data


def _classes(
    name: str, indexes: Sequence[TarIndex], folder: Path
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    """Labels, names of the classes, and notes."""
    words = sorted({word for index in indexes for word in index.words}, key=natural)
    place = {word: number for number, word in enumerate(words)}
    tables = [np.array([place[word] for word in index.words], np.int64) for index in indexes]
    labels = np.concatenate([table[index.labels] for table, index in zip(tables, indexes, strict=True)])
    lists = in_folders([folder, folder.parent])
    if not all(word.isdecimal() and len(word) < 10 for word in words):
        return labels, class_names(words, lists), ()
    values = np.array([int(word) for word in words], np.int64)
    folders = synset_folders(lists)
    names = class_names(folders, lists) if values.max() < len(folders) else ()
    return counted_classes(name, values[labels], names)
