"""The Fréchet distance between two sets of features.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (arXiv 1706.08500): both sets are summarised by mean and
covariance, and ``d = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``. On the features of the original Inception
network this number is the FID; on any other network it is a Fréchet distance and no FID.

Shapes: D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from overture.errors import OvertureError
from overture.evaluation.gaussian import Gaussian

__all__ = ["FrechetResult", "frechet_distance"]


@dataclass(frozen=True)
class FrechetResult:
    """The distance, and the ranks of the covariances: below ``dims`` with fewer samples than that, for example."""

    distance: float
    rank_a: int
    rank_b: int
    dims: int


def frechet_distance(a: Gaussian, b: Gaussian, names: tuple[str, str] = ("the first", "the second")) -> FrechetResult:
    """The Fréchet (2-Wasserstein, squared) distance of two Gaussians, in float64; ``names`` are theirs in errors.

    ``tr (S_a S_b)^(1/2)`` is the sum of the square roots of the eigenvalues of ``A^T S_b A`` for any factor
    ``S_a = A A^T``; with ``S_b = B B^T`` these roots are the singular values of ``A^T B``. Factors come from the
    eigenvalues of each covariance, so rank-deficient ones need no special care, and taking singular values rather than
    roots of eigenvalues keeps the full precision near zero. Eigenvalues up to ``D * 2.2e-16 * largest`` count as
    zero, and so do negative ones down to ``-1e-5 * largest`` (the rounding of files stored in float32); a covariance
    with one below that is refused.
    """
    if a.dims != b.dims:
        raise OvertureError(f"Fréchet distance: {a.dims} against {b.dims} features; both sides need the same network")
    factor_a, factor_b = _factor(a.covariance, names[0]), _factor(b.covariance, names[1])
    mean_term = float((a.mean - b.mean).square().sum())
    root_trace = float(torch.linalg.svdvals(factor_a.T @ factor_b).sum())
    covariance_term = float(a.covariance.trace() + b.covariance.trace()) - 2 * root_trace
    # The term is >= 0 by definition; rounding can leave it a hair below.
    covariance_term = max(covariance_term, 0.0)
    return FrechetResult(mean_term + covariance_term, factor_a.shape[1], factor_b.shape[1], a.dims)


def _factor(covariance_DD: Tensor, name: str) -> Tensor:
    """``A`` ``[D, rank]`` with ``A A^T`` = the covariance."""
    asymmetry = float((covariance_DD - covariance_DD.T).abs().max())
    largest = float(covariance_DD.abs().max())
    if asymmetry > 1e-6 * largest:
        raise OvertureError(
            f"Fréchet distance: the covariance of {name} is not symmetric (off by {asymmetry:.3g}); check its source"
        )
    values_D, vectors_DD = torch.linalg.eigh((covariance_DD + covariance_DD.T) / 2)
    tolerance = len(values_D) * torch.finfo(torch.float64).eps * float(values_D.abs().max())
    if float(values_D[0]) < -1e-5 * largest:
        raise OvertureError(
            f"Fréchet distance: the covariance of {name} has the eigenvalue {float(values_D[0]):.3g}; check its source"
        )
    kept = values_D > tolerance
    return vectors_DD[:, kept] * values_D[kept].sqrt()
