"""What numbers were made with. Other machines and versions round otherwise, so models and records say theirs."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from overture import __version__
from overture.processes import Processes

__all__ = ["processor_name", "trained_with"]


def trained_with(processes: Processes) -> dict[str, Any]:
    """What a model file says of where the last step of its training was taken."""
    device = processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": name, "processes": processes.size, "torch": torch.__version__, "overture": __version__}


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"
