"""A suite's figure: one panel a metric, one row a run, every member a point, mean and spread.

A hollow mark: the difference to the run that this one is compared with is within chance, or chance is not known.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from overture.analysis.style import COLOURS, INK, MUTED, SMALL_SIZE, dress
from overture.bench.page_table import Cell
from overture.bench.suite import Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["suite_figure"]

COLUMNS = 4
WIDTH, ROW = 2.9, 0.36  # inches


def suite_figure(suite: Suite, table: Mapping[tuple[str, str], Cell]) -> Figure:
    """The cells of :func:`overture.bench.page_table.cells` drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = [run.name for run in suite.runs if any(own == run.name for own, _ in table)]
    columns = min(COLUMNS, len(suite.metrics))
    rows = -(-len(suite.metrics) // columns)
    size = (1.0 + WIDTH * columns, rows * (1.0 + ROW * len(runs)))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.14)  # type: ignore[union-attr, call-arg]  # titles belong to what is below them
    for place, (metric, heading) in enumerate(suite.metrics.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        _panel(axes, suite.compare, runs, {run: cell for (run, own), cell in table.items() if own == metric})
        dress(axes, textwrap.fill(heading, 34), "", "")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=MUTED, alpha=0.2, linewidth=0.7)
        axes.set_yticks(range(len(runs)), runs if place % columns == 0 else [""] * len(runs))
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=SMALL_SIZE + 0.5)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
    return figure


def _panel(axes: Axes, compare: str | dict[str, str], runs: list[str], found: Mapping[str, Cell]) -> None:
    if isinstance(compare, str) and compare in found:
        axes.axvline(found[compare].sample.mean, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    for place, run in enumerate(runs):
        if run not in found:
            continue
        cell, colour = found[run], COLOURS[place % len(COLOURS)]
        values = list(cell.sample.values.values())
        axes.plot(
            values, [place + 0.22] * len(values), linestyle="none", marker=".", markersize=4, color=colour, alpha=0.6
        )
        within = cell.comparison is not None and cell.comparison.within_chance is not False
        axes.errorbar(
            cell.sample.mean, place, xerr=cell.sample.spread, color=colour, marker="o", markersize=6, capsize=3,
            elinewidth=1.4, markeredgewidth=1.4, markerfacecolor="white" if within else colour,
        )  # fmt: skip
