"""What evaluation asks of other processes: a share of the work each, and a sum over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["alone", "my_share", "sum_over_processes", "world_size"]

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


def world_size() -> int:
    """How many processes measure together."""
    return _place()[1]


def my_share(count: int) -> range:
    """The run of ``range(count)`` that is this process's; the processes' runs follow each other and cover it."""
    rank, size = _place()
    return range(count * rank // size, count * (rank + 1) // size)


def _place() -> tuple[int, int]:
    if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
