"""Are samples copies? The nearest training image of each sample, by features and by tokens.

Held-out images are the yardstick: they are no copies, and have nearest training images too. A sample that lies nearer
to a training image than 99 of 100 held-out images do is counted as suspicious. One in a hundred is what chance gives.

Shapes: N samples, M training images, D features, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overture.analysis.entries import ReportEntry
from overture.errors import OvertureError
from overture.evaluation.networks import FeatureNetwork
from overture.pictures import picture_grid
from overture.pipeline import Pipeline, balanced_classes
from overture.priors.sampling import Sampling
from overture.progress import each_with_progress

__all__ = ["NeighbourStudy", "Neighbours", "nearest_by_features", "nearest_by_tokens", "study", "suspicious_share"]

CHUNK = 2048
QUANTILE = 0.01
ROUNDING = 1e-5
"""Of features in float32, relative to their norm."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training image of every sample."""

    places_N: Tensor
    distances_N: Tensor
    """Euclidean distance of features, or the number of tokens that differ."""


@dataclass(frozen=True, eq=False)
class NeighbourStudy:
    """How near samples lie to training images, beside how near held-out images do."""

    features: dict[str, Any]
    """See :func:`suspicious_share`, by the judge's features."""
    tokens: dict[str, Any]
    """The same, by the number of tokens that differ."""
    samples: int
    training_images: int
    pictures: Tensor
    """uint8 ``[3, n, C, H, W]``: the samples nearest to training, their neighbours by features and by tokens."""
    settings: dict[str, Any]
    """How it was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = {"samples": self.samples, "training_images": self.training_images}
        return {**counts, **self.settings, "features": self.features, "tokens": self.tokens}

    def describe(self) -> str:
        """One line by features and one by tokens."""
        units = (("features", self.features, "distance"), ("tokens", self.tokens, "tokens that differ"))
        return "\n".join(
            f"{kind}: {part['suspicious_share']:.1%} of {self.samples} samples nearer to training than 99 % of "
            f"held-out images; median {unit} {part['median']:.4g}, held-out {part['held_out_median']:.4g}; "
            f"{part['exact_copies']} exact copies"
            for kind, part, unit in units
        )

    def entries(self) -> list[ReportEntry]:
        """The samples that lie nearest, over their neighbours."""
        caption = (
            f"Above: the samples that lie nearest to a training image, of {self.samples:,}. Below each: the nearest of "
            f"{self.training_images:,} training images in the judge's features, and by tokens. Nearer than 99 % of "
            f"held-out images: {self.features['suspicious_share']:.1%} of the samples by features, "
            f"{self.tokens['suspicious_share']:.1%} by tokens (chance: 1 %). Guidance {self.settings['guidance']}."
        )
        picture = picture_grid(self.pictures.flatten(0, 1), self.pictures.shape[1])
        return [ReportEntry("neighbours", "Nearest training images", caption, picture, self.to_dict())]


def study(
    pipe: Pipeline,
    training_MT: Tensor,
    held_out_KT: Tensor,
    judge: FeatureNetwork,
    *,
    samples: int = 200,
    sampling: Sampling = Sampling(),
    pictures: int = 12,
    batch_size: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> NeighbourStudy:
    """Sample images of balanced classes and find the nearest training image of each; local ids ``[M, T]``, ``[K, T]``.

    All images are decoded from their tokens, so that what the tokenizer loses plays no part.
    """
    classes = balanced_classes(samples, pipe.prior.config.num_classes)
    drawn = pipe.sample_ids(classes, sampling, seed=seed, batch_size=batch_size)
    sample_ids = torch.cat([ids.cpu() for ids in each_with_progress(drawn, "sampling", "batch", shown=progress)])

    def features(ids: Tensor, what: str) -> Tensor:
        batches = each_with_progress(ids.split(batch_size), what, "batch", shown=progress)
        return torch.cat([judge(pipe.decode(part)).cpu() for part in batches])

    training = features(training_MT, "training images")
    by_features = nearest_by_features(features(sample_ids, "samples"), training)
    by_tokens = nearest_by_tokens(sample_ids, training_MT)
    yardstick = nearest_by_features(features(held_out_KT, "held-out images"), training)
    order = by_features.distances_N.argsort()[:pictures]
    columns = [sample_ids[order], training_MT[by_features.places_N[order]], training_MT[by_tokens.places_N[order]]]
    return NeighbourStudy(
        features=suspicious_share(by_features, yardstick),
        tokens=suspicious_share(by_tokens, nearest_by_tokens(held_out_KT, training_MT)),
        samples=samples,
        training_images=len(training_MT),
        pictures=torch.stack([pipe.decode(column) for column in columns]),
        settings={
            "held_out_images": len(held_out_KT),
            "judge": judge.name,
            "judge_hash": judge.weights_hash,
            **sampling.to_dict(),
            "seed": seed,
        },
    )


def nearest_by_features(samples_ND: Tensor, training_MD: Tensor) -> Neighbours:
    """By Euclidean distance, computed in float64 for the nearest one.

    The features of one image differ in their last digits from batch to batch: distances that small count as 0.
    """
    _check(samples_ND, training_MD)
    best_N = torch.full((len(samples_ND),), torch.inf, dtype=torch.float64)
    place_N = torch.zeros(len(samples_ND), dtype=torch.int64)
    for start in range(0, len(training_MD), CHUNK):
        part = torch.cdist(samples_ND.double(), training_MD[start : start + CHUNK].double())
        distance_N, where_N = part.min(dim=1)
        nearer_N = distance_N < best_N
        best_N = torch.where(nearer_N, distance_N, best_N)
        place_N = torch.where(nearer_N, where_N + start, place_N)
    # Near 0 cdist is inexact: it takes |a|^2 + |b|^2 - 2 ab.
    distances_N = (samples_ND.double() - training_MD[place_N].double()).norm(dim=1)
    return Neighbours(place_N, distances_N.where(distances_N > ROUNDING * samples_ND.double().norm(dim=1), 0.0))


def nearest_by_tokens(samples_NT: Tensor, training_MT: Tensor) -> Neighbours:
    """By the number of tokens that differ; of equals the first."""
    _check(samples_NT, training_MT)
    tokens = samples_NT.shape[1]
    best_N = torch.full((len(samples_NT),), tokens + 1)
    place_N = torch.zeros(len(samples_NT), dtype=torch.int64)
    for start in range(0, len(training_MT), CHUNK):
        part_MT = training_MT[start : start + CHUNK]
        differ_NM = torch.zeros(len(samples_NT), len(part_MT), dtype=torch.int64)
        for position in range(tokens):  # never N x M x T at once
            differ_NM += samples_NT[:, position, None] != part_MT[None, :, position]
        distance_N, where_N = differ_NM.min(dim=1)
        nearer_N = distance_N < best_N
        best_N = torch.where(nearer_N, distance_N, best_N)
        place_N = torch.where(nearer_N, where_N + start, place_N)
    return Neighbours(place_N, best_N)


def suspicious_share(samples: Neighbours, held_out: Neighbours) -> dict[str, Any]:
    """Share of the samples nearer to training than 99 % of held-out images, with both medians.

    Distances in tokens are whole numbers, so many can lie just at the threshold: those count with the weight that gives
    held-out images a share of exactly 1 %.
    """
    yardstick = held_out.distances_N.double()
    threshold = float(yardstick.quantile(QUANTILE, interpolation="lower"))
    distances = samples.distances_N.double()
    below, at = (float((yardstick < threshold).double().mean()), float((yardstick == threshold).double().mean()))
    weight = min(1.0, max(0.0, (QUANTILE - below) / at))

    def share(of: Tensor) -> float:
        return float((of < threshold).double().mean() + weight * (of == threshold).double().mean())

    return {
        "suspicious_share": share(distances),
        "held_out_share": share(yardstick),
        "threshold": threshold,
        "median": float(distances.median()),
        "held_out_median": float(yardstick.median()),
        "exact_copies": int((distances == 0).sum()),
    }


def _check(samples: Tensor, training: Tensor) -> None:
    if samples.shape[1] != training.shape[1] or not len(samples) or not len(training):
        raise OvertureError(f"neighbours: {tuple(samples.shape)} against {tuple(training.shape)}")
