"""Training steps a second on one process and on two, one thread each; needs two free cores.

    python benchmarks/two_processes.py

By default the quickstart's VCQ model, with ``--recipe`` the last model of another one, at its own sizes: the global batch is the same, so two processes do half of it each.
The third figure is what this machine allows: two processes that exchange nothing, each on half of the batch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from overture.data.stream import TrainingStream
from overture.data.token_files import TokenBatch
from overture.losses.perceptual import NoPerceptual
from overture.processes import Processes
from overture.recipes import recipe_configs
from overture.training.train_prior import PriorTrainer
from overture.training.train_tokenizer import TokenizerTrainer


def seconds_a_step(recipe: str, processes: Processes, stage: str, steps: int, parts: int) -> float:
    """The median of ``steps`` steps on one of ``parts`` parts of the batch, after three to warm up."""
    config = recipe_configs(recipe)[-1].resolve(10)
    lone = parts // processes.size  # what this process believes to be the whole batch is one part of so many
    config = config.changed(
        {
            "tokenizer_training.perceptual": NoPerceptual(),
            "tokenizer_training.adversarial.start": 0,
            "tokenizer_training.batch_size": config.tokenizer_training.batch_size // lone,
            "prior_training.batch_size": config.prior_training.batch_size // lone,
        }
    )
    if stage == "tokenizer":
        training = config.tokenizer_training
        trainer = TokenizerTrainer(config.tokenizer, training, seed=0, processes=processes)
        data = config.data.build().train
        stream = TrainingStream(data, config.data, training.batch_size, 0, processes.rank, processes.size)
        batches = stream.batches(0)
        step = lambda: trainer.train_batch(next(batches))  # noqa: E731
    else:
        layout, share = config.tokenizer.layout, config.prior_training.batch_size // processes.size
        prior = PriorTrainer(config.prior, config.prior_training, layout, seed=0, processes=processes)
        ids = (torch.rand(share, layout.length) * torch.tensor(layout.sizes)).long()
        batch = TokenBatch(ids, torch.arange(share) % 10, torch.arange(share))
        step = lambda: prior.train_batch(batch)  # noqa: E731
    times = []
    for number in range(steps + 3):
        processes.barrier()
        begin = time.perf_counter()
        step()
        if number >= 3:
            times.append(time.perf_counter() - begin)
    return float(torch.tensor(times).median())


def process(rank: int, size: int, apart: bool, folder: str, recipe: str, steps: int) -> None:
    """One of ``size``; the main one leaves its times."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{apart}", rank=rank, world_size=size)
    processes = Processes(0, 1) if apart else Processes(rank, size)
    found = {}
    for stage in ("tokenizer", "prior"):
        if size > 1:
            dist.barrier()  # those that work apart begin each stage together all the same
        found[stage] = seconds_a_step(recipe, processes, stage, steps, parts=size)
    if rank == 0:
        torch.save(found, Path(folder) / f"{size}{'-apart' * apart}.pt")
    if size > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3, help="one and two processes take turns so often")
    options = parser.parse_args()
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for size, apart in ((1, False), (2, False), (2, True)):
                torch.multiprocessing.spawn(process, (size, apart, folder, options.recipe, options.steps), nprocs=size)
            one, two, apart = (torch.load(Path(folder) / f"{name}.pt") for name in ("1", "2", "2-apart"))
        for stage in one:
            print(
                f"{stage:10} one process {1e3 * one[stage]:6.1f} ms a step, two {1e3 * two[stage]:6.1f} ms: "
                f"{one[stage] / two[stage]:.2f} times as fast; apart {1e3 * apart[stage]:6.1f} ms: "
                f"{one[stage] / apart[stage]:.2f}"
            )


if __name__ == "__main__":
    main()
