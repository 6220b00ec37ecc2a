"""When a stage's state is saved: from time to time, when the user asks to stop, and at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from overture.training.checkpoint import latest_step, save_state
from overture.training.distributed import World
from overture.training.progress import Interrupted, stop_requested

__all__ = ["Keeper"]


class Trainer(Protocol):
    """What a stage trains."""

    step: int
    world: World

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ...


class Keeper:
    """Saves ``trainer`` into ``directory`` every ``minutes``; ``stage`` and ``steps`` (its last) are for the messages."""

    def __init__(self, trainer: Trainer, directory: Path, stage: str, steps: int, minutes: float) -> None:
        self.trainer, self.directory, self.stage, self.steps, self.minutes = trainer, directory, stage, steps, minutes
        self.last_save = time.monotonic()

    def after_step(self) -> None:
        """Save if it is time or the user asks to stop; then raises :class:`Interrupted`, unless this was the last step.

        All processes agree: they hear of the main process's clock and of everyone's signals.
        """
        world = self.trainer.world
        stop = world.any(stop_requested())
        if stop or world.any(world.is_main and time.monotonic() - self.last_save > 60 * self.minutes):
            self.save()
            self.last_save = time.monotonic()
        if stop and self.trainer.step < self.steps:
            raise Interrupted(
                f"stopped in stage {self.stage} at step {self.trainer.step}, saved; the same command goes on"
            )

    def finish(self) -> None:
        """Keep the last state until the model is saved: should that fail, nothing is lost."""
        if latest_step(self.directory) != self.trainer.step:
            self.save()

    def save(self) -> None:
        """Save now."""
        if self.trainer.world.is_main:
            save_state(self.directory, self.trainer.step, self.trainer.state_dict())
