"""Reads batches of images, in this process or in worker processes, always in order.

A reader turns a key (an integer array) into a batch; :func:`read_in_order` feeds it keys and hands out the batches.
Readers live in the workers, so they return their errors instead of raising them: an error raised in a worker would
come back as a page of traceback.
"""

from __future__ import annotations

import atexit
import signal
import threading
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from overture.data.base import CorruptImage, Source
from overture.data.transforms import on_background, with_channels
from overture.errors import OvertureError

__all__ = ["Batch", "CorruptCount", "ImageReader", "Reader", "read_in_order"]

CACHE_BYTES = 512 * 2**20
"""Decoded images are kept in memory up to this size (by every worker)."""

B = TypeVar("B", covariant=True)


@dataclass(frozen=True)
class Batch:
    """Some images with their labels.

    ``corrupt`` names the images that could not be decoded while this batch was read, each with the reason.
    """

    images: Tensor
    """uint8 ``[B, C, H, W]``, or ``[B, K, C, H, W]`` when K crops of every image are asked for."""
    labels: Tensor
    """int64 ``[B]``."""
    indices: Tensor
    """int64 ``[B]``: which images of the source these are."""
    corrupt: dict[str, str] = field(default_factory=dict)


class Reader(Protocol[B]):
    """Turns a key into a batch."""

    def __call__(self, key: NDArray[np.int64]) -> B: ...


class ImageReader:
    """Reads single images of a source with the right number of channels, on one background; remembers what fits."""

    def __init__(self, source: Source, channels: int, background: str = "white") -> None:
        self.source, self.channels, self.background = source, channels, background
        self.transparent: set[int] = set()
        """Images met so far that the background shows through."""
        self._cache: dict[int, Image.Image | CorruptImage] = {}
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "transparent": set(), "_cache": {}, "_cached_bytes": 0}

    def read(self, index: int) -> Image.Image:
        """Image ``index``; raises :class:`CorruptImage`."""
        known = self._cache.get(index)
        if known is None:
            known = self._decode(index)
            self._remember(index, known)
        if isinstance(known, CorruptImage):
            raise known
        return known

    def _decode(self, index: int) -> Image.Image | CorruptImage:
        try:
            image = self.source.read(index)
        except CorruptImage as error:
            return error.with_traceback(None)
        if image.mode in ("LA", "RGBA"):
            self.transparent.add(index)
            image = on_background(image, self.background)
        return with_channels(image, self.channels, self.source.path(index))

    def _remember(self, index: int, image: Image.Image | CorruptImage) -> None:
        """Keep a decoded image while there is room for it; the others are decoded every time."""
        if self.source.in_memory:
            return
        # Pillow keeps 1 byte per grey pixel and 4 per colour pixel; 1 KiB is about what the objects around them take.
        pixels = 0 if isinstance(image, CorruptImage) else image.width * image.height
        size = pixels * (4 if self.channels == 3 else 1) + 1024
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[index] = image
            self._cached_bytes += size

    def read_or_next(self, index: int, corrupt: dict[str, str]) -> tuple[int, Image.Image]:
        """Image ``index``, or the first readable one after it; adds what was not readable to ``corrupt``."""
        for offset in range(len(self.source)):
            place = (index + offset) % len(self.source)
            try:
                return place, self.read(place)
            except CorruptImage as error:
                corrupt[self.source.path(place)] = str(error)
        raise OvertureError(f"{self.source.name}: none of its {len(self.source)} images can be read")


class CorruptCount:
    """The corrupt images met so far; stops the run when they are too large a share of the data."""

    def __init__(self, source: Source, limit: float) -> None:
        self.source, self.limit = source, limit
        self.found: dict[str, str] = {}

    def add(self, corrupt: dict[str, str]) -> None:
        """Count what a batch met; raises when the limit is passed."""
        self.found.update(corrupt)
        if corrupt and len(self.found) > self.limit * len(self.source):
            first = next(iter(self.found.values()))
            raise OvertureError(
                f"{len(self.found)} of {len(self.source)} images are corrupt, more than a share of {self.limit:g} "
                f"(--corrupt-limit, of a run --data.corrupt-limit); the first: {first}"
            )


def read_in_order(reader: Reader[B], keys: Iterator[NDArray[np.int64]], workers: int) -> Iterator[B]:
    """``reader(key)`` for each key in turn, fetched ahead by ``workers`` processes (0: read here)."""
    if workers == 0:
        return map(reader, keys)
    batches = _read_in_workers(reader, keys, workers)
    _open.add(batches)
    return batches


_open: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Those of batches that an error's traceback still holds: at its end Python asks them by a signal, which they ignore."""
    for batches in list(_open):
        batches.close()


def _read_in_workers(reader: Reader[B], keys: Iterator[NDArray[np.int64]], workers: int) -> Generator[B]:
    loader = DataLoader(
        _WorkerSide(reader),
        batch_size=None,
        sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # its own: starting workers must not advance the run's random state
    )
    # Torch's own handler would raise in the middle of whatever this process does when a worker is gone; next() tells, too.
    number = getattr(signal, "SIGCHLD", None)  # Windows has no such signal
    handler = None if number is None else signal.getsignal(number)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread() and number is not None and handler is not None:
        signal.signal(number, handler)
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                reason = str(error).splitlines()[0].rstrip(". ")
                raise OvertureError(
                    f"a data worker died ({reason}): try fewer --data.workers, or more memory"
                ) from error
            if isinstance(batch, OvertureError):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers


class _WorkerSide(Dataset[Any]):
    def __init__(self, reader: Reader[Any]) -> None:
        self.reader = reader

    def __getitem__(self, key: NDArray[np.int64]) -> Any:
        try:
            return self.reader(key)
        except OvertureError as error:
            return OvertureError(str(error))


def _unchanged(batch: Any) -> Any:
    return batch


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Signals may reach every process at once; the parent finishes its step, saves, and then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
