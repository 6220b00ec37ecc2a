"""From an image file to pixels: grey or colour, resizing, crops, and the uint8 conventions (docs/prologue.md, section 2).

Resizing is that of ADM's evaluation and of the Prologue release (section 6): halve with a box filter while the image
is at least twice too large, then bicubic. Of the last step only the square that is kept is computed. Crops take a Pillow
image of mode ``L`` or ``RGB`` and give uint8 ``[H, W, C]``. Legend: H rows, W columns, C channels (1 or 3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from overture.errors import OvertureError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["center_crop", "on_background", "random_crop", "ten_crop", "to_float", "to_uint8", "with_channels"]

Pixels = NDArray[np.uint8]

WINDOW_FROM = 64
"""From this size on, squares are resized by themselves. Pillow takes the place of such a square in 32 bits: of 10,000
values about one is a level of 255 away from what resizing the whole image and cutting gives. Smaller squares, for which
it saves nothing that counts, are cut from the whole, to the last bit. So are those of pictures that are enlarged, where
it might be two levels, and of pictures about twice as high as wide: these, Pillow 13 resizes down before across, which
rounds otherwise."""


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]: ``x / 127.5 - 1``."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8: ``127.5 x + 128``, clamped to 0..255 and truncated; the inverse of :func:`to_float`."""
    return (127.5 * images.float() + 128).clamp(0, 255).byte()


def with_channels(image: Image.Image, channels: int, where: str = "image") -> Image.Image:
    """The image with 1 or 3 channels. Grey becomes RGB without loss; colour is never turned grey, that is an error."""
    if channels == 3:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode != "L":
        raise OvertureError(
            f"{where}: a colour image, but the data are read as grey: set --data.channels 3 (for a grey model, turn the images grey)"
        )
    return image


def on_background(image: Image.Image, background: str = "white") -> Image.Image:
    """What shows of an image on a ``background`` (a colour as CSS writes it): one of mode ``L`` or ``RGB``."""
    if image.mode not in ("LA", "RGBA"):
        return image
    opaque = "L" if image.mode == "LA" else "RGB"
    canvas = Image.new(opaque, image.size, ImageColor.getcolor(background, opaque))
    canvas.paste(image.convert(opaque), mask=image.getchannel("A"))
    return canvas


def center_crop(image: Image.Image, size: int) -> Pixels:
    """Resize the shorter side to ``size`` and take the square in the middle: ``[size, size, C]``."""
    image, width, height = _halved(image, size)
    return _window(image, (width, height), ((width - size) // 2, (height - size) // 2), size)


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Pixels:
    """Resize the shorter side to one of ``size .. ceil(size / 0.8)`` and take a square anywhere, all drawn uniformly."""
    largest = -(-5 * size // 4)  # ceil(size / 0.8), in integers
    shorter = int(rng.integers(size, largest, endpoint=True))
    image, width, height = _halved(image, shorter)
    top = int(rng.integers(0, height - size, endpoint=True))
    left = int(rng.integers(0, width - size, endpoint=True))
    return _window(image, (width, height), (left, top), size)


def ten_crop(image: Image.Image, size: int) -> Pixels:
    """``[10, size, size, C]``: the corners and the centre of the ``int(1.1 * size)`` centre crop, then the same of its
    mirror image (section 7). The order is torchvision's: top left, top right, bottom left, bottom right, centre.
    """
    square = center_crop(image, int(1.1 * size))
    end = len(square) - size
    middle = round(end / 2)  # rounds half to even, as torchvision does
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    views = (square, square[:, ::-1])
    return np.stack([view[top : top + size, left : left + size] for view in views for top, left in corners])


def _halved(image: Image.Image, shorter: int) -> tuple[Image.Image, int, int]:
    """The image, halved while it is at least twice too large, and the width and height that it is then resized to."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image, round(image.width * scale), round(image.height * scale)


def _window(image: Image.Image, resized: tuple[int, int], corner: tuple[int, int], size: int) -> Pixels:
    """The square of ``size`` at ``corner`` (left, top) of what ``image`` is when ``resized`` to (width, height)."""
    left, top = corner
    if resized == image.size:
        return _pixels(image.crop((left, top, left + size, top + size)))
    if size < WINDOW_FROM or resized[0] > image.width or image.height > 1.9 * image.width:
        return _pixels(image.resize(resized, Image.Resampling.BICUBIC))[top : top + size, left : left + size]
    (start, stop, low, high), (upper, lower, first, last) = (
        _span(corner[axis], size, image.size[axis], resized[axis]) for axis in (0, 1)
    )
    part = image.crop((start, upper, stop, lower))
    # Across, then down, each by itself: the order of Pillow's for whole images, which for windows it may turn round.
    across = part.resize((size, part.height), Image.Resampling.BICUBIC, box=(low, 0, high, part.height))
    return _pixels(across.resize((size, size), Image.Resampling.BICUBIC, box=(0, first, size, last)))


def _span(place: int, size: int, length: int, resized: int) -> tuple[int, int, float, float]:
    """Along one side, ``length`` resized to ``resized``: which pixels ``place .. place + size`` are made of, first and
    end, and where, counted from that first one, it begins and ends."""
    scale = length / resized
    low, high = place * scale, min((place + size) * scale, length)
    reach = math.ceil(2 * max(scale, 1)) + 1  # of the bicubic filter, and one for rounding
    start, stop = max(int(low) - reach, 0), min(math.ceil(high) + reach, length)
    return start, stop, low - start, high - start


def _pixels(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
