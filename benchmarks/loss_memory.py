"""The most memory that stage 3's loss takes, against the loss as one writes it first (Linux).

    OMP_NUM_THREADS=1 python benchmarks/loss_memory.py

17,409 ids at batch 64 x 273, Base width, float32: forward and backward pass from the last hidden states to the gradients
of states and output matrix. Each form runs in a process of its own; megabytes are the peak over what was held before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

FORMS = ("plain", "overture")


def status(name: str) -> float:
    """A figure of this process from the system, megabytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024 / 1e6


def measure(form: str, batch: int) -> dict[str, float]:
    """One pass in this process: peak megabytes, seconds, and the loss."""
    import torch
    import torch.nn.functional as F

    from overture.layout import Layout, Segment
    from overture.priors import PriorConfig
    from overture.training.prior_pass import sequence_loss

    torch.manual_seed(0)
    layout = Layout((Segment("prologue", (1024,) * 16, separator=True), Segment("visual", (16384,) * 256)))
    prior = PriorConfig(depth=1).build(layout)
    sequence_BL = torch.randint(0, 16384, (batch, layout.sequence_length))
    hidden_BLD = torch.randn(batch, layout.sequence_length, prior.config.dim, requires_grad=True)
    share_L = torch.full((layout.sequence_length,), 1 / sequence_BL.numel())
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before, begin = status("VmRSS"), time.perf_counter()
    if form == "plain":
        logits = prior.head.project(hidden_BLD)
        loss = F.cross_entropy(logits.flatten(0, 1), sequence_BL.flatten())
    else:
        loss, _ = sequence_loss(prior, hidden_BLD, sequence_BL, share_L)
    loss.backward()
    return {"peak": status("VmHWM") - before, "seconds": time.perf_counter() - begin, "loss": loss.item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--form", choices=FORMS, help="measure this one here, and print JSON")
    options = parser.parse_args()
    if options.form:
        print(json.dumps(measure(options.form, options.batch)))
        return
    found = {}
    for form in FORMS:
        command = [sys.executable, __file__, "--form", form, "--batch", str(options.batch)]
        found[form] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print("{:10} peak {peak:7.0f} MB, {seconds:5.1f} s, loss {loss:.6f}".format(form, **found[form]))
    print(f"{found['overture']['peak'] / found['plain']['peak']:.0%} of the plain form's; target: at most 25 %")


if __name__ == "__main__":
    main()
