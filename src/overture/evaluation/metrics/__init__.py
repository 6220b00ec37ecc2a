"""Metrics: numbers of samples against a reference. A new one is one :class:`Metric`, see docs/extending.md."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from overture.errors import UsageError, nearest
from overture.registry import OpenList

if TYPE_CHECKING:
    from overture.evaluation.statistics import ImageStatistics

__all__ = ["METRICS", "Metric", "Value"]

PARTS = ("spatial", "score", "features_ND", "pictures")

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
    ``samples_need`` are those of the samples alone, such as ``score``. What it does not use at all, the feature network
    or the reference, is left out of its record.
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
    uses_network: bool = True
    uses_reference: bool = True
    least_images: int = 2
    """On each side."""

    def __post_init__(self) -> None:
        for need in (*self.needs, *self.samples_need):
            if need not in PARTS:
                raise UsageError(f"metric {self.name}: needs '{need}', which no side has{nearest(need, PARTS)}")

    def lacks(self, offers: Container[str]) -> str:
        """What a feature network with these ``offers`` does not have of what this metric needs, in words; or nothing."""
        known = {"spatial": ("spatial", "spatial features"), "score": ("logits", "classes")}
        lacking = [
            known[need][1]
            for need in (*self.needs, *self.samples_need)
            if need in known and known[need][0] not in offers
        ]
        return lacking[0] if lacking else ""
