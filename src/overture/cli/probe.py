"""``overture probe RUN``: how much of the class the first n tokens tell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import (
    add_instrument,
    at_least,
    check_plot,
    device_of,
    drawn_tokens,
    finish,
    labelled_ids,
    parse_numbers,
)
from overture.errors import OvertureError, UsageError

if TYPE_CHECKING:
    from overture.analysis.probe import ProbeData


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "probe",
        help="linear probe: how much of the class the first n tokens tell",
        description="Example: overture probe runs/quickstart/vcq --plot probe.png\n\n"
        "Logistic regression on the code vectors, and on the one-hot ids, of the first n tokens, for the "
        "sequence and for each segment. RUN brings its tokens and tokenizer; or give --train and --test.",
    )
    parser.add_argument("path", metavar="RUN", nargs="?", help="a run directory")
    parser.add_argument("--train", type=Path, metavar="FILE", help="tokens to fit on, with labels (default: RUN's)")
    parser.add_argument("--test", type=Path, metavar="FILE", help="tokens to test on (default: RUN's held-out ones)")
    parser.add_argument("--tokenizer", help="for code vectors (default: RUN's)")
    parser.add_argument("--tokens", metavar="LIST", help="list of n, such as 1,2,4,16 (default: 1, 2, 4, ... all)")
    parser.add_argument("--features", help="codes, ids or codes,ids (default: both; ids where there is no tokenizer)")
    parser.add_argument("--segment", action="append", metavar="NAME", help="only this one, or 'all' (may be repeated)")
    parser.add_argument("--rows", type=int, metavar="N", help="fit on N training rows, drawn at random (default: all)")
    add_instrument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fit, test, print; a run's report shows it from then on."""
    from overture.analysis.probe import study
    from overture.model_files import model_hash
    from overture.pipeline import load_tokenizer
    from overture.runs.directory import RunDirectory

    kinds: list[Any] = [word.strip() for word in (options.features or _offered(options)).split(",")]
    if not kinds or set(kinds) - {"codes", "ids"}:
        raise UsageError(f"--features {options.features}: give codes, ids or codes,ids")
    check_plot(options)
    at_least(options, rows=1)
    lengths, device = parse_numbers(options.tokens, "--tokens"), device_of(options)
    data = read_data(options)
    codes, about = None, {}
    if "codes" in kinds:
        where = options.tokenizer or options.path
        if not where:
            raise UsageError("probe: code vectors need --tokenizer; or probe --features ids")
        tokenizer = load_tokenizer(where, device=device)
        if tokenizer.layout != data.layout:
            raise OvertureError(f"{where}: its layout ({tokenizer.layout}) is not that of the tokens ({data.layout})")
        codes, about = tokenizer.codes, {"tokenizer_hash": model_hash(where, "tokenizer")}
    segments = options.segment or ()
    result = study(data, lengths, codes=codes, kinds=kinds, segments=segments, device=device, progress=True)
    directory = RunDirectory(options.path) if options.path else None
    return finish(options, result, about, directory if directory and directory.is_run else None)


def _offered(options: argparse.Namespace) -> str:
    """Both kinds of features, but for a run on the tokens of others, which has no tokenizer."""
    from overture.runs.directory import RunDirectory

    run = RunDirectory(options.path) if options.path else None
    alone = run is not None and run.is_run and run.prior_model.exists() and not run.tokenizer_model.exists()
    return "ids" if alone and not options.tokenizer else "codes,ids"


def read_data(options: argparse.Namespace) -> ProbeData:
    """The ids and labels that the options name."""
    from overture.analysis.probe import ProbeData
    from overture.runs.directory import RunDirectory

    if not options.path and not (options.train and options.test):
        raise UsageError("probe: give a RUN, or --train and --test token files")
    own = RunDirectory(options.path or ".")
    if not (options.train and options.test):
        own.check_is_run()
    train, test = options.train or own.tokens("train"), options.test or own.tokens("held_out")
    layout = labelled_ids(train).layout
    if layout is None or layout != labelled_ids(test).layout:
        raise OvertureError(f"{test}: its layout is not that of {train}")
    return ProbeData(layout, *drawn_tokens(train, options.rows), *drawn_tokens(test))
