"""Samples against a reference: every metric that both sides allow, each with how it was made.

Under another feature network than the original Inception the numbers carry its name, and none of them is called FID.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overture.errors import OvertureError, UsageError
from overture.evaluation.conditions import Conditions, Measurement
from overture.evaluation.metrics import METRICS, Metric, Value
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.statistics import ImageStatistics
from overture.progress import Interrupted
from overture.registry import strangers_code

__all__ = ["Evaluation", "chosen_metrics", "evaluate", "features_needed", "frechet_measurement"]

ADM_IMAGES = 50_000
FEW_IMAGES = 1000
"""With fewer on a side, a number of whatever metric is said to be rough."""


@dataclass(frozen=True)
class Evaluation:
    """The numbers by metric, and the metrics that could not be computed with the reason."""

    measurements: dict[str, Measurement]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "measurements": {key: measurement.to_dict() for key, measurement in self.measurements.items()},
            "skipped": self.skipped,
        }


def chosen_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names (``module:name`` for anyone's); none named, or ``all``: ours."""
    wanted = [name for word in names or ("all",) for name in (METRICS if word == "all" else (word,))]
    metrics = [METRICS.get(name) for name in dict.fromkeys(wanted)]
    for name, count in Counter(metric.name for metric in metrics).items():
        if count > 1:
            raise UsageError(f"two metrics are called '{name}'; give yours another name")
    return metrics


def features_needed(metrics: Sequence[Metric]) -> bool:
    """Whether the features of every image have to be kept for them."""
    return any("features_ND" in (*metric.needs, *metric.samples_need) for metric in metrics)


def evaluate(
    samples: ImageStatistics,
    reference: ImageStatistics,
    network: FeatureNetwork,
    names: Sequence[str] = (),
    conditions: Conditions = Conditions(),
    *,
    strict: bool = True,
) -> Evaluation:
    """The metrics of these names, or all of ours that there is enough for.

    A metric that was asked for by name and cannot be computed is an error, if ``strict``; of others the reason is told.
    ``conditions`` say how the samples were made, where that is known.
    """
    if samples.size and reference.size and samples.size != reference.size:
        sizes = " against ".join("x".join(map(str, side.size or ())) for side in (samples, reference))
        raise OvertureError(
            f"{samples.name} and {reference.name}: {sizes} pixels; both sides need one size (--image-size cuts image files)"
        )
    for side in (samples, reference):
        side.check_network(network)
    named = [name for name in names if name != "all"]
    required = {metric.name for metric in chosen_metrics(named)} if strict and named else set()
    measurements: dict[str, Measurement] = {}
    skipped: dict[str, str] = {}
    for metric in chosen_metrics(names):
        lacking = _lacking(metric, samples, reference, network)
        if lacking and metric.name in required:
            raise OvertureError(f"{metric.name}: {lacking}")
        if lacking:
            skipped[metric.name] = lacking
            continue
        try:
            with samples.processes.agree():
                measurements[metric.name] = _measure(metric, samples, reference, network, conditions)
        except Interrupted:
            raise
        except OvertureError as error:
            if metric.name in required or strict:
                raise
            skipped[metric.name] = str(error)
    return Evaluation(measurements, skipped)


def frechet_measurement(
    name: str, samples: ImageStatistics, reference: ImageStatistics, network: FeatureNetwork, conditions: Conditions
) -> Measurement:
    """The Fréchet distance alone, called ``name``."""
    measured = evaluate(samples, reference, network, ("fid",), conditions).measurements["fid"]
    return dataclasses.replace(measured, name=name)


def _measure(
    metric: Metric, samples: ImageStatistics, reference: ImageStatistics, network: FeatureNetwork, known: Conditions
) -> Measurement:
    with strangers_code(metric.name):
        result = metric.measure(samples, reference)
        value = result if isinstance(result, Value) else Value(float(result))
    about_network = network.notes if metric.uses_network else ()
    notes = [*value.notes, *about_network, *_few_images(metric, samples, reference, network)]
    conditions = _conditions(metric, samples, reference, network, known)
    title = _title(metric, network)
    return Measurement(title, value.value, "", conditions, tuple(notes), metric.better, metric.meaning)


def _few_images(
    metric: Metric, samples: ImageStatistics, reference: ImageStatistics, network: FeatureNetwork
) -> list[str]:
    """A note where there are too few images for the number: the same rule for all metrics."""
    sides = (samples, reference) if metric.uses_reference else (samples,)
    counts = [count for count in (_seen(metric, side) for side in sides) if count is not None]
    if counts and min(counts) < FEW_IMAGES:
        return [f"only {min(counts):,} images on a side: a rough number"]
    if network.label == "FID" and (samples.images or ADM_IMAGES) < ADM_IMAGES:
        return [f"{samples.images:,} images; the ADM protocol takes {ADM_IMAGES:,}, with fewer it is another number"]
    return []


def _seen(metric: Metric, side: ImageStatistics) -> int | None:
    """How many images of a side the metric sees: on features or pictures those alone that a file of statistics has kept."""
    parts = {"features_ND": side.features_ND, "pictures": side.pictures}
    kept = next((part for need, part in parts.items() if need in metric.needs), None)
    return side.images if kept is None else len(kept)


def _title(metric: Metric, network: FeatureNetwork) -> str:
    """The name of the field with the official Inception network, and one that says which network otherwise."""
    if network.label == "FID" or not metric.uses_network:
        return metric.title
    return metric.title.replace("FID", network.label) if "FID" in metric.title else f"{metric.title}({network.name})"


MISSING = {
    "spatial": "holds no mu_s and sigma_s",
    "score": "holds statistics and no images",
    "features_ND": "holds statistics and no images",
    "pictures": "holds statistics and no images",
}
"""What to say of a file of statistics that lacks a part of :class:`ImageStatistics`."""


def _lacking(metric: Metric, samples: ImageStatistics, reference: ImageStatistics, network: FeatureNetwork) -> str:
    """Why this metric cannot be computed; empty when it can."""
    if lacking := metric.lacks(network.offers):
        only = ", only the Inception network does" if lacking == "spatial features" else ""
        return f"{network.name} has no {lacking}{only}"
    for sides, needs in (((samples, reference), metric.needs), ((samples,), metric.samples_need)):
        for need in needs:
            for side in sides:
                if getattr(side, need) is None:
                    return f"{side.name} {MISSING.get(need, f'has no {need}')}"
    counts = [count for count in (_seen(metric, side) for side in (samples, reference)) if count is not None]
    few = min(counts, default=metric.least_images) < metric.least_images
    return f"needs {metric.least_images} images on each side" if few else ""


def _conditions(
    metric: Metric, samples: ImageStatistics, reference: ImageStatistics, network: FeatureNetwork, known: Conditions
) -> Conditions:
    """What was measured and how."""
    conditions = dataclasses.replace(
        known,
        images=_seen(metric, samples),
        image_size=samples.size[0] if samples.size else known.image_size,
        crop=samples.cut if samples.cut is not None else known.crop,
        checkpoint=known.checkpoint or samples.hash,
    )
    if metric.uses_network:
        conditions = dataclasses.replace(
            conditions, network=network.name, network_hash=network.weights_hash, preparation=network.preparation
        )
    if metric.uses_reference:
        conditions = dataclasses.replace(
            conditions,
            reference=reference.name,
            reference_hash=reference.hash,
            reference_images=_seen(metric, reference),
        )
    return conditions
