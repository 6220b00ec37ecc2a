"""Metrics: numbers of samples against a reference. A new one is one :class:`Metric`, see docs/extending.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from overture.registry import OpenList

if TYPE_CHECKING:
    from overture.evaluation.statistics import ImageStatistics

__all__ = ["METRICS", "Metric", "Value"]

METRICS = OpenList(
    "metric",
    {
        "fid": "overture.evaluation.metrics.standard:FID",
        "sfid": "overture.evaluation.metrics.standard:SFID",
        "is": "overture.evaluation.metrics.standard:INCEPTION_SCORE",
        "precision": "overture.evaluation.metrics.standard:PRECISION",
        "recall": "overture.evaluation.metrics.standard:RECALL",
        "kid": "overture.evaluation.metrics.standard:KID",
    },
    kind="overture.evaluation.metrics:Metric",
)


@dataclass(frozen=True)
class Value:
    """A number, with notes that belong beside it."""

    value: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A number of samples against a reference, and what a table has to know about it.

    ``needs`` are the parts of :class:`~overture.evaluation.statistics.ImageStatistics` that both sides have to have:
    ``spatial``, ``features_ND``, ``pictures`` (the images themselves); statistics of the features are always there.
    ``samples_need`` are those of the samples alone, such as ``score``.
    """

    name: str
    """As in ``--metrics``; a plain word."""
    title: str
    """As in a table."""
    measure: Callable[[ImageStatistics, ImageStatistics], Value | float]
    """Called with samples and reference. Under several processes all call it, and all have to get the same number."""
    better: Literal["lower", "higher"] = "lower"
    needs: tuple[str, ...] = ()
    samples_need: tuple[str, ...] = ()
    meaning: str = ""

    @property
    def uses_network(self) -> bool:
        """Whether the number depends on the feature network: not if it is of the images themselves."""
        return self.needs != ("pictures",)

    @property
    def uses_reference(self) -> bool:
        """Whether the number depends on the reference: not if only the samples need to have something."""
        return bool(self.needs) or not self.samples_need
