"""One run in a process of its own: ``python -m overture.runs.worker TASK``, with the task as JSON.

Progress goes to stdout as JSON lines (see :class:`overture.training.progress.WireProgress`); the last line of a failed
task is ``{"error": .., "status": ..}``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.processes import Processes
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute, train_network
from overture.training.progress import Interrupted, Progress, WireProgress, stoppable

__all__ = ["Task", "run_task"]


@dataclass(frozen=True)
class Task:
    """What to do: all stages of a run up to ``until``, or (``network``) one of its domain networks."""

    label: str
    config: RunConfig
    root: str
    networks: str
    network: str = ""
    until: str = "report"
    device: str = "auto"

    def to_json(self) -> str:
        """As the worker reads it."""
        return json.dumps(to_dict(self))


def run_task(task: Task, progress: Progress, processes: Processes) -> None:
    """Do it, in this process."""
    run = RunDirectory(Path(task.root), Path(task.networks))
    if task.network:
        data = task.config.data.build()
        train_network(task.config.resolve(data.num_classes), data, task.network, run, progress, processes)
    elif processes.is_main:
        with run.locked():
            execute(task.config, run, progress, processes, task.until)
    else:
        execute(task.config, run, progress, processes, task.until)


def main() -> int:
    """Do the task given as the first argument."""
    progress = WireProgress()
    failure: dict[str, Any] | None = None
    with stoppable():
        try:
            task = from_dict(Task, json.loads(sys.argv[1]), "task")
            run_task(task, progress, Processes.join(task.device))
        except UsageError as error:
            failure = {"error": str(error), "status": 2}
        except Interrupted as error:
            failure = {"error": str(error), "status": 130}
        except OvertureError as error:
            failure = {"error": str(error), "status": 1}
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            failure = {"error": f"{where}{error.strerror or error}; what was saved before is kept", "status": 1}
    progress.finish()
    if failure:
        print(json.dumps(failure), flush=True)
        return failure["status"]
    return 0


if __name__ == "__main__":
    sys.exit(main())
