"""``pace.jsonl``: how fast a stage trains and in how much memory, line by line beside ``metrics.jsonl``.

Apart from it, since it differs from machine to machine and from day to day, and a run that goes on has to write the
same ``metrics.jsonl`` as one that was never interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from overture.training.metric_log import MetricLog

__all__ = ["Pace"]

KIB_OF_GIB = 2**20


class Pace:
    """Adds a line whenever numbers are logged anyway: nothing here waits for an accelerator.

    ``time`` is the clock's, in seconds since 1970; ``steps_per_second`` is since the line before, measurements and
    checkpoints included; ``memory_gib`` and ``device_memory_gib`` are the most that the process has held so far.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        start_step: int,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.log, self.device, self.clock = MetricLog(path, stage, start_step), device, clock
        self.step, self.begin = start_step, clock()

    def write(self, step: int) -> None:
        """One line."""
        now = self.clock()
        rate = (step - self.step) / max(now - self.begin, 1e-9)
        self.step, self.begin = step, now
        memory = {"memory_gib": peak_memory(), "device_memory_gib": peak_device_memory(self.device)}
        known = {name: size for name, size in memory.items() if size is not None}
        self.log.write(step, {"time": time.time(), "steps_per_second": rate, **known})


def peak_memory() -> float | None:
    """The most memory that this process has held, in GiB; None on systems that do not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / KIB_OF_GIB / (1024 if sys.platform == "darwin" else 1)  # macOS counts bytes


def peak_device_memory(device: torch.device) -> float | None:
    """The most memory that torch has held on an accelerator, in GiB; None where it does not count it."""
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None
