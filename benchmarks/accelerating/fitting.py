"""The largest batch that fits: halved until it does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["fitting"]

R = TypeVar("R")


def fitting(work: Callable[[int], R], batch: int) -> tuple[R, int, str]:
    """``work(batch)``, or of the largest half, quarter ... of it for which there is memory; that batch, and a remark."""
    failed: list[int] = []
    while True:
        try:
            result = work(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            failed.append(batch)
        else:
            remark = f"out of memory at batch {', '.join(map(str, failed))}; {batch} fits" if failed else ""
            return result, batch, remark
        batch //= 2  # outside of the handler, which holds on to the frames of the failure and their tensors
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
