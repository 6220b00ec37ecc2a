"""Images as picture files: grids, ADM-style ``.npz`` files, folders.

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from overture.errors import OvertureError, UsageError
from overture.files import replacing

__all__ = ["picture_grid", "save_folder", "save_npz", "save_picture"]


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


def save_folder(batches: Iterable[Tensor], labels: Sequence[int], names: Sequence[str], folder: Path) -> None:
    """Write one PNG an image, ``CLASS/NUMBER.png``, with the class by its name in ``names``."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty; old pictures would be counted among the new ones")
    number = 0
    for batch in batches:
        for image in batch:
            place = folder / names[labels[number]].replace("/", "-")
            with replacing(place / f"{number:06d}.png") as temporary:
                picture_grid(image[None], 1, gap=0).save(temporary, format="PNG")
            number += 1
