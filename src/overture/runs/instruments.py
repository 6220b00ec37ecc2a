"""What an instrument (probe, prefix, attention, ...) leaves in a run: its numbers as JSON, and a figure for the report.

``RUN/instruments/NAME.json`` holds title, caption, the figure's file name and the data; the report shows every one that
it finds, so an instrument needs to know nothing about the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overture.errors import OvertureError
from overture.runs.directory import write_json

__all__ = ["FOLDER", "Finding", "run_directory_of", "save_finding"]

FOLDER = "instruments"


@dataclass(frozen=True)
class Finding:
    """One figure or picture with its words and numbers."""

    name: str
    title: str
    caption: str
    data: dict[str, Any]
    figure: str
    """File name of the figure beside the JSON."""


def save_finding(run: Path, finding: Finding) -> Path:
    """Write the JSON beside the figure; returns its path."""
    path = run / FOLDER / f"{finding.name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OvertureError(f"{path.parent}: cannot write there ({error.strerror})") from error
    about = {"title": finding.title, "caption": finding.caption, "figure": finding.figure}
    write_json(path, {**about, "data": finding.data})
    return path


def run_directory_of(path: str) -> Path | None:
    """The run directory called ``path``; None for anything else (a model file, a hub id)."""
    place = Path(path)
    return place if (place / "config.json").is_file() and (place / "tokens").is_dir() else None
