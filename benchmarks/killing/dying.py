"""Runs ``overture`` and dies at the n-th touch of its directory, by SIGKILL, with no time for anything.

A touch is a file opened for writing, a rename, a removal, a folder made or dropped, rights changed: every moment in which
a save is half done. At an appending to a file of lines half a line is left there, as a power cut leaves it.

    python benchmarks/killing/dying.py DIRECTORY 40,25,0 run quickstart --tiny --out DIRECTORY ...

dies at the 40th touch, begins again, dies at the 25th, begins again and goes on to the end (0), in processes forked from
one that has imported everything. Prints the touches of a process that came to its end. Of several ranks the first dies.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR


class Touches:
    """Counts the touches of a directory, and ends the process at the chosen one."""

    def __init__(self, directory: Path, last: int) -> None:
        self.directory, self.last, self.count = str(directory.absolute()), last, 0

    def hook(self, event: str, words: tuple[Any, ...]) -> None:
        """For ``sys.addaudithook``."""
        if event == "open":
            if not (isinstance(words[2], int) and words[2] & WRITING):
                return
        elif event not in EVENTS:
            return
        if not isinstance(words[0], str | os.PathLike):
            return
        path = os.fspath(words[0])
        # A removed tree is gone through by names relative to its open folders.
        inside = os.path.abspath(path).startswith(self.directory) or (event == "os.remove" and words[1] != -1)
        if not inside:
            return
        self.count += 1
        if self.count == self.last:
            if event == "open" and path.endswith(".jsonl"):
                with open(path, "ab") as file:
                    file.write(b'{"stage": "tokeni')
            os.kill(os.getpid(), signal.SIGKILL)


def run_forked(directory: Path, last: int, command: Callable[[], int]) -> int:
    """One life of a command; returns its exit status, as a shell tells it."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status if status >= 0 else 128 - status
    touches = Touches(directory, last)
    if os.environ.get("RANK", "0") == "0":
        sys.addaudithook(touches.hook)
    status = 1
    try:
        status = command()
        print(f"{touches.count} touches", flush=True)
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    """The lives that the arguments ask for; returns the exit status of the last."""
    # Once for all children: everything that a run imports, be it late.
    import overture.cli.run
    import overture.recipes.execute  # noqa: F401
    from overture.cli import main as overture_command
    from overture.recipes import recipe_configs
    from overture.runs.checks import check_run

    check_run(recipe_configs("quickstart", tiny=True)[0].resolve(10))
    directory, ends, *words = sys.argv[1:]
    command = partial(overture_command, words)
    return [run_forked(Path(directory), int(last), command) for last in ends.split(",")][-1]


if __name__ == "__main__":
    sys.exit(main())
