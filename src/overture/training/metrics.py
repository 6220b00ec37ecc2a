"""``metrics.jsonl``: one line per logged step, cut back on resume so that it reads as if nothing had happened."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overture.errors import OvertureError

__all__ = ["MetricLog", "check_finite", "read_metrics"]


class MetricLog:
    """Appends ``{"stage": .., "step": .., name: value, ..}`` lines for one stage."""

    def __init__(self, path: Path, stage: str, start_step: int = 0) -> None:
        self.path, self.stage = path, stage
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [r for r in read_metrics(path) if r["stage"] != stage or r["step"] <= start_step]
            temporary = path.with_name(f".{path.name}.partial")
            try:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
                temporary.replace(path)
            except OSError as error:
                raise self._cannot_write(error) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; non-finite values are left out (JSON has no word for them)."""
        finite = {name: round(float(value), 6) for name, value in values.items() if math.isfinite(value)}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"stage": self.stage, "step": step, **finite}) + "\n")
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> OvertureError:
        return OvertureError(
            f"{self.path}: cannot write ({error.strerror}); free some space and run the same command again"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete line; a last line cut off by a crash is dropped."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def check_finite(terms: Mapping[str, Tensor], stage: str, step: int) -> None:
    """Stop with the name of the first term that is NaN or infinite."""
    names = list(terms)
    finite = torch.isfinite(torch.stack([terms[name].detach().float() for name in names]))
    if not bool(finite.all()):
        name = names[int((~finite).nonzero()[0])]
        value = float(terms[name].detach())
        raise OvertureError(
            f"{stage}: the term '{name}' is {value} at step {step}; the last good checkpoint is kept "
            "(lower the learning rate, or look at the data of this step)"
        )
