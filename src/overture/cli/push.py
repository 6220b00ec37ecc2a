"""``overture push RUN owner/name``: a run into a repository of the Hugging Face hub, with a model card."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from overture.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "push",
        help="a run into a repository of the hub, with a model card",
        description="Example: overture push runs/quickstart/vcq ada/first-tokens --license apache-2.0\n\n"
        "Puts models, config, results, class names, pictures and a card made from them into a repository of the Hugging "
        "Face hub, which is made if need be. Images and tokens stay here, and so do the folders that the config names. "
        "Needs a token: hf auth login, or HF_TOKEN.",
    )
    parser.add_argument("path", metavar="RUN", type=Path, help="a run directory, or one of imported models")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--license", default="", metavar="ID", help="as the hub calls it: apache-2.0, cc-by-4.0, other")
    parser.add_argument("--private", action="store_true", help="let nobody else see it, if it is new")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch, made if need be (default: main)")
    parser.add_argument("--message", default="", metavar="TEXT", help="of the commit")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the files there to look at, and push nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the repository's files, and push them."""
    from overture.hub import HubFolder, upload
    from overture.runs.directory import RunDirectory
    from overture.share.repository import write_repository

    given = [name for name in ("private", "revision", "message") if getattr(options, name)]
    if options.out is not None and given:
        raise UsageError(f"--{given[0]} does not go with --out, which pushes nothing; leave one of them out")
    place = HubFolder.parse(f"hf:{options.repository.removeprefix('hf:')}")
    if place.folder or place.revision:
        raise UsageError(f"{options.repository}: write owner/name (a branch goes to --revision)")
    scratch = tempfile.TemporaryDirectory()
    with scratch:
        folder = options.out or Path(scratch.name) / "files"
        card = write_repository(RunDirectory(options.path), folder, place.repository, options.license)
        if not options.license:
            print("overture: no --license was given, and the card says so", file=sys.stderr)
        if not card.pictures:
            print(f"overture: no picture of samples: {options.path}/samples/classes.png is not there", file=sys.stderr)
        files = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
        pushed = None
        if options.out is None:
            pushed = upload(
                folder,
                place.repository,
                private=options.private,
                revision=options.revision,
                message=options.message or f"Add {' and '.join(card.models)}",
            )
    tell(options, files, str(pushed) if pushed else None, list(card.needed))
    return 0


def tell(options: argparse.Namespace, files: list[str], pushed: str | None, needed: list[str]) -> None:
    """Where everything is now."""
    from overture.cli.common import print_json

    if options.json:
        about = {"out": str(options.out)} if options.out else {"pushed": pushed}
        print_json({"repository": options.repository, **about, "files": files, "needs": needed})
        return
    print(f"{len(files)} files: {options.out}, nothing was pushed" if options.out else f"{len(files)} files: {pushed}")
    if needed:
        print(f"who loads it needs your {' and '.join(needed)}, which is not among them; the card says so")
