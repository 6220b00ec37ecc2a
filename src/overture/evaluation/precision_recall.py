"""Precision and recall of generated images.

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (arXiv 1904.06991): a set of
features stands for the union of balls around its members that reach to their k-th nearest neighbour (k = 3). Precision
is the share of samples inside the reference's balls, recall the share of the reference inside the samples' balls.

Distances are exact but for float32 rounding, and computed in blocks: memory is a few blocks over the features.

Shapes: N M members of the two sets, B C members of a block, D features, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from overture.errors import OvertureError

__all__ = ["PrecisionRecall", "neighbour_radii", "precision_recall"]

BLOCK = 4096


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in 0..1."""

    precision: float
    recall: float
    neighbours: int


def precision_recall(
    samples_ND: Tensor, reference_MD: Tensor, neighbours: int = 3, *, progress: bool = False
) -> PrecisionRecall:
    """Precision and recall of ``samples_ND`` against ``reference_MD``."""
    if samples_ND.shape[1] != reference_MD.shape[1]:
        dims = f"{samples_ND.shape[1]} against {reference_MD.shape[1]}"
        raise OvertureError(f"precision and recall: {dims} features; both sides need the same network")
    samples, reference = (Points(part, _mean(reference_MD)) for part in (samples_ND, reference_MD))
    own, other = _blocks(len(samples)), _blocks(len(reference))
    pairs = len(own) * (len(own) + 1) // 2 + len(other) * (len(other) + 1) // 2 + len(own) * len(other)
    with tqdm(total=pairs, desc="precision and recall", unit="block", disable=not progress) as bar:
        radii_N, radii_M = (_radii(points, neighbours, bar) for points in (samples, reference))
        inside_N = torch.zeros(len(samples), dtype=torch.bool, device=samples_ND.device)
        inside_M = torch.zeros(len(reference), dtype=torch.bool, device=samples_ND.device)
        for rows in own:
            for columns in other:
                distances_BC = _squared_distances(samples.block(rows), reference.block(columns))
                inside_N[rows] |= (distances_BC <= radii_M[columns]).any(dim=1)
                inside_M[columns] |= (distances_BC <= radii_N[rows, None]).any(dim=0)
                bar.update()
    return PrecisionRecall(float(inside_N.double().mean()), float(inside_M.double().mean()), neighbours)


def neighbour_radii(features_ND: Tensor, neighbours: int = 3) -> Tensor:
    """Squared distance ``[N]`` of every member to its k-th nearest other member."""
    with tqdm(disable=True) as bar:
        return _radii(Points(features_ND, _mean(features_ND)), neighbours, bar)


@dataclass(frozen=True, eq=False)
class Points:
    """A set of features, seen from a centre: never copied as a whole."""

    features_ND: Tensor
    centre_D: Tensor

    def __len__(self) -> int:
        return len(self.features_ND)

    def block(self, rows: slice) -> Tensor:
        """Some members. Distances do not change when all points move, and lose less to rounding around zero."""
        return self.features_ND[rows].float() - self.centre_D


def _mean(features_ND: Tensor) -> Tensor:
    total_D = torch.stack([part.double().sum(dim=0) for part in features_ND.split(BLOCK)]).sum(dim=0)
    return (total_D / len(features_ND)).float()


def _radii(points: Points, neighbours: int, bar: tqdm[None]) -> Tensor:
    """Every pair of blocks is computed once, and serves the rows of the one and of the other."""
    if len(points) <= neighbours:
        raise OvertureError(f"precision and recall: {len(points)} images, needs more than {neighbours} on each side")
    nearest_Nk = points.centre_D.new_full((len(points), neighbours), torch.inf)
    blocks = _blocks(len(points))
    for number, rows in enumerate(blocks):
        own_BD = points.block(rows)
        for columns in blocks[number:]:
            distances_BC = _squared_distances(own_BD, points.block(columns))
            if rows == columns:
                distances_BC.fill_diagonal_(torch.inf)
            else:
                nearest_Nk[columns] = _smallest(nearest_Nk[columns], distances_BC.T)
            nearest_Nk[rows] = _smallest(nearest_Nk[rows], distances_BC)
            bar.update()
    return nearest_Nk[:, -1]


def _smallest(known_Bk: Tensor, new_BC: Tensor) -> Tensor:
    """The k smallest of both, ascending."""
    k = known_Bk.shape[1]
    found_Bk = new_BC.topk(min(k, new_BC.shape[1]), dim=1, largest=False).values
    return torch.cat([known_Bk, found_Bk], dim=1).sort(dim=1).values[:, :k]


def _squared_distances(a_BD: Tensor, b_CD: Tensor) -> Tensor:
    squares_B, squares_C = a_BD.square().sum(dim=1), b_CD.square().sum(dim=1)
    return torch.addmm(squares_B[:, None] + squares_C, a_BD, b_CD.T, alpha=-2).clamp_(min=0)


def _blocks(count: int) -> list[slice]:
    return list(_slices(count))


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))
