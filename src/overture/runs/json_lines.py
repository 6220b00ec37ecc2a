"""Files of one JSON value a line, added to while work goes on."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["complete_lines"]


def complete_lines(path: Path) -> list[str]:
    """The lines of a file. What an interruption left half written at its end is cut off, in the file as well."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return data[:end].decode().splitlines()
