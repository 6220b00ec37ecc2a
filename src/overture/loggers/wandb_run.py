"""Weights & Biases. ``WANDB_MODE``, ``WANDB_PROJECT`` and its other variables of the environment mean what they always do."""

from __future__ import annotations

import os
from collections.abc import Mapping

from overture.loggers.logger import Line, Picture, Record, RunLogger

__all__ = ["WandbLogger"]


class WandbLogger(RunLogger):
    """One run of wandb for a run of ours, however often it goes on. Its steps are our rows, which never go back; each
    stage is drawn over its own steps."""

    package = "wandb"

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "overture"),
            id=record.id,
            name=os.environ.get("WANDB_NAME", record.name),
            config=dict(record.config),
            dir=str(record.folder),
            resume="allow",
            settings={"console": "off", "silent": True},  # as a dictionary: what it leaves out is the environment's
        )
        self.stages: set[str] = set()

    def numbers(self, line: Line) -> None:
        """``STAGE/NAME``."""
        values = {f"{line.stage}/{name}": value for name, value in line.values.items()}
        self._log(line.row, line.stage, line.step, values)

    def picture(self, picture: Picture) -> None:
        """An image."""
        import wandb

        stage = picture.name.partition("/")[0]
        self._log(picture.row, stage, picture.step, {picture.name: wandb.Image(str(picture.path))})

    def close(self) -> None:
        """Wait until everything is sent."""
        self.run.finish()

    def _log(self, row: int, stage: str, step: int, values: Mapping[str, object]) -> None:
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({**values, f"{stage}/step": step}, step=row)
