"""``metrics.jsonl``: one line per logged step, cut back on resume so that it reads as if nothing had happened."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from overture.errors import OvertureError
from overture.files import append_line, read_json_lines, replacing

__all__ = ["MetricLog", "read_metrics"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a ``metrics.jsonl``; refuses lines without stage and step, and values that are no numbers."""
    entries = read_json_lines(path, stage=str, step=int)
    for number, entry in enumerate(entries, start=1):
        odd = next((name for name, value in entry.items() if name != "stage" and not _is_number(value)), None)
        if odd is not None:
            raise OvertureError(f"{path}: damaged (line {number}: '{odd}' is no number); repair or delete it")
    return entries


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class MetricLog:
    """Appends ``{"stage": .., "step": .., name: value, ..}`` lines for one stage that goes on from ``start_step``."""

    def __init__(self, path: Path, stage: str, start_step: int = 0) -> None:
        self.path, self.stage = path, stage
        self.kept: list[dict[str, Any]] = []
        if path.exists():
            kept = [r for r in read_metrics(path) if r["stage"] != stage or r["step"] <= start_step]
            self.kept = [r for r in kept if r["stage"] == stage]
            with replacing(path) as temporary:
                lines = "".join(json.dumps(record) + "\n" for record in kept)
                temporary.write_text(lines, encoding="utf-8", newline="\n")

    def holds(self, step: int, names: Iterable[str]) -> bool:
        """Whether a line of before the start has these numbers of this step."""
        return any(record["step"] == step and record.keys() >= set(names) for record in self.kept)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; non-finite values are left out (JSON has no word for them)."""
        finite = {name: round(float(value), 6) for name, value in values.items() if math.isfinite(value)}
        append_line(self.path, {"stage": self.stage, "step": step, **finite})
