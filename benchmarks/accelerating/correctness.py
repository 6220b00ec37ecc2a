"""Whether the device computes what it should: the golden data, and the tests that have something to say there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from accelerating.isolation import Emit
from accelerating.machine import Machine
from accelerating.sizes import Sizes
from overture.errors import OvertureError
from overture.pipeline import load_prior, load_tokenizer
from overture.priors import Guidance, Sampling
from overture.priors.sampler import generate
from overture.training.step import autocast

__all__ = ["golden", "tests"]

TESTS = Path(__file__).parents[2] / "tests"
WITHIN = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far a number may be from the golden one, of the largest magnitude. Ids are equal in float32."""


def golden(machine: Machine, sizes: Sizes, emit: Emit) -> None:
    """Ids, pixels, logits and greedy samples against the released code's, in float32; pixels and logits in bfloat16."""
    sys.path.insert(0, str(TESTS))
    from golden_names import GOLDEN, imported  # type: ignore[import-not-found]

    device = machine.device
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    wrong = []
    for name in ("2d", "prologue"):
        expected = np.load(GOLDEN / name / "golden.npz")
        tokenizer, prior = load_tokenizer(imported(name), device=device), load_prior(imported(name), device=device)
        images, classes, ids, sequence = (
            torch.tensor(expected[key], device=device)
            for key in ("images_uint8_NCHW", "class_ids", "indices", "ar_ids")
        )
        same = {"ids": torch.equal(tokenizer.encode(images.float() / 127.5 - 1), ids)}
        for key, scale in (("greedy_nocfg", None), ("greedy_cfg1p5_constant", 1.5)):
            guidance = Guidance.none() if scale is None else Guidance.constant(scale)
            sequence_BL = generate(prior, classes, Sampling(guidance, top_k=1))
            same[key] = torch.equal(sequence_BL.cpu(), torch.tensor(expected[key]))
        far = {}
        for precision, within in WITHIN.items():
            with torch.no_grad(), autocast(device, precision):  # type: ignore[arg-type]
                found = {"pixels": tokenizer.decode(ids), "logits": prior(sequence, classes)}
            for what, key in (("pixels", "reconstruction_NCHW"), ("logits", "ar_logits")):
                error = float(np.abs(found[what].float().cpu().numpy() - expected[key]).max())
                far[f"{what} {precision}"] = error / float(np.abs(expected[key]).max()), within
        wrong += [f"{name} {key} differ" for key, equal in same.items() if not equal]
        wrong += [f"{name} {key} {error:.1e} off" for key, (error, within) in far.items() if not error <= within]
        told = ", ".join(f"{key} {error:.0e} off (at most {within:.0e})" for key, (error, within) in far.items())
        emit({"case": name, "remark": f"{sum(same.values())} of {len(same)} sets of ids equal; {told}"})
    if wrong:
        raise OvertureError("golden data: " + "; ".join(wrong))


def tests(machine: Machine, sizes: Sizes, emit: Emit) -> None:
    """The tests marked ``device``; at toy size those of the golden data."""
    files = ["test_golden.py"] if sizes.toy else ["test_golden.py", "test_on_device.py", "test_synchronisation.py"]
    command = [sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", "-o", "addopts="]
    done = subprocess.run(
        [*command, *(str(TESTS / file) for file in files)],
        env={**os.environ, "OVERTURE_TEST_DEVICE": str(machine.device)}, cwd=TESTS.parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        failed = [line.split(" ")[1] for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise OvertureError(f"tests failed: {', '.join(failed) or lines[-1]}")
    emit({"remark": lines[-1].strip("= ")})  # 21 passed, ...
