"""Precision and recall of generated images.

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (arXiv 1904.06991): a set of
features stands for the union of balls around its members that reach to their k-th nearest neighbour (k = 3). Precision
is the share of samples inside the reference's balls, recall the share of the reference inside the samples' balls.

Results are those of float32 distances between all pairs. Most pairs are decided on features rounded to whole numbers,
whose distances are known within a margin (:mod:`overture.evaluation.rounded`); only where the margin leaves a doubt are
the features themselves compared. Blocks of pairs are shared among the processes of ``torch.distributed``.

Shapes: N M members of the two sets, B C members of a block, P pairs, D features, k neighbours.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from overture.errors import OvertureError
from overture.evaluation.processes import in_turns, stack_over_processes, sum_over_processes
from overture.evaluation.rounded import FLOAT_ERROR, Columns, Grid, Rounded, exact_squares, near_pairs

__all__ = ["PrecisionRecall", "neighbour_radii", "precision_recall"]

BLOCK = 2048  # a block of distances is 16 MB, which stays in cache


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in 0..1."""

    precision: float
    recall: float
    neighbours: int


def precision_recall(
    samples_ND: Tensor, reference_MD: Tensor, neighbours: int = 3, *, progress: bool = False
) -> PrecisionRecall:
    """Precision and recall of ``samples_ND`` against ``reference_MD``; every process must hold all features."""
    if samples_ND.shape[1] != reference_MD.shape[1]:
        dims = f"{samples_ND.shape[1]} against {reference_MD.shape[1]}"
        raise OvertureError(f"precision and recall: {dims} features; both sides need the same network")
    _check(samples_ND, neighbours)
    _check(reference_MD, neighbours)
    with tqdm(desc="precision and recall", unit="block", disable=not progress) as bar:
        own, other = len(_blocks(len(samples_ND))), len(_blocks(len(reference_MD)))
        bar.reset(total=2 * own + 3 * other)
        grid = Grid(samples_ND, reference_MD)
        samples, reference = grid.round(samples_ND, seed=1), grid.round(reference_MD, seed=2)
        balls = _Balls(samples, _radii(samples, neighbours, bar), reference, _radii(reference, neighbours, bar))
        in_turns(balls.compare, _blocks(len(reference_MD)), bar)
    shares = [float((sum_over_processes(inside.float()) > 0).double().mean()) for inside in balls.inside]
    return PrecisionRecall(shares[0], shares[1], neighbours)


def neighbour_radii(features_ND: Tensor, neighbours: int = 3) -> Tensor:
    """Squared distance float32 ``[N]`` of every member to its k-th nearest other member."""
    _check(features_ND, neighbours)
    with tqdm(disable=True) as bar:
        return _radii(Grid(features_ND).round(features_ND), neighbours, bar)


def _check(features_ND: Tensor, neighbours: int) -> None:
    if neighbours < 1:
        raise OvertureError(f"precision and recall: {neighbours} neighbours, needs at least 1")
    if len(features_ND) <= neighbours:
        count = len(features_ND)
        raise OvertureError(f"precision and recall: {count} images, needs more than {neighbours} on each side")
    if not all(bool(torch.isfinite(part).all()) for part in features_ND.split(BLOCK)):
        raise OvertureError("precision and recall: some features are NaN or infinite; check the images")


def _radii(points: Rounded, neighbours: int, bar: tqdm[None]) -> Tensor:
    """Every pair of blocks is looked at once, and serves the rows of the one and of the other."""
    own = Grid(points.features_ND)
    if own.step < points.grid.step / 2:  # the grid of both sets is too coarse for this one
        points = own.round(points.features_ND)
    search, blocks = _Neighbours(points, neighbours), _blocks(len(points))
    # Blocks with themselves come first: what they find keeps the search in all later blocks short.
    in_turns(search.begin, blocks, bar)
    search.bounds_N = _merged(search.nearest_Nk)
    in_turns(search.look, blocks[::-1], bar)  # the longest first
    return _merged(search.nearest_Nk)


def _merged(nearest_Nk: Tensor) -> Tensor:
    """The k-th smallest of what all processes have found for every member."""
    over_processes_NK = torch.cat(stack_over_processes(nearest_Nk).unbind(), dim=1)
    return over_processes_NK.sort(dim=1).values[:, nearest_Nk.shape[1] - 1]


class _Neighbours:
    """``nearest_Nk``: squared distances of the k nearest other members found so far, ascending.

    ``bounds_N``: squared distances that the k-th nearest cannot exceed, by what other processes know as well.
    """

    def __init__(self, points: Rounded, neighbours: int) -> None:
        self.points, self.grid = points, points.grid
        self.nearest_Nk = points.margins_N.new_full((len(points), neighbours), torch.inf)
        self.bounds_N = self.nearest_Nk[:, -1]
        self.writing = threading.Lock()

    def begin(self, block: slice) -> None:
        """Find the neighbours of a block's members among themselves."""
        squares_BB = self.grid.squares(self.points, block, self.points.columns(block))
        squares_BB.fill_diagonal_(torch.iinfo(squares_BB.dtype).max)  # nobody is their own neighbour
        # At first the likeliest, so that there is a bound that excludes most of the others.
        size = len(squares_BB)
        likeliest_Bk = squares_BB.topk(min(self.nearest_Nk.shape[1], size - 1), dim=1, largest=False).indices
        rows_P = torch.arange(size, device=squares_BB.device).repeat_interleave(likeliest_Bk.shape[1])
        self._compare(rows_P + block.start, likeliest_Bk.flatten() + block.start)
        squares_BB.scatter_(1, likeliest_Bk, torch.iinfo(squares_BB.dtype).max)
        rows_P, others_P = self._near(squares_BB, block, block)
        self._look(squares_BB[rows_P, others_P], rows_P + block.start, others_P + block.start)

    def look(self, columns: slice) -> None:
        """Find the neighbours of a block's members in all blocks before it, and the other way round."""
        others = self.points.columns(columns)
        for rows in _blocks(columns.start):
            squares_BC = self.grid.squares(self.points, rows, others)
            rows_P, columns_P = self._near(squares_BC, rows, columns)
            self._look(squares_BC[rows_P, columns_P], rows_P + rows.start, columns_P + columns.start)
            columns_P, rows_P = self._near(squares_BC.T, columns, rows)
            self._look(squares_BC[rows_P, columns_P], columns_P + columns.start, rows_P + rows.start)

    def _near(self, squares_BC: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """The pairs of a block of rounded distances that may matter to ``rows``."""
        margins_N = self.points.margins_N
        return near_pairs(squares_BC, self._reach(rows), margins_N[rows], margins_N[columns], self.grid.slack)

    def _look(self, squares_P: Tensor, rows_P: Tensor, others_P: Tensor) -> None:
        """Compare pairs that may be near, the likeliest first."""
        least_P = squares_P.float().sub_(self.grid.slack).clamp_(min=0).sqrt_()
        least_P = least_P.sub_(self.points.margins_N[rows_P] + self.points.margins_N[others_P]).clamp_(min=0)
        order_P = _by_row(rows_P, least_P)
        rows_P, others_P, least_P = rows_P[order_P], others_P[order_P], least_P[order_P]
        likely_P = _ranks(rows_P) < self.nearest_Nk.shape[1]
        for chosen_P in (likely_P, ~likely_P):
            kept_P = chosen_P & (least_P < self._reach(rows_P))
            self._compare(rows_P[kept_P], others_P[kept_P])

    def _reach(self, members: slice | Tensor) -> Tensor:
        """How near another member has to be to matter, in steps of the grid."""
        squares = torch.minimum(self.nearest_Nk[members, -1], self.bounds_N[members])
        return squares.sqrt_().mul_((1 + FLOAT_ERROR) / self.grid.step)

    def _compare(self, rows_P: Tensor, others_P: Tensor) -> None:
        """Compute distances and keep the k smallest of every row."""
        if not len(rows_P):
            return
        features_ND, k = self.points.features_ND, self.nearest_Nk.shape[1]
        members_F = rows_P.unique()
        squares_P = exact_squares(features_ND, rows_P, features_ND, others_P)
        rows_P = torch.cat([rows_P, members_F.repeat_interleave(k)])
        with self.writing:
            squares_P = torch.cat([squares_P, self.nearest_Nk[members_F].flatten()])
            order_P = _by_row(rows_P, squares_P)
            kept_P = order_P[_ranks(rows_P[order_P]) < k]
            self.nearest_Nk[members_F] = squares_P[kept_P].view(-1, k)


def _by_row(rows_P: Tensor, values_P: Tensor) -> Tensor:
    """The order by row, and by value within a row."""
    order_P = values_P.argsort()
    return order_P[rows_P[order_P].argsort(stable=True)]


def _ranks(rows_P: Tensor) -> Tensor:
    """The place of every pair within its row, counted from 0; ``rows_P`` ascend."""
    places_P = torch.arange(len(rows_P), device=rows_P.device)
    is_first_P = torch.ones_like(rows_P, dtype=torch.bool)
    is_first_P[1:] = rows_P[1:] != rows_P[:-1]
    return places_P - (places_P * is_first_P).cummax(0).values if len(rows_P) else places_P


class _Balls:
    """Which members of either set lie inside a ball of the other: ``inside``, a mask per set."""

    def __init__(self, samples: Rounded, radii_N: Tensor, reference: Rounded, radii_M: Tensor) -> None:
        self.grid = samples.grid
        self.sets, self.radii = (samples, reference), (radii_N, radii_M)
        self.inside = tuple(torch.zeros(len(radii), dtype=torch.bool, device=radii.device) for radii in self.radii)

    def compare(self, columns: slice) -> None:
        """A block of the reference against all samples, but for pairs whose members are both known to be inside."""
        columns_C = torch.arange(columns.start, columns.stop, device=self.radii[0].device)
        whole_block = self.sets[1].columns(columns)
        for rows in _blocks(len(self.sets[0])):
            rows_B = torch.arange(rows.start, rows.stop, device=columns_C.device)
            open_B, open_C = (~inside[who] for inside, who in zip(self.inside, (rows_B, columns_C), strict=True))
            if open_B.any():
                self._compare(rows_B[open_B], columns_C, whole_block, (0, 1))
            if open_C.any() and not open_B.all():
                self._compare(rows_B[~open_B], columns_C[open_C], self.sets[1].columns(columns_C[open_C]), (1,))

    def _compare(self, rows_B: Tensor, columns_C: Tensor, columns: Columns, sides: tuple[int, ...]) -> None:
        squares_BC = self.grid.squares(self.sets[0], rows_B, columns)
        if 0 in sides:
            columns_P, rows_P = self._near(1, squares_BC.T, columns_C, rows_B)
            self._enter(0, squares_BC[rows_P, columns_P], rows_B[rows_P], columns_C[columns_P])
        rows_P, columns_P = self._near(0, squares_BC, rows_B, columns_C)
        self._enter(1, squares_BC[rows_P, columns_P], columns_C[columns_P], rows_B[rows_P])

    def _near(self, side: int, squares_BC: Tensor, balls: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs of a block of rounded distances in which the other may lie inside a side's ball."""
        margins_B, margins_C = self.sets[side].margins_N[balls], self.sets[1 - side].margins_N[others]
        reach_B = self._reach(side, balls) * (1 + FLOAT_ERROR)
        return near_pairs(squares_BC, reach_B, margins_B, margins_C, self.grid.slack)

    def _reach(self, side: int, balls: Tensor) -> Tensor:
        return self.radii[side][balls].sqrt_() / self.grid.step

    def _enter(self, side: int, squares_P: Tensor, rows_P: Tensor, balls_P: Tensor) -> None:
        """Find which members of one set lie inside balls of the other set, from pairs that are near."""
        inside_N, slack = self.inside[side], self.grid.slack
        margins_P = self.sets[side].margins_N[rows_P] + self.sets[1 - side].margins_N[balls_P]
        reach_P = self._reach(1 - side, balls_P)
        # Below 0: inside in any case.
        beyond_P = squares_P.float().add_(slack).clamp_(min=0).sqrt_().add_(margins_P).sub_(reach_P * (1 - FLOAT_ERROR))
        inside_N[rows_P[beyond_P <= 0]] = True
        least_P = squares_P.float().sub_(slack).clamp_(min=0).sqrt_().sub_(margins_P)
        doubtful_P = (least_P <= reach_P * (1 + FLOAT_ERROR)) & ~inside_N[rows_P]
        rows_P, balls_P, beyond_P = rows_P[doubtful_P], balls_P[doubtful_P], beyond_P[doubtful_P]
        # Ball by ball, from the likeliest: one is enough.
        order_P = _by_row(rows_P, beyond_P)
        rows_P, balls_P = rows_P[order_P], balls_P[order_P]
        is_first_P = _ranks(rows_P) == 0
        for chosen_P in (is_first_P, ~is_first_P):
            self._check(side, rows_P[chosen_P], balls_P[chosen_P])

    def _check(self, side: int, rows_P: Tensor, columns_P: Tensor) -> None:
        """Compute the distances of pairs whose first member is not yet known to be inside."""
        inside_N = self.inside[side]
        open_P = ~inside_N[rows_P]
        rows_P, columns_P = rows_P[open_P], columns_P[open_P]
        squares_P = exact_squares(self.sets[side].features_ND, rows_P, self.sets[1 - side].features_ND, columns_P)
        inside_N[rows_P[squares_P <= self.radii[1 - side][columns_P]]] = True


def _blocks(count: int) -> list[slice]:
    """All members up to a count, block by block."""
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
