"""Is a difference more than chance? Welch's interval over the seeds, a closed form.

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

__all__ = ["Comparison", "Sample", "student_quantile", "welch"]

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
    """The t beyond which, on both sides together, a share ``level`` of Student's distribution lies."""
    from scipy.stats import t

    return float(t.isf(level / 2, freedom))
