"""``overture watch RUN...``: runs as they stand, live in the terminal."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import print_json
from overture.errors import UsageError

if TYPE_CHECKING:
    from overture.watching.run_reader import RunReader, RunState

GRACE = 30.0
"""Seconds that a recipe with several runs may need between the end of one and the begin of the next."""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "watch",
        help="runs as they stand, live: progress, time left, curves",
        description="Example: overture watch runs/quickstart\n\n"
        "Show runs as they stand: stage, progress, time left, curves of the losses, last distances, throughput, memory. "
        "It only reads, so any run can be watched, whoever works in it. In a terminal the picture is renewed until no run "
        "is worked on any more, or Ctrl-C; elsewhere there is a line for each run when it has come further.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run, or a folder of runs (of a recipe, of bench)"
    )
    parser.add_argument("--once", action="store_true", help="show how it stands, and end")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and end")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the runs."""
    if not options.every > 0:
        raise UsageError(f"--every is {options.every:g}, needs > 0")
    screen = _Screen(options.runs)
    if options.json:
        states, errors = screen.look()
        print_json({"runs": [state.to_dict() for state in states], "errors": errors})
        return 1 if errors else 0
    if options.once:
        states, errors = screen.look()
        print("\n".join([*screen.frame(states, None), *errors]))
        return 1 if errors else 0
    try:
        return _watch(screen, options.every)
    except KeyboardInterrupt:  # how one leaves; the runs go on
        return 0


def _watch(screen: _Screen, every: float) -> int:
    """Until no run is worked on: at once, or for some time where one was."""
    states, errors = screen.look()
    live = any(state.state == "running" for state in states)
    last_live = time.monotonic()
    show = screen.redraw if sys.stdout.isatty() else screen.print_news
    show(states, errors)
    while live and time.monotonic() - last_live < GRACE:
        time.sleep(every)
        states, errors = screen.look()
        if any(state.state == "running" for state in states):
            last_live = time.monotonic()
        elif screen.complete and all(state.state == "finished" for state in states):
            live = False
        show(states, errors)
    return 1 if errors else 0


class _Screen:
    """The runs, and what was shown of them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.readers: dict[Path, RunReader] = {}
        self.height = 0
        self.told: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        """Whether no run can join those that are shown: a recipe's folder may get more."""
        return all((folder / "config.json").is_file() for folder in self.folders)

    def look(self) -> tuple[list[RunState], list[str]]:
        """All runs as they stand, those too that have begun since."""
        from overture.watching.run_reader import RunReader, find_runs, read_states

        for folder in self.folders:
            for root in find_runs(folder):
                if root not in self.readers:
                    self.readers[root] = RunReader(root)
        return read_states(self.readers.values())

    def frame(self, states: Sequence[RunState], height: int | None) -> list[str]:
        """As lines that fit the terminal."""
        from overture.watching.frame import draw_frame

        plain = not (sys.stdout.encoding or "").lower().startswith("utf")
        return draw_frame(states, shutil.get_terminal_size((100, 24)).columns - 1, height, plain=plain)

    def redraw(self, states: Sequence[RunState], errors: Sequence[str]) -> None:
        """In place of what was drawn before."""
        lines = self.frame(states, shutil.get_terminal_size().lines - 1 - len(errors)) + list(errors)
        up = f"\x1b[{self.height}F" if self.height else ""
        sys.stdout.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        self.height = len(lines)

    def print_news(self, states: Sequence[RunState], errors: Sequence[str]) -> None:
        """A line for each run that has come further."""
        from overture.watching.frame import one_line

        for state in states:
            where = f"{state.state} {state.stage} {[training.step for training in state.trainings]}"
            if self.told.get(state.path) != where:
                self.told[state.path] = where
                print(one_line(state), flush=True)
        for error in errors:
            if error not in self.told:
                self.told[error] = error
                print(error, flush=True)
