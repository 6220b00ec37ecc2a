"""Pillow images to pixels, cut as a run cuts its images, and pixels to Pillow images.

Legend: N images, C channels (1 or 3), H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overture.data.base import plain_image
from overture.data.transforms import center_crop, on_background, with_channels
from overture.errors import UsageError

__all__ = ["Pictures", "from_pil", "to_pil"]

Pictures = Image.Image | Sequence[Image.Image] | Tensor
"""One Pillow image, several, or uint8 ``[C, H, W]`` or ``[N, C, H, W]``; of any size."""


def from_pil(images: Pictures, size: int, channels: int, background: str = "white") -> Tensor:
    """Images -> uint8 ``[N, channels, size, size]``, as a run reads the images of files that are not for training.

    Upright as EXIF says, on the background where they are transparent, the shorter side resized to ``size``, the square
    in the middle. What cannot be read so is refused by its place: colour for a grey model, 16 bits, huge or very narrow.
    """
    if isinstance(images, Tensor) and tuple(images.shape[-3:]) == (channels, size, size):
        return _checked(images)
    several = to_pil(images) if isinstance(images, Tensor) else [images] if isinstance(images, Image.Image) else images
    views = []
    for number, image in enumerate(several):
        where = f"image {number}"
        if not isinstance(image, Image.Image):
            raise UsageError(f"{where}: is a {type(image).__name__}, needs a Pillow image (or give one uint8 tensor)")
        plain = on_background(plain_image(image, where), background)
        views.append(center_crop(with_channels(plain, channels, where), size))
    if not views:
        raise UsageError("no images: give at least one")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.stack(views), -1, -3)))


def to_pil(images: Tensor) -> list[Image.Image]:
    """uint8 ``[N, C, H, W]`` (or one, ``[C, H, W]``) -> Pillow images of mode ``L`` or ``RGB``."""
    pixels_NHWC = _checked(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels_NHWC]


def _checked(images: Tensor) -> Tensor:
    """uint8 ``[N, C, H, W]``; anything else is refused."""
    batch = images[None] if images.ndim == 3 else images
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] not in (1, 3) or 0 in batch.shape:
        raise UsageError(
            f"images are {images.dtype} of shape {list(images.shape)}, need uint8 [N, C, H, W] with 1 or 3 channels "
            "(of floats in [-1, 1], Tokenizer.encode gives the ids)"
        )
    return batch
