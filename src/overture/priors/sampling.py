"""How samples are drawn: guidance, temperature, top-k and top-p, as one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from overture.errors import UsageError
from overture.layout import Layout
from overture.priors.guidance import Guidance, number

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How a prior's predictions become tokens.

    ``temperature`` is one number, or ``(segment, number)`` pairs (segments that are not named keep 1). ``top_k`` 0 and
    ``top_p`` 1 keep all ids; ``top_k`` 1 takes the likeliest id at every position.
    """

    guidance: Guidance = Guidance.none()
    temperature: float | tuple[tuple[str, float], ...] = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for value in self.temperatures.values():
            # The logits are divided by it: below this they leave the range of float32.
            if not (math.isfinite(value) and value >= 1e-3):
                raise UsageError(
                    f"temperature is {value:g}, needs to be finite and >= 0.001 (for the likeliest id use top-k 1)"
                )
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 0:
            raise UsageError(f"top-k is {self.top_k}, needs a whole number >= 0 (0: all ids)")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}, needs 0 < top-p <= 1 (1: all ids)")

    @classmethod
    def parse(
        cls,
        guidance: Guidance | float | str = "none",
        temperature: float | str | Mapping[str, float] = 1.0,
        top_k: int | str = 0,
        top_p: float | str = 1.0,
    ) -> Sampling:
        """From what people write: ``Sampling.parse(1.5)``, ``Sampling.parse("cosine 4 power 1.5", temperature=0.9)``,
        ``Sampling.parse("prologue: 0.7, visual: 3", "prologue: 0.7, visual: 0.9")``."""
        if not isinstance(guidance, Guidance):
            guidance = Guidance.parse(guidance) if isinstance(guidance, str) else Guidance.constant(float(guidance))
        try:
            k, p = int(top_k) if isinstance(top_k, str) else top_k, float(top_p)
        except ValueError as error:
            raise UsageError(f"top-k '{top_k}', top-p '{top_p}': need a whole number and a number") from error
        return cls(guidance, _parse_temperature(temperature), k, p)

    @property
    def temperatures(self) -> dict[str, float]:
        """By segment, or the one for all under the name ``""``."""
        if isinstance(self.temperature, tuple):
            return dict(self.temperature)
        return {"": self.temperature}

    def step_temperatures(self, layout: Layout) -> list[float]:
        """The temperature of every sequence position; a segment that the layout does not have is an error."""
        named = self.temperatures
        by_segment = [named.get("", 1.0)] * len(layout.segments)
        for name, value in named.items():
            if name:
                by_segment[layout.index(name)] = value
        return [by_segment[position.segment] for position in layout.positions]

    def check(self, layout: Layout) -> None:
        """Refuse segments that the layout does not have."""
        self.guidance.scales(layout)
        self.step_temperatures(layout)

    def to_dict(self) -> dict[str, str]:
        """In words, as records hold them and as :meth:`parse` reads them."""
        named = self.temperatures or {"": 1.0}
        words = [f"{name}: {number(value)}" if name else number(value) for name, value in named.items()]
        return {
            "guidance": str(self.guidance), "temperature": ", ".join(words),
            "top_k": str(self.top_k), "top_p": number(self.top_p),
        }  # fmt: skip

    def __str__(self) -> str:
        words = [f"guidance {self.guidance}", f"temperature {self.to_dict()['temperature']}"]
        words += [f"top-k {self.top_k}"] if self.top_k else []
        words += [f"top-p {number(self.top_p)}"] if self.top_p < 1 else []
        return ", ".join(words)


def _parse_temperature(value: float | str | Mapping[str, float]) -> float | tuple[tuple[str, float], ...]:
    if isinstance(value, Mapping):
        return tuple((name, float(number)) for name, number in value.items())
    text = str(value)
    try:
        if ":" not in text:
            return float(text)
        pairs = (part.split(":") for part in text.split(",") if part.strip())
        return tuple((name.strip(), float(number)) for name, number in pairs)
    except ValueError as error:
        raise UsageError(f"temperature '{text}': write '0.9', or 'SEGMENT: 0.7, SEGMENT: 0.9'") from error
