"""The two lists that Kaggle ships beside ImageNet: the labels of its validation images, and the names of its classes."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from overture.errors import OvertureError

__all__ = [
    "KAGGLE", "MAPPING", "SOLUTION", "Lookup", "class_names", "in_folders", "labels_of", "list_folders",
    "synset_folders", "told_apart",
]  # fmt: skip

KAGGLE = "ILSVRC/Data/CLS-LOC"
"""Where ``train`` and ``val`` lie in Kaggle's zip, and in what it unpacks to."""
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
MAX_LIST = 2**26
"""Bytes of a list: 64 MB, thirty times ImageNet's."""

K = TypeVar("K")

Lookup = Callable[[str], tuple[str, bytes] | None]
"""Finds a list by its name: where it lies, for messages, and what is in it; None if there is none."""


def in_folders(folders: Sequence[Path]) -> Lookup:
    """A lookup of lists that lie in one of some folders; the first one counts."""

    def lookup(name: str) -> tuple[str, bytes] | None:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                data = file.read(MAX_LIST + 1)
        except OSError as error:
            raise OvertureError(f"{path}: cannot read it ({error.strerror})") from error
        if len(data) > MAX_LIST:
            raise OvertureError(f"{path}: is larger than {MAX_LIST:,} bytes")
        return str(path), data

    return lookup


def list_folders(images: Path) -> list[Path]:
    """Where the lists of a folder of images may lie: in it, beside it, and at the top of Kaggle's tree."""
    above = images.absolute().parents
    inside = len(above) > 3 and above[0].parts[-3:] == tuple(KAGGLE.split("/"))
    return [images, *above[:1], *([above[3]] if inside else [])]


def labels_of(name: str, images: Sequence[str], lookup: Lookup) -> list[str] | None:
    """The class folder (``n01440764``) of every image, by its name without suffix; None if no list is found.

    The list has to name these images and no others.
    """
    found = lookup(SOLUTION)
    if found is None:
        return None
    where, data = found
    rows = list(csv.reader(io.StringIO(_text(where, data))))
    if not rows or rows[0] != ["ImageId", "PredictionString"]:
        raise OvertureError(f"{where}: begins with '{','.join(rows[0]) if rows else ''}', not ImageId,PredictionString")
    known: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != 2 or not row[1].split() or row[0] in known:
            what = "names an image twice" if row[0] in known else "is no image and its class"
            raise OvertureError(f"{where}: line {number} {what} ({','.join(row)})")
        known[row[0]] = row[1].split()[0]
    here = set(images)
    for odd, said in (
        ([image for image in images if image not in known], f"images of {name} that {where} does not name"),
        ([image for image in known if image not in here], f"images named by {where} that are not in {name}"),
    ):
        if odd:
            raise OvertureError(f"{len(odd)} {said}, the first: {odd[0]}; take the list that came with the images")
    return [known[image] for image in images]


def class_names(folders: Sequence[str], lookup: Lookup) -> tuple[str, ...]:
    """What Kaggle's list calls the classes, in the order of their folders; the folders' names if it does not know them.

    Of several names of a class (``tench, Tinca tinca``) the first is taken; where two classes share it, their folder
    tells them apart.
    """
    found = lookup(MAPPING) if all(_is_synset(folder) for folder in folders) else None
    if found is None:
        return tuple(folders)
    names = _names(*found)
    unknown = [folder for folder in folders if not names.get(folder)]
    if unknown:
        raise OvertureError(
            f"{found[0]}: has no name for class {unknown[0]} ({len(unknown)} of {len(folders)} missing)"
        )
    apart = told_apart(names)
    return tuple(apart[folder] for folder in folders)


def told_apart(names: Mapping[K, str]) -> dict[K, str]:
    """Names by key, the key added to those that occur twice: ImageNet has two classes called crane."""
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else f"{name} ({key})" for key, name in names.items()}


def synset_folders(lookup: Lookup) -> list[str]:
    """The folders of all classes in the order of their labels; empty if no list is found."""
    found = lookup(MAPPING)
    return sorted(_names(*found)) if found else []


def _names(where: str, data: bytes) -> dict[str, str]:
    """The first name of every class, by its folder."""
    lines = [line.partition(" ") for line in _text(where, data).splitlines() if line.strip()]
    return {folder: text.partition(",")[0].strip() for folder, _, text in lines}


def _is_synset(folder: str) -> bool:
    return folder[:1] == "n" and folder[1:].isdecimal()


def _text(where: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OvertureError(f"{where}: is no text in UTF-8 ({error.reason})") from error
