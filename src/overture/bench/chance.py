"""Is a difference more than chance? Student's interval, with the variance pooled over all runs of a suite.

A run has one value for each seed: the mean over the priors of that seed's tokenizer. How far seeds of one run lie apart
is what chance does; all runs of a suite together tell it better than any two of them, as in an analysis of variance with
one factor. The assumption is that chance is as large in every run. Where a suite has one seed alone, the values are those
of the priors on its tokenizers, and the interval says what priors alone do by chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Chance", "Comparison", "Sample", "student_quantile", "unit_of"]

LEVEL = 0.05
"""Of 100 differences that are nothing but chance, so many lie outside the interval."""

Unit = Literal["seeds", "priors"]


@dataclass(frozen=True)
class Sample:
    """The values of one metric of one run, by (seed, prior)."""

    values: Mapping[tuple[int, int], float]
    over: Unit = "seeds"
    """What the units are."""

    @property
    def units(self) -> list[float]:
        """One value for each seed, or one for each prior.

        What all priors of one tokenizer agree in (its reconstruction) is one value, not several without a spread.
        """
        if self.over == "priors":
            values = list(self.values.values())
            return values if len(set(values)) > 1 else values[:1]
        seeds = dict.fromkeys(seed for seed, _ in self.values)
        return [statistics.fmean(v for (own, _), v in self.values.items() if own == seed) for seed in seeds]

    @property
    def mean(self) -> float:
        """Over the units."""
        return statistics.fmean(self.units)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the units (n - 1); None for one."""
        return statistics.stdev(self.units) if len(self.units) > 1 else None


def unit_of(runs: Iterable[Mapping[tuple[int, int], float]]) -> Unit:
    """What the units of these runs are: seeds, or priors where no run has more than one seed."""
    return "seeds" if any(len({seed for seed, _ in values}) > 1 for values in runs) else "priors"


@dataclass(frozen=True)
class Chance:
    """How far units of one run lie apart: their variance, pooled over several runs."""

    variance: float
    freedom: int
    """Degrees of freedom: units less runs."""

    @classmethod
    def pooled(cls, samples: Iterable[Sample]) -> Chance | None:
        """Over the runs with at least two units; None where there is none."""
        several = [sample.units for sample in samples if len(sample.units) > 1]
        freedom = sum(len(units) - 1 for units in several)
        if not freedom:
            return None
        return cls(sum(statistics.variance(units) * (len(units) - 1) for units in several) / freedom, freedom)

    def margin(self, units: int, others: int) -> float:
        """Half of the 95 % interval of the difference of two means, over so many units each."""
        return student_quantile(LEVEL, self.freedom) * math.sqrt(self.variance * (1 / units + 1 / others))


@dataclass(frozen=True)
class Comparison:
    """A run's difference to the one that it is compared with."""

    difference: float
    margin: float | None
    """Half of the 95 % interval; None where chance is not known."""

    @classmethod
    def of(cls, sample: Sample, baseline: Sample, chance: Chance | None) -> Comparison:
        """Of two samples with units of one kind."""
        margin = chance.margin(len(sample.units), len(baseline.units)) if chance else None
        return cls(sample.mean - baseline.mean, margin)

    @property
    def within_chance(self) -> bool | None:
        """Whether the interval holds 0; None where chance is not known."""
        return None if self.margin is None else abs(self.difference) <= self.margin


def student_quantile(level: float, freedom: float) -> float:
    """The t beyond which, on both sides together, a share ``level`` of Student's distribution lies."""
    from scipy.stats import t

    return float(t.isf(level / 2, freedom))
