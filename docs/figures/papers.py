"""Draws the figures of ``docs/papers.md`` from numbers that stand in the pages of experiments.

``python docs/figures/papers.py``
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from overture import Schedule
from overture.analysis.figures import save_figure
from overture.analysis.style import INK, curve_style, dress, legend, new_figure, note

DOCS = Path(__file__).parents[1]
IMAGENET = 1_281_167


def table(page: str, first_heading: str, columns: int) -> dict[str, list[float]]:
    """The numbers of a page's table with this first heading and so many columns, by the first cell of each row."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", (DOCS / "experiments" / page).read_text(), re.M)
    for block in blocks:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if rows[0][0] == first_heading and len(rows[0]) == columns:
            return {row[0]: [float(cell.removesuffix(" %")) for cell in row[1:]] for row in rows[2:]}
    raise SystemExit(f"docs/experiments/{page} has no table of {columns} columns that begins with '{first_heading}'")


def draw_cliff() -> None:
    """Bits that each token of a trained tokenizer adds, under four growth laws."""
    bits = table("quickstart.md", "codebook", 13)
    figure, (axes,) = new_figure(1, width=7.2)
    for place, (name, values) in enumerate(bits.items()):
        axes.plot(range(1, len(values) + 1), values, label=name, **curve_style(place))
    axes.set_ylim(bottom=0)
    dress(axes, "What each token adds (9,000 pictures hold 13.1 bits)", "token", "bits, all earlier tokens known")
    legend(axes)
    save_figure(figure, DOCS / "images" / "papers-cliff.svg")


def draw_schedules() -> None:
    """Sizes of two schedules, and how soon their tokens have room for the name of every picture of ImageNet."""
    figure, (left, right) = new_figure(2, width=4.4)
    schedules = {
        "16,384 everywhere": Schedule.uniform(256, 16384),
        "linear from 2": Schedule.linear(256, 2, 16384),
        "geometric from 2": Schedule.geometric(256, 2, 16384),
    }
    shown = 40
    for place, (name, schedule) in enumerate(schedules.items()):
        style = curve_style(place) | {"marker": ""}
        left.plot(range(1, 257), schedule.sizes, label=name, **style)
        right.plot(range(1, shown + 1), schedule.cumulative_bits[:shown], **style)
        cliff = schedule.cliff(IMAGENET)
        assert cliff is not None
        right.plot([cliff], [schedule.cumulative_bits[cliff - 1]], "o", color=style["color"])
        note(
            right,
            str(cliff),
            (cliff, schedule.cumulative_bits[cliff - 1]),
            xytext=(-6, 5),
            ha="right",
            color=style["color"],
        )
    left.set_yscale("log", base=2)
    ceiling = np.log2(IMAGENET)
    right.axhline(ceiling, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    note(right, "the name of one picture of ImageNet", (shown, ceiling), xytext=(0, -12), ha="right", color=INK)
    right.set_ylim(0, 60)
    dress(left, "Codes that a position may use", "position", "K, codes")
    dress(right, "Room of the first tokens", "tokens", "bits")
    legend(left)
    save_figure(figure, DOCS / "images" / "papers-schedules.svg")


def draw_probe() -> None:
    """Class accuracy of a linear probe on the first tokens, without and with a prologue."""
    rows = table("prologue.md", "first tokens", 4)
    names = ("no prologue", "prologue, one encoder for both", "prologue, its own encoder")
    figure, (axes,) = new_figure(1, width=7.2)
    for place, name in enumerate(names):
        axes.plot(
            [row.split()[0] for row in rows], [row[place] for row in rows.values()], label=name, **curve_style(place)
        )
    axes.set_ylim(0, 80)
    dress(axes, "What the first tokens say of the class", "tokens", "right answers of a linear probe, percent")
    legend(axes)
    save_figure(figure, DOCS / "images" / "papers-probe.svg")


if __name__ == "__main__":
    draw_cliff()
    draw_schedules()
    draw_probe()
