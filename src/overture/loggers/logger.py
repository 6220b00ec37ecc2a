"""What a logger is. Ours and anyone's derive from :class:`RunLogger`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["Line", "Picture", "Record", "RunLogger"]


@dataclass(frozen=True)
class Record:
    """Which run a logger writes of."""

    id: str
    """The same whenever this run goes on, and no other run's: 16 hexadecimal digits."""
    name: str
    """The last two folders of its path, such as ``quickstart/vcq``."""
    config: Mapping[str, Any]
    """What ``config.json`` holds."""
    folder: Path
    """A folder in the run for this logger alone; it is there."""
    resumed: bool
    """Whether this logger has been told something of the run before."""


@dataclass(frozen=True)
class Line:
    """Numbers of one step of a stage.

    ``row`` counts what this logger is told of the run, from 0, over all its resumes. Steps count anew in every stage;
    those of one name in one stage only go up. A result that is measured again is told again, at the same step if none was
    made since.
    """

    row: int
    stage: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """A PNG that the run has made: ``name`` is what it shows, ``step`` the step of the model that it is of."""

    row: int
    name: str
    step: int
    path: Path


class RunLogger:
    """Begins, or goes on with, the record of a run; told everything once, in order.

    Whatever it raises, it is left out from then on, and the run goes on. It works in a process of its own.
    """

    package: ClassVar[str] = ""
    """The package that has to be installed, by the name it is imported with; nothing: none."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def numbers(self, line: Line) -> None:
        """Some more numbers."""
        raise NotImplementedError

    def picture(self, picture: Picture) -> None:
        """A picture; a logger of numbers alone needs nothing here."""

    def flush(self) -> None:
        """All that is new for now has been told."""

    def close(self) -> None:
        """The run has ended or was stopped; it may go on later, with another object."""
