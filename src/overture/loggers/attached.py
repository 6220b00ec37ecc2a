"""The loggers of a run at work: begun beside its main process, ended with it, and left out where they fail."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from overture.loggers.follower import logger_folder

__all__ = ["following"]

Say = Callable[[str], None]

LAST_WAIT = 60.0
"""Seconds that a run waits at its end for loggers that are still sending: for all of them together."""


@contextmanager
def following(names: Sequence[str], run: Path, say: Say) -> Iterator[None]:
    """Within, the loggers called ``names`` are told what the run in the folder ``run`` writes.

    Nothing that becomes of them is an error: ``say`` is told it, once for each.
    """
    loggers = [_Attached(name, run, say) for name in names]
    try:
        yield
    finally:
        for logger in loggers:
            logger.end()
        deadline = time.monotonic() + LAST_WAIT
        for logger in loggers:
            logger.wait(deadline)


class _Attached:
    """A process that follows the run for one logger."""

    def __init__(self, name: str, run: Path, say: Say) -> None:
        self.name, self.say, self.told = name, say, False
        self.log = logger_folder(run, name) / "printed.log"
        self.process: subprocess.Popen[str] | None = None
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "overture.loggers.follower", str(run), name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,  # Ctrl-C is for the run, which ends this one when it has saved
                )
        except OSError as error:
            self._left_out(str(error))
            return
        self.listener = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self.listener.start()

    def end(self) -> None:
        """There will be no more news."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):  # it is gone, which its listener tells
                self.process.stdin.close()

    def wait(self, deadline: float) -> None:
        """Until everything is told, or until ``deadline`` on the monotonic clock; then it goes on by itself."""
        if self.process is None:
            return
        self.listener.join(max(0.0, deadline - time.monotonic()))
        if self.listener.is_alive():
            self.say(f"--log {self.name}: is still sending, and goes on by itself (see {self.log})")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._left_out(line.strip())
        status = process.wait()
        if status:
            self._left_out(f"its process ended with status {status}, see {self.log}")

    def _left_out(self, reason: str) -> None:
        if not self.told:
            self.told = True
            self.say(f"--log {self.name} failed and is left out: {reason} (metrics.jsonl has every number)")
