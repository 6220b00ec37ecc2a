"""Draws ``docs/images/papers-two-ways.svg``: who sees and who trains which tokens, with a prologue.

``python docs/figures/two_ways.py``
"""

from __future__ import annotations

from pathlib import Path

PICTURE = Path(__file__).parents[1] / "images" / "papers-two-ways.svg"
INK, MUTED, BLUE, ORANGE = "#1b1f24", "#5c6670", "#0072b2", "#d55e00"
WIDTH, HEIGHT = 880, 300


def box(x: int, y: int, width: int, height: int, words: str, colour: str = INK) -> str:
    """A rounded box with words in its middle."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" fill-opacity="0.08" '
        f'stroke="{colour}"/>' + text(x + width / 2, y + height / 2 + 5, words, INK, "middle")
    )


def text(x: float, y: float, words: str, colour: str = MUTED, anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x}" y="{y}" font-size="14" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def tokens(x: int, y: int, count: int, colour: str) -> str:
    """A row of small squares."""
    return "".join(
        f'<rect x="{x + 22 * place}" y="{y}" width="18" height="18" rx="3" fill="{colour}" fill-opacity="0.75"/>'
        for place in range(count)
    )


def arrow(path: str, colour: str, back: bool = False) -> str:
    """A line with a head; dashed where it is a gradient on its way back."""
    dashes = ' stroke-dasharray="5 4"' if back else ""
    head = "orange" if colour == ORANGE else "blue" if colour == BLUE else "ink"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes} marker-end="url(#{head})"/>'


def draw() -> str:
    """The whole picture."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
        for name, colour in (("ink", INK), ("blue", BLUE), ("orange", ORANGE))
    )
    parts = [
        box(20, 120, 90, 44, "picture"),
        arrow("M110 142 H150", INK),
        box(155, 120, 100, 44, "encoder"),
        arrow("M255 142 H300", INK),
        text(306, 112, "prologue", ORANGE),
        tokens(306, 133, 4, ORANGE),
        text(412, 112, "visual tokens", BLUE),
        tokens(412, 133, 9, BLUE),
        arrow("M510 156 V218 H655", BLUE),
        box(660, 196, 100, 44, "decoder", BLUE),
        arrow("M760 218 H790", BLUE),
        text(795, 223, "picture", INK),
        arrow("M510 126 V64 H655", INK),
        arrow("M350 94 V64 H655", INK),
        box(660, 42, 100, 44, "prior", ORANGE),
        arrow("M760 64 H790", INK),
        text(795, 69, "next token", INK),
        arrow("M690 240 V268 H205 V170", BLUE, back=True),
        text(440, 288, "is the picture right?  trains the visual tokens", BLUE, "middle"),
        arrow("M690 42 V20 H205 V114", ORANGE, back=True),
        text(440, 14, "was the token to be expected?  trains the prologue", ORANGE, "middle"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -6 {WIDTH} {HEIGHT + 6}" width="{WIDTH}" '
        f'height="{HEIGHT + 6}" font-family="system-ui, sans-serif" role="img" aria-label="Encoder, tokens, decoder and '
        'prior with a prologue; dashed lines are gradients">'
        f'<defs>{heads}</defs><rect y="-6" width="{WIDTH}" height="{HEIGHT + 6}" rx="8" fill="#ffffff"/>'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
