"""What instruments left in a run (``overture.analysis.entries``), ready for the page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from overture.errors import OvertureError
from overture.files import read_json

__all__ = ["read_entries"]

KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """Name, title, caption and the figure as a data URI of every entry; in the order of their names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        data = read_json(path, dict, "run its command again, or delete it")
        try:
            title, caption, figure = (str(data[key]) for key in ("title", "caption", "figure"))
            kind = KINDS[Path(figure).suffix]
            content = (path.parent / Path(figure).name).read_bytes()
        except (OSError, KeyError) as error:
            raise OvertureError(f"{path}: damaged ({error!r}); run its command again, or delete it") from error
        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        found.append({"name": path.stem, "title": title, "caption": caption, "uri": uri, "pixels": kind == "image/png"})
    return found
