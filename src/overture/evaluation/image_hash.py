"""One hash for a set of images, whatever their order."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overture.errors import OvertureError
from overture.processes import Processes

__all__ = ["ImageSetHash"]


def _sum_of_hashes(images: NDArray[np.uint8]) -> int:
    """The sum of sha256 of the shapes and values of images ``[B, C, H, W]``."""
    images = np.ascontiguousarray(images)
    # A grey image counts as one, whether its batch came in colour or not. Most are told by their first row.
    may_be_grey = (images[:, 1:, :1] == images[:, :1, :1]).all(axis=(1, 2, 3)).tolist()
    shape, grey_shape = (f"{(channels, *images.shape[2:])}".encode() for channels in (images.shape[1], 1))
    total = 0
    for image, perhaps in zip(images, may_be_grey, strict=True):
        grey = perhaps and len(image) == 3 and bool((image[1:] == image[0]).all())
        digest = hashlib.sha256(grey_shape if grey else shape)
        digest.update((image[:1] if grey else image).data)
        total += int.from_bytes(digest.digest(), "big")
    return total


class ImageSetHash:
    """One hash for a set of images, whatever their order, batches and processes: the sum of the images' sha256."""

    LIMBS = 16  # of 16 bits, so that sums over processes stay within 64-bit integers

    def __init__(self) -> None:
        self._total = 0

    def update(self, images: Tensor) -> None:
        """Add images, uint8 ``[B, C, H, W]``."""
        if images.dtype != torch.uint8:
            raise OvertureError(f"image hash: images are {images.dtype}, need uint8")
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:  # hashing leaves the interpreter to others
            self._total += sum(pool.map(_sum_of_hashes, np.array_split(images.cpu().numpy(), threads)))
        self._total %= 2**256

    def all_reduce(self, processes: Processes) -> None:
        """Add what all other processes have seen."""
        limbs = torch.tensor([(self._total >> 16 * place) & 0xFFFF for place in range(self.LIMBS)])
        summed = processes.sum(limbs).tolist()
        self._total = sum(limb << 16 * place for place, limb in enumerate(summed)) % 2**256

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return f"{self._total:064x}"
