"""The loop that every stage of training shares: batches, log lines, measurements, checkpoints, the polite end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from overture.errors import OvertureError, error_line
from overture.processes import Processes
from overture.progress import Interrupted, Progress, stop_requested
from overture.training.checkpoint import resume, save_state
from overture.training.metric_log import MetricLog
from overture.training.pace import Pace
from overture.training.step import NonFinite

__all__ = ["Checkpointer", "Measure", "Monitor", "Trainer", "train"]

Measure = Callable[[int], dict[str, float]]
"""Numbers after so many steps; an empty answer where none are due. Every process calls it."""


class TrainingConfig(Protocol):
    """What the loop needs to know."""

    @property
    def steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def checkpoint_minutes(self) -> float: ...


class Trainer(Protocol):
    """What a stage trains: its step counter, its state, and what one batch does."""

    stage: str
    step: int
    processes: Processes
    nonfinite: NonFinite
    shown: tuple[str, ...]
    """Names of the numbers beside the progress bar."""

    @property
    def training(self) -> TrainingConfig: ...
    def train_batch(self, batch: Any) -> dict[str, Tensor]:
        """One step; losses and other scalars by name."""

    def logged(self, values: dict[str, float]) -> dict[str, float]:
        """What a log line holds: the values, means over processes, and what follows from them."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


class Monitor(Protocol):
    """Something that measures a model in training from time to time, and changes nothing of it."""

    def due(self, step: int) -> bool:
        """Whether a measurement is due at this step."""

    def measure(self, step: int) -> dict[str, float]:
        """Measure the model as it is after ``step`` steps, unless that is known already; numbers by name."""


def train(
    trainer: Trainer,
    batches: Callable[[int], Iterator[Any]],
    directory: Path,
    metrics: Path,
    progress: Progress,
    *,
    measure: Measure | None = None,
    monitor: Monitor | None = None,
) -> None:
    """Train to the end, from the last checkpoint in ``directory``, and save there.

    ``batches(step)`` gives the batches from that step on. ``measure`` is part of the stage, ``monitor`` is not: where it
    fails, the training goes on.

    Raises :class:`Interrupted` after saving when the user asks to stop.
    """
    training, processes = trainer.training, trainer.processes
    resume(trainer, directory)
    log = MetricLog(metrics, trainer.stage, trainer.step) if processes.is_main else None
    pace = Pace(metrics.with_name("pace.jsonl"), trainer.stage, trainer.step, processes.device) if log else None
    checkpointer = Checkpointer(trainer, directory)
    progress.start(trainer.stage, training.steps, trainer.step)
    _measure_if_due(monitor, trainer, log, progress)  # repeat one that failed before this restart
    stream = batches(trainer.step)
    while trainer.step < training.steps:
        try:
            batch = next(stream, None)
        except OvertureError:
            if processes.size == 1:  # between two steps: nothing that was learnt need be lost
                checkpointer.save()
            raise
        if batch is None:
            raise OvertureError(f"{trainer.stage}: the data stream ended early, at step {trainer.step}")
        terms = trainer.train_batch(batch)
        trainer.nonfinite.note(terms, trainer.step - 1)
        progress.advance(1)
        last = trainer.step == training.steps
        if trainer.step % training.log_every == 0 or last:
            if told := trainer.nonfinite.check(processes):
                progress.say(f"{trainer.stage}: {told}")
            names = sorted(terms)
            means = processes.mean(torch.stack([terms[name].detach().float() for name in names])).tolist()
            values = trainer.logged(dict(zip(names, means, strict=True)))
            if log and pace:
                log.write(trainer.step, values)
                pace.write(trainer.step)
            progress.advance(0, **{name: values[name] for name in trainer.shown if name in values})
        measured = measure(trainer.step) if measure else {}
        if log and measured:
            log.write(trainer.step, measured)
        _measure_if_due(monitor, trainer, log, progress)
        checkpointer.after_step()
    checkpointer.finish()
    progress.finish()


class Checkpointer:
    """Saves a trainer's state from time to time, when the user asks to stop, and at the end."""

    def __init__(self, trainer: Trainer, directory: Path) -> None:
        self.trainer, self.directory = trainer, directory
        # Remembered and not looked up: all processes have to know the same, whoever is still writing.
        self.saved_step = trainer.step
        self.last_save = time.monotonic()

    def after_step(self) -> None:
        """Save if it is time or the user asks to stop; then raises :class:`Interrupted`, unless this was the last step.

        All processes agree: they hear of the main process's clock and of everyone's signals.
        """
        trainer, processes = self.trainer, self.trainer.processes
        late = time.monotonic() - self.last_save > 60 * trainer.training.checkpoint_minutes
        stop, late = processes.any_of(stop_requested(), processes.is_main and late)
        if stop or late:
            self.save()
        if stop and trainer.step < trainer.training.steps:
            raise Interrupted(
                f"stopped in stage {trainer.stage} at step {trainer.step}, saved; the same command goes on"
            )

    def finish(self) -> None:
        """Keep the last state until the model is saved: should that fail, nothing is lost."""
        if self.saved_step != self.trainer.step:
            self.save()

    def save(self) -> None:
        """Save now, all processes together, unless the last step was skipped: the last good state has to stay."""
        self.last_save = time.monotonic()
        if not self.trainer.nonfinite.clean(self.trainer.processes):
            return
        state = self.trainer.state_dict()  # all processes: each may hold a part of it
        if self.trainer.processes.is_main:
            save_state(self.directory, self.trainer.step, state)
        self.saved_step = self.trainer.step


def _measure_if_due(monitor: Monitor | None, trainer: Trainer, log: MetricLog | None, progress: Progress) -> None:
    """A measurement that fails, for all processes then, is told, and the training goes on."""
    if monitor is None or not monitor.due(trainer.step):
        return
    try:
        values = monitor.measure(trainer.step)
    except Interrupted:
        return  # the stop is heeded, and the state saved, after this step; the same command measures again
    except Exception as error:
        progress.say(f"measuring at step {trainer.step} failed: {error_line(error)}")
        return
    if log and not log.holds(trainer.step, values):
        log.write(trainer.step, values)
