"""References: the statistics of the images that others are measured against, and where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overture.errors import OvertureError
from overture.evaluation.frechet import Gaussian, read_statistics
from overture.evaluation.processes import sum_over_processes

__all__ = ["ImageSetHash", "Reference", "file_hash"]


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics with a name and hashes."""

    name: str
    gaussian: Gaussian
    hash: str
    """Of the set of images (:class:`ImageSetHash`), or the sha256 of a file that does not tell."""
    network: str | None = None
    """Name and weights of the network that gave the features; None in plain files of ``mu`` and ``sigma``."""
    network_hash: str | None = None
    spatial: Gaussian | None = None
    """Statistics of the spatial features (for sFID), where the network has any."""
    size: tuple[int, int] | None = None
    """Height and width of the images, where that is known."""

    def save(self, path: Path | str, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Write an ``.npz`` that plain readers of ``mu`` and ``sigma`` understand too; ``arrays`` go beside them."""
        about = {"name": self.name, "hash": self.hash, "network": self.network, "network_hash": self.network_hash}
        if self.size is not None:
            about["size"] = f"{self.size[0]}x{self.size[1]}"
        arrays = dict(arrays or {})
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean.numpy(), "sigma_s": self.spatial.covariance.numpy()}
        self.gaussian.save(path, arrays, **{key: text for key, text in about.items() if text is not None})

    @classmethod
    def load(cls, path: Path | str) -> Reference:
        """Read a file of :meth:`save`, or any ``.npz`` with ``mu`` and ``sigma``."""
        path = Path(path)
        gaussian, spatial, about = read_statistics(path)
        return cls(
            name=about.get("name", path.name),
            gaussian=gaussian,
            hash=about.get("hash") or file_hash(path),
            network=about.get("network"),
            network_hash=about.get("network_hash"),
            spatial=spatial,
            size=_size(about["size"], path) if "size" in about else None,
        )


def _size(text: str, path: Path) -> tuple[int, int]:
    try:
        height, width = map(int, text.split("x"))
    except ValueError as error:
        raise OvertureError(f"{path}: the size of its images is '{text}', needs HEIGHTxWIDTH") from error
    return height, width


def file_hash(path: Path) -> str:
    """sha256 of a file of any size."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OvertureError(f"{path}: cannot read this file ({error.strerror})") from error


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

    def all_reduce(self) -> None:
        """Add what all other processes have seen."""
        limbs = torch.tensor([(self._total >> 16 * place) & 0xFFFF for place in range(self.LIMBS)])
        summed = sum_over_processes(limbs).tolist()
        self._total = sum(limb << 16 * place for place, limb in enumerate(summed)) % 2**256

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return f"{self._total:064x}"
