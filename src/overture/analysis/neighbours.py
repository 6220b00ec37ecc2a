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

from overture.errors import OvertureError

__all__ = ["Neighbours", "nearest_by_features", "nearest_by_tokens", "suspicious_share"]

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
