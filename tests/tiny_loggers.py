"""Loggers of somebody else: one that writes down what it is told, and some that fail."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from overture.loggers.logger import Line, Picture, Record, RunLogger


def place(name: str) -> str:
    """How a logger of this file is called on the command line."""
    return f"{__file__}:{name}"


def told(run: Path, name: str = "Tells") -> list[dict[str, Any]]:
    """Everything that a logger of this file has written down."""
    path = run / "loggers" / f"tiny_loggers.py_{name}" / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


class Tells(RunLogger):
    """Writes down everything in its folder."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        print("some library talks")
        self._write({"begin": record.id, "name": record.name, "resumed": record.resumed, "process": os.getpid()})

    def numbers(self, line: Line) -> None:
        self._write({"row": line.row, "stage": line.stage, "step": line.step, "values": dict(line.values)})

    def picture(self, picture: Picture) -> None:
        self._write({"row": picture.row, "picture": picture.name, "step": picture.step, "file": picture.path.name})

    def close(self) -> None:
        self._write({"end": True})

    def _write(self, entry: dict[str, Any]) -> None:
        with (self.record.folder / "told.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


class LosesItsNetwork(Tells):
    """Fails at the second line."""

    def numbers(self, line: Line) -> None:
        if line.row > 0:
            raise ConnectionError("no route to host")
        super().numbers(line)


class Stumbles(Tells):
    """Fails once, at the third line."""

    def numbers(self, line: Line) -> None:
        if line.row == 2:
            raise ConnectionError("no route to host")
        super().numbers(line)


class CannotBegin(RunLogger):
    """Fails at once."""

    def __init__(self, record: Record) -> None:
        raise PermissionError("log in first")


class Dies(RunLogger):
    """Takes its process with it."""

    def numbers(self, line: Line) -> None:
        sys.stderr.write("a bug in C\n")
        sys.stderr.flush()
        os._exit(3)


class NeedsAPackage(Tells):
    """Of a package that nobody has."""

    package = "package_that_nobody_has"


class NoLogger:
    """Derives from nothing."""
