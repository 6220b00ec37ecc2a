"""Stage 1 with a joint prior at Base size: memory and time of one generator and one discriminator step.

Batch 4 at 256 px, visual codebook 16,384, prologue 16 x 1,024, joint prior 7 x 512, float32. The perceptual loss is left
out (its weights are not at hand everywhere, and it is the same in all forms).

    plain        what one writes first: N x K tables of scores, of soft-max and of one-hots; one graph from the images to
                 the sum of all losses; all gradients, then the optimizer's step
    overture     ours; "elementwise" and "blocks" with ``--tokenizer-training.recompute`` so set

    python benchmarks/joint_step.py              # each form in a process of its own, as many rounds as wanted

Megabytes are the most that the process held during a step over what it holds between steps, after freed memory went back
to the system: weights, averages and optimizer states, the same in all forms. Seconds are the least of all steps; those of
the processor do not count what other processes took.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overture.data.stream import Batch
    from overture.nn.transformer import Recompute
    from overture.training.train_tokenizer import TokenizerTrainer

RECOMPUTE: dict[str, Recompute] = {"elementwise": "elementwise", "blocks": "blocks"}
FORMS = ("plain", "overture", *RECOMPUTE)
TARGET = "target: peak memory at most 60 % of the plain form's, and no slower"


def measure(form: str, batch: int, steps: int, threads: int) -> dict[str, float]:
    """Run some steps in this process: wall and processor seconds, peak megabytes over the base, and the base."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from overture.data.stream import Batch
    from overture.processes import Processes
    from overture.quantizers import SoftConfig, vector
    from overture.schedules import CodebookConfig
    from overture.tokenizers import SegmentConfig, TokenizerConfig
    from overture.training.joint_prior import JointPriorConfig
    from overture.training.train_tokenizer import TokenizerTrainer, TokenizerTrainingConfig

    def dense_nearest(z_BLZ: Tensor, codes_KZ: Tensor, sizes: tuple[int, ...]) -> Tensor:
        distance_BLK = z_BLZ.square().sum(-1, keepdim=True) + codes_KZ.square().sum(-1) - 2 * z_BLZ @ codes_KZ.t()
        return distance_BLK.argmin(dim=-1)

    def dense_soft(
        z_BLZ: Tensor, codes_KZ: Tensor, rows_KD: Tensor, ids_BL: Tensor, sizes: tuple[int, ...], temperature: float
    ) -> Tensor:
        soft_BLK = (z_BLZ @ codes_KZ.t() / temperature).softmax(dim=-1)
        one_hot_BLK = soft_BLK + (F.one_hot(ids_BL, len(codes_KZ)).float() - soft_BLK).detach()
        return one_hot_BLK @ rows_KD

    if form == "plain":
        vector.nearest_codes, vector.soft_lookup = dense_nearest, dense_soft  # type: ignore[assignment, attr-defined]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    prologue = SegmentConfig(
        "prologue", "queries", 16, CodebookConfig(k_max=1024), SoftConfig(), decoded=False, separator=True
    )
    config = TokenizerConfig(segments=(prologue, SegmentConfig("visual")))
    training = TokenizerTrainingConfig(
        batch_size=batch, joint=JointPriorConfig(), precision="float32", recompute=RECOMPUTE.get(form, "nothing")
    )
    trainer = TokenizerTrainer(config, training, seed=0, processes=Processes(device=torch.device("cpu")))
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8)
    data = Batch(images, torch.zeros(batch, dtype=torch.long), torch.arange(batch))
    train_batch = (lambda: plain_batch(trainer, data)) if form == "plain" else (lambda: trainer.train_batch(data))
    train_batch()  # the first step makes optimizer states
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator keeps is no part of a base
    base = resident_megabytes()
    reset_peak()
    wall, processor = [], []
    for _ in range(steps):
        begin, begin_processor = time.perf_counter(), time.process_time()
        train_batch()
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    return {"wall": min(wall), "processor": min(processor), "megabytes": peak_megabytes() - base, "base": base}


def plain_batch(trainer: TokenizerTrainer, data: Batch) -> None:
    """The two steps on one batch, with nothing done to save memory but that gradients go after the optimizer's step."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from overture.data.transforms import to_float
    from overture.training.joint_prior import sum_by_term

    training, joint, step = trainer.training, trainer.joint, trainer.step
    assert joint is not None
    layout = joint.layout

    def cross_entropy(embeddings: Tensor, sequence: Tensor) -> dict[str, Tensor]:
        logits = joint.prior.predict(embeddings[:, :-1], classes)
        losses = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), reduction="none")
        return sum_by_term(losses.view_as(sequence), layout)

    trainer.processes.seed(trainer.seed, "tokenizer", step)
    images = to_float(data.images)
    classes = joint.draw_classes(data.labels)
    trainer.tokenizer.train()
    encoded = trainer.tokenizer.encode_for_training(images)
    reconstruction = trainer.tokenizer.reconstruct(encoded)
    joint.prior.eval()
    embeddings = joint.embeddings(trainer.tokenizer, encoded, joint.draw_dropped(len(images)))
    likelihood = cross_entropy(embeddings, layout.to_sequence(encoded.ids))
    weights = joint.weights(trainer.tokenizer)
    losses = [weights[name] * term for name, term in likelihood.items()]
    losses.append(trainer.pixels(reconstruction, images)["total"])
    losses.append(training.adversarial.weight * trainer.adversarial.generator_loss(reconstruction))
    losses += [training.quantizer_weight * quantized.loss for quantized in encoded.quantized.values()]
    torch.stack(losses).sum().backward()
    trainer.generator.optimizer_step(step)
    ids, reconstruction = encoded.ids, reconstruction.detach()
    del encoded, embeddings, losses, likelihood
    trainer.adversarial(images, reconstruction, step)["total"].backward()
    trainer.discriminator.optimizer_step(step)
    joint.prior.train().requires_grad_(True)
    sequence = layout.to_sequence(ids)
    inputs = torch.where(joint.draw_dropped(len(ids))[:, None] & (joint.fillers >= 0), joint.fillers, sequence)
    torch.stack(list(cross_entropy(joint.prior.token_embedding(inputs), sequence).values())).sum().backward()
    joint.trained.optimizer_step(step)
    joint.prior.requires_grad_(False)
    trainer.step += 1


def resident_megabytes() -> float:
    """What this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def reset_peak() -> None:
    """Forget the peak so far (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_megabytes() -> float:
    """The most this process has held since the last reset."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """Measure all forms in turn and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--form", choices=FORMS, help="measure this one here, and print JSON")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1, help="steps of a form in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.form:
        print(json.dumps(measure(options.form, options.batch, options.steps, options.threads)))
        return
    results: dict[str, list[dict[str, float]]] = {form: [] for form in options.forms}
    for _ in range(options.rounds):  # in turn, so that a busy spell of the machine is not one form's alone
        for form in options.forms:
            command = [sys.executable, __file__, "--form", form]
            command += ["--batch", str(options.batch), "--steps", str(options.steps), "--threads", str(options.threads)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[form].append(json.loads(done.stdout.splitlines()[-1]))
            print(form, results[form][-1], file=sys.stderr, flush=True)
    for form, rounds in results.items():
        wall, processor = (min(result[name] for result in rounds) for name in ("wall", "processor"))
        megabytes, base = (max(result[name] for result in rounds) for name in ("megabytes", "base"))
        print(
            f"{form:<11} {wall:6.1f} s a step (G + D), {processor:6.1f} s of processor; "
            f"peak {megabytes:6.0f} MB over a base of {base:6.0f} MB"
        )
    print(TARGET)


if __name__ == "__main__":
    main()
