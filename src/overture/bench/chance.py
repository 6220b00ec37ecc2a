"""Is a difference more than chance? Welch's interval over the seeds, in closed form and without tables.

A run has one value for each seed: the mean over the priors of that seed's tokenizer. The difference of two runs is within
chance when its 95 % interval of Welch holds 0: two normal samples, whose variances need not be equal. Where there is one
seed alone, the values are those of the priors on its tokenizer, and the interval says what priors alone do by chance;
where there is one value alone, chance is not known.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Comparison", "Sample", "student_quantile", "student_tails", "welch"]

LEVEL = 0.05
"""Of 100 differences that are nothing but chance, so many lie outside it."""


@dataclass(frozen=True)
class Sample:
    """The values of one metric of one run, by (seed, prior)."""

    values: Mapping[tuple[int, int], float]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that have a value."""
        return tuple(dict.fromkeys(seed for seed, _ in self.values))

    @property
    def over(self) -> str:
        """What the units are: ``seeds``, ``priors``, or nothing where there is one alone.

        What all priors of one tokenizer agree in (its reconstruction) is one value, not several without a spread.
        """
        return "seeds" if len(self.seeds) > 1 else "priors" if len(set(self.values.values())) > 1 else ""

    @property
    def units(self) -> list[float]:
        """One value for each seed; of one seed alone, one for each of its priors."""
        if self.over == "priors":
            return list(self.values.values())
        return [statistics.fmean(v for (own, _), v in self.values.items() if own == seed) for seed in self.seeds]

    @property
    def mean(self) -> float:
        """Over the units."""
        return statistics.fmean(self.units)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the units (n - 1); None for one."""
        return statistics.stdev(self.units) if len(self.units) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A run's difference to the one that it is compared with."""

    difference: float
    margin: float | None
    """Half of the 95 % interval; None where chance is not known."""

    @classmethod
    def of(cls, sample: Sample, baseline: Sample) -> Comparison:
        """Of two samples; both need units of one kind."""
        margin = welch(sample.units, baseline.units) if sample.over and sample.over == baseline.over else None
        return cls(sample.mean - baseline.mean, margin)

    @property
    def within_chance(self) -> bool | None:
        """Whether the interval holds 0; None where chance is not known."""
        return None if self.margin is None else abs(self.difference) <= self.margin


def welch(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> float:
    """Half of Welch's two-sided interval for the difference of the means of ``a`` and ``b``, at least two values each.

    Degrees of freedom after Welch and Satterthwaite. Two samples without any spread have a margin of 0.
    """
    parts = [(statistics.variance(values) / len(values), len(values)) for values in (a, b)]
    total = sum(part for part, _ in parts)
    if total == 0:
        return 0.0
    freedom = 1 / sum((part / total) ** 2 / (count - 1) for part, count in parts)
    return student_quantile(level, freedom) * math.sqrt(total)


def student_quantile(level: float, freedom: float) -> float:
    """The t beyond which, on both sides together, a share ``level`` of Student's distribution lies; by bisection."""
    low, high = 0.0, 1.0
    while student_tails(high, freedom) > level:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_tails(middle, freedom) > level else (low, middle)
    return high


def student_tails(t: float, freedom: float) -> float:
    """The share of Student's distribution beyond t and -t: the regularised incomplete beta I_x(f / 2, 1 / 2), f / (f + t^2)."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by its continued fraction, on the side where that converges (Press et al., Numerical Recipes, 6.4)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # From the far end of the fraction inwards: no division by what may vanish on the way.
    fraction = 1.0
    for step in range(200, 0, -1):
        half, odd = divmod(step, 2)
        if odd:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        fraction = 1 + term / fraction
    return math.exp(log_front) / (a * fraction)
