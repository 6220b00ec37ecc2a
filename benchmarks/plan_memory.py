"""What ``overture plan`` says of memory, against what a process takes (Linux).

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py

Both stages of the Base Prologue at a small batch, float32, each in a process of its own, without a perceptual loss.
"Between steps" is what the process holds over what it held before the trainer was made: weights, optimizer, EMA. "In all"
is the most it holds in a step: gradients and activations too. Temporary tensors and the allocator are not planned.
``prior, spread`` is the prior's stage spread over two processes (``--engine.shard``), of which the main one is told.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overture.processes import Processes

STAGES = ("tokenizer", "prior", "prior, spread")


def resident() -> float:
    """Megabytes that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def measure_spread(rank: int, folder: str, batch: int) -> None:
    """One of two processes; the main one prints what it found."""
    import torch.distributed as dist

    from overture.processes import Processes

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = measure(STAGES[2], batch, Processes(rank, 2))
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def measure(stage: str, batch: int, processes: Processes) -> dict[str, float]:
    """Plan a stage and take two steps of it in this process."""
    import torch

    from overture.data.stream import Batch
    from overture.data.token_files import TokenBatch
    from overture.losses.perceptual import NoPerceptual
    from overture.plan.run_plan import count_images, make_plan
    from overture.recipes import load_recipe
    from overture.training.train_prior import EngineConfig, PriorTrainer
    from overture.training.train_tokenizer import TokenizerTrainer

    config = load_recipe("prologue-b-b")()[0]
    tokenizer_training = replace(
        config.tokenizer_training, batch_size=batch, precision="float32", perceptual=NoPerceptual()
    )
    prior_training = replace(config.prior_training, batch_size=batch, precision="float32")
    engine = EngineConfig(shard=processes.size > 1)
    config = replace(config, tokenizer_training=tokenizer_training, prior_training=prior_training, engine=engine)
    plan = make_plan(config, count_images(config), processes.size)["memory_per_device"][stage.split(",")[0]]
    config = config.resolve(1000)
    batch //= processes.size
    labels = torch.zeros(batch, dtype=torch.long)
    gc.collect()
    before = resident()
    step: Any
    if stage == "tokenizer":
        trainer = TokenizerTrainer(config.tokenizer, tokenizer_training, seed=0, processes=processes)
        pictures = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8)
        step = lambda: trainer.train_batch(Batch(pictures, labels, labels))  # noqa: E731
    else:
        prior = PriorTrainer(
            config.prior, prior_training, config.tokenizer.layout, seed=0, processes=processes, engine=engine
        )
        ids = torch.zeros(batch, config.tokenizer.layout.length, dtype=torch.long)
        step = lambda: prior.train_batch(TokenBatch(ids, labels, labels))  # noqa: E731
    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator keeps for later is no part of it
    between = resident()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    step()
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e6
    kept = sum(plan[use] for use in ("weights", "adam", "ema"))
    return {
        "between planned": kept / 1e6,
        "between": between - before,
        "all planned": plan["total"] / 1e6,
        "all": peak - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--stage", choices=STAGES, help="measure this one here, and print JSON")
    options = parser.parse_args()
    if options.stage:
        if options.stage == STAGES[2]:
            import torch

            with tempfile.TemporaryDirectory() as folder:
                torch.multiprocessing.spawn(measure_spread, (folder, options.batch), nprocs=2)
        else:
            from overture.processes import Processes

            print(json.dumps(measure(options.stage, options.batch, Processes())))
        return
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--batch", str(options.batch)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(
            f"{stage:13} between steps: planned {found['between planned']:5.0f} MB, measured {found['between']:5.0f} MB;   "
            f"in all: planned {found['all planned']:5.0f} MB, measured {found['all']:5.0f} MB"
        )


if __name__ == "__main__":
    main()
