"""Images as picture files: grids, ADM-style ``.npz`` files, folders.

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overture.errors import OvertureError, UsageError
from overture.files import cannot_write, flush_to_disk, replacing

__all__ = ["GrowingImages", "picture_grid", "save_folder", "save_npz", "save_picture"]


def save_picture(images_NCHW: Tensor, columns: int, path: Path) -> None:
    """Write a :func:`picture_grid` as PNG."""
    with replacing(path) as temporary:
        picture_grid(images_NCHW, columns).save(temporary, format="PNG")


def picture_grid(images_NCHW: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """uint8 images in rows of ``columns``, on white."""
    count, channels, height, width = images_NCHW.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for place, image in enumerate(images_NCHW.permute(0, 2, 3, 1).numpy()):
        top = gap + place // columns * (height + gap)
        left = gap + place % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def save_npz(batches: Iterable[Tensor], labels: Sequence[int], path: Path) -> None:
    """Write images as ADM does (``arr_0`` uint8 NHWC, ``arr_1`` labels), batch by batch: the set is never in memory.

    The same images give the same bytes.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        written = 0
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            for batch in batches:
                pixels = np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())
                if not written:
                    shape = (len(labels), *pixels.shape[1:])
                    header = {
                        "descr": np.lib.format.dtype_to_descr(pixels.dtype),
                        "fortran_order": False,
                        "shape": shape,
                    }
                    np.lib.format.write_array_header_2_0(member, header)
                member.write(pixels.data)
                written += len(pixels)
        if written != len(labels):
            raise OvertureError(f"{path}: {written} images for {len(labels)} labels")
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as member:
            np.lib.format.write_array(member, np.asarray(labels, np.int64))


class GrowingImages:
    """Images of one shape in a file that grows while they are made, so that who is stopped need not make them again.

    The file is the number of complete images (8 bytes), then their bytes. The number is written when they are on the disk.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape, self.size = path, shape, math.prod(shape)
        self.count = 0

    def __enter__(self) -> GrowingImages:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self.file = self.path.open("r+b")
            claimed = int.from_bytes(self.file.read(8), "little")
            held = (self.path.stat().st_size - 8) // self.size
            self.count = claimed if claimed <= held else 0
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, images_NCHW: Tensor) -> None:
        """More images, uint8."""
        try:
            self.file.seek(8 + self.count * self.size)
            self.file.write(np.ascontiguousarray(images_NCHW.numpy()).data)
            flush_to_disk(self.file)
            self.count += len(images_NCHW)
            self.file.seek(0)
            self.file.write(self.count.to_bytes(8, "little"))
            self.file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def batches(self, step: int) -> Iterator[Tensor]:
        """All of them, uint8 ``[b, C, H, W]``."""
        self.file.seek(8)
        for start in range(0, self.count, step):
            count = min(step, self.count - start)
            data = np.frombuffer(bytearray(self.file.read(count * self.size)), np.uint8)
            yield torch.from_numpy(data.reshape(count, *self.shape))


def save_folder(batches: Iterable[Tensor], labels: Sequence[int], names: Sequence[str], folder: Path) -> None:
    """Write one PNG an image, ``CLASS/NUMBER.png``, with the class by its name in ``names``."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty; old pictures would be counted among the new ones")
    number, places = 0, _folder_names(names)
    for batch in batches:
        for image in batch:
            place = folder / places[labels[number]]
            with replacing(place / f"{number:06d}.png") as temporary:
                picture_grid(image[None], 1, gap=0).save(temporary, format="PNG")
            number += 1


_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""What Windows keeps for devices."""


def _folder_names(names: Sequence[str]) -> list[str]:
    """Of classes. Where one would lead elsewhere, be hidden or stand for two classes, all are numbered.

    On every system the names are such that Windows and macOS can hold the folder: there, ``Cat`` and ``cat`` are one.
    """
    plain = [re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", name).rstrip(". ") for name in names]
    alone = len({name.casefold() for name in plain}) == len(plain)
    if alone and all(name and not name.startswith(".") and not _DEVICE.fullmatch(name) for name in plain):
        return plain
    width = len(str(len(plain) - 1))
    return [f"{number:0{width}d} {name}".rstrip() for number, name in enumerate(plain)]
