"""Streams of image batches: shuffled for training, in order for evaluation, several crops at a time for token files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor

from overture.config import no_number
from overture.data.base import CorruptImage, Source, split
from overture.data.order import ShuffledOrder, generator
from overture.data.reading import Batch, CorruptCount, ImageReader, read_in_order
from overture.data.sources import open_source
from overture.data.transforms import center_crop, random_crop, ten_crop
from overture.errors import OvertureError, UsageError

__all__ = [
    "Batch", "DataConfig", "ImageData", "TrainingStream", "crops_per_row", "evaluation_batches", "tokenization_batches"
]  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are cut.

    ``source`` and ``held_out`` are written as :func:`overture.data.sources.open_source` reads them. Without ``held_out``,
    ``held_out_share`` of each class of ``source`` is kept from training (always the same images).
    """

    source: str = no_number("embedded:fashion-mnist")
    held_out: str = no_number("")
    held_out_share: float = 0.1
    image_size: int = 28
    channels: int = 1
    crop: Literal["random", "center"] = "random"
    mirror: bool = True
    """Whether training sees every image and its mirror once an epoch."""
    background: str = "white"
    """What shows where an image is transparent: a colour as CSS writes it."""
    corrupt_limit: float = no_number(0.001)
    """The share of the images that may be corrupt (they are passed over and counted) before the run stops."""
    workers: int = no_number(0)
    """Worker processes that read ahead; 0 reads in the training process. No number depends on it."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UsageError(f"data: image_size is {self.image_size}, needs >= 1")
        if self.channels not in (1, 3):
            raise UsageError(f"data: channels is {self.channels}, needs 1 (grey) or 3 (colour)")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UsageError(f"data: background '{self.background}' is no colour (white, black, '#ffeedd')") from error
        if not 0 <= self.corrupt_limit < 1:
            raise UsageError(f"data: corrupt_limit is {self.corrupt_limit}, needs a share: 0 <= limit < 1")
        if not self.held_out and not 0 < self.held_out_share < 1:
            raise UsageError(f"data: held_out_share is {self.held_out_share}, needs to be between 0 and 1")
        if self.workers < 0:
            raise UsageError(f"data: workers is {self.workers}, needs >= 0")

    def build(self) -> ImageData:
        """Open the data."""
        source = open_source(self.source)
        if not self.held_out:
            train, held_out = split(source, self.held_out_share)
            return ImageData(train, held_out, self.image_size, self.channels)
        held_out = open_source(self.held_out)
        if held_out.classes != source.classes:
            odd = sorted(set(held_out.classes) ^ set(source.classes)) or ["their order"]
            raise OvertureError(
                f"{self.held_out} has {len(held_out.classes)} classes, {self.source} has {len(source.classes)};"
                f" they need the same ones (the first that differs: {odd[0]})"
            )
        return ImageData(source, held_out, self.image_size, self.channels)


@dataclass(frozen=True)
class ImageData:
    """Opened data: images to train on and images kept from training."""

    train: Source
    held_out: Source
    image_size: int
    channels: int

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.train.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return self.train.classes


class TrainingStream:
    """Shuffled batches without end. The batch of a step is a pure function of (seed, step).

    ``batch_size`` is the global one; rank r of ``world`` gets the r-th slice of every batch, so 1 and N processes see
    the same images cut in the same way, whatever the number of workers. A corrupt image is replaced by the next
    readable one.
    """

    def __init__(
        self, source: Source, config: DataConfig, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.source, self.config = source, config
        self._order = ShuffledOrder(len(source) * (2 if config.mirror else 1), batch_size, seed, rank, world)
        self._reader = _TrainingReader(source, config, seed)
        self._corrupt = CorruptCount(source, config.corrupt_limit)

    @property
    def corrupt(self) -> tuple[str, ...]:
        """The paths of the corrupt images found so far by this process and its workers."""
        return tuple(self._corrupt.found)

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of ``start_step``, ``start_step + 1``, ... without end; an exact resume at any step."""
        for batch in read_in_order(self._reader, self._keys(start_step), self.config.workers):
            self._corrupt.add(batch.corrupt)
            yield batch

    def _keys(self, step: int) -> Iterator[NDArray[np.int64]]:
        while True:
            yield np.stack(self._order.batch(step))
            step += 1


def evaluation_batches(
    source: Source, config: DataConfig, batch_size: int, rows: Sequence[int] | NDArray[np.integer] | None = None
) -> Iterator[Batch]:
    """The images ``rows`` (all by default) once, centre-cropped, in order. Corrupt images are left out and counted.

    They are too many where they are a larger share of the whole source than its config allows.
    """
    corrupt = CorruptCount(source, config.corrupt_limit)
    chosen = np.arange(len(source), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    keys = (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))
    for batch in read_in_order(_EvaluationReader(source, config), keys, config.workers):
        corrupt.add(batch.corrupt)
        if len(batch.indices):
            yield batch


def tokenization_batches(
    source: Source, config: DataConfig, crops: str, rows: Sequence[range], seed: int = 0
) -> Iterator[Batch]:
    """The images to encode into a token file: one batch ``[B, K, C, H, W]`` for each of the ``rows`` ranges.

    ``crops`` is ``center`` (K = 1), ``ten`` (K = 10, section 7) or ``random-K`` (K random crops drawn from ``seed``
    and the row). Row i is image i; a corrupt image's row holds the next readable image, its label too.
    """
    crops_per_row(crops)
    corrupt = CorruptCount(source, config.corrupt_limit)
    keys = (np.arange(part.start, part.stop, dtype=np.int64) for part in rows)
    for batch in read_in_order(_CropsReader(source, config, crops, seed), keys, config.workers):
        corrupt.add(batch.corrupt)
        yield batch


def crops_per_row(crops: str) -> int:
    """How many crops of an image the crops called ``center``, ``ten`` or ``random-K`` are."""
    if crops in ("center", "ten"):
        return 1 if crops == "center" else 10
    count = crops.removeprefix("random-")
    if count == crops or not count.isdecimal() or int(count) < 1:
        raise UsageError(f"unknown crops '{crops}' (valid: center, ten, random-K such as random-4)")
    return int(count)


class _TrainingReader:
    """Key: epochs and items ``[2, B]``. With ``mirror``, item i + N is the mirror of image i."""

    def __init__(self, source: Source, config: DataConfig, seed: int) -> None:
        self.images = ImageReader(source, config.channels, config.background)
        self.config, self.seed = config, seed

    def __call__(self, key: NDArray[np.int64]) -> Batch:
        size = self.config.image_size
        corrupt: dict[str, str] = {}
        pixels_BHWC = np.empty((key.shape[1], size, size, self.config.channels), np.uint8)
        indices = np.empty(key.shape[1], np.int64)
        for row, (epoch, item) in enumerate(key.T.tolist()):
            mirrored, index = divmod(item, len(self.images.source))
            indices[row], image = self.images.read_or_next(index, corrupt)
            if self.config.crop == "random":
                view = random_crop(image, size, generator("crop", self.seed, epoch, item))
            else:
                view = center_crop(image, size)
            pixels_BHWC[row] = view[:, ::-1] if mirrored else view
        return _batch(self.images, pixels_BHWC, indices, corrupt)


class _EvaluationReader:
    """Key: indices ``[B]``."""

    def __init__(self, source: Source, config: DataConfig) -> None:
        self.images = ImageReader(source, config.channels, config.background)
        self.size, self.channels = config.image_size, config.channels

    def __call__(self, key: NDArray[np.int64]) -> Batch:
        corrupt: dict[str, str] = {}
        views, indices = [], []
        for index in key.tolist():
            try:
                views.append(center_crop(self.images.read(index), self.size))
            except CorruptImage as error:
                corrupt[self.images.source.path(index)] = str(error)
            else:
                indices.append(index)
        pixels_BHWC = np.stack(views) if views else np.empty((0, self.size, self.size, self.channels), np.uint8)
        return _batch(self.images, pixels_BHWC, np.array(indices, np.int64), corrupt)


class _CropsReader:
    """Key: indices ``[B]``; K crops of every image."""

    def __init__(self, source: Source, config: DataConfig, crops: str, seed: int) -> None:
        self.images = ImageReader(source, config.channels, config.background)
        self.size, self.channels, self.crops, self.seed = config.image_size, config.channels, crops, seed

    def __call__(self, key: NDArray[np.int64]) -> Batch:
        corrupt: dict[str, str] = {}
        count = crops_per_row(self.crops)
        pixels_BKHWC = np.empty((len(key), count, self.size, self.size, self.channels), np.uint8)
        indices = np.empty(len(key), np.int64)
        for row, index in enumerate(key.tolist()):
            indices[row], image = self.images.read_or_next(index, corrupt)
            if self.crops == "center":
                pixels_BKHWC[row, 0] = center_crop(image, self.size)
            elif self.crops == "ten":
                pixels_BKHWC[row] = ten_crop(image, self.size)
            else:
                for crop in range(count):
                    rng = generator("crop", self.seed, crop, index)
                    pixels_BKHWC[row, crop] = random_crop(image, self.size, rng)
        return _batch(self.images, pixels_BKHWC, indices, corrupt)


def _batch(
    reader: ImageReader, pixels: NDArray[np.uint8], indices: NDArray[np.int64], corrupt: dict[str, str]
) -> Batch:
    """Channels come last in Pillow and first in torch."""
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3)))
    labels = torch.from_numpy(reader.source.labels[indices])
    return Batch(images, labels, torch.from_numpy(indices), corrupt)
