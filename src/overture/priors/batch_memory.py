"""How many images fit into memory while they are sampled.

An image is a function of (seed, index), so that a batch may be split anywhere.
"""

from __future__ import annotations

from pathlib import Path

import torch

from overture.errors import OvertureError
from overture.nn.packed import TILE
from overture.priors.model import Prior
from overture.processes import processes_here

__all__ = ["available_bytes", "cache_bytes", "image_bytes", "images_that_fit"]

SHARE = {"cuda": 0.9, "cpu": 0.5}
"""Of the memory that is free when sampling begins. Others work on the same processor, and it has no limit that tells;
the processes of a group share what is left there."""


def images_that_fit(prior: Prior, *, guided: bool, dtype: torch.dtype) -> int | None:
    """The most images of a batch, or None where the device does not tell its memory; refuses a device too small for one."""
    device = prior.token_embedding.weight.device
    available = available_bytes(device)
    if available is None:
        return None
    need = image_bytes(prior, guided=guided, dtype=dtype)
    if need > available:
        raise OvertureError(
            f"sampling: one image needs {-(-need // 10**6):,} MB and {device} has {max(available, 0) // 10**6:,} MB to give; "
            "free some, or sample in bfloat16 (--bf16)"
        )
    return available // need


def image_bytes(prior: Prior, *, guided: bool, dtype: torch.dtype) -> int:
    """What one more image takes: its cache exactly, and no less than a pass and a choice of an id need."""
    size, layout = prior.config.transformer, prior.layout
    rows, length = 1 + guided, layout.sequence_length
    # A pass over all positions at once (a prefix, or a half that catches up): the widest layer, before and after.
    widest = length * 4 * (2 * size.dim + 3 * size.hidden)
    # A step computes whole tiles of outputs.
    logits = 4 * (2 * TILE + max(position.high - position.low for position in layout.positions))
    # Guided and restricted logits, their order, probabilities and sums in float64.
    choice = 8 * logits
    ids = 3 * 8 * length
    return rows * (cache_bytes(prior, dtype) + widest + logits) + choice + ids


def cache_bytes(prior: Prior, dtype: torch.dtype) -> int:
    """Keys and values of one row, conditional or unconditional."""
    size = prior.config.transformer
    return 2 * size.depth * prior.layout.sequence_length * size.dim * dtype.itemsize


def available_bytes(device: torch.device) -> int | None:
    """What sampling may take of a device's memory now; None where nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE["cuda"] * (torch.cuda.mem_get_info(device)[0] + unused))
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    line = next(line for line in table.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable:"))
    return int(SHARE["cpu"] * int(line.split()[1]) * 1024) // processes_here()
