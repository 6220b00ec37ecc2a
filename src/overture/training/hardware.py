"""What numbers were made with. Other machines and versions round otherwise, so models and records say theirs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from overture import __version__
from overture.processes import Processes

__all__ = ["device_name", "in_words", "processor_name", "so_many", "trained_with", "versions", "was_trained_with"]


def trained_with(processes: Processes) -> dict[str, Any]:
    """What a model file says of where its training came to an end."""
    return {"device": device_name(processes.device), "processes": processes.size, **versions()}


def was_trained_with(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The same out of a model file; empty where it does not say so, or something else (files come from anywhere)."""
    told = metadata.get("trained_with")
    kinds = {"device": str, "processes": int, "threads": int, "torch": str, "overture": str}
    if not isinstance(told, dict) or told.keys() != kinds.keys():
        return {}
    fits = all(isinstance(told[name], kind) and str(told[name]).isprintable() for name, kind in kinds.items())
    return dict(told) if fits else {}


def in_words(told: Mapping[str, Any]) -> str:
    """What :func:`was_trained_with` gives, for a reader."""
    return f"{so_many(told['device'], told['processes'])}, PyTorch {told['torch']}"


def so_many(device: str, processes: int) -> str:
    """The name of a device with how many of them worked together."""
    return device if processes == 1 else f"{processes} x {device}"


def versions() -> dict[str, Any]:
    """Of what computes, and how many threads of the processor it has."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "overture": __version__}


def device_name(device: torch.device) -> str:
    """What an accelerator calls itself, or the processor; other devices by their kind and the processor beside them."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name() if device.type == "cpu" else f"{device.type} ({processor_name()})"


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"
