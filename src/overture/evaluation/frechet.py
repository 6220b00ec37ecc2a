"""The Fréchet distance between two sets of features, over statistics that stream.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (arXiv 1706.08500): both sets are summarised by mean and
covariance, and ``d = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``. On the features of the original Inception
network this number is the FID; on any other network it is a Fréchet distance and no FID.

Features are not kept: mean and covariance are accumulated in float64 batch by batch (Chan, Golub and LeVeque 1979),
and the result depends neither on the batch size nor on the number of processes.

Shapes: B batch, D features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overture.data.npz import array_entries, read_array
from overture.errors import OvertureError, UsageError
from overture.evaluation.processes import sum_over_processes

__all__ = ["FrechetResult", "Gaussian", "GaussianStatistics", "frechet_distance", "read_statistics"]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean ``[D]`` and covariance ``[D, D]`` (N - 1) of a set of features, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None
    """Samples behind the numbers; None when a file of plain ``mu`` and ``sigma`` does not tell."""

    def __post_init__(self) -> None:
        dims = self.mean.numel()
        if self.mean.shape != (dims,) or self.covariance.shape != (dims, dims) or dims == 0:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            raise OvertureError(f"statistics: mean and covariance have shapes {shapes}, need (D,) and (D, D)")
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise OvertureError("statistics: mean or covariance holds NaN or infinity; compute them again")
        object.__setattr__(self, "mean", self.mean.detach().to("cpu", torch.float64))
        object.__setattr__(self, "covariance", self.covariance.detach().to("cpu", torch.float64))

    @property
    def dims(self) -> int:
        """D, the number of features."""
        return len(self.mean)

    def save(self, path: Path | str, arrays: Mapping[str, NDArray[Any]] | None = None, **about: str) -> None:
        """Write ``mu``, ``sigma``, ``count`` and words ``about`` them as ``.npz``; others read its mu and sigma.

        ``arrays`` are further ones to put beside them.
        """
        content: dict[str, Any] = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy(), **(arrays or {})}
        if self.count is not None:
            content["count"] = np.int64(self.count)
        content |= {key: np.str_(text) for key, text in about.items()}
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # runs side by side share this place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **content)
            partial.replace(path)
        except OSError as error:
            raise OvertureError(f"{path}: cannot write the statistics ({error.strerror})") from error

    @classmethod
    def load(cls, path: Path | str) -> tuple[Gaussian, dict[str, str]]:
        """Read an ``.npz`` with ``mu`` and ``sigma``, ours or another's: the Gaussian, and the words about it."""
        gaussian, _, about = read_statistics(Path(path))
        return gaussian, about


def read_statistics(path: Path) -> tuple[Gaussian, Gaussian | None, dict[str, str]]:
    """``mu`` and ``sigma``, the spatial ``mu_s`` and ``sigma_s`` if there are any, and the words about them.

    Other arrays of the file, such as gigabytes of images, are not read.
    """
    entries = array_entries(path)
    if "mu" not in entries or "sigma" not in entries:
        raise OvertureError(f"{path}: holds {', '.join(entries) or 'nothing'}, needs mu and sigma")
    about = {
        key: str(read_array(entry)) for key, entry in entries.items() if entry.dtype.kind == "U" and entry.shape == ()
    }
    for key in ("mu", "sigma", "mu_s", "sigma_s"):
        if key in entries and entries[key].dtype.kind not in "iuf":
            raise OvertureError(f"{path}: {key} is {entries[key].dtype}, needs real numbers")
    count = None
    if "count" in entries:
        if entries["count"].shape != () or entries["count"].dtype.kind not in "iu":
            raise OvertureError(f"{path}: count is no whole number")
        count = int(read_array(entries["count"]))
        if count < 2:
            raise OvertureError(f"{path}: count is {count}, statistics need at least 2 images")

    def gaussian(mean: str, covariance: str) -> Gaussian:
        try:
            mu, sigma = (torch.from_numpy(read_array(entries[key]).astype(np.float64)) for key in (mean, covariance))
            return Gaussian(mu, sigma, count)
        except OvertureError as error:
            raise OvertureError(f"{path}: {error}") from error
        except (TypeError, ValueError) as error:
            raise OvertureError(f"{path}: {mean} or {covariance} holds no numbers ({error})") from error

    spatial = gaussian("mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= entries.keys() else None
    return gaussian("mu", "sigma"), spatial, about


class GaussianStatistics:
    """Mean and covariance of features that come in batches.

    Kept are the count, the mean and the scatter ``sum (x - mean)(x - mean)^T``; two such triples merge exactly, so any
    split into processes gives the same numbers up to rounding (about 1e-14 relative). Rows are gathered to blocks of a
    fixed size before they are merged, so that the split into batches changes no bit, and small batches cost no more.
    """

    BLOCK = 2048
    STRIP = 256

    def __init__(self, dims: int) -> None:
        if dims < 1:
            raise UsageError(f"statistics: dims is {dims}, needs >= 1")
        self.dims = dims
        self.count = 0
        self.mean = torch.zeros(dims, dtype=torch.float64)
        with torch.inference_mode(False):  # they are written to wherever they are updated
            self.scatter = torch.zeros(dims, dims, dtype=torch.float64)
            self._waiting_BD = torch.empty(self.BLOCK, dims, dtype=torch.float64)
        self._waiting = 0

    def update(self, features_BD: Tensor) -> None:
        """Add a batch of features ``[B, D]``, any floating type, any device."""
        if features_BD.dim() != 2 or features_BD.shape[1] != self.dims:
            raise OvertureError(f"statistics: features have shape {tuple(features_BD.shape)}, need [B, {self.dims}]")
        x_BD = features_BD.detach().cpu()
        # The sum is one quick pass; only where it is not finite is there something to look for.
        if not torch.isfinite(x_BD.sum()) and not torch.isfinite(x_BD).all():
            rows = int((~torch.isfinite(x_BD)).any(dim=1).sum())
            raise OvertureError(
                f"statistics: {rows} of {len(x_BD)} feature rows hold NaN or infinity; check the images"
            )
        while len(x_BD):
            room = self.BLOCK - self._waiting
            part_BD, x_BD = x_BD[:room], x_BD[room:]
            self._waiting_BD[self._waiting : self._waiting + len(part_BD)] = part_BD
            self._waiting += len(part_BD)
            if self._waiting == self.BLOCK:
                self._settle()

    def _settle(self) -> None:
        """Merge the rows that wait for their block to be full."""
        if self._waiting:
            x_BD = self._waiting_BD[: self._waiting]
            self._waiting = 0
            mean_D = x_BD.mean(dim=0)
            self._merge(len(x_BD), mean_D, self._scatter(x_BD.sub_(mean_D)))

    def _scatter(self, centred_BD: Tensor) -> Tensor:
        """``x^T x``, strip by strip: what lies below the diagonal is copied from above it, not computed again."""
        scatter_DD = torch.empty_like(self.scatter)
        for start in range(0, self.dims, self.STRIP):
            stop = min(start + self.STRIP, self.dims)
            torch.mm(centred_BD[:, start:stop].T, centred_BD[:, start:], out=scatter_DD[start:stop, start:])
            scatter_DD[stop:, start:stop] = scatter_DD[start:stop, stop:].T
        return scatter_DD

    def merge(self, other: GaussianStatistics) -> None:
        """Add what ``other`` has seen."""
        if other.dims != self.dims:
            raise OvertureError(f"statistics: cannot merge {other.dims} features into {self.dims}")
        self._settle()
        other._settle()
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def all_reduce(self) -> None:
        """Merge over all processes of ``torch.distributed``, so that each holds the whole; alone, nothing happens."""
        self._settle()
        count = int(sum_over_processes(torch.tensor(self.count)))
        if count == 0:
            return
        mean_D = sum_over_processes(self.mean * self.count) / count
        shift_D = self.mean - mean_D
        self.scatter = sum_over_processes(self.scatter + self.count * torch.outer(shift_D, shift_D))
        self.mean, self.count = mean_D, count

    def result(self) -> Gaussian:
        """The mean and the covariance with N - 1."""
        self._settle()
        if self.count < 2:
            raise OvertureError(f"statistics: {self.count} samples give no covariance, need at least 2")
        return Gaussian(self.mean.clone(), self.scatter / (self.count - 1), self.count)

    def _merge(self, count: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        total = self.count + count
        shift_D = mean_D - self.mean
        self.scatter.add_(scatter_DD).addr_(shift_D, shift_D, alpha=self.count * count / total)
        self.mean = self.mean + shift_D * (count / total)
        self.count = total


@dataclass(frozen=True)
class FrechetResult:
    """The distance, its two terms, and whether the covariances had full rank."""

    distance: float
    mean_term: float
    """``|mu_a - mu_b|^2``."""
    covariance_term: float
    """``tr(S_a + S_b - 2 (S_a S_b)^(1/2))``."""
    rank_a: int
    rank_b: int
    dims: int

    @property
    def singular(self) -> bool:
        """Whether a covariance lacks full rank: fewer samples than dims, or features that always agree."""
        return min(self.rank_a, self.rank_b) < self.dims


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
    return FrechetResult(
        distance=mean_term + covariance_term,
        mean_term=mean_term,
        covariance_term=covariance_term,
        rank_a=factor_a.shape[1],
        rank_b=factor_b.shape[1],
        dims=a.dims,
    )


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
