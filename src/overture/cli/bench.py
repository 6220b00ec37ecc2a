"""``overture bench SUITE``: recipes x seeds x metrics, member by member; and the tables of a page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import add_output, print_json
from overture.errors import OvertureError, UsageError

if TYPE_CHECKING:
    from overture.bench.member_file import Finished
    from overture.bench.suite import Suite


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bench",
        help="a suite of runs over several seeds: side by side, resumable, with chance measured",
        description="Example: overture bench uniform-vcq --only uniform-s0 linear-s0\n\n"
        "Run the members of a suite that are not finished: every run with every seed. A finished member is a "
        "file, members/NAME.json, so the folder may be copied to another machine and goes on there. Without SUITE it "
        "lists the suites; your own is `overture bench my_suites:function`.",
    )
    parser.add_argument("suite", nargs="?", help="name of a suite, or module:function")
    parser.add_argument("--out", type=Path, help="the suite's folder (default: below runs/bench)")
    parser.add_argument("--only", nargs="+", default=[], metavar="MEMBER", help="these members, or all of these runs")
    parser.add_argument("--tiny", action="store_true", help="tiny runs and at most two seeds: seconds a member")
    parser.add_argument("--data", metavar="SOURCE", help="where the suite's training images lie here")
    parser.add_argument("--held-out", metavar="SOURCE", help="where its held-out images lie here, if they are others")
    parser.add_argument("--jobs", type=int, default=0, help="members worked on at once (default: as cores allow)")
    parser.add_argument(
        "--keep", choices=("models", "run"), default="models",
        help="what stays of a finished run: all but tokens and samples, or everything (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tables", type=Path, metavar="PAGE.md",
        help="run nothing: write table and figure of what is finished into a page, between its marks",
    )  # fmt: skip
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run, or write the tables; print them."""
    from overture.bench import SUITES, load_suite, summary

    if options.suite is None:
        lines = {name: summary(name) for name in SUITES}
        width = max(map(len, lines)) + 2
        print_json(lines) if options.json else print("\n".join(f"{n:<{width}}{about}" for n, about in lines.items()))
        return 0
    suite = load_suite(options.suite, tiny=options.tiny)
    if options.data or options.held_out:
        if options.tiny or not options.data:
            raise UsageError("--held-out goes with --data, and neither with --tiny, which brings its images")
        suite = suite.with_images(options.data, options.held_out or "")
    name = options.suite.rpartition(":")[2]
    root = options.out or Path("runs") / "bench" / ((suite.folder or name) + ("-tiny" if options.tiny else ""))
    if options.tables:
        return write_tables(options, suite, root, name)
    from overture.bench.run_suite import run_suite

    finished, failures = run_suite(
        suite, root, only=options.only, jobs=options.jobs, device=options.device, keep=options.keep
    )
    show(options, suite, finished)
    if failures:
        told = "; ".join(f"{member}: {error}" for member, error in failures.items())
        many = f"{len(failures)} member{'s' * (len(failures) > 1)} failed, the others are not touched by it"
        raise OvertureError(f"{many}: {told}; the same command tries again")
    return 0


def show(options: argparse.Namespace, suite: Suite, finished: Mapping[str, Finished]) -> None:
    """The table on stdout, or everything as one object."""
    from overture.bench.page_table import cells, markdown

    if not options.json:
        print(markdown(options.suite, suite, finished), end="")
        return
    table = []
    for (own, metric), cell in cells(suite, finished).items():
        compared = cell.comparison
        table.append(
            {
                "run": own,
                "metric": metric,
                "mean": cell.sample.mean,
                "spread": cell.sample.spread,
                "over": cell.sample.over,
                "difference": compared.difference if compared else None,
                "margin": compared.margin if compared else None,
                "within_chance": compared.within_chance if compared else None,
                "unlike": list(cell.unlike),
            }
        )
    missing = [m.name for m in suite.members if m.name not in finished or finished[m.name].lacks]
    print_json(
        {
            "suite": options.suite,
            "members": {name: each.record for name, each in finished.items()},
            "missing": missing,
            "table": table,
        }
    )


def write_tables(options: argparse.Namespace, suite: Suite, root: Path, name: str) -> int:
    """The page's table and its figure, ``images/bench-NAME.svg`` beside the page."""
    from overture.analysis.figures import save_figure
    from overture.bench.member_file import read_finished
    from overture.bench.page_marks import write_page
    from overture.bench.page_table import cells, page_text
    from overture.bench.suite_figure import suite_figure

    if options.only:
        raise UsageError("--tables writes all that is finished; leave out --only")
    finished = read_finished(root, suite)
    if not finished:
        raise UsageError(f"{root}: holds no finished member of {options.suite}; run it first, or give its --out")
    picture = Path("images") / f"bench-{name}.svg"
    hollow = f"; hollow: within chance of {suite.baselines}, or chance not known" if suite.compare else ""
    about = f"{name}: mean and spread of every run{hollow}"
    table = cells(suite, finished)
    text = page_text(options.suite, suite, finished, f"![{about}]({os.fspath(picture)})")
    if write_page(options.tables, options.suite, text, table):
        save_figure(suite_figure(suite, table), options.tables.parent / picture)
    show(options, suite, finished)
    print(f"written: {options.tables}", file=sys.stderr)
    return 0
