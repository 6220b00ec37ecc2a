"""The pictures of a run, cut into rows and embedded in the page."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overture.errors import OvertureError
from overture.report.records import Record

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Strip", "Strips", "read_strips"]

PIXELS = 1_600_000  # of all pictures of a page that are not small; less than a byte each as JPEG
SMALL = 64  # px; images up to here are shown as they are, and with visible pixels


@dataclass(frozen=True)
class Strip:
    """One row of images, as a data URI."""

    uri: str
    width: int
    height: int
    content: bytes
    """The pixels, to tell equal rows."""


@dataclass(frozen=True)
class Strips:
    """A picture grid, row by row."""

    rows: tuple[Strip, ...]
    columns: int
    """Images in a row; 0 if the picture is shown whole because its grid is unknown."""
    scale: int
    """Every side is shown 1 / ``scale`` of its size."""
    pixelated: bool
    """Whether images are so small that their pixels should be seen."""


def read_strips(
    record: Record, name: str, *, rows: int | None = None, columns: int | None = None, share: float = 1.0
) -> Strips | None:
    """Read ``samples/NAME``; one of ``rows`` and ``columns`` of its grid is known. Nothing if it is not there.

    A large picture is reduced to its ``share`` of the pixels that a page may hold, and kept as JPEG.
    """
    from PIL import Image

    path = record.root / "samples" / name
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures
            with Image.open(path) as file:
                picture = file.convert("L" if file.mode == "L" else "RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise OvertureError(f"{path}: cannot be read as a picture ({error}); delete it and run again") from error
    size = record.config.get("data", {}).get("image_size", 0)
    scale = 1 if 0 < size <= SMALL else _reduction(picture, share * PIXELS)
    grid = _grid(picture, size, rows, columns)
    if grid is None:
        return Strips((_strip(picture, scale),), 0, scale, 0 < size <= SMALL)
    rows, columns, gap = grid
    step = size + gap
    cut = [picture.crop((0, row * step, picture.width, row * step + size + 2 * gap)) for row in range(rows)]
    return Strips(tuple(_strip(part, scale) for part in cut), columns, scale, size <= SMALL)


def _grid(picture: Any, size: int, rows: int | None, columns: int | None) -> tuple[int, int, int] | None:
    """Rows, columns and the gap around every image, if the picture is such a grid of square images."""
    side, number = (picture.height, rows) if rows else (picture.width, columns)
    if not size or not number or (side - number * size) % (number + 1):
        return None
    gap = (side - number * size) // (number + 1)
    if gap < 0:
        return None
    counts = [divmod(length - gap, size + gap) for length in (picture.height, picture.width)]
    if any(rest or not count for count, rest in counts):
        return None
    return counts[0][0], counts[1][0], gap


def _reduction(picture: Image, pixels: float) -> int:
    scale = 1
    while picture.width * picture.height > pixels * scale**2:
        scale += 1
    return scale


def _strip(picture: Image, scale: int) -> Strip:
    content = picture.tobytes()
    buffer = io.BytesIO()
    if scale > 1:
        picture = picture.reduce(scale)
        picture.save(buffer, format="JPEG", quality=88, subsampling=0)
    else:
        picture.save(buffer, format="PNG", optimize=True)
    kind = "jpeg" if scale > 1 else "png"
    uri = f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
    return Strip(uri, picture.width, picture.height, content)
