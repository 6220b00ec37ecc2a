"""Fuzz for as long as wanted: ``python tests/fuzz/run.py --inputs 10000 --seed 1 [--target tokens] [--out FOLDER]``.

Prints a table, and every fault as it is found; ``--out`` keeps the files that made them. ``--replay N`` tries one case.
Status 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from good_files import make
from targets import TARGETS, names_of
from verdict import Case, Outcome, changed_file, outcomes

KINDS = ("same", "refused", "changed", "fault")


def cases(inputs: int, seed: int, only: str, replay: int | None) -> Iterator[Case]:
    """Round by round; to replay, one round of all."""
    rounds = count() if replay is None else iter([replay])
    numbered = (
        Case(seed, name, number) for number in rounds for name in names_of(number if replay is None else 0, only)
    )
    return islice(numbered, inputs)


def table(counts: Counter[tuple[str, str]]) -> str:
    """Inputs and outcomes of every target."""
    names = list(dict.fromkeys(name for name, _ in counts))
    lines = [f"{'target':<24}{'inputs':>8}" + "".join(f"{kind:>9}" for kind in KINDS)]
    for name in [*names, "all"]:
        row = [sum(n for (t, k), n in counts.items() if k == kind and name in (t, "all")) for kind in KINDS]
        lines.append(f"{name:<24}{sum(row):>8}" + "".join(f"{n:>9}" for n in row))
    return "\n".join(lines)


def keep(found: list[tuple[Case, Outcome]], out: Path) -> None:
    """The files that made faults, each with what was told."""
    targets = {target.name: target for target in TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        for case, outcome in found:
            target = targets[case.target]
            _, data = changed_file(case, target, (Path(folder) / target.file).read_bytes())
            place = out / f"{case.target.replace(' ', '_')}-{case.seed}-{case.number}"
            place.mkdir(parents=True, exist_ok=True)
            (place / Path(target.file).name).write_bytes(data)
            (place / "told.txt").write_text(f"{case}\n{outcome.mutation}\n{outcome.told}\n", errors="replace")


def main() -> int:
    """Parse, fuzz, print."""
    parser = argparse.ArgumentParser(description="changed files: read right, or refused in one line")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="part of the name of the targets to fuzz")
    parser.add_argument("--replay", type=int, metavar="N", help="try the N-th file of each target alone")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where files that make faults are kept")
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    faults = []
    for case, outcome in outcomes(cases(options.inputs, options.seed, options.target, options.replay)):
        counts[case.target, outcome.kind] += 1
        if outcome.kind == "fault":
            faults.append((case, outcome))
        if outcome.kind == "fault" or options.replay is not None:
            print(f"{case} {outcome.mutation}: {outcome.kind}\n{outcome.told}\n", flush=True)
    print(table(counts))
    if options.out and faults:
        keep(faults, options.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
