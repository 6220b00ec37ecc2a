"""Mean and covariance of features, over statistics that stream.

Features are not kept: mean and covariance are accumulated in float64 batch by batch (Chan, Golub and LeVeque 1979),
and the result depends neither on the batch size nor on the number of processes.

Shapes: B batch, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from overture.errors import OvertureError, UsageError
from overture.processes import Processes

__all__ = ["Gaussian", "GaussianStatistics"]


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

    def all_reduce(self, processes: Processes) -> None:
        """Merge over all processes, so that each holds the whole; alone, nothing happens."""
        self._settle()
        if processes.size == 1:
            return
        count = int(processes.sum(torch.tensor(self.count)))
        if count == 0:
            return
        mean_D = processes.sum(self.mean * self.count) / count
        shift_D = self.mean - mean_D
        self.scatter = processes.sum(self.scatter + self.count * torch.outer(shift_D, shift_D))
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
