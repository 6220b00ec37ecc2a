"""Sampling settings as published, by recipe and name: ``--preset paper`` (guided) and ``--preset unguided``.

Source: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), one pair of settings for every row of its
table of results. Guided samples are drawn at temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from overture.errors import UsageError, nearest

if TYPE_CHECKING:
    from overture.runs.config import EvaluationConfig

__all__ = ["PRESETS", "Preset", "load_preset"]


@dataclass(frozen=True)
class Preset:
    """Guidance and temperature, written as on the command line."""

    guidance: str = "1.0"
    temperature: float | str = 1.0

    def apply(self, evaluation: EvaluationConfig) -> EvaluationConfig:
        """Judge guided samples with this setting."""
        return replace(evaluation, guidance=self.guidance, temperature=self.temperature)


def _pair(guidance: str, temperature: float | str) -> dict[str, Preset]:
    """The guided setting, and the temperature of the unguided one."""
    return {"paper": Preset(guidance), "unguided": Preset(temperature=temperature)}


def _split(prologue: float, visual: float, power: float, temperatures: tuple[float, float]) -> dict[str, Preset]:
    """A constant scale for the prologue, a cosine for the visual tokens; temperatures of the two."""
    return _pair(
        f"prologue: {prologue:g}, visual: cosine {visual:g} power {power:g}",
        f"prologue: {temperatures[0]:g}, visual: {temperatures[1]:g}",
    )


PRESETS: dict[str, dict[str, Preset]] = {
    "imagenet-1d": _pair("cosine 19 power 1.75", 0.85),
    "imagenet-2d": _pair("cosine 10 power 1.5", 0.85),
    "prologue-b-b": _split(0.7, 3.75, 0.2, (0.7, 0.9)),
    "prologue-b-l": _split(0.8, 3.0, 0.225, (0.7, 0.9)),
    "prologue-b-xl": _split(0.8, 2.75, 0.25, (0.8, 0.9)),
    "prologue-l-b": _split(0.65, 2.75, 0.25, (0.8, 0.95)),
    "prologue-l-l": _split(0.7, 2.5, 0.25, (0.95, 0.9)),
    "prologue-l-xl": _split(0.7, 2.25, 0.225, (1.0, 0.9)),
    "prologue-post": _split(0.6, 3.75, 0.25, (0.8, 0.8)),
    "prologue-onestage": _split(0.8, 3.75, 0.25, (0.8, 0.8)),
}


def load_preset(recipe: str, name: str) -> Preset:
    """The setting called ``name`` of a recipe."""
    if recipe not in PRESETS:
        raise UsageError(f"recipe '{recipe}' has no presets{nearest(recipe, PRESETS)}")
    if name not in PRESETS[recipe]:
        raise UsageError(f"recipe '{recipe}' has no preset '{name}'{nearest(name, PRESETS[recipe])}")
    return PRESETS[recipe][name]
