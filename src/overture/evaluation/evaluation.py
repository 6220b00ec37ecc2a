"""Samples against a reference: every metric that both sides allow, each with how it was made.

Under another feature network than the original Inception the numbers carry its name, and none of them is called FID.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overture.errors import OvertureError
from overture.evaluation.conditions import Conditions, Measurement
from overture.evaluation.metrics import METRICS, Metric, Value
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.statistics import ImageStatistics
from overture.registry import strangers_code

__all__ = ["Evaluation", "chosen_metrics", "evaluate", "features_needed", "frechet_measurement"]

ADM_IMAGES = 50_000


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
    return [METRICS.get(name) for name in dict.fromkeys(wanted)]


def features_needed(metrics: Sequence[Metric]) -> bool:
    """Whether the features of every image have to be kept for them."""
    return any("features_ND" in metric.needs for metric in metrics)


def evaluate(
    samples: ImageStatistics,
    reference: ImageStatistics,
    network: FeatureNetwork,
    names: Sequence[str] = (),
    conditions: Conditions = Conditions(),
) -> Evaluation:
    """The metrics of these names, or all of ours that there is enough for.

    A metric that was asked for and cannot be computed is an error; of the others the reason is told. ``conditions``
    say how the samples were made, where that is known.
    """
    if samples.size and reference.size and samples.size != reference.size:
        sizes = " against ".join("x".join(map(str, side.size or ())) for side in (samples, reference))
        raise OvertureError(
            f"{samples.name} and {reference.name}: {sizes} pixels; both sides need one size (--image-size cuts image files)"
        )
    for side in (samples, reference):
        side.check_network(network)
    measurements: dict[str, Measurement] = {}
    skipped: dict[str, str] = {}
    for metric in chosen_metrics(names):
        lacking = _lacking(metric, samples, reference, network)
        if lacking and names and "all" not in names:
            raise OvertureError(f"{metric.name}: {lacking}")
        if lacking:
            skipped[metric.name] = lacking
        else:
            measurements[metric.name] = _measure(metric, samples, reference, network, conditions)
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
    notes = list(value.notes)
    if samples.images is not None and samples.images < ADM_IMAGES:
        notes.append(
            f"{samples.images:,} images; the ADM protocol takes {ADM_IMAGES:,}, with fewer it is another number"
        )
    conditions = _conditions(metric, samples, reference, network, known)
    title = _title(metric, network)
    return Measurement(title, value.value, "", conditions, tuple(notes), metric.better, metric.meaning)


def _title(metric: Metric, network: FeatureNetwork) -> str:
    """The name of the field with the official Inception network, and one that says which network otherwise."""
    if network.label == "FID" or not metric.uses_network:
        return metric.title
    return metric.title.replace("FID", network.label) if "FID" in metric.title else f"{metric.title}({network.name})"


def _lacking(metric: Metric, samples: ImageStatistics, reference: ImageStatistics, network: FeatureNetwork) -> str:
    """Why this metric cannot be computed; empty when it can."""
    offered = {"spatial": "spatial", "score": "logits"}
    reasons = {
        "spatial": "holds no mu_s and sigma_s",
        "score": "holds statistics and no images",
        "features_ND": "holds statistics and no images",
        "pictures": "holds statistics and no images",
    }
    for sides, needs in (((samples, reference), metric.needs), ((samples,), metric.samples_need)):
        for need in needs:
            if need in offered and offered[need] not in network.offers:
                what = "spatial features, only the Inception network does" if need == "spatial" else "classes"
                return f"{network.name} has no {what}"
            for side in sides:
                if getattr(side, need) is None:
                    return f"{side.name} {reasons.get(need, f'has no {need}')}"
    few = min((len(side.features_ND) for side in (samples, reference) if side.features_ND is not None), default=4)
    return "needs more than 3 images on each side" if metric.name in ("precision", "recall") and few < 4 else ""


def _conditions(
    metric: Metric, samples: ImageStatistics, reference: ImageStatistics, network: FeatureNetwork, known: Conditions
) -> Conditions:
    """What was measured and how."""
    conditions = dataclasses.replace(
        known,
        images=samples.images,
        image_size=samples.size[0] if samples.size else known.image_size,
        crop=samples.cut if samples.cut is not None else known.crop,
        checkpoint=known.checkpoint or samples.hash,
    )
    if metric.uses_network:
        conditions = dataclasses.replace(
            conditions, network=network.name, network_hash=network.weights_hash, preparation=network.preparation
        )
    if metric.uses_reference:
        kept = reference.features_ND if "features_ND" in metric.needs else None  # metrics on features see these alone
        conditions = dataclasses.replace(
            conditions,
            reference=reference.name,
            reference_hash=reference.hash,
            reference_images=reference.images if kept is None else len(kept),
        )
    return conditions
