"""Everything that a user's accelerator does, by one command of at most ten minutes: right, how fast, in how much memory.

    python benchmarks/accelerator.py                 # the accelerator if there is one; --device names another
    python benchmarks/accelerator.py --toy           # every part in seconds on a CPU: whether the command works
    python benchmarks/accelerator.py --only ceilings "prior step, Base"

The golden data and the tests that are marked ``device`` run on it. Then steps of training, encoding and sampling at the
sizes and batches of the ImageNet recipes, each beside its share of what the device reaches where it does nothing else: of
a large matrix product, or for sampling, which reads the weights and the cache at every position, of a large copy. Peak
memory stands beside what ``overture plan`` says. A step is a step of training as the recipes take it, R1 included when its
turn comes; batches are made up, and the perceptual loss has random weights: neither changes the time.

Each part runs in a process of its own with its own limit of time: what fails costs the others nothing. Where memory does
not suffice the batch is halved until it does. A table is printed; the same numbers go to ``--out`` as lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from accelerating.correctness import golden, tests
from accelerating.inference import encode, sample
from accelerating.isolation import Emit, alone
from accelerating.machine import Machine
from accelerating.searching import search
from accelerating.sizes import FULL, TOY, Sizes, planned
from accelerating.training_steps import prior_step, tokenizer_step
from overture.interop.releases import BASE, LARGE, XL
from overture.processes import choose_device
from overture.training.step import chosen_precision


class Part(NamedTuple):
    """``work(machine, sizes, emit)``, and how many seconds it may take."""

    seconds: float
    work: Callable[[Machine, Sizes, Emit], None]


def ceilings(machine: Machine, sizes: Sizes, emit: Emit) -> None:
    """What the device is and reaches."""
    found = machine.ceilings(sizes.side, sizes.seconds / 8)
    emit(
        {
            "card": machine.name, "memory": machine.memory(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "training_precision": machine.precision, "products": found.products, "bandwidth": found.bandwidth,
        }
    )  # fmt: skip


PARTS: dict[str, Part] = {
    "ceilings": Part(20, ceilings),
    "golden data": Part(35, golden),
    "prior step, Base": Part(35, partial(prior_step, BASE)),
    "tokenizer step": Part(40, partial(tokenizer_step, "imagenet-2d")),
    "joint step": Part(40, partial(tokenizer_step, "prologue-b-b")),
    "encode": Part(20, encode),
    "code search": Part(15, search),
    "sample, Base": Part(75, partial(sample, BASE)),
    "prior step, Large": Part(35, partial(prior_step, LARGE)),
    "prior step, XL": Part(50, partial(prior_step, XL)),
    "sample, XL": Part(65, partial(sample, XL)),
    "prior step, Base, compiled": Part(100, partial(prior_step, BASE, compiled=True)),
    "tests": Part(70, tests),
}
"""In this order, what matters most first; together they may take the ten minutes."""


def main(words: list[str] | None = None) -> int:
    """Run the parts, print the table, write the lines; 1 if a part failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--toy", action="store_true", help="every part at toy size")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("accelerator.jsonl"))
    options = parser.parse_args(words)
    sizes = TOY if options.toy else FULL
    if options.toy:  # imports and caches for all parts; at full size this process must not come near the device
        precision = chosen_precision("auto", torch.device("cpu"))
        for recipe in ("imagenet-2d", "prologue-b-b"):
            planned(sizes.run(recipe, precision, sizes.prior_batch))
    rows: list[dict[str, Any]] = []
    begin = time.monotonic()
    with options.out.open("w") as out:
        for name in options.only:
            # The device is chosen in the part's process: this one must not touch it.
            def work(emit: Emit, name: str = name) -> None:
                PARTS[name].work(Machine(choose_device(options.device)), sizes, emit)

            started = time.monotonic()
            found, failure = alone(work, PARTS[name].seconds)
            if failure:
                found.append({"failed": failure})
            for row in found:
                rows.append({"part": name, **row})
                out.write(json.dumps(rows[-1]) + "\n")
                out.flush()
            print(f"{name}: {failure or 'done'}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    print(f"{time.monotonic() - begin:.0f} s in all; lines of JSON in {options.out}")
    return int(any("failed" in row for row in rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, under a line that says what they are of."""
    about = next((row for row in rows if "card" in row), None)
    lines = []
    if about:
        reached = ", ".join(f"{kind} {rate / 1e12:.3g} TFLOP/s" for kind, rate in about["products"].items())
        lines.append(
            f"{about['card']}, torch {about['torch']}, training in {about['training_precision']}; products: {reached}; "
            f"copies: {about['bandwidth'] / 1e9:.3g} GB/s\n"
        )
    heads = ("part", "batch", "images/s", "ms a batch", "of products", "of bandwidth", "peak GB", "planned GB", "")
    lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    lines += [f"| {' | '.join(cells(row, about))} |" for row in rows if "card" not in row]
    return "\n".join(lines)


def cells(row: dict[str, Any], about: dict[str, Any] | None) -> tuple[str, ...]:
    """One line of the table."""
    rate, batch = row.get("images_per_second"), row.get("batch")
    ceiling = (about or {}).get("products", {}).get(row.get("precision"))
    products = rate * row["flops"] / ceiling if rate and ceiling else None
    read = row["bytes"] / row["seconds"] / about["bandwidth"] if about and "bytes" in row else None
    remark = f"FAILED: {row['failed']}" if "failed" in row else row.get("remark", "")
    first = f"the first batch {row['first']:.2g} s" if "first" in row else ""
    words = (row.get("case"), row.get("precision"), row.get("execution"), first, remark)
    return (
        row["part"],
        str(batch or ""),
        f"{rate:.4g}" if rate else "",
        f"{1e3 * row['seconds']:.4g}" if rate else "",
        f"{products:.1%}" if products is not None else "",
        f"{read:.1%}" if read is not None else "",
        f"{row['peak'] / 1e9:.3g}" if row.get("peak") is not None else "",
        f"{row['planned'] / 1e9:.3g}" if row.get("planned") is not None else "",
        "; ".join(filter(None, words)),
    )


if __name__ == "__main__":
    sys.exit(main())
