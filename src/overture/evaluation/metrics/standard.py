"""The metrics that are measured by default, by ADM's protocol (docs/evaluation.md); and KID."""

from __future__ import annotations

from torch import Tensor

from overture.evaluation.metrics import Metric, Value
from overture.evaluation.metrics.frechet_distance import frechet_distance
from overture.evaluation.metrics.kernel_distance import kernel_distance
from overture.evaluation.metrics.precision_recall import NEIGHBOURS, share_inside
from overture.evaluation.statistics import ImageStatistics

__all__ = ["FID", "INCEPTION_SCORE", "KID", "PRECISION", "RECALL", "SFID"]


def _frechet(samples: ImageStatistics, reference: ImageStatistics, *, spatial: bool = False) -> Value:
    one, other = (side.spatial if spatial else side.gaussian for side in (samples, reference))
    assert one is not None
    assert other is not None
    result = frechet_distance(one, other, (samples.name, reference.name))
    notes = [
        f"the statistics of the {what} do not say which network made them"
        for what, side in (("samples", samples), ("reference", reference))
        if side.network_hash is None
    ]
    for what, rank in (("samples", result.rank_a), ("reference", result.rank_b)):
        if rank < result.dims:
            notes.append(f"the covariance of the {what} is singular: rank {rank} of {result.dims}")
    return Value(result.distance, tuple(notes))


def _spatial_frechet(samples: ImageStatistics, reference: ImageStatistics) -> Value:
    return _frechet(samples, reference, spatial=True)


def _inception_score(samples: ImageStatistics, reference: ImageStatistics) -> Value:
    assert samples.score is not None
    score = samples.score
    note = (
        f"standard deviation {score.deviation:.3g} over {score.splits} splits" if score.splits > 1 else "a single split"
    )
    return Value(score.value, (note,))


def _precision(samples: ImageStatistics, reference: ImageStatistics) -> float:
    points, centres = _features(samples, reference)
    return share_inside(points, centres, processes=samples.processes, squares_M=reference.neighbour_squares_N)


def _recall(samples: ImageStatistics, reference: ImageStatistics) -> float:
    points, centres = _features(reference, samples)
    return share_inside(points, centres, processes=samples.processes, squares_M=samples.neighbour_squares_N)


def _kid(samples: ImageStatistics, reference: ImageStatistics) -> Value:
    sides = _features(samples, reference)
    result = kernel_distance(*sides, processes=samples.processes)
    spread = f"standard deviation {result.deviation:.3g} over {result.subsets} subsets of {result.subset_size:,} images"
    if all(len(side) == result.subset_size for side in sides):
        spread = f"one subset of all {result.subset_size:,} images, so its spread is not known"
    return Value(result.value, (spread,))


def _features(one: ImageStatistics, other: ImageStatistics) -> tuple[Tensor, Tensor]:
    assert one.features_ND is not None
    assert other.features_ND is not None
    return one.features_ND, other.features_ND


FID = Metric("fid", "FID", _frechet, meaning="Fréchet distance of the features")
SFID = Metric("sfid", "sFID", _spatial_frechet, needs=("spatial",), meaning="Fréchet distance of spatial features")
INCEPTION_SCORE = Metric(
    "is",
    "IS",
    _inception_score,
    better="higher",
    samples_need=("score",),
    uses_reference=False,
    meaning="how sure and how varied the classes are",
)
PRECISION = Metric(
    "precision", "Precision", _precision, better="higher", needs=("features_ND",), least_images=NEIGHBOURS + 1,
    meaning="share of the samples inside the reference's manifold",
)  # fmt: skip
RECALL = Metric(
    "recall", "Recall", _recall, better="higher", needs=("features_ND",), least_images=NEIGHBOURS + 1,
    meaning="share of the reference inside the samples' manifold",
)  # fmt: skip
KID = Metric("kid", "KID", _kid, needs=("features_ND",), meaning="kernel distance of the features, unbiased")
