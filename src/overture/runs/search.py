"""Search for the guidance and temperature of the lowest distance, coarse to fine.

1. coarse: every combination of schedules, powers, scales and temperatures, at ``coarse_samples`` images;
2. fine: around the best one, halfway to its neighbours on every axis, at the same count;
3. finalists: the best few of all, at ``final_samples`` images. Only these numbers are results.

All settings of a step see the same classes and random numbers, so their differences are less noisy than their values.
Every measurement is kept on disk as it is made, and the same command goes on from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from overture.errors import OvertureError, UsageError
from overture.priors.guidance import Guidance
from overture.runs.json_lines import complete_lines

__all__ = ["GuidanceSearch", "Scored", "Setting", "SettingLog"]

Measure = Callable[["Setting", int], float]


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
            Guidance.parse(setting.guidance(self.segments))  # refuses unknown schedules and the like
            if not 0 < setting.temperature < math.inf:
                raise UsageError(f"guidance search: temperature {setting.temperature:g}, needs > 0 and finite")

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

    def run(self, measure: Measure, seen: Callable[[Scored, str], None] = lambda *_: None) -> list[Scored]:
        """All finalists, best first. ``measure`` gives the distance of a setting at a number of samples."""
        scores: dict[Setting, float] = {}

        def step(settings: Sequence[Setting], samples: int, name: str) -> list[Scored]:
            out = []
            for setting in settings:
                scored = Scored(setting, samples, measure(setting, samples))
                seen(scored, name)
                out.append(scored)
            return out

        for scored in step(self.coarse(), self.coarse_samples, "coarse"):
            scores[scored.setting] = scored.value
        best = min(scores, key=lambda setting: scores[setting])
        new = [setting for setting in self.fine(best) if setting not in scores]
        for scored in step(new, self.coarse_samples, "fine"):
            scores[scored.setting] = scored.value
        finalists = sorted(scores, key=lambda setting: scores[setting])[: self.finalists]
        return sorted(step(finalists, self.final_samples, "finalists"), key=lambda scored: scored.value)


class SettingLog:
    """Measurements on disk, one JSON line each, found again by setting, samples and the protocol they share."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        self.path, self.protocol = path, protocol
        self._known: dict[tuple[Setting, int], float] = {}
        if path.exists():
            try:
                for line in complete_lines(path):
                    entry = json.loads(line)
                    if entry["protocol"] == protocol:
                        self._known[Setting(**entry["setting"]), entry["samples"]] = _number(entry["value"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise OvertureError(f"{path}: damaged ({error!r}); delete it to search anew") from error

    def __contains__(self, key: tuple[Setting, int]) -> bool:
        return key in self._known

    def __getitem__(self, key: tuple[Setting, int]) -> float:
        return self._known[key]

    def add(self, setting: Setting, samples: int, value: float) -> None:
        """Keep one measurement."""
        self._known[setting, samples] = value
        entry = {"setting": asdict(setting), "samples": samples, "value": value, "protocol": self.protocol}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


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
