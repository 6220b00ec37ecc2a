"""Images of a run as picture files.

Shapes: N images, C channels, H W height and width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from overture.errors import OvertureError

__all__ = ["picture_grid", "save_picture"]


def save_picture(images_NCHW: Tensor, columns: int, path: Path) -> None:
    """Write a :func:`picture_grid` beside its place and rename it, so that none is ever half written."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        picture_grid(images_NCHW, columns).save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise OvertureError(f"{path}: cannot save: {error.strerror}; free some space and run again") from error


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
