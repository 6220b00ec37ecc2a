"""``overture report RUN [RUN ...]``: the page of one run, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from overture.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help="write the report page of one or several runs",
        description="Example: overture report runs/quickstart\n\n"
        "Write the page of one or several runs: figures, numbers with their protocols, samples. One file, without scripts.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directories, or one that holds several")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the first RUN)")
    parser.add_argument("--title", help="(default: the directory's name)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    from overture.cli.common import print_json
    from overture.report import write_report
    from overture.runs.directory import RunDirectory, runs_inside

    runs = []
    for path in options.runs:
        inside = [path] if RunDirectory(path).is_run else runs_inside(path)
        if not inside:
            raise UsageError(f"{path}: is no run (no config.json in it or one level below)")
        runs += [RunDirectory(run) for run in inside]
    first = options.runs[0]
    page = write_report(runs, options.out or first / "report.html", options.title or first.resolve().name)
    if options.json:
        print_json({"report": str(page)})
    else:
        print(page)
    return 0
