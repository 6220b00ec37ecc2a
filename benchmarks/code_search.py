"""Nearest-code search with its gradients, blocked and dense: memory and time, each variant in a process of its own.

8,192 vectors (32 images x 256 positions) of 14 channels against 16,384 codes: search, straight-through, losses, and
the backward pass. The dense variant is what one writes first: a score for every pair, a one-hot matrix, a product.

Memory is the peak resident set (``resource.ru_maxrss``) over the resident set after imports, inputs and one small
warm-up call, so what the imports themselves had used for a moment counts against us. Time is the best of some repeats.

    OMP_NUM_THREADS=1 python benchmarks/code_search.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from overture.quantizers import SoftConfig, VectorConfig, code_search
from overture.quantizers.vector import SoftQuantizer, VectorQuantizer
from overture.schedules import Schedule

BATCH, POSITIONS, CODES, CHANNELS, WIDTH = 32, 256, 16384, 14, 64
SOFT_CODES = 4096
GROUPED = "vector blocked geometric, an accelerator's groups"
VARIANTS = ("vector dense", "vector blocked", "vector blocked geometric", GROUPED, "soft dense", "soft blocked")


def dense_vector(quantizer: VectorQuantizer, features: Tensor) -> tuple[Tensor, Tensor]:
    z, codes = quantizer.project(features), quantizer.unit_codes()
    ids = (z @ codes.t()).argmax(dim=-1)
    chosen = F.one_hot(ids, len(codes)).float() @ codes
    loss = 0.25 * F.mse_loss(z, chosen.detach()) + F.mse_loss(chosen, z.detach())
    return ids, (z + (chosen - z).detach()).square().sum() + loss


def blocked_vector(quantizer: VectorQuantizer, features: Tensor) -> tuple[Tensor, Tensor]:
    out = quantizer(features)
    return out.ids, out.codes.square().sum() + out.loss


def dense_soft(quantizer: SoftQuantizer, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    scores = quantizer.project(features) @ quantizer.unit_codes().t()
    soft, ids = (scores / quantizer.config.temperature).softmax(dim=-1), scores.argmax(dim=-1)
    one_hot = soft + (F.one_hot(ids, scores.shape[-1]).float() - soft).detach()
    return ids, (one_hot @ rows).square().sum()


def blocked_soft(quantizer: SoftQuantizer, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    ids = quantizer.encode(features)
    return ids, quantizer.embed(features, ids, rows).square().sum()


def resident() -> float:
    """Megabytes this process occupies now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def measure(variant: str, repeats: int) -> dict[str, float | str]:
    """Run in the fresh process: one call for memory, some more for time."""
    torch.manual_seed(0)
    if variant == GROUPED:
        code_search.groups_for = lambda _, sizes: code_search.group_within_twice(sizes)
    features = torch.randn(BATCH, POSITIONS, WIDTH, requires_grad=True)
    soft = variant.startswith("soft")
    codes = SOFT_CODES if soft else CODES
    schedule = Schedule.geometric(POSITIONS, 2, codes) if "geometric" in variant else Schedule.uniform(POSITIONS, codes)
    quantizer = (SoftConfig if soft else VectorConfig)(CHANNELS).build(WIDTH, schedule.sizes)
    rows = torch.randn(codes, WIDTH, requires_grad=True)

    def run(part: Tensor) -> tuple[Tensor, Tensor]:
        if soft:
            return (dense_soft if "dense" in variant else blocked_soft)(quantizer, part, rows)
        return (dense_vector if "dense" in variant else blocked_vector)(quantizer, part)

    run(features[:1])[1].backward()
    for tensor in (features, rows, *quantizer.parameters()):
        tensor.grad = None
    before = resident()
    ids, loss = run(features)
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.048576
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run(features)[1].backward()
        seconds.append(time.perf_counter() - begin)
    return {
        "megabytes": peak - before,
        "seconds": min(seconds),
        "ids": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
        "loss": loss.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variant", choices=VARIANTS, help="measure one, in this process, and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.variant:
        print(json.dumps(measure(options.variant, options.repeats)))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, {BATCH * POSITIONS} vectors of {CHANNELS} channels")
    results = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant]
        command += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
        results[variant] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{variant:50} {results[variant]['megabytes']:8.0f} MB {results[variant]['seconds'] * 1e3:8.0f} ms")
    blocked, dense = results["vector blocked"], results["vector dense"]
    geometric = results["vector blocked geometric"]
    work = sum(Schedule.geometric(POSITIONS, 2, CODES).sizes) / (POSITIONS * CODES)
    print(f"blocked adds {blocked['megabytes']:.0f} MB (target: at most 160)")
    print(f"blocked takes {blocked['seconds'] / dense['seconds']:.2f} of the dense time (target: at most 1)")
    print(f"geometric sizes take {geometric['seconds'] / blocked['seconds']:.2f} of it; their scores are {work:.2f}")
    grouped = results[GROUPED]["seconds"] / geometric["seconds"]
    print(f"the groups of an accelerator take {grouped:.2f} of the time of a group a size, on this processor")
    print(
        f"same indices as dense: vector {blocked['ids'] == dense['ids']}, "
        f"soft {results['soft blocked']['ids'] == results['soft dense']['ids']}"
    )


if __name__ == "__main__":
    main()
