"""The one thing evaluation asks of other processes: a sum over all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["sum_over_processes"]


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The elementwise sum over the processes of ``torch.distributed``, on the CPU; alone, the tensor itself.

    Every process must call it, in the same order.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    # NCCL reduces on the GPU only. The copy keeps the caller's tensor as it was.
    total = tensor.to(torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu"), copy=True)
    dist.all_reduce(total)
    return total.cpu()
