"""What an instrument leaves in a run for the report: words, numbers as JSON, and a figure or picture.

``RUN/instruments/NAME.json`` holds title, caption, the figure's file name and the data; the report shows every one that
it finds, so an instrument needs to know nothing about the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from overture.analysis.figures import save_figure
from overture.files import replacing, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["InstrumentResult", "ReportEntry", "save_entries"]


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """One figure or picture with its words and numbers."""

    name: str
    title: str
    caption: str
    drawing: Figure | Image
    data: dict[str, Any] = field(default_factory=dict)


class InstrumentResult(Protocol):
    """What every instrument's ``study`` returns."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

    def describe(self) -> str:
        """A table or some lines for people."""

    def entries(self) -> Sequence[ReportEntry]:
        """What the report shows; the first one's figure is the one to plot."""


def save_entries(result: InstrumentResult, folder: Path, about: dict[str, Any]) -> None:
    """Write every figure into ``folder``, and beside it its words and numbers (with ``about``: which models they are of)."""
    from PIL.Image import Image

    for entry in result.entries():
        picture = isinstance(entry.drawing, Image)
        path = folder / f"{entry.name}{'.png' if picture else '.svg'}"
        if picture:
            with replacing(path) as temporary:
                entry.drawing.save(temporary, format="PNG")  # type: ignore[union-attr]
        else:
            save_figure(entry.drawing, path)  # type: ignore[arg-type]
        data = {**about, **entry.data} if entry.data else {}
        words = {"title": entry.title, "caption": entry.caption, "figure": path.name}
        write_json(folder / f"{entry.name}.json", {**words, "data": data})
