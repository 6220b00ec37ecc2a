"""Runs as lines of text: bars, sparklines, the last numbers. Plain text; who redraws it is the command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from overture.watching.run_reader import RunState, Series, Training

__all__ = ["draw_frame", "one_line", "span", "sparkline"]

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
BAR, PLAIN_BAR = ("█", "░"), ("#", "-")
CURVES = (None, 6, 3, 1, 0)
"""How many curves of each kind a run shows at most: the first number with which all runs fit the terminal."""
BAR_WIDTH, CURVE_WIDTH = 20, 48
DISTANCES = ("FD", "FID", "rFD", "rFID")


def draw_frame(states: Sequence[RunState], width: int, height: int | None = None, *, plain: bool = False) -> list[str]:
    """All runs, one after the other, in lines of at most ``width`` letters; ``plain``: of ASCII alone.

    Where they are more than ``height`` lines, curves are left out, those of the first names last.
    """
    lines: list[str] = []
    for most in CURVES:
        blocks = [_draw_run(state, width, most, plain) for state in states]
        lines = [line for block in blocks for line in [*block, ""]][:-1]
        if height is None or len(lines) <= height:
            break
    lines = lines if height is None or len(lines) <= height else [one_line(state) for state in states][:height]
    return [line[:width] for line in lines]


def one_line(state: RunState) -> str:
    """A run in one line, for log files."""
    told = [f"{state.path}: {_where(state)}"]
    for training in state.trainings[-1:]:
        losses = [f"{name} {series.values[-1]:.4g}" for name, series in _first(training.losses, 3)]
        told += [
            f"step {training.step:,} of {training.steps or 0:,}",
            *losses,
            *_figures(training),
            *_left(state, training),
        ]
    return ", ".join([*told, *_distances(state)])


def sparkline(values: Sequence[float], width: int, *, plain: bool = False) -> str:
    """``values`` as a row of blocks, lowest to highest; logarithmic where all are positive. Neighbours are averaged where
    there are more of them than ``width``."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [place * len(values) // count for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    heights = [math.log(x) for x in means] if min(means) > 0 else means
    low, high = min(heights), max(heights)
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((x - low) * scale)] for x in heights)


def span(seconds: float) -> str:
    """A time in its two largest units."""
    whole = round(seconds)
    for size, unit, smaller, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small_unit}"
    return f"{whole} s"


def _draw_run(state: RunState, width: int, most: int | None, plain: bool) -> list[str]:
    lines = [f"{state.path}: {_where(state)}"]
    for training in state.trainings:
        lines += _draw_training(state, training, width, most, plain)
    if distances := _distances(state):
        lines.append(f"  {', '.join(distances)}")
    lines += [f"  could not measure {part}: {why}" for part, why in state.failed.items()]
    return lines


def _draw_training(state: RunState, training: Training, width: int, most: int | None, plain: bool) -> list[str]:
    steps = training.steps or training.step
    share = min(1.0, training.step / steps) if steps else 0.0
    figures = [f"{share:.0%} of {steps:,} steps", *_left(state, training), *_figures(training)]
    full, empty = PLAIN_BAR if plain else BAR
    filled = round(share * BAR_WIDTH)
    lines = [f"  {training.stage:<9} {full * filled}{empty * (BAR_WIDTH - filled)} {', '.join(figures)}"]
    curves = [*_first(training.losses, most), *_first(training.measured, most)]
    longest = max((len(name) for name, _ in curves), default=0)
    for name, series in curves:
        at = f" at step {series.steps[-1]:,}" if name in training.measured else ""
        begin = f"    {name:<{longest}} {series.values[-1]:>10.4g} "
        room = min(CURVE_WIDTH, width - len(begin) - len(at))
        lines.append(f"{begin}{sparkline(series.values, room, plain=plain)}{at}")
    return lines


def _first(series: dict[str, Series], most: int | None) -> list[tuple[str, Series]]:
    """Loss first: other names stand in the order of the log's line, which is that of the alphabet."""
    ordered = sorted(series.items(), key=lambda item: item[0] not in ("loss", "bits_per_image", "gfd", "rfd"))
    return ordered[:most]


def _where(state: RunState) -> str:
    """The stage, and how it stands with it."""
    silent = "" if state.seconds_silent is None else f", last written {span(state.seconds_silent)} ago"
    if state.state == "finished":
        return "finished" if not state.failed else "finished, but not all could be measured"
    if state.state == "running":
        begun = "" if state.trainings else ", no numbers yet"
        quiet = silent if state.seconds_silent and state.seconds_silent > 60 else ""
        return f"{state.stage}{begun}{quiet}"
    last = state.trainings[-1] if state.trainings else None
    if last is None or last.stage != state.stage:
        return f"nobody works in it, {state.stage} would be next{silent}"
    saved = "nothing saved" if last.saved_step is None else f"saved at step {last.saved_step:,}"
    return f"stopped or killed in {state.stage} at step {last.step:,}, {saved}{silent}; the same command goes on"


def _figures(training: Training) -> list[str]:
    found = [
        (training.images_per_second, "{:,.0f} images/s"),
        (training.learning_rate, "rate {:.3g}"),
        (training.memory_gib, "{:.1f} GiB"),
        (training.device_memory_gib, "{:.1f} GiB on device"),
    ]
    return [form.format(x) for x, form in found if x is not None]


def _left(state: RunState, training: Training) -> list[str]:
    under_way = state.state == "running" and training.stage == state.stage
    return [f"{span(training.seconds_left)} left"] if under_way and training.seconds_left is not None else []


def _distances(state: RunState) -> list[str]:
    """Of the finished run: not those of real images."""
    return [
        f"{name} {x:.4g}"
        for name, x in state.results.items()
        if not name.startswith("held_out/") and name.partition("/")[2].partition("(")[0] in DISTANCES
    ]
