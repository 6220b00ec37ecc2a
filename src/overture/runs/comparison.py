"""A recipe's runs, side by side: one core each where there are cores, then one report.

Two processes of one thread are faster than one process of two threads on small models, so each run gets a process of
its own, pinned to its share of the cores. Under ``torchrun``, or with one run, everything happens in this process.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overture.errors import OvertureError, UsageError
from overture.report import write_report
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.stages import needed_networks
from overture.runs.worker import Task, perform
from overture.training.distributed import World
from overture.training.progress import Interrupted, SilentProgress, TerminalProgress, stop_requested, stoppable

__all__ = ["execute_recipe"]


def execute_recipe(
    configs: Sequence[RunConfig],
    root: Path,
    *,
    title: str,
    several: bool,
    jobs: int = 0,
    device: str = "auto",
    until: str = "report",
) -> dict[str, Any]:
    """Run all ``configs`` and write the report; returns the results by run name.

    The one run of a recipe lies right in ``root``; of a recipe that has ``several``, each lies in a directory of its
    name, also when only one of them is asked for, and the report shows all that are there. ``jobs`` runs are worked on at once (0: one for each core, or one where there is an accelerator).
    """
    if jobs < 0:
        raise UsageError(f"--jobs is {jobs}, needs >= 1 (or 0: as cores allow)")
    single = len(configs) == 1
    networks = root / "networks"
    tasks = [
        Task(c.name, c, str(root / c.name if several else root), str(networks), until=until, device=device)
        for c in configs
    ]
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    jobs = jobs or _default_jobs(device)
    main = True
    with stoppable():
        if single or distributed:
            world = World.join(device)
            main = world.is_main
            for task in tasks:
                progress = TerminalProgress(task.label) if main else SilentProgress()
                try:
                    perform(task, progress, world)
                finally:
                    progress.finish()  # an error is told below the bar, not above it
        else:
            _Pool(min(jobs, len(tasks))).perform(_network_tasks(configs, root, networks, device))
            _Pool(min(jobs, len(tasks))).perform(tasks)
    runs = {task.label: RunDirectory(Path(task.root), networks) for task in tasks}
    if not main:
        return {}
    if until != "report":
        return {"runs": {name: {"path": str(run.root)} for name, run in runs.items()}}
    others = sorted(path.parent for path in root.glob("*/config.json") if path.parent.name not in runs)
    shown = [*runs.values(), *(RunDirectory(other, networks) for other in others)]
    report = write_report(sorted(shown, key=lambda run: run.root.name), root / "report.html", title)
    print(f"report: {report}", file=sys.stderr)
    return {"runs": {name: run.read_results() for name, run in runs.items()}, "report": str(report)}


def _network_tasks(configs: Sequence[RunConfig], root: Path, networks: Path, device: str) -> list[Task]:
    """The domain networks that the runs share; they have to agree on them, or could not be compared."""
    tasks: dict[str, Task] = {}
    for config in configs:
        for name in needed_networks(config):
            field = "judge" if name == "judge" else "perceptual_network"
            known = tasks.get(name)
            if known and getattr(known.config, field) != getattr(config, field):
                raise UsageError(f"the runs {known.config.name} and {config.name} have different settings of {field}")
            if not (networks / f"{name}.safetensors").exists():
                tasks.setdefault(name, Task(name, config, str(root), str(networks), network=name, device=device))
    return list(tasks.values())


def _default_jobs(device: str) -> int:
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    return len(_cores())


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class _Pool:
    """Performs tasks in worker processes, ``width`` at a time, and draws their progress."""

    def __init__(self, width: int) -> None:
        self.width = width
        cores = _cores()
        share = max(1, len(cores) // width)
        self.shares = [
            [cores[n % len(cores)] for n in range(place * share, (place + 1) * share)] for place in range(width)
        ]
        self.events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.bars = [TerminalProgress(position=place) for place in range(width)]
        self.labels = [""] * width
        self.failure: dict[str, Any] | None = None

    def perform(self, tasks: Sequence[Task]) -> None:
        """Do all tasks; the first failure stops the others politely and is raised."""
        waiting = list(tasks)
        told = False
        while waiting or self.workers:
            while waiting and len(self.workers) < self.width and not self.failure and not stop_requested():
                self._start(waiting.pop(0))
            if (self.failure or stop_requested()) and not told:
                told = True
                waiting.clear()
                for worker in self.workers.values():
                    worker.send_signal(signal.SIGTERM)
            try:
                place, event = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            self._show(place, event)
        for bar in self.bars:
            bar.finish()
        if self.failure:
            message = f"{self.failure['label']}: {self.failure['error']}"
            kinds: dict[int, type[OvertureError]] = {2: UsageError, 130: Interrupted}
            raise kinds.get(self.failure["status"], OvertureError)(message)
        if stop_requested():
            raise Interrupted("stopped; the same command goes on")

    def _start(self, task: Task) -> None:
        place = next(place for place in range(self.width) if place not in self.workers)
        cores = self.shares[place]
        log = Path(task.root) / "worker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "overture.runs.worker", task.to_json()],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(len(cores)), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C reaches us alone; we pass it on
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
            except ValueError:  # some library prints there
                continue
            failed = failed or "error" in event
            self.events.put((place, event))
        if worker.wait() and not failed:
            self.events.put((place, {"error": f"the process died; see {log}", "status": 1}))
        self.events.put((place, None))

    def _show(self, place: int, event: dict[str, Any] | None) -> None:
        bar = self.bars[place]
        if event is None:
            bar.finish()
            del self.workers[place]
        elif "error" in event:
            self.failure = self.failure or {**event, "label": self.labels[place]}
        elif "start" in event:
            bar.start(event["start"], event["total"], event["done"], event["unit"])
        elif "advance" in event:
            bar.advance(event["advance"], **event["shown"])
        elif "say" in event:
            bar.say(event["say"])
