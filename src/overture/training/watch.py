"""Measurements during training: when they are due, and what happens when one fails.

What is measured is the caller's business (:class:`Watch`); here it is fitted into a training loop. A measurement changes
nothing of the training. One that fails stops the run with its reason after the state is saved, and is made again when
the run goes on.
"""

from __future__ import annotations

from typing import Protocol

from overture.errors import OvertureError
from overture.training.keeper import Keeper
from overture.training.metrics import MetricLog
from overture.training.progress import Interrupted

__all__ = ["Watch", "observe"]


class Watch(Protocol):
    """Something that looks at a model in training from time to time."""

    def pending(self, step: int) -> bool:
        """Whether a measurement is due at this step and not yet made."""
        ...

    def measure(self, step: int) -> dict[str, float]:
        """Look at the model as it is after ``step`` steps; numbers by name."""
        ...


def observe(watch: Watch | None, keeper: Keeper, log: MetricLog | None) -> None:
    """Measure if it is due, on the main process; the others go on and wait for it at their next exchange."""
    trainer = keeper.trainer
    if watch is None or log is None or not trainer.world.is_main or not watch.pending(trainer.step):
        return
    try:
        values = watch.measure(trainer.step)
    except Interrupted:
        keeper.save()
        raise
    except Exception as error:
        keeper.save()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OvertureError(
            f"measuring at step {trainer.step} of stage {keeper.stage} failed ({reason}); the state is saved, the same "
            "command measures again and goes on"
        ) from error
    log.write(trainer.step, values)
