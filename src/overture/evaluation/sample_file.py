"""Samples into an ADM-style ``.npz``: all processes sample, the main one writes, and who is stopped goes on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from overture.pictures import GrowingImages, save_npz
from overture.pipeline import Pipeline
from overture.priors.sampling import Sampling
from overture.processes import Processes
from overture.progress import Progress, heed_stop, stop_requested

__all__ = ["partial_file", "write_sample_file"]


def partial_file(path: Path) -> Path:
    """Where the samples of ``path`` are while they are made; of no use once ``path`` is there."""
    return path.with_suffix(".partial")


def write_sample_file(
    path: Path,
    pipe: Pipeline,
    classes: Tensor,
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
    progress: Progress,
    processes: Processes = Processes(),
    dtype: torch.dtype | None = None,
) -> None:
    """An image of each of ``classes`` ``[N]`` into ``path``; goes on after those in :func:`partial_file`.

    The parameters are those of :meth:`overture.pipeline.Pipeline.sample_together`: image i is the same however often the
    work was stopped. The file of parts is left for the caller to remove.
    """
    tokenizer = pipe.tokenizer.config
    shape = (tokenizer.channels, tokenizer.image_size, tokenizer.image_size)
    with GrowingImages(partial_file(path), shape) if processes.is_main else nullcontext() as images:
        done = int(processes.sum(torch.tensor(images.count if images else 0)))
        progress.start(f"samples {path.stem}", len(classes), done, unit="image")
        batches = pipe.sample_together(
            classes[done:],
            sampling,
            processes=processes,
            seed=seed,
            first=done,
            batch_size=batch_size,
            dtype=dtype,
        )
        for batch in batches if done < len(classes) else ():
            if images:
                images.add(batch)
            progress.advance(len(batch))
            heed_stop("stage samples", processes.any(stop_requested()))
        if images:
            save_npz(images.batches(1000), classes.tolist(), path)
    processes.barrier()
    progress.finish()
