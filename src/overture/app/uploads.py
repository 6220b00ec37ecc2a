"""Pictures that people send: how large they may be, looked at before they are unpacked."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from overture.data.base import decode_image
from overture.errors import UsageError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "read_upload"]

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 2**26
"""67 megapixels, which take 200 MB in colour while they are resized; the header tells."""


def read_upload(path: str | Path | None) -> Image.Image:
    """The picture in an uploaded file, upright; what is none, is too large or too narrow is one line."""
    if path is None:
        raise UsageError("upload: choose a picture first")
    file = Path(path)
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError("upload: the file is gone; send it again") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"upload: larger than {MAX_BYTES:,} bytes")
    width, height = _size(data)
    if width * height > MAX_PIXELS:
        raise UsageError(f"upload: {width} x {height} pixels, at most {MAX_PIXELS:,} are read")
    return decode_image(data, "upload")


def _size(data: bytes) -> tuple[int, int]:
    """By the header alone; nothing where there is none, which is told when it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is higher
        raise UsageError(f"upload: more than {MAX_PIXELS:,} pixels, which are not read") from error
    except Exception:  # its decoders raise nearly anything
        return 0, 0
