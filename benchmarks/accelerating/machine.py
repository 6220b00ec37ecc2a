"""A device, and how time and memory are measured on it."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from overture.training.step import Precision, chosen_precision

__all__ = ["Ceilings", "Machine"]


class Ceilings(NamedTuple):
    """What the device reaches where nothing else is to do."""

    products: dict[str, float]
    """FLOP/s of one large matrix product, by precision; a multiply and an add are two."""
    bandwidth: float
    """Bytes/s read and written by the copy of a large tensor."""


class Machine:
    """One device and the precision that training takes there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.precision: Precision = chosen_precision("auto", device)
        self.base = 0

    @property
    def name(self) -> str:
        """The card's name, or the processor's."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def wait(self) -> None:
        """Until everything that was queued is done."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def seconds(self, work: Callable[[], object], budget: float, most: int = 50) -> float:
        """Mean time of one call: as many as fit into ``budget`` seconds, at least one, at most ``most``."""
        self.wait()
        begin, count = time.perf_counter(), 0
        while count == 0 or (count < most and time.perf_counter() - begin < budget):
            work()
            count += 1
            if count % 5 == 0:  # the program runs ahead of the device
                self.wait()
        self.wait()
        return (time.perf_counter() - begin) / count

    def forget_memory(self) -> None:
        """Peaks are counted from here; on a CPU so is what the process holds (Linux)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def remember_base(self) -> None:
        """What the process holds now is not counted (on a CPU, where it is not zero)."""
        if self.device.type == "cpu" and Path("/proc/self/statm").exists():
            self.base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def peak_memory(self) -> int | None:
        """Bytes of tensors at the largest moment; None where nothing tells."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type != "cpu" or not Path("/proc/self/status").exists():
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")) - self.base

    def memory(self) -> int | None:
        """Bytes that the card has."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None

    def ceilings(self, side: int, budget: float) -> Ceilings:
        """Measure them: products of ``side`` x ``side`` matrices, a copy of as many bytes as 16 of these have."""
        products: dict[str, float] = {}
        for precision in dict.fromkeys(("float32", self.precision)):
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            product = torch.empty_like(a)

            def multiply(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = product) -> None:
                torch.mm(a, b, out=out)

            multiply()
            products[precision] = 2 * side**3 / self.seconds(multiply, budget)
        source = torch.zeros(16 * side * side, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)
        seconds = self.seconds(lambda: target.copy_(source), budget)
        return Ceilings(products, 2 * source.nbytes / seconds)
