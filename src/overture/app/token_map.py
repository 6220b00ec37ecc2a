"""Tokens drawn on their picture, or as a strip where they have no place on it: SVG for the inside of a page.

The colour of a cell goes round the codebook with the id; it tells tokens apart and means nothing else.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator

from PIL import Image

from overture.app.opened_run import Ids, OpenedRun

__all__ = ["data_url", "token_map"]

SIDE = 360
"""Of the picture, in the units of the drawing."""
COLUMNS = 8
"""Cells in a row of a strip."""


def token_map(run: OpenedRun, ids: Ids, image: Image.Image, chosen: int | None = None) -> str:
    """All segments, one under the other. ``chosen`` is a token counted over all segments; it gets a frame."""
    parts = []
    for name in run.layout.names:
        places = run.layout.slice(name)
        grid = run.grid_of(name)
        cells = "".join(_cells(run, ids, places, grid, chosen))
        rows = grid or -(-(places.stop - places.start) // COLUMNS)
        height = SIDE if grid else rows * SIDE // COLUMNS
        under = _picture(image) if grid else ""
        label = f"{places.stop - places.start} {name} tokens, {'on the picture' if grid else 'in their order'}"
        parts.append(
            f'<figure class="overture-map"><figcaption>{html.escape(label)}: {places.start} to {places.stop - 1}'
            f'</figcaption><svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {SIDE} {height}">'
            f"{under}{cells}</svg></figure>"
        )
    return "".join(parts)


def _cells(run: OpenedRun, ids: Ids, places: slice, grid: int | None, chosen: int | None) -> Iterator[str]:
    across = grid or COLUMNS
    side = SIDE / across
    for place in range(places.start, places.stop):
        step, size = place - places.start, run.layout.sizes[place]
        x, y = step % across * side, step // across * side
        hue = round(360 * ids[place] / size)
        kind = "chosen" if place == chosen else "cell"
        size_of_text = side / max(3.2, 0.75 * len(str(ids[place])))
        yield (
            f'<g class="{kind}" data-place="{place}"><title>token {place}: {ids[place]} of 0..{size - 1}</title>'
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{side:.2f}" height="{side:.2f}" '
            f'fill="hsl({hue} 70% 45%)" fill-opacity="{0.28 if grid else 0.75}"/>'
            f'<text x="{x + side / 2:.2f}" y="{y + side / 2:.2f}" font-size="{size_of_text:.1f}">{ids[place]}</text></g>'
        )


def _picture(image: Image.Image) -> str:
    return f'<image href="{data_url(plain_png(image))}" width="{SIDE}" height="{SIDE}" class="overture-pixels"/>'


def plain_png(image: Image.Image) -> bytes:
    """A PNG that says nothing."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """A picture as an address that needs no server."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
