"""Which of many file names are images, and of which class: one folder per class, or a list of labels beside them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Container, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from overture.data.class_lists import SOLUTION, Lookup, class_names, labels_of
from overture.errors import OvertureError

__all__ = ["SUFFIXES", "Arrangement", "Names", "arrange", "natural", "numbered"]

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"
)  # fmt: skip


class Names:
    """Very many names in one buffer: it pickles fast and, unlike a list of strings, is not copied by forked workers."""

    def __init__(self, joined: bytes, ends: NDArray[np.int64]) -> None:
        self.joined, self._ends = joined, ends

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """The names as the file system writes them, with a line break between them."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.fromiter(accumulate(len(name) + 1 for name in encoded), np.int64, len(encoded)) - 1
        return cls(b"\n".join(encoded), ends)

    @classmethod
    def joining(cls, parts: Sequence[Names]) -> Names:
        """Those of several buffers, one after the other."""
        starts = accumulate((len(part.joined) + 1 for part in parts[:-1]), initial=0)
        ends = np.concatenate([part._ends + start for part, start in zip(parts, starts, strict=True)])
        return cls(b"\n".join(part.joined for part in parts), ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of every name ``[N]``."""
        return np.diff(self._ends, prepend=-1) - 1

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self.joined[start : int(self._ends[index])])


class Arrangement(NamedTuple):
    """How files were understood."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    files: Sequence[str]
    """The images."""
    notes: tuple[str, ...] = ()
    listed: bool = False
    """Whether the labels are from a list, not from folders."""


def arrange(name: str, files: Sequence[str], labelled: bool, lookup: Lookup) -> Arrangement:
    """Classes, labels and images among ``CLASS/IMAGE`` paths; or among images that a list has the labels of.

    ``lookup`` finds the lists. Other arrangements are refused, with what was found.
    """
    images = [file for file in files if file.lower().endswith(SUFFIXES) and not _hidden(file)]
    if not images:
        kinds = Counter(Path(file).suffix.lower() for file in files if not file.endswith("/") and not _hidden(file))
        here = f"; here are {', '.join(f'{n} {kind}' for kind, n in kinds.most_common(3))} files" if kinds else ""
        raise OvertureError(
            f"{name}: no images here{here}; it needs one folder of images ({', '.join(SUFFIXES[:5])}, ...) per class"
        )
    if not labelled:
        return Arrangement(("images",), np.zeros(len(images), np.int64), images)
    levels = Counter(file.count("/") for file in images)
    if not levels[1] and levels[0]:
        return _flat(name, images, lookup)
    if max(levels) > 1:
        deeper = [file for file in images if file.count("/") > 1]
        folders = sorted({file.split("/")[0] for file in deeper})
        raise OvertureError(
            f"{name}: {deeper[0]} lies deeper than CLASS/IMAGE, give the folder of the class folders"
            f" (perhaps {' or '.join(f'{name}/{folder}' for folder in folders[:3])})"
        )
    images = [file for file in images if "/" in file]
    folders_of = [file.partition("/")[0] for file in images]
    classes, labels = numbered(folders_of)
    return Arrangement(class_names(classes, lookup), labels, images, _left_out(files, set(classes), levels[0]))


def _flat(name: str, images: Sequence[str], lookup: Lookup) -> Arrangement:
    """Images without folders, whose labels are in Kaggle's list of them."""
    images = [image for image in images if "/" not in image]
    found = labels_of(name, [image.rpartition(".")[0] for image in images], lookup)
    if found is None:
        hint = f"; or put ImageNet's {SOLUTION} beside them" if images[0].startswith("ILSVRC2012_val") else ""
        raise OvertureError(
            f"{name}: {len(images)} images lie here without class folders; put them into one folder per class (all into "
            f"one folder, if they have no classes){hint}"
        )
    classes, labels = numbered(found)
    return Arrangement(class_names(classes, lookup), labels, images, listed=True)


def numbered(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The names that occur, in natural order, and which of them each one is."""
    classes = sorted(set(names), key=natural)
    place = {name: number for number, name in enumerate(classes)}
    return classes, np.fromiter((place[name] for name in names), np.int64, len(names))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by their value: 2 comes before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if place % 2 else (0, part) for place, part in enumerate(parts)]


def _left_out(files: Sequence[str], classes: Container[str], loose: int) -> tuple[str, ...]:
    """What lies beside the classes and is not read."""
    kinds: dict[str, set[str]] = {}
    for file in files:
        folder, slash, _ = file.partition("/")
        if slash and folder not in classes and not _hidden(file):
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
    if "/." not in file and file[:1] != "." and "__MACOSX" not in file:  # most of millions
        return False
    return any(part.startswith(".") or part == "__MACOSX" for part in file.split("/"))
