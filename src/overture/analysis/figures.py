"""Figures of schedules and of measured entropies. Positions are counted from 1 on every axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.analysis.entropy import CLIFF_SHARES, ConditionalEntropy
from overture.analysis.style import (
    COLOURS,
    INK,
    MUTED,
    SMALL_SIZE,
    curve_style,
    dress,
    new_figure,
    note,
)
from overture.errors import UsageError
from overture.files import replacing
from overture.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["FORMATS", "check_figure_path", "entropy_figure", "save_figure", "schedule_figure"]

FORMATS = (".png", ".svg", ".pdf")
FEW_POINTS = 48
"""Up to here every position gets its marker."""


def check_figure_path(path: str | Path) -> Path:
    """The path, if its suffix is a format we write: asked before work starts, not after."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"figure '{path}': the suffix must be one of {', '.join(FORMATS)}")
    return path


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as ``.png``, ``.svg`` or ``.pdf``, by the suffix; the same figure gives the same bytes."""
    import matplotlib

    path = check_figure_path(path)
    kind = path.suffix.lower().removeprefix(".")
    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with replacing(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "overture"}):
        figure.savefig(temporary, format=kind, dpi=160, metadata=undated)


def schedule_figure(schedule: Schedule, images: int) -> Figure:
    """K_t of every position in entries and in bits; and the bits of the first t tokens against log2 ``images``."""
    cliff = schedule.cliff(images)
    figure, (left, right) = new_figure(2)
    _draw_sizes(left, schedule, cliff)
    _draw_capacity(right, schedule, images, cliff)
    return figure


def entropy_figure(results: Mapping[str, ConditionalEntropy]) -> Figure:
    """Measured entropies of one or several models, by name.

    Left: H(x_t | x_<t), with the predicted cliff t* as a dashed line and the measured cliff as a ring. Right: the bits
    the first t tokens hold, with what their codebooks could hold as a dotted line, against log2 N.
    """
    if not results:
        raise UsageError("entropy figure: no results were given")
    shown = _shown_positions(list(results.values()))
    longest = max(result.positions for result in results.values())
    figure, (left, right) = new_figure(2, height=4.1)
    for place, (name, result) in enumerate(results.items()):
        _draw_entropy(left, right, name, result, place, shown)
    ceilings = sorted({result.log2_n for result in results.values()})
    for ceiling in ceilings:
        _draw_ceiling(right, ceiling, shown)
    x_label = "position $t$" if shown == longest else f"position $t$ (the first {shown} of {longest})"
    dress(left, "Bits that each token adds", x_label, "$H(x_t \\mid x_{<t})$, bits")
    dress(right, "Bits that the first t tokens hold", x_label, "$H(x_1 \\ldots x_t)$, bits")
    right.set_ylim(0, 1.18 * max(*ceilings, 1.0))
    left.set_ylim(0, max(1.12 * max(float(result.bits.max()) for result in results.values()), 0.1))
    for axes in (left, right):
        _position_axis(axes, shown)
    _legend(figure, left, len(results))
    return figure


# -- panels of a schedule -------------------------------------------------------------------------------------------


def _draw_sizes(axes: Axes, schedule: Schedule, cliff: int | None) -> None:
    positions = range(1, len(schedule) + 1)
    style = curve_style(0) | ({} if len(schedule) <= FEW_POINTS else {"marker": ""})
    if len(set(schedule.sizes)) > 1:
        # Sizes are whole numbers: steps, not slopes.
        style |= {"drawstyle": "steps-mid"}
    axes.plot(positions, schedule.sizes, **style)
    axes.set_yscale("log", base=2)
    axes.set_ylim(1, schedule.k_max * 2)
    dress(axes, f"Codebook sizes: {schedule.name}", "position $t$", "$K_t$, entries")
    _two_readings(axes, schedule.k_max * 2)
    _position_axis(axes, len(schedule))
    if cliff is not None:
        axes.axvline(cliff, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        far = cliff > 0.7 * len(schedule)
        note(
            axes, f"$t^*$ = {cliff}", (cliff, axes.get_ylim()[1]),
            xytext=(-5 if far else 5, -2), ha="right" if far else "left", va="top", color=INK,
        )  # fmt: skip


def _two_readings(axes: Axes, high: float) -> None:
    """Ticks at whole bits, written as entries on the left and as bits on the right: one curve, read two ways."""
    last = math.floor(math.log2(high))
    bits = range(0, last + 1, max(1, math.ceil(last / 8)))
    axes.set_yticks([2.0**b for b in bits], [f"{2**b:,}" for b in bits])
    axes.minorticks_off()
    twin = axes.twinx()
    twin.set_yscale("log", base=2)
    twin.set_ylim(axes.get_ylim())
    twin.set_yticks([2.0**b for b in bits], [str(b) for b in bits])
    twin.minorticks_off()
    dress(twin, "", "", "$\\log_2 K_t$, bits")
    twin.grid(visible=False)
    twin.spines["left"].set_visible(False)
    twin.spines["right"].set_visible(False)


def _draw_capacity(axes: Axes, schedule: Schedule, images: int, cliff: int | None) -> None:
    log2_n = math.log2(images)
    shown = len(schedule) if cliff is None else min(len(schedule), max(8, math.ceil(1.6 * cliff)))
    positions, held = list(range(1, shown + 1)), schedule.cumulative_bits[:shown]
    axes.plot(positions, held, **(curve_style(0) | ({} if shown <= FEW_POINTS else {"marker": ""})))
    axes.set_ylim(0, 1.1 * max(log2_n, schedule.total_bits if cliff is None else min(held[-1], 2.2 * log2_n), 1.0))
    x_label = "position $t$" if shown == len(schedule) else f"position $t$ (the first {shown} of {len(schedule)})"
    dress(axes, "Bits that the first t tokens can hold", x_label, "$\\log_2 K_1 + \\ldots + \\log_2 K_t$, bits")
    _position_axis(axes, shown)
    _draw_ceiling(
        axes, log2_n, shown, f"$\\log_2$ {images:,} = {log2_n:.2f} bits", left=cliff is None or cliff > 0.45 * shown
    )
    if cliff is not None:
        axes.plot([cliff, cliff], [0, held[cliff - 1]], color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.plot(cliff, held[cliff - 1], "o", color=COLOURS[0], markersize=8, markeredgecolor=INK, zorder=5)
        far = cliff > 0.6 * shown
        note(
            axes, f"$t^*$ = {cliff}", (cliff, 0.06 * axes.get_ylim()[1]),
            xytext=(-6 if far else 6, 0), ha="right" if far else "left", color=INK,
        )  # fmt: skip


# -- panels of measured entropies -----------------------------------------------------------------------------------


def _draw_entropy(left: Axes, right: Axes, name: str, result: ConditionalEntropy, place: int, shown: int) -> None:
    positions = range(1, min(shown, result.positions) + 1)
    style = curve_style(place) | ({} if shown <= FEW_POINTS else {"marker": ""})
    colour = style["color"]
    bits, held = result.bits[: len(positions)], result.cumulative_bits[: len(positions)]
    left.plot(positions, bits, label=name, **style)
    right.plot(positions, held, **style)
    capacity, total = [], 0.0
    for size in result.sizes[: len(positions)]:
        total += math.log2(size)
        capacity.append(total)
    right.plot(positions, capacity, color=colour, linewidth=1.2, linestyle=":")
    ring = {
        "marker": "o",
        "markersize": 10,
        "fillstyle": "none",
        "color": colour,
        "markeredgewidth": 1.6,
        "clip_on": False,
    }
    left.plot(result.cliff, bits[result.cliff - 1], linestyle="", **ring)
    right.plot(result.cliff, held[result.cliff - 1], linestyle="", **ring)
    if result.predicted_cliff is not None:
        # Lines that fall together stay visible: each model's dashes start a little later.
        for axes in (left, right):
            axes.axvline(result.predicted_cliff, color=colour, linewidth=1.1, linestyle=(4.0 * place, (4, 4)))


def _shown_positions(results: Sequence[ConditionalEntropy]) -> int:
    """A little past the last cliff: what follows is flat."""
    longest = max(result.positions for result in results)
    last = max(max(result.cliff, min(result.predicted_cliff or 0, longest)) for result in results)
    wanted = max(8, math.ceil(1.4 * last))
    return longest if wanted > 0.8 * longest else wanted


def _draw_ceiling(axes: Axes, bits: float, shown: int, text: str | None = None, left: bool = False) -> None:
    axes.axhline(bits, color=INK, linewidth=1.0)
    at = (0.6, bits) if left else (shown + 0.4, bits)
    note(
        axes,
        text or f"$\\log_2 N$ = {bits:.2f} bits",
        at,
        xytext=(3 if left else -3, 4),
        ha="left" if left else "right",
        color=INK,
    )


def _legend(figure: Figure, axes: Axes, models: int) -> None:
    """The models beside their curves, where positions past the cliff leave room; what the marks mean below."""
    from matplotlib.lines import Line2D

    text = {"frameon": False, "fontsize": SMALL_SIZE, "labelcolor": INK}
    axes.legend(loc="upper right", ncols=1 + (models - 1) // 8, handlelength=2.2, **text)
    rings: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 9, "fillstyle": "none"}
    marks = [
        Line2D([], [], color=MUTED, linewidth=1.1, linestyle=(0, (4, 4)), label="predicted cliff $t^*$"),
        Line2D([], [], color=MUTED, label=f"measured cliff ({CLIFF_SHARES[-1]:.0%} of all bits)", **rings),
        Line2D([], [], color=MUTED, linewidth=1.2, linestyle=":", label="what the codebooks can hold"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, handlelength=2.4, columnspacing=2.5, **text)


def _position_axis(axes: Axes, shown: int) -> None:
    """Whole positions from 1, the first and a few round ones named."""
    margin = max(0.4, 0.012 * shown)
    axes.set_xlim(1 - margin, max(shown, 2) + margin)
    stride = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 2 ** math.ceil(math.log2(shown + 1))) if shown / s <= 10)
    axes.set_xticks([1, *(t for t in range(stride, shown + 1, stride) if t > 1 + stride // 2)])
