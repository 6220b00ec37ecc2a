"""How every figure of the analysis looks: one palette, one type size ladder, thin grid, nothing that is not data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "FAINT",
    "GRID",
    "INK",
    "MARKERS",
    "MUTED",
    "curve_style",
    "dress",
    "legend",
    "new_figure",
    "note",
    "token_axis",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b38600", "#4d4dff")
"""After Okabe and Ito: told apart by colour-blind readers, dark enough for thin lines on white."""
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, MUTED, FAINT, GRID = "#1b1f24", "#5c6670", "#9aa4ae", "#e3e7eb"

TITLE_SIZE, LABEL_SIZE, SMALL_SIZE = 11.0, 9.5, 8.5


def new_figure(columns: int, width: float = 5.4, height: float = 3.7) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, each ``width`` x ``height`` inches. No pyplot, so nothing global is kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.05)  # type: ignore[union-attr, call-arg]
    return figure, [figure.add_subplot(1, columns, place + 1) for place in range(columns)]


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title, labels with units, light horizontal grid, only the two axes that carry numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=TITLE_SIZE, color=INK, pad=10)
    axes.set_xlabel(x_label, fontsize=LABEL_SIZE, color=MUTED)
    axes.set_ylabel(y_label, fontsize=LABEL_SIZE, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=SMALL_SIZE, colors=MUTED, length=3, width=0.7)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
        spine.set_linewidth(0.8)


def curve_style(place: int) -> dict[str, Any]:
    """Colour and marker of the curve at ``place``; dashes once the colours repeat, so nothing hangs on colour alone."""
    dashes = "-" if place < len(COLOURS) else (0, (4, 1.5))
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": dashes,
        "linewidth": 1.8,
        "markersize": 4.0,
        "markeredgewidth": 0.0,
    }


def note(axes: Axes, text: str, at: tuple[float, float], **how: Any) -> None:
    """Small text at a data point; ``how`` goes to ``annotate``."""
    options = {"xytext": (0, 0), "fontsize": SMALL_SIZE, "color": MUTED, **how}
    axes.annotate(text, xy=at, textcoords="offset points", **options)


def legend(axes: Axes) -> None:
    """The curves' names, small and without a frame."""
    axes.legend(frameon=False, fontsize=SMALL_SIZE)


def token_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """Doubling counts evenly spaced, with 0 in front where there is one."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("symlog", base=2, linthresh=1)
    shown = sorted(set(lengths))
    axes.set_xlim(shown[0] - 0.15, shown[-1] * 1.1 + 0.1)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [str(length) for length in shown])
