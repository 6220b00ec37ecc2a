"""Batch norm over the batch of all processes, so that one process and many give the same network.

PyTorch's ``SyncBatchNorm`` runs on accelerators only and cannot be differentiated twice, which the R1 penalty needs;
this one works on any backend, and its backward pass is differentiable itself. Each way takes one exchange.

Shapes: B batch of this process, C channels, H W height and width, P processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.processes import Processes

__all__ = ["GlobalBatchNorm2d"]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose batch statistics, in training, are those of the batch over all processes.

    Processes may hold different numbers of samples, at least one each. Parameters and buffers are those of ``nn.BatchNorm2d``.
    """

    def __init__(self, channels: int, processes: Processes = Processes()) -> None:
        super().__init__(channels)
        self.processes = processes

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise ``[B, C, H, W]``; statistics in float32, the result in the type of the input."""
        if not self.training or self.processes.size == 1:
            return super().forward(x_BCHW)
        count, mean_C, variance_C = _statistics(x_BCHW.detach().float(), self.processes)
        self._update_running(mean_C, variance_C * count / (count - 1))
        normalised, _ = _Normalised.apply(x_BCHW.float(), mean_C, variance_C, count, self.eps, self.processes)  # type: ignore[misc]
        return torch.addcmul(self.bias[:, None, None], normalised, self.weight[:, None, None]).to(x_BCHW.dtype)

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, unbiased_variance_C: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(unbiased_variance_C, momentum)


def _statistics(x_BCHW: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """How many values a channel has over all processes, and each channel's mean and variance ``[C]``.

    Each process's variance is about its own mean, and moved to the common one: no digits are lost where means are large.
    """
    variance_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3), correction=0)
    count = mean_C.new_full((1,), x_BCHW.numel() // mean_C.numel())
    parts = processes.gather(torch.cat((count, mean_C, variance_C))[None])
    share_P1 = parts[:, :1] / parts[:, :1].sum()
    means_PC, variances_PC = parts[:, 1:].chunk(2, dim=1)
    mean_C = (share_P1 * means_PC).sum(dim=0)
    return parts[:, 0].sum(), mean_C, (share_P1 * (variances_PC + (means_PC - mean_C).square())).sum(dim=0)


class _Normalised(torch.autograd.Function):
    """``(x - mean) * scale`` and ``scale = 1 / sqrt(variance + eps)``, where both statistics hang on all processes' x.

    The scale is a result only because the backward pass uses it: so that pass is made of differentiable operations and
    of this function's own results, and can be differentiated any number of times.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean_C: Tensor, variance_C: Tensor, count: Tensor, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor]:
        normalised, scale_C = F.batch_norm(x, mean_C, variance_C, eps=eps), torch.rsqrt(variance_C + eps)
        ctx.save_for_backward(normalised, scale_C, count)
        ctx.processes = processes
        ctx.set_materialize_grads(False)
        return normalised, scale_C

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, scale_gradient_C: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normalised, scale_C, count = ctx.saved_tensors
        gradient = torch.zeros_like(normalised) if gradient is None else gradient
        by_channel = [gradient.sum(dim=(0, 2, 3)), (gradient * normalised).sum(dim=(0, 2, 3))]
        if scale_gradient_C is not None:  # in the second derivative
            by_channel[1] = by_channel[1] + scale_gradient_C * scale_C
        sums = ctx.processes.sum_with_gradient(torch.cat(by_channel)) / count
        mean_C, slope_C = sums.chunk(2)
        centred = gradient - mean_C[:, None, None] - normalised * slope_C[:, None, None]
        return centred * scale_C[:, None, None], None, None, None, None, None
