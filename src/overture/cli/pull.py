"""``overture pull owner/name``: a repository of the Hugging Face hub onto this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "pull",
        help="fetch a repository of the hub, to use it like a run",
        description="Example: overture pull ada/first-tokens --out runs/ada\n\n"
        "Fetches models, config, results and pictures of a repository of the Hugging Face hub into the hub's cache, from "
        "which commands take hf:OWNER/NAME, also without a network; with --out also into a directory that is used like a "
        "run. Nothing else in the repository is fetched, and nothing in it is run.",
    )
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="the repository; hf:OWNER/NAME[@REVISION][/FOLDER], too"
    )
    parser.add_argument("--revision", metavar="NAME", help="a branch, a tag or a commit (default: main as it is now)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a directory for the files, new or empty")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fetch, and say where it is."""
    from overture.cli.common import print_json
    from overture.hub import HubFolder, find_place
    from overture.share.repository import fetch_repository

    place = find_place(f"hf:{options.repository.removeprefix('hf:')}", options.revision)
    assert isinstance(place, HubFolder)
    pinned, files = fetch_repository(place, options.out)
    if options.json:
        about = {"out": str(options.out)} if options.out else {}
        print_json({"repository": options.repository, "pinned": str(pinned), **about, "files": sorted(files)})
    else:
        print(f"{len(files)} files: {options.out or 'in the cache of the hub'}, from {pinned}")
    return 0
