"""``overture compare RECORD RECORD ...``: numbers side by side, with a mark on those that were made differently."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from overture.evaluation.conditions import Measurement
    from overture.evaluation.record import Comparison

KINDS = {
    "unguided": "no guidance", "guided": "guided", "held_out": "real images", "reconstruction": "reconstructions"
}  # fmt: skip
MARKS = "abcdefghijklmnopqrstuvwxyz"


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "compare",
        help="records of evaluate and run side by side, unlike protocols marked",
        description="Example: overture compare a.json b.json runs/quickstart/vcq\n\n"
        "Puts the numbers of several records (evaluate --out, or run directories) in one table. A number "
        "that was made by another protocol than the first of its column carries a mark, explained below the table.",
    )
    parser.add_argument("records", metavar="RECORD", nargs="+", type=Path, help="record files or run directories")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when any number is marked")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, compare, print."""
    from overture.cli.common import print_json
    from overture.evaluation.record import compare_records

    if len(set(options.records)) < len(options.records):
        raise UsageError("compare: a record is named twice")
    comparison = compare_records({row: numbers for path in options.records for row, numbers in read_rows(path)})
    if options.json:
        print_json(comparison.to_dict())
    else:
        print(describe(comparison))
    return 1 if options.strict and (comparison.marks or not comparison.shared) else 0


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Measurement]]]:
    """A record is one row; a run has one for each kind of images that it measured."""
    from overture.evaluation.record import read_measurements
    from overture.runs.directory import RunDirectory

    run = RunDirectory(path)
    if not run.results.is_file():
        yield str(path), read_measurements(path)
        return
    results, found = run.read_results(), False
    for kind in KINDS:
        numbers = {m.name: m for m in results.measurements(kind).values()}
        if kind == "reconstruction" and results.reconstruction_distance:
            numbers = {results.reconstruction_distance.name: results.reconstruction_distance}
        if numbers:
            found = True
            yield f"{path}, {KINDS[kind]}", numbers
    if not found:
        raise UsageError(f"{path}: this run has measured nothing yet")


def describe(comparison: Comparison) -> str:
    """The table, and what the marks mean."""
    explained: dict[tuple[str, ...], str] = {}
    marks = {}
    for mark in comparison.marks:
        letter = explained.setdefault(mark.reasons, MARKS[len(explained) % len(MARKS)] * (1 + len(explained) // 26))
        marks[mark.record, mark.metric] = letter
    width = max(len(name) for name in (*comparison.records, "record"))
    columns = [max(len(metric), 12) for metric in comparison.metrics]
    heading = "  ".join(f"{metric:>{size}}" for metric, size in zip(comparison.metrics, columns, strict=True))
    lines = [f"{'record':<{width}}  {heading}"]
    for record in comparison.records:
        cells = []
        for metric, size in zip(comparison.metrics, columns, strict=True):
            measurement = comparison.values.get((record, metric))
            number = "-" if measurement is None else f"{measurement.value:.5g}"
            number = "none" if measurement is not None and math.isnan(measurement.value) else number
            letter = marks.get((record, metric), "")
            cells.append(f"{f'{number} ({letter})' if letter else number:>{size}}")
        lines.append(f"{record:<{width}}  {'  '.join(cells)}".rstrip())
    if explained:
        lines += ["", "Not to be compared with the first of its column:"]
        lines += [f"({letter}) {'; '.join(reasons)}" for reasons, letter in explained.items()]
    if not comparison.shared:
        lines += ["", "No number stands in two of these rows: there is nothing to compare."]
    return "\n".join(lines)
