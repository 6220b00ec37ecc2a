"""From the numbers of the page's controls to a Sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overture.errors import UsageError
from overture.layout import Layout
from overture.priors.guidance import Curve, Guidance
from overture.priors.sampling import Sampling

__all__ = ["PER_SEGMENT", "sampling_of", "whole_number"]

PER_SEGMENT = ("shape", "scale", "power", "temperature")
"""The controls that every segment has, in order; top-k and top-p follow those of the last."""


def sampling_of(layout: Layout, values: Sequence[Any]) -> Sampling:
    """The settings of all controls in their order on the page, in the shortest words that say the same."""
    width = len(PER_SEGMENT)
    curves, temperatures = {}, {}
    for place, name in enumerate(layout.names):
        shape, scale, power, temperature = values[place * width : (place + 1) * width]
        scale, power, temperature = (
            _number(value, f"{name}: {what}")
            for what, value in (("guidance", scale), ("power", power), ("temperature", temperature))
        )
        curves[name] = Curve(shape, scale, power if shape == "cosine" else 1.0)
        temperatures[name] = temperature
    top_k, top_p = values[width * len(layout.names) :]
    return Sampling(
        _guidance(curves), _temperature(temperatures), whole_number(top_k, "top-k"), _number(top_p, "top-p")
    )


def _guidance(curves: dict[str, Curve]) -> Guidance:
    if all(curve.shape == "constant" and curve.scale == 1 for curve in curves.values()):
        return Guidance.none()
    if len(curves) == 1:
        return Guidance(next(iter(curves.values())))
    return Guidance.split(**curves)


def _temperature(temperatures: dict[str, float]) -> float | tuple[tuple[str, float], ...]:
    values = set(temperatures.values())
    return values.pop() if len(values) == 1 else tuple(temperatures.items())


def whole_number(value: Any, what: str) -> int:
    """A number field's whole number; an empty field or half a number is one line."""
    number = _number(value, what)
    if number != int(number):
        raise UsageError(f"{what} is {number:g}, needs a whole number")
    return int(number)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise UsageError(f"{what}: give a number")
    return value
