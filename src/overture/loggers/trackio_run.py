"""Trackio: on this machine, or on a Space that ``TRACKIO_SPACE_ID`` names. ``TRACKIO_PROJECT`` names the project."""

from __future__ import annotations

import os

from overture.loggers.logger import Line, Picture, Record, RunLogger

__all__ = ["TrackioLogger"]


class TrackioLogger(RunLogger):
    """One run of Trackio for a run of ours. It knows runs by their names, so ours have their ids in them."""

    package = "trackio"

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        import trackio

        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "overture"),
            name=f"{record.name} {record.id}",
            config=dict(record.config),
            resume="allow",
            embed=False,
        )

    def numbers(self, line: Line) -> None:
        """``STAGE/NAME``."""
        self.run.log({f"{line.stage}/{name}": value for name, value in line.values.items()}, step=line.step)

    def picture(self, picture: Picture) -> None:
        """An image."""
        import trackio

        self.run.log({picture.name: trackio.Image(str(picture.path))}, step=picture.step)

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self.run.finish()
