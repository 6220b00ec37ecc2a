"""Sets of images to measure: ADM-style ``.npz``, folders, zip files, data sources; read piece by piece, in their order.

All images of a set have one size, unless it is told to cut them. Files are often sorted by class: who needs a part of a
set, or several parts, draws the members (:func:`overture.data.order.some_of`).

Shapes: N images, B batch, C channels, H W height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overture.data.archives import FolderSource, ZipSource
from overture.data.base import Source
from overture.data.known_sets import KNOWN_SETS
from overture.data.npz import ArrayEntry, array_entries
from overture.data.sources import open_source
from overture.data.transforms import center_crop, on_background
from overture.errors import OvertureError, UsageError

__all__ = ["DrawnImages", "ImageSet", "is_statistics_file", "open_images"]


class ImageSet(ABC):
    """Images in a fixed order."""

    name: str
    """What the user called it, without folders."""
    cut: str
    """What is done to the images before they are measured, in words."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def batches(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        """The images at these places (ascending) as uint8 ``[B, C, H, W]``; B is ``batch_size`` but for the last one."""


class DrawnImages(ImageSet):
    """Some images of another set."""

    def __init__(self, images: ImageSet, rows: NDArray[np.int64]) -> None:
        self.images, self.rows, self.name, self.cut = images, rows, images.name, images.cut

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        return self.images.batches(self.rows[rows], batch_size)


class ArrayImages(ImageSet):
    """The array of a ``.npz`` or ``.npy`` file: uint8 ``[N, H, W, 1 or 3]`` or ``[N, H, W]``."""

    def __init__(self, name: str, entry: ArrayEntry) -> None:
        self.name, self.entry, self.cut = name, entry, "as they are"
        entry.check()
        shape = entry.shape
        where = f"{entry.file}: {entry.member.removesuffix('.npy') or 'the array'}"
        if entry.dtype != np.uint8:
            raise OvertureError(f"{where} is {entry.dtype}, needs uint8 images (0..255)")
        if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise OvertureError(f"{where} has shape {shape}, needs [N, H, W, 3] (or 1, or [N, H, W])")

    def __len__(self) -> int:
        return self.entry.shape[0]

    def batches(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        for pixels in self._selected(rows, batch_size):
            pixels_BHWC = pixels if pixels.ndim == 4 else pixels[..., None]
            yield torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels_BHWC, -1, 1)))

    def _selected(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.uint8]]:
        """Read on through the file, for a compressed one has no other way, and keep what is wanted."""
        waiting: list[NDArray[np.uint8]] = []
        start = first = int(rows[0]) if len(rows) else 0
        for piece in self.entry.rows(first, int(rows[-1]) + 1 if len(rows) else 0, batch_size):
            low, high = np.searchsorted(rows, (start, start + len(piece)))
            waiting.append(piece[rows[low:high] - start])
            start += len(piece)
            if sum(map(len, waiting)) >= batch_size:
                joined = np.concatenate(waiting)
                yield joined[:batch_size]
                waiting = [joined[batch_size:]]
        if waiting and len(rest := np.concatenate(waiting)):
            yield rest


class SourceImages(ImageSet):
    """The images of a data source, on white; with a ``size``, resized and cut to the middle square as ADM does."""

    def __init__(self, name: str, source: Source, size: int | None) -> None:
        self.name, self.source, self.size = name, source, size
        self.cut = "as they are" if size is None else f"shorter side to {size}, centre crop"
        self._first: tuple[str, tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        for first in range(0, len(rows), batch_size):
            images = [self._read(place) for place in rows[first : first + batch_size].tolist()]
            if len({image.shape[2] for image in images}) > 1:  # a grey image among colour ones
                images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def _read(self, place: int) -> NDArray[np.uint8]:
        """uint8 ``[H, W, C]``. A corrupt image is an error: what is measured has to be whole."""
        where, image = self.source.path(place), on_background(self.source.read(place))
        pixels = np.asarray(image) if self.size is None else center_crop(image, self.size)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        if self._first is None:
            self._first = (self.source.path(0), self._size_of_first())
        name, size = self._first
        if pixels.shape[:2] != size:
            sizes = f"{pixels.shape[1]}x{pixels.shape[0]}, {name} is {size[1]}x{size[0]}"
            raise OvertureError(f"{where} is {sizes}: give images of one size, or cut them with --image-size")
        return pixels

    def _size_of_first(self) -> tuple[int, ...]:
        if self.size is not None:
            return (self.size, self.size)
        width, height = self.source.read(0).size
        return (height, width)


def is_statistics_file(spec: str) -> bool:
    """Whether this is an ``.npz`` file with ``mu`` and ``sigma`` (and perhaps images too)."""
    path = Path(spec).expanduser()
    return path.suffix == ".npz" and path.is_file() and {"mu", "sigma"} <= array_entries(path).keys()


def open_images(spec: str, size: int | None = None) -> ImageSet:
    """The image set called ``spec``: an ``.npz`` or ``.npy`` of images, a folder or zip of image files, a data source.

    In a folder or a zip the images may lie anywhere. Without a ``size`` they are measured as they are. The array of
    an ``.npz`` is its ``arr_0``; other arrays are opened as :func:`overture.data.sources.open_source` does.
    """
    path = Path(spec).expanduser()
    if size is not None and size < 1:
        raise UsageError(f"--image-size is {size}, needs at least 1 pixel")
    if path.is_file() and path.suffix in (".npz", ".npy"):
        entries = array_entries(path)
        if "arr_0" in entries:
            found = ArrayImages(path.name, entries["arr_0"])
            if size is not None and found.entry.shape[1:3] != (size, size):
                shape = "x".join(map(str, found.entry.shape[1:3]))
                raise UsageError(
                    f"{path}: the images of an array are measured as they are ({shape}), not cut to {size}"
                )
            return found
        if {"mu", "sigma"} <= entries.keys():
            raise OvertureError(f"{path}: holds statistics and no images (arr_0)")
        if not entries or entries.keys() & {"mu", "sigma", "mu_s", "sigma_s"}:
            held = ", ".join(entries) or "nothing"
            raise OvertureError(f"{path}: holds {held}, needs images (arr_0), or mu and sigma")
    if path.is_dir() and spec and spec.split("/")[0] not in KNOWN_SETS:
        return SourceImages(path.name, FolderSource(spec, path, labelled=False), size)
    for file in (path, *path.parents):
        if file.suffix == ".zip" and file.is_file():
            inner = path.relative_to(file).as_posix() if path != file else ""
            name = f"{file.name}/{inner}" if inner else file.name
            return SourceImages(name, ZipSource(spec, file, inner, labelled=False), size)
    return SourceImages(_short(spec), open_source(spec), size)


def _short(spec: str) -> str:
    """Without the folders of this machine, which say nothing elsewhere."""
    path = Path(spec)
    for file in (path, *path.parents):
        if file.suffix == ".npz":
            return str(path.relative_to(file.parent))
    return spec
