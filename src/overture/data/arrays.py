"""Arrays in ``.npz`` files as a data source. Nothing pickled is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from overture.data.base import ArraySource
from overture.data.npz import array_entries, read_array
from overture.errors import OvertureError, UsageError, near

__all__ = ["counted_classes", "open_npz"]


def open_npz(name: str, file: Path, part: str = "") -> ArraySource:
    """``images`` + ``labels`` of an npz file, or of its split ``part``.

    Without a split, or for ``train``, the first pair there is of ``images``/``labels``,
    ``train_images``/``train_labels``, ``x_train``/``y_train``, ``arr_0``/``arr_1``; for another split S,
    ``S_images``/``S_labels`` or ``x_S``/``y_S``. Images are uint8 ``[N, H, W]`` or ``[N, H, W, 1 or 3]``. The classes
    are those that have images, called by ``class_names`` or by their labels.
    """
    if part in ("", "train"):
        pairs = [
            ("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"), ("arr_0", "arr_1")
        ]  # fmt: skip
    else:
        pairs = [(f"{part}_images", f"{part}_labels"), (f"x_{part}", f"y_{part}")]
    entries = array_entries(file)
    pair = next((pair for pair in pairs if set(pair) <= entries.keys()), None)
    if pair is None:
        raise UsageError(f"{name}: no arrays {_missing(pairs, list(entries))}")
    images, labels = (read_array(entries[key]) for key in pair)
    names = [str(c) for c in read_array(entries["class_names"]).reshape(-1)] if "class_names" in entries else []
    images, labels = _check_images(name, pair[0], images), _check_labels(name, pair[1], labels)
    if len(images) != len(labels):
        raise OvertureError(f"{name}: {len(images)} {pair[0]} but {len(labels)} {pair[1]}")
    if not len(images):
        raise OvertureError(f"{name}: {pair[0]} holds no images")
    return ArraySource(name, images, *counted_classes(name, labels, names))


def counted_classes(
    name: str, labels: NDArray[np.integer], names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    """Labels that count the classes which have images, these classes' names, and notes on what that changes."""
    values, counted = np.unique(labels, return_inverse=True)
    highest = int(values[-1])
    if names and highest >= len(names):
        raise OvertureError(f"{name}: label {highest} but only {len(names)} class_names")
    classes = tuple(names[value] if names else str(value) for value in values.tolist())
    if len(set(classes)) < len(classes):
        raise OvertureError(f"{name}: two classes have one name in class_names")
    notes: tuple[str, ...] = ()
    if names and len(values) < len(names):
        present = set(values.tolist())
        absent = [names[value] for value in range(len(names)) if value not in present]
        notes = (f"{len(absent)} of {len(names)} classes have no images and are left out: {', '.join(absent[:5])}",)
    elif not names and highest + 1 != len(values):
        shown = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        notes = (f"the labels are {shown}: {len(classes)} classes, called by these numbers",)
    return counted.reshape(-1).astype(np.int64), classes, notes


def _missing(pairs: list[tuple[str, str]], keys: list[str]) -> str:
    """``images and labels (did you mean ...)``: what was looked for, and what is there."""
    images, labels = pairs[0]
    for first, second in pairs:
        if first in keys:
            images, labels = first, second
    absent = next(key for key in (images, labels) if key not in keys)
    return f"'{images}' and '{labels}', '{absent}' is missing{near(absent, keys)}; here are: {', '.join(keys)}"


def _check_images(name: str, key: str, images: NDArray[np.generic]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise OvertureError(f"{name}: {key} is {images.dtype}, needs uint8 (0..255)")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] != 3:
        raise OvertureError(f"{name}: {key} has shape {images.shape}, needs the channels last: [N, H, W, C]")
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape[1:]:
        raise OvertureError(f"{name}: {key} has shape {images.shape}, needs [N, H, W] or [N, H, W, 1 or 3]")
    return images  # type: ignore[return-value]


def _check_labels(name: str, key: str, labels: NDArray[np.generic]) -> NDArray[np.integer]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise OvertureError(f"{name}: {key} is {labels.dtype} {labels.shape}, needs one integer per image")
    if len(labels) and int(labels.min()) < 0:  # type: ignore[call-overload]
        raise OvertureError(f"{name}: {key} holds {labels.min()}, labels count from 0")  # type: ignore[attr-defined]
    return labels  # type: ignore[return-value]
