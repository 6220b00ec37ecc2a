"""Search for the guidance and temperature of the lowest distance, coarse to fine.

1. coarse: every combination of schedules, powers, scales and temperatures, at ``coarse_samples`` images;
2. fine: around the best one, halfway to its neighbours on every axis, at the same count;
3. finalists: the best few of all, at ``final_samples`` images. Only these numbers are results.

All settings of a step see the same classes and random numbers, so their differences are less noisy than their values.
Every measurement is kept on disk as it is made, and the same command goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.analysis.entries import ReportEntry
from overture.analysis.style import curve_style, dress, legend, new_figure
from overture.config import from_dict
from overture.errors import OvertureError, UsageError
from overture.evaluation.conditions import Conditions
from overture.evaluation.evaluation import frechet_measurement
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.statistics import ImageStatistics, measure_batches
from overture.files import append_line, read_json_lines
from overture.pipeline import Pipeline, balanced_classes
from overture.priors.sampling import Sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GuidanceSearch", "Scored", "SearchResult", "Setting", "SettingLog", "study"]


@dataclass(frozen=True)
class Setting:
    """One way of sampling. ``first`` is the constant scale of the first segment where guidance is split."""

    scale: float = 1.0
    schedule: str = "constant"
    power: float = 1.0
    first: float | None = None
    temperature: float = 1.0

    def guidance(self, segments: Sequence[str]) -> str:
        """As ``--guidance`` takes it; ``segments`` are the layout's names."""
        power = f" power {self.power:g}" if self.schedule == "cosine" and self.power != 1 else ""
        curve = f"{self.schedule} {self.scale:g}{power}"
        if self.first is None:
            return curve
        rest = ", ".join(f"{name}: {curve}" for name in segments[1:])
        return f"{segments[0]}: constant {self.first:g}, {rest}"


@dataclass(frozen=True)
class Scored:
    """A setting and its distance at a number of samples."""

    setting: Setting
    samples: int
    value: float


@dataclass(frozen=True)
class GuidanceSearch:
    """What is searched, and at what cost."""

    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    schedules: tuple[str, ...] = ("constant", "linear", "cosine")
    powers: tuple[float, ...] = (1.0,)
    """Of the cosine schedule."""
    firsts: tuple[float, ...] = ()
    """Scales of the first segment; none: one guidance for the whole sequence."""
    temperatures: tuple[float, ...] = (1.0,)
    coarse_samples: int = 1000
    final_samples: int = 5000
    finalists: int = 3
    segments: tuple[str, ...] = field(default=("visual",))

    def __post_init__(self) -> None:
        for name in ("scales", "schedules", "powers", "temperatures"):
            if not getattr(self, name):
                raise UsageError(f"guidance search: no {name} to try")
        if self.firsts and len(self.segments) < 2:
            raise UsageError("guidance search: split guidance needs a layout with several segments")
        if self.coarse_samples < 2 or self.final_samples < 2 or self.finalists < 1:
            raise UsageError("guidance search: needs at least 2 samples and 1 finalist")
        for setting in self.coarse():
            Sampling.parse(setting.guidance(self.segments), setting.temperature)  # refuses what cannot be sampled

    def coarse(self) -> list[Setting]:
        """The grid. Scale 1 is no guidance whatever the schedule, so it comes once."""
        settings = [
            Setting(scale, schedule, power, first, temperature)
            for temperature in self.temperatures
            for first in self.firsts or (None,)
            for schedule in self.schedules
            for power in (self.powers if schedule == "cosine" else (1.0,))
            for scale in self.scales
        ]
        return list(dict.fromkeys(map(_plainest, settings)))

    def fine(self, best: Setting) -> list[Setting]:
        """Halfway from the best setting to its neighbours, one axis at a time."""
        axes: dict[str, Iterable[float]] = {"scale": self.scales, "temperature": self.temperatures}
        if best.schedule == "cosine":
            axes["power"] = self.powers
        if best.first is not None:
            axes["first"] = self.firsts
        found = [
            replace(best, **{axis: round((getattr(best, axis) + value) / 2, 6)})
            for axis, values in axes.items()
            for value in _neighbours(getattr(best, axis), values)
        ]
        # Where no guidance is best, its schedule is arbitrary: try the others too.
        if best.scale == 1 and best.first is None and len(self.scales) > 1:
            least = min(scale for scale in self.scales if scale > 1) if max(self.scales) > 1 else 1.0
            found += [replace(best, scale=(1 + least) / 2, schedule=schedule) for schedule in self.schedules]
        return [setting for setting in dict.fromkeys(map(_plainest, found)) if setting != best]

    @property
    def most_images(self) -> int:
        """An upper bound of the images that the search samples."""
        axes = 2 * 4 + len(self.schedules)
        return (len(self.coarse()) + axes) * self.coarse_samples + self.finalists * self.final_samples


@dataclass(frozen=True)
class SearchResult:
    """Every measurement with its step (``coarse``, ``fine``, ``finalists``), and what they have in common."""

    search: GuidanceSearch
    measured: tuple[tuple[str, Scored], ...]
    label: str
    """What the distance is called."""
    protocol: dict[str, Any]

    @property
    def finalists(self) -> list[Scored]:
        """The settings that were measured with all samples, best first."""
        return sorted((s for step, s in self.measured if step == "finalists"), key=lambda scored: scored.value)

    @property
    def best_at_edge(self) -> bool:
        """Whether the best scale is the largest that was tried, so that the grid is too small."""
        return len(self.search.scales) > 1 and self.finalists[0].setting.scale == max(self.search.scales)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        finalists = [self._entry(scored) for scored in self.finalists]
        return {
            "name": self.label,
            **self.protocol,
            "best": finalists[0],
            "best_at_edge": self.best_at_edge,
            "finalists": finalists,
            "measured": [{"step": step, **self._entry(scored)} for step, scored in self.measured],
        }

    def describe(self) -> str:
        """The finalists as options of ``generate``."""
        lines = [
            f"{self.label} {scored.value:.5g} at {scored.samples:,} samples: "
            f"--guidance '{self._entry(scored)['guidance']}' --temperature {scored.setting.temperature:g}"
            for scored in self.finalists
        ]
        if self.best_at_edge:
            scale = self.finalists[0].setting.scale
            lines.append(f"the best scale ({scale:g}) is the largest that was tried: widen --scales")
        return "\n".join(lines)

    def entries(self) -> list[ReportEntry]:
        """Distance against scale."""
        best, search = self._entry(self.finalists[0]), self.search
        caption = (
            f"{self.label} against {self.protocol['reference']} at {search.coarse_samples:,} samples; large markers: "
            f"finalists at {search.final_samples:,}. Best: {best['guidance']}, temperature {best['temperature']:g}, "
            f"{best['value']:.4g}. A higher number of samples gives a lower distance, so the two sizes are not to be "
            "compared."
        )
        drawing = _figure(self.measured, self.label)
        return [ReportEntry("guidance-search", "Guidance search", caption, drawing, self.to_dict())]

    def _entry(self, scored: Scored) -> dict[str, Any]:
        return {
            "guidance": scored.setting.guidance(self.search.segments),
            "temperature": scored.setting.temperature,
            "samples": scored.samples,
            "value": scored.value,
        }


def study(
    pipe: Pipeline,
    network: FeatureNetwork,
    reference: ImageStatistics,
    search: GuidanceSearch,
    log_path: Path,
    *,
    about: Mapping[str, Any],
    seed: int = 1,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int = 250,
    seen: Callable[[str, Scored], None] = lambda step, scored: None,
    progress: bool = False,
) -> SearchResult:
    """Search for the guidance and temperature of the lowest Fréchet distance to ``reference``.

    Measurements are kept in ``log_path`` and not made again. ``about`` says which models they are of; ``seen`` hears
    of every one. All settings see the same classes and draws.
    """
    protocol = {
        **about,
        "network": network.name,
        "network_hash": network.weights_hash,
        "reference": reference.name,
        "reference_hash": reference.hash,
        "reference_images": reference.images,
        "classes": "balanced",
        "seed": seed,
        "top_k": top_k,
        "top_p": top_p,
    }
    log = SettingLog(log_path, protocol)

    def measure(setting: Setting, samples: int) -> float:
        if (setting, samples) not in log:
            classes = balanced_classes(samples, pipe.prior.config.num_classes)
            guidance = setting.guidance(pipe.layout.names)
            sampling = Sampling.parse(guidance, setting.temperature, top_k, top_p)
            images = pipe.sample(classes, sampling, seed=seed, batch_size=batch_size)
            side = measure_batches("samples", network, images, progress=progress)
            log.add(setting, samples, frechet_measurement("gFD", side, reference, network, Conditions()).value)
        return log[setting, samples]

    measured: list[tuple[str, Scored]] = []

    def step(settings: Iterable[Setting], samples: int, name: str) -> None:
        for setting in settings:
            measured.append((name, Scored(setting, samples, measure(setting, samples))))
            seen(*measured[-1])

    step(search.coarse(), search.coarse_samples, "coarse")
    scores = {scored.setting: scored.value for _, scored in measured}
    best = min(scores, key=lambda setting: scores[setting])
    step([setting for setting in search.fine(best) if setting not in scores], search.coarse_samples, "fine")
    scores = {scored.setting: scored.value for _, scored in measured}
    finalists = sorted(scores, key=lambda setting: scores[setting])[: search.finalists]
    step(finalists, search.final_samples, "finalists")
    return SearchResult(search, tuple(measured), f"g{network.label}", protocol)


class SettingLog:
    """Measurements on disk, one JSON line each, found again by setting, samples and the protocol they share."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        self.path, self.protocol = path, protocol
        self._known: dict[tuple[Setting, int], float] = {}
        try:
            for entry in read_json_lines(path, protocol=dict, setting=dict, samples=int):
                if entry["protocol"] == protocol:
                    setting = from_dict(Setting, entry["setting"], "setting")
                    self._known[setting, entry["samples"]] = _number(entry["value"])
        except (ValueError, KeyError, OverflowError, OvertureError) as error:
            raise OvertureError(f"{path}: damaged ({error}); delete it to search anew") from error

    def __contains__(self, key: tuple[Setting, int]) -> bool:
        return key in self._known

    def __getitem__(self, key: tuple[Setting, int]) -> float:
        return self._known[key]

    def add(self, setting: Setting, samples: int, value: float) -> None:
        """Keep one measurement."""
        self._known[setting, samples] = value
        entry = {"setting": asdict(setting), "samples": samples, "value": value, "protocol": self.protocol}
        append_line(self.path, entry)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a distance is {value!r}")
    return float(value)


def _plainest(setting: Setting) -> Setting:
    """One form for settings that mean the same."""
    if setting.schedule != "cosine":
        setting = replace(setting, power=1.0)
    if setting.scale == 1 and setting.schedule != "constant" and setting.first is None:
        setting = replace(setting, schedule="constant", power=1.0)
    return setting


def _neighbours(value: float, values: Iterable[float]) -> list[float]:
    """The next smaller and the next larger one."""
    below = [other for other in values if other < value]
    above = [other for other in values if other > value]
    return [*([max(below)] if below else []), *([min(above)] if above else [])]


def _figure(measured: Sequence[tuple[str, Scored]], label: str) -> Figure:
    """Distance against the guidance scale, one curve for each of everything else; finalists as large markers."""
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
    legend(axes)
    return figure


def _unguided(setting: Setting) -> bool:
    return setting.first is None and setting.scale == 1
