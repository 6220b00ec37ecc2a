"""What the classes of a run are called."""

from __future__ import annotations

from pathlib import Path

from overture.files import read_json
from overture.runs.directory import RunDirectory

__all__ = ["class_names"]


def class_names(path: str | Path | None, num_classes: int) -> list[str]:
    """The names of the classes, where the run knows them; else padded numbers, which sort as they count."""
    known = RunDirectory(path).classes if path else None
    if known is not None and known.is_file():
        names = [str(name) for name in read_json(known, list)]
        if len(names) == num_classes and len(set(names)) == num_classes:
            return names
    width = len(str(num_classes - 1))
    return [f"{number:0{width}d}" for number in range(num_classes)]
