"""Classifier-free guidance as a schedule over the steps of each segment (docs/prologue.md, section 9).

Guided logits are ``scale * conditional + (1 - scale) * unconditional``; a scale of 1 needs no unconditional half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from overture.errors import UsageError
from overture.layout import Layout

__all__ = ["Curve", "Guidance", "number"]


LARGEST = 1000


@dataclass(frozen=True)
class Curve:
    """How the scale runs over one segment, with progress t from 0 towards 1.

    constant ``scale``; linear ``start + (scale - start) t``;
    cosine ``start + (scale - start) (1 - cos(pi t^power)) / 2``.
    """

    shape: Literal["constant", "linear", "cosine"] = "constant"
    scale: float = 1.0
    power: float = 1.0
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in ("constant", "linear", "cosine"):
            raise UsageError(f"guidance shape '{self.shape}' is none of constant, linear, cosine")
        for name in ("scale", "power", "start"):
            # Beyond this the guided logits lose their differences to rounding, and then overflow.
            if not abs(getattr(self, name)) <= LARGEST:
                raise UsageError(
                    f"guidance {name} is {getattr(self, name)}, needs a number from -{LARGEST} to {LARGEST}"
                )
        if self.power <= 0:
            raise UsageError(f"guidance power is {self.power}, needs > 0")

    def __call__(self, progress: float) -> float:
        """The scale at ``progress``."""
        if self.shape == "constant":
            return self.scale
        if self.shape == "linear":
            return self.start + (self.scale - self.start) * progress
        return self.start + (self.scale - self.start) * (1 - math.cos(math.pi * progress**self.power)) / 2

    def __str__(self) -> str:
        power = f" power {number(self.power)}" if self.shape == "cosine" else ""
        start = f" start {number(self.start)}" if self.shape != "constant" else ""
        return f"{self.shape} {number(self.scale)}{power}{start}"


@dataclass(frozen=True)
class Guidance:
    """One curve over the whole sequence (``whole``), or one for each named segment (``parts``)."""

    whole: Curve | None = None
    parts: tuple[tuple[str, Curve], ...] = ()

    @classmethod
    def none(cls) -> Guidance:
        """No guidance: the scale is 1 everywhere."""
        return cls(Curve())

    @classmethod
    def constant(cls, scale: float) -> Guidance:
        """The same scale at every step."""
        return cls(Curve("constant", scale))

    @classmethod
    def linear(cls, scale: float, start: float = 1.0) -> Guidance:
        """From ``start`` at the first step towards ``scale`` at the end."""
        return cls(Curve("linear", scale, start=start))

    @classmethod
    def cosine(cls, scale: float, power: float = 1.0, start: float = 1.0) -> Guidance:
        """From ``start`` towards ``scale`` along half a cosine; larger powers start later."""
        return cls(Curve("cosine", scale, power, start))

    @classmethod
    def split(cls, **segments: Guidance | Curve | float) -> Guidance:
        """A guidance for each segment by name: ``split(prologue=0.7, visual=Guidance.cosine(3.75, power=0.2))``.

        Segments that are not named are not guided.
        """
        parts = []
        for name, value in segments.items():
            if isinstance(value, Guidance):
                if value.whole is None:
                    raise UsageError(f"guidance for segment '{name}' cannot itself be split")
                value = value.whole
            parts.append((name, value if isinstance(value, Curve) else Curve("constant", float(value))))
        return cls(None, tuple(parts))

    @classmethod
    def parse(cls, text: str) -> Guidance:
        """Read ``none``, ``2.0``, ``cosine 4 power 1.5``, or ``prologue: constant 0.7, visual: cosine 3.75 power 0.2``."""
        if text.strip() == "none":
            return cls.none()
        if ":" in text:
            pairs = [part.split(":", 1) for part in text.split(",") if part.strip()]
            if any(len(pair) != 2 for pair in pairs):
                raise UsageError(f"guidance '{text}': write SEGMENT: SHAPE SCALE, SEGMENT: SHAPE SCALE")
            return cls.split(**{name.strip(): _parse_curve(curve) for name, curve in pairs})
        return cls(_parse_curve(text))

    def scales(self, layout: Layout) -> tuple[float, ...]:
        """The scale at every step of the sequence; a segment that the layout does not have is an error."""
        if self.whole is not None:
            length = layout.sequence_length
            return tuple(self.whole(step / length) for step in range(length))
        curves = [Curve()] * len(layout.segments)
        for name, curve in self.parts:
            curves[layout.index(name)] = curve
        return tuple(
            curves[position.segment](position.step / layout.steps_per_segment[position.segment])
            for position in layout.positions
        )

    def __str__(self) -> str:
        if self.whole is not None:
            return "none" if self.whole == Curve() else str(self.whole)
        return ", ".join(f"{name}: {curve}" for name, curve in self.parts) or "none"


def number(value: float) -> str:
    """A number as short as it can be written without loss."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _parse_curve(text: str) -> Curve:
    words = text.split()
    shape = words.pop(0) if words and words[0] in ("constant", "linear", "cosine") else "constant"
    try:
        values = {"scale": float(words[0])}
        for key, value in zip(words[1::2], words[2::2], strict=True):
            if key not in ("power", "start"):
                raise ValueError(key)
            values[key] = float(value)
    except (ValueError, IndexError) as error:
        raise UsageError(
            f"guidance '{text.strip()}': write '2.0' or '[constant|linear|cosine] SCALE [power P] [start S]'"
        ) from error
    return Curve(shape, **values)  # type: ignore[arg-type]
