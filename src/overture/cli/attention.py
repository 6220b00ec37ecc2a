"""``overture attention RUN``: where in the image the prologue's tokens, or any early tokens, look."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from overture.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "attention",
        help="attention maps of the first tokens over the image",
        description="Attention of the encoder from the first tokens of a segment to the patches of the image, mean over "
        "heads, drawn over the images; with how much of it goes to patches and how far it is spread.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory, a tokenizer or a hub id")
    parser.add_argument("--data", help="a folder, zip, npz or data set (default: RUN's held-out images)")
    parser.add_argument("--segment", help="of the layout (default: the first one)")
    parser.add_argument("--tokens", type=int, default=8, help="how many are drawn (default: %(default)s)")
    parser.add_argument("--images", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--layer", type=int, default=-1, help="of the encoder, from 0, or -1 for the last (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="figure: .png, .svg or .pdf (default: RUN/instruments/attention.png)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Encode, draw, print."""
    import numpy as np
    import torch

    from overture.analysis.attention import attention_figure, attention_maps
    from overture.analysis.figures import check_figure_path, save_figure
    from overture.cli.common import choose_device, model_hashes, print_json, read_run_config
    from overture.data import open_source
    from overture.data.base import subset
    from overture.data.stream import DataConfig, evaluation_batches
    from overture.data.transforms import to_float
    from overture.pipeline import load_tokenizer
    from overture.runs.instruments import FOLDER, Finding, run_directory_of, save_finding

    if options.images < 1 or options.tokens < 1 or options.seed < 0:
        raise UsageError("attention: --images and --tokens need to be at least 1, --seed at least 0")
    root = run_directory_of(options.path)
    if options.out is None and root is None:
        raise UsageError("attention: give --out, since this is no run directory")
    out: Path = options.out or Path(options.path) / FOLDER / "attention.png"
    check_figure_path(out)
    device = choose_device(options.device)
    tokenizer = load_tokenizer(options.path, device=device)
    config = tokenizer.config
    if options.data:
        data = DataConfig(source=options.data, image_size=config.image_size, channels=config.channels)
        source = open_source(options.data)
    elif root:
        data = read_run_config(root).data
        source = data.build().held_out
    else:
        raise UsageError("attention: give --data, since this is no run directory")
    if options.images > len(source):
        raise UsageError(f"--images is {options.images:,}, but {source.name} has {len(source):,}")
    chosen = np.random.default_rng(options.seed).choice(len(source), options.images, replace=False)
    batches = evaluation_batches(subset(source, chosen), data, options.images)
    images = torch.cat([batch.images for batch in batches])
    segment = options.segment or tokenizer.layout.names[0]
    maps = attention_maps(tokenizer, to_float(images.to(device)), segment, options.layer)
    save_figure(attention_figure(images, maps, options.tokens), out)
    about = {"images": len(images), "source": source.name, "seed": options.seed, "layer": options.layer}
    record = {**about, **model_hashes(options.path, "tokenizer"), **maps.to_dict()}
    if root and options.out is None:
        caption = (
            f"Attention from the first tokens of the {segment} to the patches, layer {options.layer} of the encoder, "
            "mean over heads; each map on its own scale."
        )
        save_finding(root, Finding("attention", "Where the first tokens look", caption, record, out.name))
    if options.json:
        print_json({**record, "out": str(out)})
    else:
        print(
            f"{segment}: {'token':>5}  {'on patches':>10}  {'spread, bits':>12} (at most {record['largest_spread_bits']:.2f})"
        )
        for token in range(min(options.tokens, len(maps.share_T))):
            print(f"{'':>{len(segment)}}  {token + 1:>5}  {maps.share_T[token]:>10.1%}  {maps.spread_T[token]:>12.2f}")
        print(f"figure: {out}")
    return 0
