"""``overture attention RUN``: where in the image the prologue's tokens, or any early tokens, look."""

from __future__ import annotations

import argparse
from typing import Any

from overture.cli.common import add_instrument, at_least, check_plot, device_of, finish, how_many, images_as_trained
from overture.errors import UsageError

IMAGES = 6


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "attention",
        help="attention maps of the first tokens over the image",
        description="Example: overture attention runs/quickstart/vcq --tokens 4\n\n"
        "Attention of the encoder from the first tokens of a segment to the patches of the image, mean over "
        "heads, drawn over the images; with how much of it goes to patches and how far it is spread.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory, a tokenizer or hf:owner/name")
    parser.add_argument("--data", help="a folder, zip, npz or data set (default: RUN's held-out images)")
    parser.add_argument("--segment", help="of the layout (default: the first one)")
    parser.add_argument("--tokens", type=int, default=8, help="how many are drawn (default: %(default)s)")
    parser.add_argument("--images", type=int, help=f"(default: {IMAGES}, or all where there are fewer)")
    parser.add_argument("--layer", type=int, default=-1, help="of the encoder, from 0, or -1 for the last (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (default: %(default)s)")
    add_instrument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Encode, draw, print."""
    import torch

    from overture.analysis.attention_maps import study
    from overture.data.base import subset
    from overture.data.order import some_of
    from overture.data.sources import open_source
    from overture.data.stream import evaluation_batches
    from overture.elsewhere import check_data
    from overture.model_files import model_hash
    from overture.pipeline import load_tokenizer
    from overture.runs.directory import RunDirectory, runs_inside

    at_least(options, images=1, tokens=1, seed=0)
    check_plot(options)
    directory = RunDirectory(options.path)
    if runs_inside(directory.root):
        directory.check_is_run()  # a run has none inside
    if not directory.is_run and not (options.data and (options.plot or options.out or options.json)):
        raise UsageError("attention: give --data, and --plot or --out, since this is no run directory")
    tokenizer = load_tokenizer(options.path, device=device_of(options))
    if options.data:
        data = images_as_trained(options.path, tokenizer, source=options.data)
        source = open_source(options.data)
    else:
        data = directory.read_config().data
        check_data(directory.config, (data.source, data.held_out), "--data")
        source = data.build().held_out
    count = how_many(options.images, len(source), source.name, option="--images", at_most=IMAGES)
    chosen = subset(source, some_of(len(source), count, options.seed))
    images = torch.cat([batch.images for batch in evaluation_batches(chosen, data, count)])
    result = study(tokenizer, images, options.segment, options.layer, options.tokens)
    about = {"source": source.name, "seed": options.seed, "tokenizer_hash": model_hash(options.path, "tokenizer")}
    return finish(options, result, about, directory if directory.is_run else None)
