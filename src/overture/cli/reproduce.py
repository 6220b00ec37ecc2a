"""``overture reproduce ROW``: a published number measured again with the released weights."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import add_output, at_least, print_json
from overture.errors import UsageError

if TYPE_CHECKING:
    from overture.evaluation.conditions import Measurement
    from overture.priors.model import PriorConfig
    from overture.recipes.published import PublishedRow
    from overture.recipes.reproduction import Reproduction
    from overture.tokenizers.config import TokenizerConfig


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "reproduce",
        help="measure a published row again with its released weights",
        description="Example: overture reproduce prologue-l-xl --weights ckpts --out runs/l-xl\n\n"
        "Imports released weights, samples at the published settings, judges by ADM's protocol, and prints measured "
        "beside published. Without ROW: lists the rows. The same command goes on where it was stopped; under torchrun "
        "the processes share the work.",
    )
    parser.add_argument("row", metavar="ROW", nargs="?", help="a published row, or module:name")
    parser.add_argument("--weights", metavar="DIR", help="folder of the release's directories (default: the hub)")
    parser.add_argument("--reference", metavar="FILE", help="what to measure against (default: ADM's file, downloaded)")
    parser.add_argument("--samples", type=int, metavar="N", help="of each setting (default: 50000, as published)")
    parser.add_argument("--only", metavar="SETTING", help="guided or unguided (default: all of the row's settings)")
    parser.add_argument("--metrics", metavar="LIST", help="such as fid,recall, or all (default: those published)")
    parser.add_argument(
        "--network", default="inception", help="feature network, or inception:FILE (default: inception)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to work in (default: runs/reproduce/ROW)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="run the prior in bfloat16 (default: float32)")
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="no sample depends on it (default: %(default)s)"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List the rows, or measure one again."""
    from overture.recipes.published import load_row

    if options.row is None:
        print_json({"rows": {name: row_facts(row) for name, row in all_rows()}}) if options.json else print(listing())
        return 0
    at_least(options, samples=2, batch_size=1, seed=0)
    if options.out and options.out.exists() and not options.out.is_dir():
        raise UsageError(f"--out {options.out}: is a file; name a folder")
    row = load_row(options.row)

    from overture.evaluation.judge import Judge
    from overture.evaluation.networks import load_network
    from overture.processes import Processes
    from overture.recipes.reproduction import find_reference, reproduce

    words = (word.strip() for word in (options.metrics or "").split(","))
    processes = Processes.join(options.device)
    network = load_network(options.network, processes.device)
    reference = options.reference or find_reference(row, processes)
    found = reproduce(
        options.row,
        options.out or Path("runs/reproduce") / options.row.rpartition(":")[2],
        Judge(network, reference, processes),
        weights=options.weights,
        samples=options.samples,
        only=options.only,
        metrics=tuple(word for word in words if word),
        seed=options.seed,
        precision="bfloat16" if options.bf16 else "float32",
        batch_size=options.batch_size,
    )
    if processes.is_main:
        print_json(found.to_dict()) if options.json else print(describe(found))
    processes.leave()
    return 0


# -- the list -------------------------------------------------------------------------------------------------------


def all_rows() -> Iterator[tuple[str, PublishedRow]]:
    """Our rows by name."""
    from overture.recipes.published import PUBLISHED, load_row

    return ((name, load_row(name)) for name in PUBLISHED)


@functools.cache
def parameters(config: TokenizerConfig | PriorConfig, *tokenizer: TokenizerConfig) -> int:
    """How many a model has; of a prior for the tokens of a tokenizer."""
    import torch

    with torch.device("meta"):
        return sum(part.numel() for part in config.build(*(given.layout for given in tokenizer)).parameters())


def row_facts(row: PublishedRow) -> dict[str, Any]:
    """What is published of a row, how large its models are, and where they lie."""
    release = row.release
    assert release.prior is not None
    return {
        "label": row.label,
        "source": row.source,
        "parameters": {
            "tokenizer": parameters(release.tokenizer),
            "prior": parameters(release.prior, release.tokenizer),
        },
        "rfid": row.rfid,
        "published": {kind: {**result.sampling.to_dict(), **result.numbers} for kind, result in row.results.items()},
        "samples": row.samples,
        "weights": row.weights,
        "directories": list(row.directories),
    }


def listing() -> str:
    """A line for each row."""
    rows: list[tuple[str, ...]] = [
        ("row", "parameters", "rFID", "gFID", "unguided", "IS", "prec.", "recall", "directories")
    ]
    sources = []
    for name, row in all_rows():
        facts = row_facts(row)
        guided = row.results["guided"].numbers
        numbers = [row.rfid, guided["fid"], row.results["unguided"].numbers["fid"]]
        numbers += [guided.get(metric) for metric in ("is", "precision", "recall")]
        size = "+".join(f"{facts['parameters'][kind] / 1e6:.0f}" for kind in ("tokenizer", "prior"))
        cells = ["-" if value is None else f"{value:.1f}" if value > 100 else f"{value:.2f}" for value in numbers]
        rows.append((name, f"{size} M", *cells, " ".join(row.directories)))
        sources.append(f"{row.source}, weights: {row.weights}")
    return "\n".join(
        [
            *table(rows, left=(0, len(rows[0]) - 1)),
            "",
            *dict.fromkeys(sources),
            "Parameters: tokenizer + prior. gFID, IS, precision and recall: 50,000 guided samples against ADM's reference.",
            "Measure one again: overture reproduce ROW (--weights DIR: the directories, if they are on this machine)",
        ]
    )


# -- a row ----------------------------------------------------------------------------------------------------------


def describe(found: Reproduction) -> str:
    """Measured beside published, and how both were made."""
    rows = [("setting", "metric", "published", "measured", "difference")]
    for kind, numbers in found.measured.items():
        published = found.row.results[kind].numbers
        for metric in dict.fromkeys((*published, *numbers)):
            rows.append((kind, *_cells(metric, published.get(metric), numbers.get(metric), not found.unlike)))
    lines = [f"{found.request.row}: {found.row.label} of {found.row.source}", "", *table(rows, left=(0, 1)), ""]
    if found.unlike:
        lines += ["NOT comparable with the published numbers:", *(f"  {reason}" for reason in found.unlike), ""]
    told = {kind: str(found.row.results[kind].sampling) for kind in found.measured} | found.protocol
    told |= {"published": "; ".join(found.row.notes)} if found.row.notes else {}
    width = max(map(len, told))
    lines += [f"{name:<{width}}  {words}" for name, words in told.items()]
    notes: dict[str, list[str]] = {}
    for kind, numbers in found.measured.items():
        for measurement in numbers.values():
            for note in measurement.notes:
                notes.setdefault(note, []).append(f"{measurement.name} {kind}")
    lines += [f"note: {', '.join(names)}: {note}" for note, names in notes.items()]
    lines += [f"not measured: {metric} ({reason})" for metric, reason in found.skipped.items()]
    return "\n".join(lines)


def _cells(
    metric: str, published: float | None, measured: Measurement | None, comparable: bool
) -> tuple[str, str, str, str]:
    """Name, published, measured, and the difference, where the two may be compared."""
    from overture.evaluation.evaluation import chosen_metrics

    name = measured.name if measured else chosen_metrics((metric,))[0].title
    difference = measured.value - published if comparable and measured and published is not None else None
    return (
        name,
        "-" if published is None else f"{published:g}",
        "-" if measured is None else f"{measured.value:.5g}",
        "-" if difference is None else f"{difference:+.3g}",
    )


def table(rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> list[str]:
    """Lines of equal columns; those in ``left`` begin at the left, numbers end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{w}}" if place in left else f"{cell:>{w}}"
            for place, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
