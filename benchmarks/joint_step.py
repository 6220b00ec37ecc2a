"""Stage 1 with a joint prior at Base size: memory and time of one generator and one discriminator step.

Batch 4 at 256 px, visual codebook 16,384, prologue 16 x 1,024, joint prior 7 x 512. The dense form is what one writes
first: an N x K table of scores for the visual search, and soft-max and one-hot tables for the prologue. The perceptual
loss is left out (its weights are not at hand everywhere, and it is the same in all forms). ``elementwise`` and ``blocks`` are
our form with ``--tokenizer-training.recompute`` so set: that part of every block is computed again in the backward pass.

    python benchmarks/joint_step.py         # each form in a process of its own: peak memory and seconds
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

RECOMPUTE = {"elementwise": "elementwise", "blocks": "blocks"}
FORMS = ("dense", "overture", *RECOMPUTE)
TARGET = "target: peak memory at most half of the dense form's, and no slower"


def measure(form: str, batch: int, steps: int, threads: int) -> dict[str, float]:
    """Run some steps in this process; megabytes are the peak over what the process held before the first step."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from overture.data.reading import Batch
    from overture.quantizers import SoftConfig, vector
    from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig
    from overture.training.distributed import World
    from overture.training.joint import JointPriorConfig
    from overture.training.tokenizer import TokenizerTrainer, TokenizerTrainingConfig

    def dense_nearest(z_BLZ: Tensor, codes_KZ: Tensor, sizes: tuple[int, ...]) -> Tensor:
        distance_BLK = z_BLZ.square().sum(-1, keepdim=True) + codes_KZ.square().sum(-1) - 2 * z_BLZ @ codes_KZ.t()
        return distance_BLK.argmin(dim=-1)

    def dense_soft(
        z_BLZ: Tensor, codes_KZ: Tensor, rows_KD: Tensor, sizes: tuple[int, ...], temperature: float
    ) -> tuple[Tensor, Tensor]:
        soft_BLK = (z_BLZ @ codes_KZ.t() / temperature).softmax(dim=-1)
        ids_BL = soft_BLK.argmax(dim=-1)
        one_hot_BLK = soft_BLK + (F.one_hot(ids_BL, len(codes_KZ)).float() - soft_BLK).detach()
        return one_hot_BLK @ rows_KD, ids_BL

    if form == "dense":
        vector.nearest_codes, vector.soft_lookup = dense_nearest, dense_soft  # type: ignore[assignment]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    prologue = SegmentConfig(
        "prologue", "queries", 16, CodebookConfig(k_max=1024), SoftConfig(), decoded=False, separator=True
    )
    config = TokenizerConfig(segments=(prologue, SegmentConfig("visual")))
    training = TokenizerTrainingConfig(
        batch_size=batch, joint=JointPriorConfig(), precision="float32", recompute=RECOMPUTE.get(form, "nothing")
    )
    trainer = TokenizerTrainer(config, training, seed=0, world=World(device=torch.device("cpu")))
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8)
    data = Batch(images, torch.zeros(batch, dtype=torch.long), torch.arange(batch))
    trainer.train_batch(data)  # the first step makes optimiser states: they belong to both forms
    base = resident_megabytes()
    reset = reset_peak()
    begin = time.perf_counter()
    for _ in range(steps):
        trainer.train_batch(data)
    seconds = (time.perf_counter() - begin) / steps
    return {"seconds": seconds, "megabytes": peak_megabytes() - (base if reset else 0), "peak": peak_megabytes()}


def resident_megabytes() -> float:
    """What this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def reset_peak() -> bool:
    """Forget the peak so far (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def peak_megabytes() -> float:
    """The most this process has held since the last reset."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """Measure both forms and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.form:
        print(json.dumps(measure(options.form, options.batch, options.steps, options.threads)))
        return
    for form in FORMS:
        command = [sys.executable, __file__, "--form", form]
        command += ["--batch", str(options.batch), "--steps", str(options.steps), "--threads", str(options.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{form:<11} {result['seconds']:6.2f} s a step (G + D), peak {result['megabytes']:7.0f} MB over weights "
            f"and optimiser states; {result['peak']:7.0f} MB in all"
        )
    print(TARGET)


if __name__ == "__main__":
    main()
