"""Sampling settings as published, by recipe and name: ``--preset paper`` (guided) and ``--preset unguided``.

Source: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), one pair of settings for every row of its
table of results. Guided samples are drawn at temperature 1.
"""

from __future__ import annotations

from typing import Any

from overture.errors import UsageError, nearest
from overture.priors.sampling import Sampling

__all__ = ["PRESETS", "load_preset", "preset_words"]


Words = dict[str, str | float]
"""A guidance and a temperature, as an evaluation's config holds them."""


def _pair(guidance: str, temperature: float | str) -> dict[str, Words]:
    """The guided setting, and the temperature of the unguided one."""
    return {
        "paper": {"guidance": guidance, "temperature": 1.0},
        "unguided": {"guidance": "1.0", "temperature": temperature},
    }


def _split(prologue: float, visual: float, power: float, temperatures: tuple[float, float]) -> dict[str, Words]:
    """A constant scale for the prologue, a cosine for the visual tokens; temperatures of the two."""
    return _pair(
        f"prologue: {prologue:g}, visual: cosine {visual:g} power {power:g}",
        f"prologue: {temperatures[0]:g}, visual: {temperatures[1]:g}",
    )


PRESETS: dict[str, dict[str, Words]] = {
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


def preset_words(recipe: str, name: str) -> dict[str, Any]:
    """The setting called ``name`` of a recipe, for its evaluation's config."""
    if recipe not in PRESETS:
        raise UsageError(f"recipe '{recipe}' has no presets{nearest(recipe, PRESETS)}")
    if name not in PRESETS[recipe]:
        raise UsageError(f"recipe '{recipe}' has no preset '{name}'{nearest(name, PRESETS[recipe])}")
    return dict(PRESETS[recipe][name])


def load_preset(recipe: str, name: str) -> Sampling:
    """The same setting, to sample with."""
    return Sampling.parse(**preset_words(recipe, name))
