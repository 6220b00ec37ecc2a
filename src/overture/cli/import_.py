"""``overture import FORMAT FILE --out PLACE``: other people's weights as models of ours, their tokens as token files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import print_json

if TYPE_CHECKING:
    from overture.data.foreign_tokens import ForeignTokens
    from overture.layout import Layout


def add_parser(subparsers: Any) -> None:
    """Add the command, with a parser for each format."""
    parser = subparsers.add_parser(
        "import",
        help="turn released weights and tokens of others into ours",
        description="Example: overture import tokens train.npz --out train.tokens\n\n"
        "Turn what others have made into files of ours. overture import FORMAT --help shows the options.",
        usage="overture import FORMAT FILE --out PLACE [options]",
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True, prog="overture import")
    add_release(formats)
    add_tokens(formats)


def add_release(formats: Any) -> None:
    """``prologue-release``."""
    parser = formats.add_parser(
        "prologue-release",
        help="a directory of the Prologue release: a tokenizer or a prior",
        description="Example: overture import prologue-release hf:Zyriix/prologue/2d-tokenizer --out models/2d\n\n"
        "Import a directory of the Prologue release. A tokenizer and its prior in one --out work like a run.",
    )
    parser.add_argument("source", metavar="DIR", help="a directory, or hf:Zyriix/prologue/2d-tokenizer")
    parser.add_argument("--config", type=Path, metavar="FILE", help="sizes from the release's config_resolved.json")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_release)


def add_tokens(formats: Any) -> None:
    """``tokens``."""
    parser = formats.add_parser(
        "tokens",
        help="tokens of another tokenizer, from .npy or .npz: a token file",
        description="Example: overture import tokens train.npz --layout 'head: 4 x 64, rest: 1024' --out train.tokens\n\n"
        "Make a token file of integers [rows, positions], or [rows, crops, positions] of which training draws one crop a "
        "row. overture train prior --tokens FILE --held-out FILE learns from it.",
    )
    parser.add_argument("source", metavar="FILE", help="a .npy, or an .npz that may hold labels too")
    parser.add_argument("--out", type=Path, required=True, help="the token file")
    parser.add_argument(
        "--layout",
        metavar="WORDS",
        help="'1024', 'linear 2..1024', 'head: 4 x 64, rest: 1024', or a token file to be like",
    )
    parser.add_argument(
        "--array", default="", metavar="NAME", help="the ids in an .npz (default: ids, or the only ones)"
    )
    parser.add_argument("--labels", default="", metavar="NAME", help="classes: an array of FILE, or a .npy file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_tokens)


def run_release(options: argparse.Namespace) -> int:
    """Import and say what was written."""
    from overture.interop import import_release

    done = import_release(options.source, options.out, options.config)
    if options.json:
        print_json(
            {
                "source": options.source,
                "models": [
                    {
                        "kind": item.kind,
                        "path": str(item.path),
                        "files": item.files,
                        "parameters": item.parameters,
                        "layout": str(item.layout),
                        "weights_hash": item.weights_hash,
                    }
                    for item in done
                ],
            }
        )
        return 0
    for item in done:
        print(f"{item.path}: {item.kind}, {item.parameters / 1e6:.2f} M parameters, {item.layout}")
        for role, files in item.files.items():
            print(f"  {role}: {', '.join(files)}")
    return 0


def run_tokens(options: argparse.Namespace) -> int:
    """Read, check, write, and say what was found."""
    from overture.data.foreign_tokens import check_layout, default_layout, import_tokens, open_foreign
    from overture.data.layout_words import parse_layout
    from overture.progress import progress_bar

    tokens = open_foreign(options.source, options.array, options.labels)
    layout = parse_layout(options.layout, tokens.positions) if options.layout else default_layout(tokens)
    check_layout(tokens, layout)
    with progress_bar("tokens", tokens.rows, "row") as bar:
        file = import_tokens(tokens, layout, options.out, done=bar.update)
    if not options.layout:
        print(f"{tokens.path}: {no_layout(tokens, layout)}", file=sys.stderr)
    classes = file.num_classes if tokens.labelled else 0
    if options.json:
        about = {"rows": file.rows, "crops": file.crops, "positions": layout.length, "layout": str(layout)}
        print_json({"source": options.source, **about, "classes": classes, "out": str(options.out)})
        return 0
    crops = f" x {file.crops} crops" if file.crops > 1 else ""
    labels = f"{classes:,} classes" if tokens.labelled else "no labels: all rows are of one class"
    print(f"{options.out}: {file.rows:,} rows{crops}, {layout}, {labels}")
    return 0


def no_layout(tokens: ForeignTokens, layout: Layout) -> str:
    """What was taken for the layout that nobody gave."""
    largest = int(tokens.largest_T.max())
    return (
        f"no --layout, so K = {max(layout.sizes):,} at every position: the largest id {largest:,}, plus one, rounded up to "
        "a power of two"
    )
