"""Batch norm over the batch of all processes, so that one process and many give the same network.

PyTorch's ``SyncBatchNorm`` runs on accelerators only and cannot be differentiated twice, which the R1 penalty needs;
this one is made of differentiable sums and works on any backend.

Shapes: B batch of this process, C channels, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from overture.processes import Processes

__all__ = ["GlobalBatchNorm2d"]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose batch statistics, in training, are those of the batch over all processes.

    Processes may hold different numbers of samples. Parameters and buffers are those of ``nn.BatchNorm2d``.
    """

    def __init__(self, channels: int, processes: Processes = Processes()) -> None:
        super().__init__(channels)
        self.processes = processes

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise ``[B, C, H, W]``; statistics in float32, the result in the type of the input."""
        if not self.training or self.processes.size == 1:
            return super().forward(x_BCHW)
        x = x_BCHW.float()
        count = x.new_tensor([x.numel() // self.num_features])
        sums = self.processes.sum_with_gradient(torch.cat((x.sum(dim=(0, 2, 3)), count)))
        count, mean_C = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        # The mean is taken away before squaring: E[x^2] - E[x]^2 would lose digits where the mean is large.
        centred = x - mean_C[:, None, None]
        variance_C = self.processes.sum_with_gradient(centred.square().sum(dim=(0, 2, 3))) / count
        self._update_running(mean_C.detach(), variance_C.detach() * count / (count - 1))
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        return (centred * scale_C[:, None, None] + self.bias[:, None, None]).to(x_BCHW.dtype)

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, unbiased_variance_C: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(unbiased_variance_C, momentum)
