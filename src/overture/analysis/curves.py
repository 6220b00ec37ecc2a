"""Figures of numbers against the number of tokens that are looked at or kept: probe and prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from overture.analysis.style import MUTED, SMALL_SIZE, curve_style, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from overture.analysis.predictive import Prediction
    from overture.analysis.prefix import PrefixResult
    from overture.analysis.probe import ProbeResult

__all__ = ["landscape_figure", "predictive_figure", "prefix_figure", "probe_figure"]


def probe_figure(results: Sequence[ProbeResult]) -> Figure:
    """Top-1 accuracy of the probes against n, one curve for each segment and kind of features."""
    curves: dict[tuple[str, str], list[ProbeResult]] = {}
    for result in results:
        curves.setdefault((result.segment, result.features), []).append(result)
    figure, (axes,) = new_figure(1)
    for place, ((segment, features), points) in enumerate(curves.items()):
        where = "first tokens" if segment == "all" else segment
        label = f"{where}, {'code vectors' if features == 'codes' else 'one-hot ids'}"
        lengths = [point.tokens for point in points]
        style = curve_style(place)
        axes.plot(lengths, [100 * point.top1 for point in points], label=label, **style)
        low, high = ([100 * point.interval[side] for point in points] for side in (0, 1))
        axes.fill_between(lengths, low, high, color=style["color"], alpha=0.15, linewidth=0)
    _token_axis(axes, [result.tokens for result in results])
    dress(axes, "Linear probe", "tokens n", "top-1 accuracy, percent")
    _legend(axes)
    return figure


def prefix_figure(results: Sequence[PrefixResult], ceiling: float) -> Figure:
    """Class accuracy and distance to the original against the tokens kept."""
    lengths = [result.tokens for result in results]
    figure, (left, right) = new_figure(2)
    curves: Mapping[str, list[float]] = {
        "rest resampled by the prior": [result.accuracy for result in results],
        "rest of another image: class of the first": [result.swapped_first for result in results],
        "rest of another image: class of the other": [result.swapped_other for result in results],
    }
    for place, (label, values) in enumerate(curves.items()):
        left.plot(lengths, [100 * value for value in values], label=label, **curve_style(place))
    left.axhline(100 * ceiling, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    left.set_ylim(0, 100)
    _token_axis(left, lengths)
    dress(left, "Class under the judge (dashed: all tokens)", "tokens kept", "images of that class, percent")
    _legend(left)
    right.plot(lengths, [result.relative_distance for result in results], **curve_style(0))
    right.set_ylim(bottom=0)
    _token_axis(right, lengths)
    dress(right, "Distance to the image they come from", "tokens kept", "relative to two images of the set")
    return figure


def predictive_figure(predictions: Mapping[str, Prediction]) -> Figure:
    """Cross-entropy (solid) and predictive entropy (dashed) at every position, and the memorisation gap."""
    figure, (left, right) = new_figure(2)
    for place, (name, prediction) in enumerate(predictions.items()):
        style = {**curve_style(place), "marker": "", "linewidth": 1.5}
        places = range(1, len(prediction.loss_bits) + 1)
        left.plot(places, prediction.loss_bits, label=f"{name}, cross-entropy", **style)
        left.plot(
            places,
            prediction.entropy_bits,
            label=f"{name}, predictive entropy",
            **{**style, "linestyle": (0, (3, 2)), "linewidth": 1.0},
        )
    dress(left, "What the prior expects", "position t", "bits")
    left.set_ylim(bottom=0)
    _legend(left)
    if {"training", "held-out"} <= predictions.keys():
        gap = predictions["held-out"].loss_bits - predictions["training"].loss_bits
        right.bar(range(1, len(gap) + 1), gap, color=curve_style(0)["color"], width=0.8)
    dress(right, "Memorisation gap: held-out less training", "position t", "bits")
    return figure


def landscape_figure(measured: Sequence[tuple[str, Any]], label: str) -> Figure:
    """Distance against the guidance scale, one curve for each of everything else; finalists as large markers.

    ``measured`` are steps (``coarse``, ``fine``, ``finalists``) and scored settings (``overture.runs.search``).
    """
    groups: dict[str, list[Any]] = {}
    for step, scored in measured:
        setting = scored.setting
        name = setting.schedule
        if setting.schedule == "cosine":
            name += f", power {setting.power:g}"
        if setting.first is not None:
            name += f", first segment {setting.first:g}"
        if setting.temperature != 1:
            name += f", temperature {setting.temperature:g}"
        groups.setdefault(name, []).append((step, scored))
    figure, (axes,) = new_figure(1, width=7.0)
    plain = [scored for step, scored in measured if step != "finalists" and _unguided(scored.setting)]
    for place, (name, entries) in enumerate(groups.items()):
        style = curve_style(place)
        line = {scored.setting.scale: scored.value for step, scored in entries if step != "finalists"}
        temperature = entries[0][1].setting.temperature
        for scored in plain:  # no guidance is the first point of every schedule at its temperature
            if entries[0][1].setting.first is None and scored.setting.temperature == temperature:
                line.setdefault(scored.setting.scale, scored.value)
        axes.plot(sorted(line), [line[scale] for scale in sorted(line)], label=name, **style)
        final = [scored for step, scored in entries if step == "finalists"]
        axes.plot(
            [scored.setting.scale for scored in final],
            [scored.value for scored in final],
            **{**style, "linestyle": "none", "markersize": 9.0},
        )
    dress(axes, "Guidance search", "scale", label)
    _legend(axes)
    return figure


def _unguided(setting: Any) -> bool:
    return setting.first is None and setting.scale == 1


def _token_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """Doubling counts evenly spaced, with 0 in front where there is one."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("symlog", base=2, linthresh=1)
    shown = sorted(set(lengths))
    axes.set_xlim(shown[0] - 0.15, shown[-1] * 1.1 + 0.1)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [str(length) for length in shown])


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=SMALL_SIZE)
