"""The page's pieces that are plain HTML: a picture with its download, a guidance schedule, the facts of a run."""

from __future__ import annotations

import html
import re

from PIL import Image

from overture.app.making import Made
from overture.app.opened_run import OpenedRun
from overture.app.picture_record import png_bytes
from overture.app.token_map import data_url, plain_png
from overture.priors.sampling import Sampling

__all__ = ["guidance_drawing", "marks_of", "picture_figure", "small_picture", "told"]

WIDTH, HEIGHT, EDGE = 320, 96, 22
"""Of a guidance schedule, and the room for its numbers."""


def picture_figure(made: Made) -> str:
    """A picture, what it is, and once it is whole a link that saves it with its settings."""
    record = made.record
    if record.prior_hash:
        words = f"{record.class_name}, seed {record.seed}"
        words += f", first {len(record.kept)} tokens kept" if record.kept else ""
    else:
        words = record.made or "decoded"
    if not made.finished:
        image, end = made.image, f"{made.filled} of {len(made.ids)} tokens"
        return _figure(image, plain_png(image), words, f"<span>{end}</span>")
    png = png_bytes(made.image, record.to_text())
    name = "-".join(re.findall(r"\w+", record.class_name.lower())) or "picture"
    link = f'<a download="{name}-{record.seed}.png" href="{data_url(png)}">Save PNG with its settings</a>'
    return _figure(made.image, png, words, link)


def small_picture(image: Image.Image, words: str) -> str:
    """A picture with a line under it."""
    return _figure(image, plain_png(image), words, "")


def _figure(image: Image.Image, png: bytes, words: str, end: str) -> str:
    said = html.escape(words)
    smooth = "" if max(image.size) >= 128 else " overture-pixels"
    return (
        f'<figure class="overture-picture"><img class="overture-image{smooth}" alt="{said}" src="{data_url(png)}">'
        f"<figcaption><span>{said}</span>{end}</figcaption></figure>"
    )


def told(words: str) -> str:
    """A line of the page."""
    return f'<p class="overture-told">{html.escape(words)}</p>'


def marks_of(run: OpenedRun) -> tuple[tuple[str, int], ...]:
    """Numbers of first tokens worth a mark: none, and the end of every segment; halves where there is one segment."""
    ends = run.segment_ends()
    length = run.layout.length
    if len(ends) > 1:
        return (("none", 0), *((f"{name} ends", end) for name, end in ends))
    return tuple(
        (word, length * part // 4) for part, word in enumerate(("none", "a quarter", "half", "3 quarters", "all"))
    )


def guidance_drawing(run: OpenedRun, sampling: Sampling) -> str:
    """The scale at every step of the sequence, with the ends of segments, as SVG."""
    scales, positions = sampling.guidance.scales(run.layout), run.layout.positions
    low, high = min(0.0, *scales), max(1.5, *scales)
    across = (WIDTH - EDGE) / len(scales)

    def level(scale: float) -> float:
        return HEIGHT - 14 - (scale - low) / (high - low) * (HEIGHT - 26)

    points = " ".join(
        f"{EDGE + (step + end) * across:.1f},{level(scale):.1f}" for step, scale in enumerate(scales) for end in (0, 1)
    )
    starts = [0, *(n for n in range(1, len(scales)) if positions[n].segment != positions[n - 1].segment)]
    names = "".join(
        f'<line class="rule" x1="{EDGE + n * across:.1f}" x2="{EDGE + n * across:.1f}" y1="4" y2="{HEIGHT - 14}"/>'
        f'<text x="{EDGE + n * across + 3:.1f}" y="{HEIGHT - 3}">{html.escape(name)}</text>'
        for n, name in zip(starts, run.layout.names, strict=True)
    )
    said = html.escape(f"guidance {sampling.guidance}: from {scales[0]:.3g} to {scales[-1]:.3g}")
    return (
        f'<svg class="overture-schedule" role="img" aria-label="{said}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<line class="rule" x1="{EDGE}" x2="{WIDTH}" y1="{level(1):.1f}" y2="{level(1):.1f}"/>'
        f'<text x="0" y="{level(1) + 3:.1f}">1</text><text x="0" y="{level(high) + 3:.1f}">{high:.3g}</text>'
        f'{names}<polyline class="curve" points="{points}"/></svg>'
    )
