"""One run in a process of its own: ``python -m overture.runs.worker TASK``, with the task as JSON.

Progress goes to stdout as JSON lines (see :class:`overture.progress.WireProgress`); the last line of a failed
task is ``{"error": .., "status": ..}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.last_resort import as_line
from overture.loggers.attached import following
from overture.processes import Processes, end_with_parent
from overture.progress import Interrupted, Progress, WireProgress, stoppable
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute, train_network

__all__ = ["Task", "run_task"]


@dataclass(frozen=True)
class Task:
    """What to do: all stages of a run up to ``until``, or (``network``) one of its domain networks."""

    MODULE: ClassVar[str] = "overture.runs.worker"
    """Whose ``python -m MODULE TASK`` does it."""

    label: str
    config: RunConfig
    root: str
    networks: str
    network: str = ""
    until: str = "report"
    device: str = "auto"
    log: tuple[str, ...] = ()
    """Loggers by name (:mod:`overture.loggers`). They change no number, so they are no part of the config."""

    def to_json(self) -> str:
        """As the worker reads it."""
        return json.dumps(to_dict(self))

    def is_done(self) -> bool:
        """Whether someone has done it all by the time that the run is locked; a plain run looks at its own files."""
        return False

    def conclude(self, run: RunDirectory, progress: Progress, processes: Processes) -> None:
        """What follows the last stage, with the run still locked; of a plain run nothing."""


def run_task(task: Task, progress: Progress, processes: Processes) -> None:
    """Do it, in this process. Whatever goes wrong is one line; of the unforeseen, ``traceback.txt`` in the run tells all."""
    run = RunDirectory(Path(task.root), Path(task.networks))
    try:
        if task.network:
            data = task.config.data.build()
            train_network(task.config.resolve(data.num_classes), data, task.network, run, progress, processes)
        else:
            log = task.log if processes.is_main else ()
            with _locked(run, processes), following(log, run.root, progress.say):
                if not processes.any(processes.is_main and task.is_done()):
                    execute(task.config, run, progress, processes, task.until)
                    task.conclude(run, progress, processes)
    except OvertureError:
        raise
    except Exception as error:
        raise as_line(error, run.root / "traceback.txt") from error


@contextmanager
def _locked(run: RunDirectory, processes: Processes) -> Iterator[None]:
    """The run for these processes alone. A refusal is told by the main one; the others, which wait here, end silently."""
    refusal: BaseException = SystemExit(1)
    with ExitStack() as stack:
        try:
            if processes.is_main:
                stack.enter_context(run.locked())
            refused = False
        except OvertureError as error:
            refusal, refused = error, True
        if processes.any(refused):
            raise refusal
        yield


def main(kind: type[Task] = Task) -> int:
    """Do the task of this kind given as the first argument."""
    progress = WireProgress()
    failure: dict[str, Any] | None = None
    end_with_parent()
    with stoppable():
        try:
            task = from_dict(kind, json.loads(sys.argv[1]), "task")
            run_task(task, progress, Processes.join(task.device))
        except OvertureError as error:
            status = 130 if isinstance(error, Interrupted) else 2 if isinstance(error, UsageError) else 1
            failure = {"error": str(error), "status": status}
    progress.finish()
    if failure:
        print(json.dumps(failure), flush=True)
        return failure["status"]
    return 0


if __name__ == "__main__":
    sys.exit(main())
