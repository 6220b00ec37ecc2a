"""One process or many: the few things a training loop asks of its world.

Launched by ``torchrun``, a process joins a group (nccl on accelerators, gloo on CPUs); launched by hand it is alone.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from overture.errors import UsageError

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def join(cls, device: str = "auto") -> World:
        """Join the group that ``torchrun`` describes in the environment, or stand alone; choose the device."""
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.empty(0, device=f"cuda:{local_rank}" if device == "cuda" else device).device
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device '{device}' cannot be used ({str(error).splitlines()[0]})") from error
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not dist.is_initialized():
            # Long: the others wait while the main process measures.
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(days=1))
        if place.type == "cuda":
            torch.cuda.set_device(place)
        return cls(int(os.environ.get("RANK", "0")), size, place)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for everyone."""
        if self.size > 1:
            dist.barrier()

    def share(self, module: nn.Module) -> None:
        """Give everyone the main process's parameters and buffers."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes, in one flat exchange."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        return bool(self.sum(torch.tensor([int(flag)], device=self.device)).item())

    def seed(self, seed: int, stage: str, step: int) -> None:
        """Make the randomness of a step (dropout, label drop) a function of (seed, stage, step, rank).

        Nothing about random states then needs to be saved for an exact resume.
        """
        mixed = hash((seed, zlib.crc32(stage.encode()), step, self.rank))
        torch.manual_seed(mixed % 2**63)
