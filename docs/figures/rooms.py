"""Draws ``docs/images/rooms.svg``, the picture of the rooms, from the table in ``docs/architecture.md``.

``python docs/figures/rooms.py``; a test fails when the picture is not that of the table.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
PICTURE = DOCS / "images" / "rooms.svg"

FLOOR, GAP, BOX, HIGH, MARGIN = 42, 10, 124, 30, 20
"""Height of a floor, space between rooms, width and height of a room, margin of the picture."""
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
font-family="system-ui, sans-serif" font-size="15" role="img" aria-label="The rooms of the package, floor by floor">
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">\
<path d="M0 0 L8 4 L0 8 z" fill="#5c6670"/></marker></defs>
<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>
"""


def floors(page: str) -> list[list[str]]:
    """The rooms of every row of the table, from the ground up."""
    table = page.split("## Rooms")[1].split("\n## ")[0]
    return [re.findall(r"`(\w+)`", rooms) for rooms in re.findall(r"^\| (`[^|]*) \|", table, re.M)]


def draw(page: str) -> str:
    """The SVG: the ground floor below, since a room stands on those that it imports."""
    house = floors(page)
    widest = max(map(len, house)) * (BOX + GAP) - GAP
    left, bottom = MARGIN + 60, MARGIN + FLOOR * len(house)
    parts = [
        f'<path d="M{MARGIN + 24} {MARGIN + 8} V{bottom - 8}" stroke="#5c6670" stroke-width="1.6" marker-end="url(#head)"/>',
        f'<text x="{MARGIN + 14}" y="{(MARGIN + bottom) / 2}" fill="#5c6670" text-anchor="middle" '
        f'transform="rotate(-90 {MARGIN + 14} {(MARGIN + bottom) / 2})">imports</text>',
    ]
    for number, rooms in enumerate(reversed(house)):
        top = MARGIN + FLOOR * number
        start = left + (widest - len(rooms) * (BOX + GAP) + GAP) / 2
        for place, room in enumerate(rooms):
            x, y = start + place * (BOX + GAP), top + (FLOOR - HIGH) / 2
            parts.append(
                f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="5" fill="#e8f1f8" stroke="#0072b2"/>'
                f'<text x="{x + BOX / 2}" y="{y + HIGH / 2 + 5}" text-anchor="middle" fill="#1b1f24">{room}</text>'
            )
        if number:
            parts.append(f'<path d="M{left} {top} H{left + widest}" stroke="#e3e7eb"/>')
    return HEAD.format(width=left + widest + MARGIN, height=bottom + MARGIN) + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    PICTURE.write_text(draw((DOCS / "architecture.md").read_text()))
