"""Kills that stay: runs that are killed again and again have to end as the run that nobody touched.

Tiny runs of several recipes on made-up images, on one and on two processes, saving after every step and measuring while
they train. Each goes once in peace; then again and again, killed at places that a seed draws, until so many kills are
done. What then lies on the disk is compared: weights, token files, measurements, results, pictures, bit for bit, and
nothing left over.

    all            SIGKILL to all its processes, at a random moment
    save           the same, at the first sight of a save under way after a random moment
    touch          the first process dies at a random touch of the disk (``killing/dying.py``)
    one            SIGKILL to one of its processes, whichever: the others have to end by themselves
    term int       the polite signals to the command, or to its whole group (``group``): all has to end in 30 s

    python benchmarks/kills.py                    # 50 kills, about half an hour; --kills, --seed, --recipes, --folder
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from killing.same_run import differences
from killing.striking import KINDS, PATIENCE, end_all, family, seen, send, strike
from killing.tiny_runs import RECIPES, draw_images, run_words

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
DYING = str(Path(__file__).parent / "killing" / "dying.py")
STAGES = {
    "samples": "samples/*guided*",
    "prior": "prior/step-*",
    "tokens": "tokens/*",
    "tokenizer": "tokenizer/step-*",
    "networks": "networks/*",
}
"""What lies in a run once it has come so far, the last stage first."""


@dataclass
class Work:
    """A recipe, how it goes in peace, and what became of its runs."""

    name: str
    folder: Path
    seconds: float = 0.0
    touches: int = 0
    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def processes(self) -> int:
        """How many work on a run together."""
        return RECIPES[self.name][1]

    @property
    def root(self) -> Path:
        """Where the present run lies; the first is the one that nobody touches."""
        return self.folder / f"{self.name}.{self.runs}"

    @property
    def log(self) -> Path:
        """What the last command said."""
        return self.folder / f"{self.name}.log"

    def start(self, touch: int | None = None) -> subprocess.Popen[bytes]:
        """The command in a process group of its own; it dies at a ``touch`` of the disk (0: it counts them)."""
        launch = [*TORCHRUN, str(self.processes)] if self.processes > 1 else []
        program = ["-m", "overture"] if touch is None else [DYING, str(self.root), str(touch)]
        words = [*launch, *program, *run_words(RECIPES[self.name][0], self.folder / "images", self.root)]
        with self.log.open("wb") as log:
            return subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, process_group=0)

    def said(self) -> list[str]:
        """The lines of the last command."""
        return self.log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()

    def blame(self, what: str) -> None:
        """Note a fault, with the end of what the command said."""
        self.faults.append(what)
        print("\n    ".join([f"FAULT {self.name}: {what}", *self.said()[-12:]]), flush=True)

    def stage(self) -> str:
        """How far the run is."""
        return next((name for name, pattern in STAGES.items() if seen(self.root, pattern)), "start")


def in_peace(work: Work) -> None:
    """The run that the others are compared with."""
    begin = time.monotonic()
    if work.start(touch=0).wait():
        work.blame("the run in peace failed")
        raise SystemExit(1)
    work.seconds = time.monotonic() - begin
    work.touches = max(map(int, re.findall(r"^(\d+) touches$", work.log.read_text(), re.MULTILINE)))
    work.runs += 1
    print(f"{work.name}: {work.seconds:.0f} s and {work.touches} touches in peace", flush=True)


def _steps(root: Path) -> list[Path]:
    """States of the tokenizer's stage; not looked for in every folder, since some vanish while one looks."""
    return [*root.glob("tokenizer/step-*"), *root.glob("*/tokenizer/step-*")]


def second_command(work: Work) -> None:
    """While a run is held in its middle the same command is refused in one line; then the run goes on to its end."""
    command = work.start()
    while not _steps(work.root) and command.poll() is None:
        time.sleep(0.01)
    held = family(command.pid)
    send(held, signal.SIGSTOP)
    status = work.start().wait()
    lines = [line for line in work.said() if line.startswith("overture: ")]
    if not status or len(lines) != 1 or "another process is working in this run" not in lines[0]:
        work.blame(f"a second command was not refused in one line (status {status})")
    send(held, signal.SIGCONT)
    if command.wait():
        work.blame("the first command was disturbed by a second")
    compare(work)


def killed_run(work: Work, deck: Iterator[str], draw: random.Random, kills: int) -> int:
    """A run from its first step to its end, with at most so many kills on the way; returns how many there were."""
    for done in range(kills):
        kind, moment = next(deck), draw.uniform(0.1, 0.7)
        command = work.start(touch=1 + int(moment * work.touches) if kind == "touch" else None)
        members = strike(command, kind, moment * work.seconds, work.root, draw)
        if not members:
            if command.returncode:
                work.blame(f"ended by itself, with status {command.returncode}")
            compare(work)
            return done
        if survivors := end_all(command, members):
            work.blame(f"{len(survivors)} of {len(members)} processes still work {PATIENCE:.0f} s after '{kind}'")
        if any(line.startswith("Traceback") for line in work.said()) and work.processes == 1:
            work.blame(f"a traceback after '{kind}'")  # torchrun prints its own
        stage = work.stage()
        work.kills.update([kind, stage])
        print(f"{work.name}: {kind}, {stage}, status {command.returncode}", flush=True)
    if status := work.start().wait():
        work.blame(f"cannot be brought to its end, status {status}")
    compare(work)
    return kills


def shuffled(draw: random.Random) -> Iterator[str]:
    """All kinds in a drawn order, again and again."""
    while True:
        yield from draw.sample(KINDS, len(KINDS))


def compare(work: Work) -> None:
    """Compare a run that has ended with the one in peace; the next begins in a place of its own."""
    found = differences(work.folder / f"{work.name}.0", work.root)
    if found:  # it stays there to be looked at
        work.blame(f"{len(found)} differences in {work.root}: {'; '.join(found[:12])}")
    else:
        print(f"{work.name}: run {work.runs} identical", flush=True)
        shutil.rmtree(work.root)
    work.runs += 1


def table(works: list[Work]) -> str:
    """Kills by kind and by stage, and what became of the runs."""
    columns = [*KINDS, "start", *reversed(STAGES)]
    rows = [["run", "processes", "kills", *columns, "ended", "faults"]]
    for work in works:
        counts = [work.processes, sum(work.kills[kind] for kind in KINDS), *(work.kills[name] for name in columns)]
        rows.append([work.name, *map(str, counts), str(work.runs - 1), str(len(work.faults))])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """All recipes in turn; the exit status is 1 if anything was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of all recipes together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument(
        "--folder", type=Path, help="where to work (default: a temporary folder, which stays if anything is found)"
    )
    options = parser.parse_args()
    draw = random.Random(options.seed)
    deck = shuffled(draw)
    folder = options.folder or Path(tempfile.mkdtemp())
    draw_images(folder / "images")
    works = [Work(name, folder) for name in options.recipes]
    for place, work in enumerate(works):
        in_peace(work)
        second_command(work)
        left = options.kills // len(works) + (place < options.kills % len(works))
        while left > 0:
            left -= killed_run(work, deck, draw, min(left, 4))
    print(table(works))
    faults = any(work.faults for work in works)
    if not options.folder and not faults:
        shutil.rmtree(folder)
    return int(faults)


if __name__ == "__main__":
    sys.exit(main())
