"""``overture train tokenizer|prior RECIPE``: a recipe up to one of its stages."""

from __future__ import annotations

import argparse
from typing import Any

from overture.cli.run import add_options, run
from overture.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "train",
        help="run a recipe up to its tokenizer or its prior",
        description="Run a recipe up to its tokenizer, or up to its prior. What is done is skipped; what was "
        "interrupted goes on.",
        add_help=False,
    )
    parser.add_argument("until", nargs="?", choices=("tokenizer", "prior"), help="the last stage")
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.until is None and options.help is None:
        raise UsageError("train: say up to which stage, tokenizer or prior, and the recipe")
    return run(options)
