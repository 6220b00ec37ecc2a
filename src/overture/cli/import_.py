"""``overture import prologue-release DIR --out DIR``: other people's weights as models of ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "import",
        help="turn released weights of others into models of ours",
        description="Import a directory of the Prologue release. A tokenizer and its prior in one --out work like a run.",
    )
    parser.add_argument("format", choices=("prologue-release",), help="whose format")
    parser.add_argument("source", metavar="DIR", help="a directory, or hf:Zyriix/prologue/2d-tokenizer")
    parser.add_argument("--config", type=Path, metavar="FILE", help="sizes from the release's config_resolved.json")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Import and say what was written."""
    from overture.cli.common import print_json
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
