"""What instruments left in a run (``overture.runs.instruments``), ready for the page."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from overture.errors import OvertureError

__all__ = ["read_findings"]

FOLDER = "instruments"
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def read_findings(run: Path) -> list[dict[str, Any]]:
    """Name, title, caption and the figure as a data URI of every finding; in the order of their names."""
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            title, caption, figure = (str(data[key]) for key in ("title", "caption", "figure"))
            kind = KINDS[Path(figure).suffix]
            content = (path.parent / Path(figure).name).read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OvertureError(f"{path}: damaged ({error!r}); run its command again, or delete it") from error
        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        found.append({"name": path.stem, "title": title, "caption": caption, "uri": uri, "pixels": kind == "image/png"})
    return found
