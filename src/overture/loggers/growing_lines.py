"""Reading, again and again, files of lines that another process adds to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from overture.errors import OvertureError

__all__ = ["GrowingLines"]

Entry = dict[str, Any]


class GrowingLines:
    """The lines of a ``metrics.jsonl`` or ``pace.jsonl`` that were not read yet.

    A run that goes on writes such a file anew, without the lines of steps that it repeats. Then all lines are read again,
    from the first, and ``anew`` is true.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file_number, self.offset = -1, 0
        self.anew = False

    def read(self) -> list[Entry]:
        """What is new since the last call, without a last line that is not finished; nothing where there is no file."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                self.anew = about.st_ino != self.file_number or about.st_size < self.offset
                self.offset = 0 if self.anew else self.offset
                self.file_number = about.st_ino
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            self.anew, self.offset = self.offset > 0, 0
            return []
        except OSError as error:
            raise OvertureError(f"{self.path}: cannot read it ({error.strerror})") from error
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [self._entry(line) for line in whole.splitlines()]

    def _entry(self, line: bytes) -> Entry:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or type(entry.get("stage")) is not str or type(entry.get("step")) is not int:
            raise OvertureError(
                f"{self.path}: damaged (a line is no JSON object with stage and step); repair or delete it"
            )
        odd = next((name for name, x in entry.items() if name != "stage" and type(x) not in (int, float)), None)
        if odd is not None:
            raise OvertureError(
                f"{self.path}: damaged ('{odd}' of step {entry['step']} is no number); repair or delete it"
            )
        return entry
