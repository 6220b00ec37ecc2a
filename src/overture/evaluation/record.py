"""Records of measurements in JSON files, and tables of several that mark what may not be compared."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overture.errors import OvertureError
from overture.evaluation.conditions import Measurement, differences
from overture.files import read_record

__all__ = ["Comparison", "Mark", "compare_records", "read_measurements"]

RECORD_NAMES = ("results.json", "evaluation.json")
"""Looked for in this order when a directory is given."""


@dataclass(frozen=True)
class Mark:
    """A number that was not made as the first one of its column was."""

    record: str
    metric: str
    reasons: tuple[str, ...]
    """``field: theirs, first: ours`` for every difference of the conditions."""


@dataclass(frozen=True)
class Comparison:
    """Rows are records, columns are metrics."""

    records: tuple[str, ...]
    metrics: tuple[str, ...]
    values: dict[tuple[str, str], Measurement]
    marks: tuple[Mark, ...]

    @property
    def shared(self) -> bool:
        """Whether any metric has numbers in two rows."""
        return len(self.values) > len({metric for _, metric in self.values})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [
            {
                "record": record,
                "values": {
                    metric: self.values[record, metric].to_dict()["value"]
                    for metric in self.metrics
                    if (record, metric) in self.values
                },
            }
            for record in self.records
        ]
        return {"rows": rows, "marks": [dataclasses.asdict(mark) for mark in self.marks]}


def read_measurements(path: Path) -> dict[str, Measurement]:
    """Every measurement in a record (or in a run directory), by where it stands in it."""
    if path.is_dir():
        found = next((path / name for name in RECORD_NAMES if (path / name).is_file()), None)
        if found is None:
            raise OvertureError(f"{path}: holds no {' or '.join(RECORD_NAMES)}")
        path = found
    data = read_record(path, "it is no record of evaluate --out or of a run")
    measurements: dict[str, Measurement] = {}
    entries = list(_entries(data, ""))
    named = Counter(str(entry["name"]) for _, entry in entries)
    for place, entry in entries:
        # The name tells most; where it stands tells apart what has one name (guided, unguided, real images).
        measurement = _measurement(entry, path)
        several = named[measurement.name] > 1
        measurements[f"{measurement.name} ({place})" if several else measurement.name] = measurement
    if not measurements:
        raise OvertureError(f"{path}: holds no measurements; records are written by evaluate --out and by run")
    return measurements


def compare_records(records: dict[str, dict[str, Measurement]]) -> Comparison:
    """A table of several records; a number made otherwise than the first of its column is marked."""
    metrics = tuple(dict.fromkeys(metric for values in records.values() for metric in values))
    values = {(name, metric): m for name, found in records.items() for metric, m in found.items()}
    marks = []
    for metric in metrics:
        holders = [name for name in records if (name, metric) in values]
        first = values[holders[0], metric]
        for name in holders[1:]:
            reasons = _reasons(values[name, metric], first)
            if reasons:
                marks.append(Mark(name, metric, reasons))
    return Comparison(tuple(records), metrics, values, tuple(marks))


def _reasons(measurement: Measurement, first: Measurement) -> tuple[str, ...]:
    theirs, ours = measurement.conditions, first.conditions
    reasons = [
        f"{field}: {_short(getattr(theirs, field))}, first: {_short(getattr(ours, field))}"
        for field in differences(theirs, ours)
    ]
    if measurement.unit != first.unit:
        reasons.append(f"unit: {measurement.unit or 'none'}, first: {first.unit or 'none'}")
    return tuple(reasons)


def _short(value: object) -> str:
    text = "unknown" if value is None else str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _entries(data: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(data, dict) and {"name", "value", "protocol"} <= data.keys():
        yield place, data
    elif isinstance(data, dict):
        for key, part in data.items():
            yield from _entries(part, f"{place} {key}".strip())
    elif isinstance(data, Sequence) and not isinstance(data, str):
        for number, part in enumerate(data):
            yield from _entries(part, f"{place} {number}".strip())


def _measurement(entry: dict[str, Any], path: Path) -> Measurement:
    if not isinstance(entry["protocol"], dict) or not isinstance(entry["name"], str):
        raise OvertureError(f"{path}: the measurement '{entry['name']}' has no protocol")
    value = entry["value"]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise OvertureError(f"{path}: the value of '{entry['name']}' is {value!r}, needs a number")
    try:
        measurement = Measurement.from_dict(entry)
    except (OverflowError, TypeError) as error:
        raise OvertureError(f"{path}: the measurement '{entry['name']}' is damaged ({error})") from error
    if math.isinf(measurement.value):
        raise OvertureError(f"{path}: the value of '{entry['name']}' is too large to be a distance")
    return measurement
