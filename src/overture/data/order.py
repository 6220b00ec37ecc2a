"""The order in which training sees its items: a pure function of (seed, step), the same on 1 and N processes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from overture.errors import UsageError

__all__ = ["ShuffledOrder", "generator", "some_of"]

Ints = NDArray[np.int64]

_PURPOSES = ("order", "crop", "choice", "sample", "mirror")


def generator(purpose: str, *key: int) -> np.random.Generator:
    """The random numbers for one of the ``_PURPOSES`` and a key, for example (seed, epoch, item)."""
    return np.random.default_rng((_PURPOSES.index(purpose), *key))


def some_of(total: int, count: int | None = None, seed: int = 0) -> Ints:
    """``count`` of ``range(total)`` (all by default), ascending: always the same ones for a seed.

    Data are often sorted by class, so a part of them is drawn, never cut off.
    """
    if count is None or count >= total:
        return np.arange(total, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


class ShuffledOrder:
    """An endless row of epochs, each a permutation drawn from (seed, epoch), cut into global batches.

    Batches go on over the end of an epoch, so no item is dropped. Rank r of ``world`` takes the r-th slice of every
    global batch.
    """

    def __init__(self, items: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if items < 1:
            raise UsageError("there is nothing to train on: the data hold no items")
        if batch_size < 1 or batch_size % world:
            raise UsageError(f"batch_size is {batch_size}, needs a positive multiple of the {world} processes")
        if seed < 0:
            raise UsageError(f"seed is {seed}, needs >= 0")
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.rank, self.local_size = rank, batch_size // world
        self._epoch: tuple[int, Ints] = (-1, np.empty(0, np.int64))

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """The epochs ``[b]`` and items ``[b]`` of this rank's share of the batch of ``step`` (counted from 0)."""
        start = step * self.batch_size + self.rank * self.local_size
        epochs, places = np.divmod(np.arange(start, start + self.local_size, dtype=np.int64), self.items)
        items = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            items[chosen] = self._permutation(int(epoch))[places[chosen]]
        return epochs, items

    def _permutation(self, epoch: int) -> Ints:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, generator("order", self.seed, epoch).permutation(self.items))
        return self._epoch[1]
