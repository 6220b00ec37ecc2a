"""``overture neighbours RUN``: are samples copies of training images?"""

from __future__ import annotations

import argparse
from typing import Any

from overture.cli.common import (
    add_instrument,
    add_sampling,
    at_least,
    device_of,
    drawn_tokens,
    finish,
    open_judge,
    open_run,
    read_sampling,
)

YARDSTICK = 2000  # held-out images: enough that their nearest hundredth is known


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "neighbours",
        help="the nearest training image of samples: a check for memorisation",
        description="Example: overture neighbours runs/quickstart/vcq\n\n"
        "Samples images and finds the nearest training image of each, in the judge's feature space and by "
        "the tokens that differ. Held-out images are the yardstick: how many samples lie nearer to a training image "
        "than 99 % of them? Training and held-out images are decoded from their tokens.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory")
    parser.add_argument("--samples", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--rows", type=int, metavar="N", help="N training images, drawn at random (default: all)")
    parser.add_argument(
        "--pictures", type=int, default=12, help="samples shown, the nearest first (default: %(default)s)"
    )
    parser.add_argument("--network", help="the judge (default: RUN's own)")
    add_sampling(parser)
    add_instrument(parser, plot=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sample, search, draw, print."""
    from overture.analysis.neighbours import study
    from overture.pipeline import Pipeline

    at_least(options, samples=1, rows=1, pictures=1, batch_size=1)
    directory, device = open_run(options.path), device_of(options)
    judge = open_judge(directory, options.network, device)
    pipe = Pipeline.load(options.path, device)
    training, _ = drawn_tokens(directory.tokens("train"), options.rows, pipe.layout)
    yardstick = max(options.samples, YARDSTICK)
    held_out, _ = drawn_tokens(directory.tokens("held_out"), layout=pipe.layout, at_most=yardstick)
    result = study(
        pipe, training, held_out, judge, samples=options.samples, sampling=read_sampling(options),
        pictures=options.pictures, batch_size=options.batch_size, seed=options.seed, progress=True,
    )  # fmt: skip
    return finish(options, result, directory.model_hashes("tokenizer", "prior"), directory)
