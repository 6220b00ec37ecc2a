"""Generated images against a reference: every metric that both sides allow, each with its protocol.

By ADM's protocol (docs/evaluation.md): FID and sFID from streamed statistics, the Inception Score in splits of 5,000,
precision and recall with three neighbours; and KID. Under another feature network than the original Inception the
numbers carry its name, and none of them is called FID.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from overture.data.npz import array_entries
from overture.errors import OvertureError, UsageError, nearest
from overture.evaluation.collect import Collected, collect
from overture.evaluation.image_sets import is_statistics_file, open_images
from overture.evaluation.kernel_distance import kernel_distance
from overture.evaluation.measure import check_reference, measure_distance
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.precision_recall import precision_recall
from overture.evaluation.protocol import Measurement, Protocol
from overture.evaluation.reference import Reference

__all__ = ["METRICS", "Evaluation", "collect_reference", "collect_samples", "evaluate", "save_reference"]

ADM_IMAGES = 50_000
NEIGHBOURS = 3
SEED = 0

METRICS = {
    "fid": "Fréchet distance of the features",
    "sfid": "Fréchet distance of the spatial features (Inception alone)",
    "is": "Inception Score",
    "precision": "share of the samples inside the reference's manifold",
    "recall": "share of the reference inside the samples' manifold",
    "kid": "kernel distance of the features",
}
ON_FEATURES = frozenset({"precision", "recall", "kid"})
"""Metrics that need the features of every image on both sides, so images rather than statistics."""


@dataclass(frozen=True)
class Evaluation:
    """The numbers, and the metrics that could not be computed with the reason."""

    measurements: dict[str, Measurement]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "measurements": {key: measurement.to_dict() for key, measurement in self.measurements.items()},
            "skipped": self.skipped,
        }


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse words that name no metric."""
    for word in metrics:
        if word not in METRICS:
            raise UsageError(f"unknown metric '{word}'{nearest(word, METRICS)}")


def collect_samples(
    spec: str,
    network: FeatureNetwork,
    metrics: Sequence[str] = (),
    *,
    images: int | None = None,
    image_size: int | None = None,
    batch_size: int = 100,
    progress: bool = False,
) -> Collected:
    """One side from an image set, or from a statistics file without images; ``metrics`` say whether to keep features."""
    if is_statistics_file(spec) and "arr_0" not in array_entries(Path(spec).expanduser()):
        if images is not None:
            raise UsageError(f"{spec}: holds statistics, so it cannot be cut to {images:,} images; leave out --images")
        return _from_statistics(spec, network)
    found = open_images(spec, image_size)
    keep = bool(ON_FEATURES & set(metrics))
    return collect(found, network, images, keep_features=keep, batch_size=batch_size, progress=progress)


def collect_reference(
    spec: str,
    network: FeatureNetwork,
    metrics: Sequence[str] = (),
    *,
    image_size: int | None = None,
    batch_size: int = 100,
    progress: bool = False,
) -> Collected:
    """The side that is measured against. Statistics in a file count for more than its images.

    ADM's references hold the statistics of the whole set and 10,000 of its images: as there, FID and sFID are taken
    against the former, precision and recall (and KID) against the latter.
    """
    if not is_statistics_file(spec):
        return collect_samples(spec, network, metrics, image_size=image_size, batch_size=batch_size, progress=progress)
    side = _from_statistics(spec, network)
    if ON_FEATURES & set(metrics) and "arr_0" in array_entries(Path(spec).expanduser()):
        pictures = collect(
            open_images(spec, image_size), network, keep_features=True, batch_size=batch_size, progress=progress
        )
        size = side.size or pictures.size
        side = dataclasses.replace(side, features_ND=pictures.features_ND, size=size, cut=pictures.cut)
    return side


def evaluate(
    samples: Collected,
    reference: Collected,
    network: FeatureNetwork,
    metrics: Sequence[str] = (),
    protocol: Protocol | None = None,
    *,
    progress: bool = False,
) -> Evaluation:
    """The ``metrics``, or all that there is enough for.

    A metric that was asked for and cannot be computed is an error; of the others the reason is told. ``protocol``
    says how the samples were made, where that is known.
    """
    check_metrics(metrics)
    if samples.size and reference.size and samples.size != reference.size:
        sizes = " against ".join("x".join(map(str, side.size or ())) for side in (samples, reference))
        raise OvertureError(
            f"{samples.name} and {reference.name}: {sizes} pixels; both sides need one size (--image-size cuts image files)"
        )
    measurements: dict[str, Measurement] = {}
    skipped: dict[str, str] = {}
    manifolds = None
    for metric in metrics or METRICS:
        lacking = _lacking(metric, samples, reference, network)
        if lacking and metric in metrics:
            raise OvertureError(f"{metric}: {lacking}")
        if lacking:
            skipped[metric] = lacking
            continue
        whole = _protocol(samples, reference, network, protocol or Protocol())
        if metric in ("precision", "recall") and manifolds is None:
            assert samples.features_ND is not None
            assert reference.features_ND is not None
            manifolds = precision_recall(samples.features_ND, reference.features_ND, NEIGHBOURS, progress=progress)
        if metric in ("precision", "recall"):
            measurements[metric] = Measurement(
                _name(metric, metric.title(), network), getattr(manifolds, metric), "", _with_features(whole, reference)
            )
        else:
            measurements[metric] = _MEASURE[metric](samples, reference, network, whole)
    return Evaluation(measurements, skipped)


def save_reference(
    side: Collected, network: FeatureNetwork, path: Path, keep: int, spec: str, size: int | None
) -> None:
    """Write statistics, and with ``keep`` the first images too (for precision, recall and KID), as ADM's files do."""
    if path.suffix != ".npz":
        raise UsageError(f"{path}: a reference is an .npz file")
    if side.cut is None or side.size is None or side.images is None:
        raise UsageError(f"{spec}: holds statistics already; a reference is made of images")
    reference = Reference(side.name, side.gaussian, side.hash, network.name, side.network_hash, side.spatial, side.size)
    arrays = {}
    if keep:
        found = open_images(spec, size)
        if keep > side.images:
            raise OvertureError(f"{found.name}: asked to keep {keep:,} images of {side.images:,}")
        parts = [batch.permute(0, 2, 3, 1).numpy() for batch in found.batches(0, keep, 1000)]
        if len({part.shape[3] for part in parts}) > 1:  # grey batches among coloured ones
            parts = [np.broadcast_to(part, (*part.shape[:3], 3)) for part in parts]
        arrays["arr_0"] = np.concatenate(parts)
    reference.save(path, arrays)


def _from_statistics(spec: str, network: FeatureNetwork) -> Collected:
    reference = Reference.load(Path(spec).expanduser())
    check_reference(reference, network, spec)
    return Collected(
        name=reference.name,
        hash=reference.hash,
        images=reference.gaussian.count,
        gaussian=reference.gaussian,
        spatial=reference.spatial,
        network_hash=reference.network_hash,
        size=reference.size or _kept_size(Path(spec).expanduser()),
    )


def _kept_size(path: Path) -> tuple[int, int] | None:
    """The size of the images that lie beside statistics of unknown size."""
    kept = array_entries(path).get("arr_0")
    return (kept.shape[1], kept.shape[2]) if kept is not None and len(kept.shape) >= 3 else None


def _lacking(metric: str, samples: Collected, reference: Collected, network: FeatureNetwork) -> str:
    """Why this metric cannot be computed; empty when it can."""
    if metric == "sfid":
        if "spatial" not in network.offers:
            return f"{network.name} has no spatial features, only the Inception network does"
        for side in (samples, reference):
            if side.spatial is None:
                return f"{side.name} holds no mu_s and sigma_s"
    if metric == "is":
        if "logits" not in network.offers:
            return f"{network.name} has no classes"
        if samples.score is None:
            return f"{samples.name} holds statistics and no images"
    if metric in ON_FEATURES:
        for side in (samples, reference):
            if side.features_ND is None:
                return f"{side.name} holds statistics and no images"
            if len(side.features_ND) <= NEIGHBOURS and metric != "kid":
                return f"{side.name} has {len(side.features_ND)} images, needs more than {NEIGHBOURS}"
    return ""


def _protocol(samples: Collected, reference: Collected, network: FeatureNetwork, known: Protocol) -> Protocol:
    """What was measured and how, for metrics on statistics of both sides."""
    return dataclasses.replace(
        known,
        network=network.name,
        network_hash=network.weights_hash,
        preparation=network.preparation,
        reference=reference.name,
        reference_hash=reference.hash,
        reference_images=reference.images,
        images=samples.images,
        image_size=samples.size[0] if samples.size else known.image_size,
        crop=samples.cut if samples.cut is not None else known.crop,
        checkpoint=known.checkpoint or samples.hash,
    )


def _with_features(protocol: Protocol, reference: Collected) -> Protocol:
    """Metrics on features are taken against the images that the reference holds."""
    assert reference.features_ND is not None
    return dataclasses.replace(protocol, reference_images=len(reference.features_ND))


def _name(metric: str, official: str, network: FeatureNetwork) -> str:
    """The name of the field with the official Inception network, and one that says which network otherwise."""
    return official if network.label == "FID" else f"{official}({network.name})"


def _fid(samples: Collected, reference: Collected, network: FeatureNetwork, protocol: Protocol) -> Measurement:
    return _distance(network.label, samples, reference, network, protocol, spatial=False)


def _sfid(samples: Collected, reference: Collected, network: FeatureNetwork, protocol: Protocol) -> Measurement:
    return _distance(f"s{network.label}", samples, reference, network, protocol, spatial=True)


def _distance(
    name: str, samples: Collected, reference: Collected, network: FeatureNetwork, protocol: Protocol, *, spatial: bool
) -> Measurement:
    gaussian, other = (samples.spatial, reference.spatial) if spatial else (samples.gaussian, reference.gaussian)
    assert gaussian is not None
    assert other is not None
    against = Reference(reference.name, other, reference.hash, network.name, reference.network_hash)
    measured = measure_distance(name, gaussian, network, against, protocol, samples.name)
    notes = list(measured.notes)
    if samples.network_hash is None:
        notes.append("the statistics of the samples do not say which network made them")
    if samples.images is not None and samples.images < ADM_IMAGES:
        notes.append(f"{samples.images:,} images; the ADM protocol takes {ADM_IMAGES:,}, fewer give a higher distance")
    return dataclasses.replace(measured, notes=tuple(notes))


def _inception_score(
    samples: Collected, reference: Collected, network: FeatureNetwork, protocol: Protocol
) -> Measurement:
    assert samples.score is not None
    plain = dataclasses.replace(protocol, reference=None, reference_hash=None, reference_images=None)
    note = f"standard deviation {samples.score.deviation:.3g} over {samples.score.splits} splits"
    if samples.score.splits == 1:
        note = "a single split"
    return Measurement(_name("is", "IS", network), samples.score.value, "", plain, (note,))


def _kid(samples: Collected, reference: Collected, network: FeatureNetwork, protocol: Protocol) -> Measurement:
    assert samples.features_ND is not None
    assert reference.features_ND is not None
    result = kernel_distance(samples.features_ND, reference.features_ND, seed=SEED)
    note = f"standard deviation {result.deviation:.3g} over {result.subsets} subsets of {result.subset_size:,} images"
    return Measurement(_name("kid", "KID", network), result.value, "", _with_features(protocol, reference), (note,))


_MEASURE: dict[str, Callable[[Collected, Collected, FeatureNetwork, Protocol], Measurement]] = {
    "fid": _fid,
    "sfid": _sfid,
    "is": _inception_score,
    "kid": _kid,
}
