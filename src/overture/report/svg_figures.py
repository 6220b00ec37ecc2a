"""Figures of the report: inline SVG whose colours are CSS variables, so that they follow the page into the dark.

Every function gives an ``<svg>`` element, or nothing when there is nothing to draw. Runs differ by colour and marker,
kinds of curve by line style: nothing hangs on colour alone. Positions are counted from 1.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from overture.analysis.style import COLOURS, FAINT, GRID, INK, MARKERS, MUTED, SMALL_SIZE, dress
from overture.report.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "codebook_figure",
    "cumulative_figure",
    "curves_figure",
    "entropy_figure",
    "marker",
    "position_figure",
    "prior_figure",
    "shown_positions",
]

VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    FAINT: "var(--muted)",
    GRID: "var(--line)",
    **{colour: f"var(--run-{place})" for place, colour in enumerate(COLOURS)},
}
"""The style's colours, and the page's names for them."""
PANEL = (5.0, 2.95)  # inches; half the page's width
MAX_POINTS = 240  # of a training curve: more cannot be seen
NEGLIGIBLE_BITS = 0.01


def shown_positions(records: Sequence[Record]) -> int:
    """How many positions the entropy figures draw: up to a little after the last cliff, at least 16."""
    last = 0
    longest = max((len(r.entropy["conditional_entropy_bits"]) for r in records if r.entropy), default=0)
    for record in (r for r in records if r.entropy):
        bits = record.entropy["conditional_entropy_bits"]
        last = max(
            [last, record.entropy["predicted_cliff"] or 0, *(t for t, b in enumerate(bits, 1) if b > NEGLIGIBLE_BITS)]
        )
    wanted = max(16, round(1.25 * last))
    return longest if wanted > 0.8 * longest else wanted


def entropy_figure(records: Sequence[Record], *, narrow: bool = False) -> str | None:
    """H(x_t | x_<t) of every run, and beneath it where the cliff was predicted and measured; ``narrow`` is for phones."""
    if not any(r.entropy for r in records):
        return None
    shown = shown_positions(records)
    names = [(place, r) for place, r in enumerate(records) if r.entropy]
    strip = 0.3 * len(names) + 0.2
    figure = _figure((PANEL[0] if narrow else 2 * PANEL[0], 3.3 + strip))
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3.3, strip], "hspace": 0.06})
    for place, record in names:
        bits = record.entropy["conditional_entropy_bits"][:shown]
        _line(top, range(1, len(bits) + 1), bits, place)
    dress(top, "", "", "bits that token t adds")
    top.set_ylim(bottom=0)
    for row, (place, record) in enumerate(names):
        colour = _colour(place)
        predicted, measured = record.entropy["predicted_cliff"], record.entropy["cliff"]
        if predicted is not None:
            bottom.plot([predicted, measured], [row, row], color=colour, linewidth=1.5, alpha=0.6)
            bottom.plot(
                predicted, row, marker="o", markersize=10, markerfacecolor="none", color=colour, markeredgewidth=1.6
            )
        bottom.plot(measured, row, marker="o", markersize=5, color=colour)
        said = f"predicted {'none' if predicted is None else predicted}, measured {measured}"
        _say(bottom, said, row, sorted((predicted or measured, measured)), shown)
    dress(bottom, "", "token t", "")
    bottom.set_yticks(range(len(names)), [f"cliff {_clipped(record.name)}" for _, record in names])
    bottom.set_ylim(len(names) - 0.4, -0.6)
    bottom.grid(visible=False)
    bottom.spines["left"].set_visible(False)
    bottom.tick_params(axis="y", length=0, labelcolor=INK)
    top.tick_params(axis="x", length=0)
    _positions_axis(bottom, shown)
    label = "Conditional entropy of the training tokens, position by position"
    return _svg(figure, f"{label}, narrow" if narrow else label)


def _say(axes: Axes, said: str, row: int, ends: list[int], shown: int) -> None:
    """Words beside the two cliffs of a run: to their right, or left, or between them, where there is room."""
    if ends[1] <= 0.6 * shown:
        place, offset, side = ends[1], (11, 0), "left"
    elif ends[0] >= 0.4 * shown:
        place, offset, side = ends[0], (-11, 0), "right"
    else:
        place, offset, side = sum(ends) // 2, (0, 7), "center"
    axes.annotate(
        said, (place, row), offset, textcoords="offset points", ha=side, va="center", fontsize=SMALL_SIZE, color=MUTED
    )


def cumulative_figure(records: Sequence[Record]) -> str | None:
    """Bits that the first t tokens hold, and have room for, against log2 N."""
    with_entropy = [r for r in records if r.entropy]
    if not with_entropy:
        return None
    shown = shown_positions(records)
    figure = _figure(PANEL)
    axes = figure.subplots()
    ceiling = max(r.entropy["log2_n"] for r in with_entropy)
    for place, record in enumerate(records):
        if record.entropy:
            held = record.entropy["cumulative_bits"][:shown]
            _line(axes, range(len(held) + 1), [0, *held], place)
            room = [0.0, *accumulate(np.log2(record.sizes[:shown]).tolist())]
            axes.plot(range(len(room)), room, color=_colour(place), linestyle=(0, (4, 3)), linewidth=1.3)
    for level in sorted({r.entropy["log2_n"] for r in with_entropy}):
        axes.axhline(level, color=MUTED, linewidth=1)
        axes.annotate(
            f"log2 N = {level:.2f}", (1, level), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=SMALL_SIZE, color=MUTED,
        )  # fmt: skip
    dress(axes, "", "first t tokens", "bits")
    axes.set_ylim(0, 1.3 * ceiling)
    axes.locator_params(axis="y", nbins=5)
    _positions_axis(axes, shown, first=0)
    _style_legend(axes, held="held (measured)", room="room (sum of log2 K)")
    return _svg(figure, "Bits held by the first tokens, against the bits that name a training image")


def codebook_figure(records: Sequence[Record]) -> str | None:
    """K_t at every position, logarithmic."""
    if not any(r.sizes for r in records):
        return None
    figure = _figure(PANEL)
    axes = figure.subplots()
    for place, record in enumerate(records):
        if record.sizes:
            _line(axes, range(1, len(record.sizes) + 1), record.sizes, place)
    axes.set_yscale("log", base=2)
    dress(axes, "", "token t", "entries K_t (logarithmic)")
    _whole_numbers(axes)
    low, high = (limit(s for r in records for s in r.sizes) for limit in (min, max))
    axes.set_ylim(low / 1.5, high * 1.5)
    _positions_axis(axes, max(len(r.sizes) for r in records))
    return _svg(figure, "Codebook size at every position")


def position_figure(records: Sequence[Record], what: str, label: str) -> str | None:
    """Codebook usage at every position: ``used_per_position`` in percent, or ``perplexity_per_position``."""
    values = [r.usage(what) for r in records]
    if not any(values):
        return None
    share = what == "used_per_position"
    figure = _figure(PANEL)
    axes = figure.subplots()
    for place, value in enumerate(values):
        _line(axes, range(1, len(value) + 1), [100 * v if share else v for v in value], place)
    if share:
        axes.set_ylim(0, 105)
    else:
        axes.set_yscale("log", base=2)
    dress(axes, "", "token t", label)
    if not share:
        _whole_numbers(axes)
    _positions_axis(axes, max(map(len, values)))
    return _svg(figure, label)


def prior_figure(records: Sequence[Record], place: int) -> str | None:
    """One run's prior: cross-entropy on training and held-out images at every position, over H_t of the training tokens."""
    curves = [(r.local_bits("train_allowed"), r.local_bits("held_out_allowed")) for r in records]
    train, held_out = curves[place]
    if not train:
        return None
    figure = _figure(PANEL)
    axes = figure.subplots()
    positions = np.arange(1, len(train) + 1)
    entropy = records[place].entropy.get("conditional_entropy_bits", [])
    if len(entropy) == len(train):
        axes.fill_between(positions, 0, entropy, color=GRID, step="mid", linewidth=0)
    _line(axes, positions, train, place)
    _line(axes, positions, held_out, place, dashed=True)
    # One scale for all runs: the panels stand side by side.
    highest = max(
        [v for pair in curves for part in pair for v in part]
        + [v for r in records for v in r.entropy.get("conditional_entropy_bits", [])]
    )
    axes.set_ylim(0, 1.08 * highest)
    dress(axes, "", "token t", "bits")
    _positions_axis(axes, len(train))
    _style_legend(axes, train="training images", held_out="held-out images", entropy="H_t, training tokens")
    return _svg(figure, f"Cross-entropy of the prior of {records[place].name}, position by position")


def curves_figure(records: Sequence[Record], stage: str, terms: dict[str, str], label: str) -> str | None:
    """Training curves: ``terms`` are logged names and how they are called, at most three. Many points are averaged."""
    found = {
        (place, term): curve
        for place, record in enumerate(records)
        for term in terms
        if (curve := record.curve(stage, term))[0]
    }
    if not found:
        return None
    figure = _figure(PANEL)
    axes = figure.subplots()
    styles: dict[str, Any] = dict(zip(terms, ("-", (0, (4, 2)), (0, (1, 1.5))), strict=False))
    shown = {}
    for (place, term), curve in found.items():
        steps, values = _averaged(*curve)
        shape = marker(place) if len(steps) <= 30 else None
        axes.plot(
            steps, values, color=_colour(place), linestyle=styles[term], linewidth=1.6, marker=shape, markersize=3.5
        )
        shown[term] = terms[term]
    smallest, largest = (
        limit(min(c[1]) if limit is min else max(c[1]) for c in found.values()) for limit in (min, max)
    )
    if smallest > 0 and largest > 10 * smallest:
        axes.set_yscale("log")
    elif smallest >= 0:
        axes.set_ylim(bottom=0)
    dress(axes, "", "step", label)
    if axes.get_yscale() == "log":
        _plain_numbers(axes)
    if list(shown) != list(terms)[:1]:
        handles = [_handle(styles[term], name) for term, name in shown.items()]
        axes.legend(handles=handles, frameon=False, fontsize=SMALL_SIZE, labelcolor=INK, loc="best")
    return _svg(figure, label)


# -- parts of a figure ----------------------------------------------------------------------------------------------


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def marker(place: int) -> str:
    """The marker of a run; once the colours repeat, they meet other markers."""
    return MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _line(axes: Axes, x: Sequence[float] | Any, y: Sequence[float] | Any, place: int, dashed: bool = False) -> None:
    """A run's curve over positions; markers while there is room for them."""
    axes.plot(
        x, y, color=_colour(place), linewidth=1.8, linestyle=(0, (4, 2.5)) if dashed else "-",
        marker=marker(place) if len(y) <= 70 else None, markersize=4.5,
        markerfacecolor="none" if dashed else _colour(place),
    )  # fmt: skip


def _positions_axis(axes: Axes, last: int, first: int = 1) -> None:
    from matplotlib.ticker import FixedLocator

    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, last) if last / s <= (16 if last < 100 else 8))
    axes.xaxis.set_major_locator(FixedLocator([t for t in range(0, last + 1, step) if t >= first] + [1] * (first == 1)))
    axes.set_xlim(first - 0.5, last + 0.5)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()


def _plain_numbers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()


def _handle(style: Any, name: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=MUTED, linestyle=style, linewidth=1.6, label=name)


def _style_legend(axes: Axes, **names: str) -> None:
    """What the line styles mean; the colours are explained once on the page."""
    from matplotlib.patches import Patch

    styles = {"held": "-", "train": "-", "room": (0, (4, 3)), "held_out": (0, (4, 2.5))}
    handles = [
        Patch(color=GRID, label=name) if kind == "entropy" else _handle(styles[kind], name)
        for kind, name in names.items()
    ]
    axes.legend(handles=handles, frameon=False, fontsize=SMALL_SIZE, labelcolor=INK, loc="best")


def _averaged(steps: list[int], values: list[float]) -> tuple[list[float], list[float]]:
    """Means over neighbours, so that no more than ``MAX_POINTS`` remain."""
    width = -(-len(steps) // MAX_POINTS)
    groups = [slice(start, start + width) for start in range(0, len(steps), width)]
    return [float(np.mean(steps[g])) for g in groups], [float(np.mean(values[g])) for g in groups]


def _clipped(name: str) -> str:
    name = name if len(name) <= 24 else f"{name[:23]}…"
    return name.replace("$", r"\$")  # matplotlib would read a formula


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element for the inside of a page: real text, ids of its own, colours as variables."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 10, "path.simplify": True}):
        for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
            patch.set_visible(False)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    prefix = re.sub(r"\W+", "-", label.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    # Absolute size would keep it from shrinking with the page; the viewBox stays.
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
