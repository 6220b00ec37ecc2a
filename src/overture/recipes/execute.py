"""Runs all the runs of a recipe, side by side where that is faster, and writes their report.

Under ``torchrun``, or with one run, everything happens in this process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overture.config import differences
from overture.errors import OvertureError, UsageError
from overture.processes import Processes
from overture.progress import SilentProgress, TerminalProgress, stoppable
from overture.report import write_report
from overture.runs.checks import check_run, check_weights, needed_networks
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory, runs_inside
from overture.runs.pool import Pool, available_cores
from overture.runs.worker import Task, run_task

__all__ = ["default_jobs", "execute_recipe", "network_tasks"]


def execute_recipe(
    configs: Sequence[RunConfig],
    root: Path,
    *,
    title: str,
    several: bool,
    jobs: int = 0,
    device: str = "auto",
    until: str = "report",
    log: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run all ``configs`` and write the report; returns the results by run name.

    The one run of a recipe lies right in ``root``; of a recipe that has ``several``, each lies in a directory of its
    name, also when only one of them is asked for, and the report shows all that are there. ``jobs`` runs are worked on
    at once (0: one for each core, or one where there is an accelerator). ``log`` names loggers (:mod:`overture.loggers`).
    """
    if jobs < 0:
        raise UsageError(f"--jobs is {jobs}, needs >= 1 (or 0: as cores allow)")
    networks = root / "networks"
    tasks = [
        Task(c.name, c, str(root / c.name if several else root), str(networks), until=until, device=device, log=log)
        for c in configs
    ]
    main = True
    with stoppable():
        if len(configs) == 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            main = _run_here(tasks, device)
        else:
            for config, task in zip(configs, tasks, strict=True):  # before networks are trained for all of them
                resolved = config.resolve(config.data.build().num_classes)
                check_run(resolved, until=until)
                if not RunDirectory(task.root).tokenizer_model.exists():
                    check_weights(resolved)
            width = min(jobs or default_jobs(device), len(tasks))
            Pool(width).run_all(network_tasks(configs, root, networks, device))
            Pool(width).run_all(tasks)
    if not main:
        return {}
    runs = {task.label: RunDirectory(Path(task.root), networks) for task in tasks}
    if until != "report":
        return {"runs": {name: {"path": str(run.root)} for name, run in runs.items()}}
    others = [path for path in runs_inside(root) if path.name not in runs]
    shown = [*runs.values(), *(RunDirectory(other, networks) for other in others)]
    report = write_report(sorted(shown, key=lambda run: run.root.name), root / "report.html", title)
    print(f"report: {report}", file=sys.stderr)
    failed = {name: run.read_results().failed for name, run in runs.items() if run.read_results().failed}
    if failed:
        parts = "; ".join(f"{name}: {part} ({why})" for name, all_of in failed.items() for part, why in all_of.items())
        raise OvertureError(f"everything is done but what could not be measured: {parts}; the same command tries again")
    return {"runs": {name: run.read_results().to_dict() for name, run in runs.items()}, "report": str(report)}


def _run_here(tasks: Sequence[Task], device: str) -> bool:
    """One task after the other, in this process; returns whether it is the main one."""
    processes = Processes.join(device)
    for task in tasks:
        progress = TerminalProgress(task.label) if processes.is_main else SilentProgress()
        try:
            run_task(task, progress, processes)
        finally:
            progress.finish()  # an error is told below the bar, not above it
    processes.leave()
    return processes.is_main


def network_tasks(configs: Sequence[RunConfig], root: Path, networks: Path, device: str) -> list[Task]:
    """The domain networks that the runs share; they have to agree on them, or could not be compared."""
    tasks: dict[str, Task] = {}
    for config in configs:
        for name in needed_networks(config):
            field = "judge" if name == "judge" else "perceptual_network"
            known = tasks.get(name)
            if known and differences(getattr(known.config, field), getattr(config, field)):
                raise UsageError(f"the runs {known.config.name} and {config.name} have different settings of {field}")
            if not (networks / f"{name}.safetensors").exists():
                tasks.setdefault(name, Task(name, config, str(root), str(networks), network=name, device=device))
    return list(tasks.values())


def default_jobs(device: str) -> int:
    """How many runs are worked on at once: one where there is an accelerator, else one for each core."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    return len(available_cores())
