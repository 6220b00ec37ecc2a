"""``overture prefix RUN``: pictures and numbers of what the first n tokens hold."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from overture.cli.common import (
    add_instrument,
    add_sampling,
    at_least,
    check_plot,
    device_of,
    drawn_tokens,
    finish,
    open_judge,
    open_run,
    parse_numbers,
    read_sampling,
)
from overture.errors import UsageError

IMAGES = 500


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "prefix",
        help="keep the first n tokens, resample the rest: pictures and numbers",
        description="Example: overture prefix runs/quickstart/vcq --tokens 0,1,4,16\n\n"
        "Keeps the first n tokens of held-out images and lets the prior write the rest, without telling it "
        "the class; and takes the rest of another image. Pictures, class accuracy under a judge, and distance to the "
        "image they come from, against n.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory")
    parser.add_argument("--tokens", metavar="LIST", help="list of n, such as 0,1,4,16 (default: 0, 1, 2, 4, ... all)")
    parser.add_argument("--ids", type=Path, metavar="FILE", help="tokens of the images (default: RUN's held-out ones)")
    parser.add_argument("--network", help="the judge, such as domain:FILE (default: RUN's own)")
    parser.add_argument(
        "--images", type=int, help=f"how many are measured (default: {IMAGES}, or all where there are fewer)"
    )
    parser.add_argument("--pictures", type=int, default=6, help="how many are shown (default: %(default)s)")
    parser.add_argument("--conditional", action="store_true", help="tell the prior the class")
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw", help="of the prior (default: raw)")
    add_sampling(parser)
    add_instrument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Resample, judge, draw, print."""
    from overture.analysis.prefix import study
    from overture.pipeline import Pipeline
    from overture.priors.guidance import Guidance

    check_plot(options)
    at_least(options, images=2, pictures=1, batch_size=1)
    sampling = read_sampling(options)
    if not options.conditional and sampling.guidance != Guidance.none():
        raise UsageError("prefix: guidance needs the class; add --conditional")
    directory, device = open_run(options.path), device_of(options)
    judge = open_judge(directory, options.network, device)
    pipe = Pipeline.load(options.path, device, prior_weights=options.weights)
    ids, labels = drawn_tokens(
        options.ids or directory.tokens("held_out"), options.images, pipe.layout, option="--images", at_most=IMAGES
    )
    result = study(
        pipe, ids, labels, judge, parse_numbers(options.tokens, "--tokens"),
        sampling=sampling, conditional=options.conditional, pictures=options.pictures,
        batch_size=options.batch_size, seed=options.seed, progress=True,
    )  # fmt: skip
    about = {"weights": options.weights, **directory.model_hashes("tokenizer", "prior")}
    return finish(options, result, about, directory)
