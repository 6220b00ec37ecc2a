"""``overture tokenize TOKENIZER --data SOURCE --out FILE``: a token file of a data source."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "tokenize",
        help="write the tokens of a data source to a token file",
        description="Example: overture tokenize runs/quickstart/vcq --data photos.zip --out photos.tokens\n\n"
        "Encode every image. An interrupted file is continued by the same command.",
    )
    parser.add_argument("path", metavar="TOKENIZER", help="a tokenizer, a run, or hf:owner/name")
    parser.add_argument("--data", required=True, help="a folder, zip, npz or data set")
    parser.add_argument("--out", type=Path, required=True, help="the token file")
    parser.add_argument("--crops", choices=("center", "ten"), default="center", help="(default: center)")
    parser.add_argument("--weights", choices=("raw", "ema"), help="(default: the file's own, mostly ema)")
    parser.add_argument(
        "--corrupt-limit",
        type=float,
        default=0.001,
        metavar="SHARE",
        help="of the images that may be unreadable (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Encode and write."""
    from overture.cli.common import images_as_trained, print_json
    from overture.data.sources import open_source
    from overture.model_files import find_model, ids_hash, read_metadata
    from overture.pipeline import load_tokenizer
    from overture.processes import Processes
    from overture.progress import SilentProgress, TerminalProgress, stoppable
    from overture.training.write_tokens import TokensConfig, write_tokens

    processes = Processes.join(options.device)
    tokenizer = load_tokenizer(options.path, options.weights, device=processes.device)
    digest = ids_hash(read_metadata(find_model(options.path, "tokenizer"), "tokenizer"))
    source = open_source(options.data)
    data = images_as_trained(options.path, tokenizer, source=options.data, corrupt_limit=options.corrupt_limit)
    with stoppable():
        file = write_tokens(
            tokenizer, digest, source, data, TokensConfig(options.crops, options.batch_size), options.out,
            processes=processes, progress=TerminalProgress() if processes.is_main else SilentProgress(),
        )  # fmt: skip
    if options.json and processes.is_main:
        about = {"rows": file.rows, "crops": file.crops, "positions": file.layout.length, "layout": str(file.layout)}
        print_json({**about, "out": str(options.out)})
    return 0
