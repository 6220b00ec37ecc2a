"""Worker processes for several runs at once: one core each where there are cores.

Two processes of one thread are faster than one process of two threads on small models, so each run gets a process of
its own, pinned to its share of the cores.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from overture.errors import OvertureError, UsageError
from overture.progress import Interrupted, TerminalProgress, stop_requested
from overture.runs.worker import Task

__all__ = ["Pool", "available_cores"]

# Ctrl-C reaches us alone; we pass it on, by what a worker's `stoppable` heeds.
if sys.platform == "win32":
    APART: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    POLITE_STOP = signal.CTRL_BREAK_EVENT  # SIGTERM would end it at once
else:
    APART: dict[str, Any] = {"start_new_session": True}
    POLITE_STOP = signal.SIGTERM


def available_cores() -> list[int]:
    """The processor numbers that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Pool:
    """Performs tasks in worker processes, ``width`` at a time, and draws their progress.

    Each has ``threads`` cores, or its share of all.
    """

    def __init__(self, width: int, threads: int = 0) -> None:
        self.width = width
        cores = available_cores()
        share = threads or max(1, len(cores) // width)
        self.shares = [
            [cores[n % len(cores)] for n in range(place * share, (place + 1) * share)] for place in range(width)
        ]
        self.events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.bars = [TerminalProgress(position=place) for place in range(width)]
        self.labels = [""] * width
        self.failures: list[dict[str, Any]] = []

    def run_all(self, tasks: Sequence[Task]) -> None:
        """Do all tasks; the first failure stops the others politely and is raised."""
        self._work(tasks, lambda: bool(self.failures) or stop_requested())
        if self.failures:
            raise _as_error(self.failures[0], f"{self.failures[0]['label']}: ")
        if stop_requested():
            raise Interrupted("stopped; the same command goes on")

    def run_each(self, tasks: Sequence[Task]) -> dict[str, OvertureError]:
        """Do all tasks, whatever becomes of each; returns the failures by label. Only the user's stop ends them all."""
        self._work(tasks, stop_requested)
        if stop_requested():
            raise Interrupted("stopped; the same command goes on")
        return {failure["label"]: _as_error(failure) for failure in reversed(self.failures)}

    def _work(self, tasks: Sequence[Task], ended: Callable[[], bool]) -> None:
        """Do all tasks; once it has ``ended``, begin none and stop those under way politely."""
        self.failures = []
        waiting = list(tasks)
        told = False
        while waiting or self.workers:
            while waiting and len(self.workers) < self.width and not ended():
                self._start(waiting.pop(0))
            if ended() and not told:
                told = True
                waiting.clear()
                for worker in self.workers.values():
                    worker.send_signal(POLITE_STOP)
            try:
                place, event = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            self._show(place, event)
        for bar in self.bars:
            bar.finish()

    def _start(self, task: Task) -> None:
        place = next(place for place in range(self.width) if place not in self.workers)
        cores = self.shares[place]
        log = Path(task.root) / "worker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", task.MODULE, task.to_json()],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(len(cores)), "PYTHONUNBUFFERED": "1"},
                **APART,
            )
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(worker.pid, cores)
        self.workers[place], self.labels[place] = worker, task.label
        self.bars[place].label = task.label
        threading.Thread(target=self._listen, args=(place, worker, log), daemon=True).start()

    def _listen(self, place: int, worker: subprocess.Popen[str], log: Path) -> None:
        """Pass on a worker's events; the end of its output is the event ``None``."""
        failed = False
        for line in worker.stdout or ():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):  # some library prints there
                continue
            failed = failed or "error" in event
            self.events.put((place, event))
        status = worker.wait()
        before_it_listened = status == -signal.SIGTERM and stop_requested()
        if status and not failed and not before_it_listened:
            reason = f"see {log}"
            if status < 0:  # so ends who is killed for memory
                reason = f"killed by {signal.Signals(-status).name}; was there enough memory?"
            self.events.put((place, {"error": f"the process died ({reason})", "status": 1}))
        self.events.put((place, None))

    def _show(self, place: int, event: dict[str, Any] | None) -> None:
        bar = self.bars[place]
        if event is None:
            bar.finish()
            del self.workers[place]
        elif "error" in event:
            self.failures.append({**event, "label": self.labels[place]})
        elif "start" in event:
            bar.start(event["start"], event["total"], event["done"], event["unit"])
        elif "advance" in event:
            bar.advance(event["advance"], **event["shown"])
        elif "say" in event:
            bar.say(event["say"])


def _as_error(failure: dict[str, Any], before: str = "") -> OvertureError:
    """A worker's last line as the error that it was."""
    kinds: dict[int, type[OvertureError]] = {2: UsageError, 130: Interrupted}
    return kinds.get(failure["status"], OvertureError)(f"{before}{failure['error']}")
