"""The one thing evaluation asks of other processes: a sum over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["alone", "sum_over_processes"]

_ALONE = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process measures by itself, whatever the others do: sums are its own."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The elementwise sum over the processes of ``torch.distributed``, on the CPU; alone, the tensor itself.

    Every process must call it, in the same order, unless it is :func:`alone`.
    """
    if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return tensor
    # NCCL reduces on the GPU only. The copy keeps the caller's tensor as it was.
    total = tensor.to(torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu"), copy=True)
    dist.all_reduce(total)
    return total.cpu()
