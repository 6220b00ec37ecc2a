"""Precision and recall of generated images.

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (arXiv 1904.06991): a set of
features stands for the union of balls around its members that reach to their k-th nearest neighbour (k = 3). Precision
is the share of samples inside the reference's balls, recall the share of the reference inside the samples' balls.

Distances are computed in float64, block by block; ADM's code computes them in float16, so its numbers differ in the
third digit on hard sets.

Shapes: N M members of two sets, B members of a block, D features, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from overture.errors import OvertureError
from overture.processes import Processes
from overture.progress import heed_stop, progress_bar

__all__ = ["NEIGHBOURS", "neighbour_squares", "share_inside"]

BLOCK = 2**24  # distances at a time: 128 MB
NEIGHBOURS = 3
ROUNDING = 1e-12  # of squared distances, relative to squared lengths: members this near are copies


def share_inside(
    points_ND: Tensor,
    centres_MD: Tensor,
    neighbours: int = NEIGHBOURS,
    processes: Processes = Processes(),
    squares_M: Tensor | None = None,
) -> float:
    """The share of points inside a ball of the centres: precision of samples in a reference, recall the other way round.

    Every process must hold all features; they share the work. ``squares_M`` are :func:`neighbour_squares` of the
    centres, where these are known.
    """
    if points_ND.shape[1] != centres_MD.shape[1]:
        dims = f"{points_ND.shape[1]} against {centres_MD.shape[1]}"
        raise OvertureError(f"precision and recall: {dims} features; both sides need the same network")
    _check_finite(points_ND)
    radii_M = neighbour_squares(centres_MD, neighbours, processes) if squares_M is None else squares_M
    inside_N = torch.zeros(len(points_ND), dtype=torch.double)
    with processes.agree():
        for rows, squares_BM in _squares(points_ND, centres_MD, processes, "points"):
            inside_N[rows] = (squares_BM <= radii_M.to(squares_BM.device)).any(dim=1).double().cpu()
    return float(processes.sum(inside_N).mean())


def neighbour_squares(features_ND: Tensor, neighbours: int = NEIGHBOURS, processes: Processes = Processes()) -> Tensor:
    """Squared distance float64 ``[N]`` of every member to its k-th nearest other member."""
    if len(features_ND) <= neighbours or neighbours < 1:
        raise OvertureError(
            f"precision and recall: {len(features_ND)} images and {neighbours} neighbours; needs at least 1 neighbour and "
            "more images than that on each side"
        )
    _check_finite(features_ND)
    radii_N = torch.zeros(len(features_ND), dtype=torch.double)
    with processes.agree():
        for rows, squares_BN in _squares(features_ND, features_ND, processes, "neighbours"):
            own_B = torch.arange(rows.start, rows.stop, device=squares_BN.device)
            squares_BN.scatter_(1, own_B[:, None], torch.inf)  # nobody is their own neighbour
            radii_N[rows] = squares_BN.topk(neighbours, dim=1, largest=False).values[:, -1].cpu()
    return processes.sum(radii_N)


def _check_finite(features_ND: Tensor) -> None:
    if not features_ND.isfinite().all():
        raise OvertureError("precision and recall: some features are NaN or infinite")


def _squares(points_ND: Tensor, others_MD: Tensor, processes: Processes, what: str) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances ``[B, M]`` of this process's share of the points, block by block, with their places."""
    device = processes.device if processes.device.type != "mps" else torch.device("cpu")  # MPS knows no float64
    others_MD = others_MD.to(device, torch.double)
    lengths_M = others_MD.square().sum(dim=1)
    share = processes.share_out(len(points_ND))
    step = max(1, BLOCK // len(others_MD))
    with progress_bar(what, len(share), shown=processes.is_main) as bar:
        for start in range(share.start, share.stop, step):
            heed_stop("the measurements")
            rows = slice(start, min(start + step, share.stop))
            points_BD = points_ND[rows].to(device, torch.double)
            sums_BM = points_BD.square().sum(dim=1, keepdim=True) + lengths_M
            squares_BM = torch.addmm(sums_BM, points_BD, others_MD.T, alpha=-2)
            yield rows, squares_BM.masked_fill_(squares_BM < ROUNDING * sums_BM, 0.0)
            bar.update(len(points_BD))
