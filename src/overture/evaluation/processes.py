"""What evaluation asks of other processes: a share of the work each, and a sum over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

__all__ = ["alone", "in_turns", "my_share", "on_threads", "stack_over_processes", "sum_over_processes", "world_size"]

P = TypeVar("P")
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


def stack_over_processes(tensor: Tensor) -> Tensor:
    """The tensors of all processes ``[processes, ...]``, on every one of them, in the order of their ranks."""
    rank, size = _place()
    if size == 1:
        return tensor[None]
    parts = torch.zeros(size, *tensor.shape, dtype=tensor.dtype)
    parts[rank] = tensor.cpu()
    return sum_over_processes(parts).to(tensor.device)


def world_size() -> int:
    """How many processes measure together."""
    return _place()[1]


def my_share(count: int) -> range:
    """The run of ``range(count)`` that is this process's; the processes' runs follow each other and cover it."""
    rank, size = _place()
    return range(count * rank // size, count * (rank + 1) // size)


def in_turns(work: Callable[[P], None], pieces: Sequence[P], bar: tqdm[None] | None = None) -> None:
    """``work`` on every piece: processes take turns, and so do the threads of each; ``bar`` counts pieces."""
    rank, size = _place()
    on_threads(work, pieces[rank::size], lambda: bar.update(size) if bar is not None else None)


def on_threads(work: Callable[[P], None], pieces: Sequence[P], done: Callable[[], object] = lambda: None) -> None:
    """``work`` on every piece, each on one of this process's threads alone; ``done`` is called after each.

    Small products are faster on one thread each than shared by several. What ``work`` writes, it has to guard itself.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for piece in pieces:
            work(piece)
            done()
        return
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def as_here(piece: P) -> None:  # these modes belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            work(piece)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(as_here, pieces):
                done()
    finally:
        torch.set_num_threads(threads)


def _place() -> tuple[int, int]:
    if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
