"""``overture train tokenizer|prior RECIPE``: a recipe up to one of its stages."""

from __future__ import annotations

import argparse
from typing import Any

from overture.cli.run import add_options, run
from overture.cli.train_tokens import add_token_files, train_on_tokens
from overture.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "train",
        help="run a recipe up to its tokenizer or its prior",
        description="Example: overture train tokenizer fashion-mnist --tiny\n\n"
        "Run a recipe up to its tokenizer, or up to its prior. What is done is skipped; what was "
        "interrupted goes on.",
        add_help=False,
    )
    parser.add_argument("until", nargs="?", choices=("tokenizer", "prior"), help="the last stage")
    add_options(parser)
    add_token_files(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.tokens is not None and options.help is None:
        return train_on_tokens(options)
    if options.held_out is not None:
        raise UsageError("train: --held-out belongs to --tokens; a recipe's held-out images are --data.held-out")
    if options.until is None and options.help is None:
        raise UsageError("train: say up to which stage, tokenizer or prior, and the recipe")
    return run(options)
