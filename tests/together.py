"""Work that several processes do together, for tests that compare it with what one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from overture.processes import Processes


def together(work: Callable[..., None], size: int, folder: Path, *arguments: Any) -> None:
    """``work(processes, *arguments)`` in each of ``size`` processes of one group; ``folder`` is where they meet, once.

    ``work`` is a function of a module: the processes are new ones, and look for it there.
    """
    torch.multiprocessing.spawn(_one, (size, folder, work, arguments), nprocs=size)


def _one(rank: int, size: int, folder: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    processes = Processes(rank, size)
    work(processes, *arguments)
    processes.leave()
