"""``overture probe RUN``: how much of the class the first n tokens tell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import OvertureError, UsageError

if TYPE_CHECKING:
    from overture.analysis.probe import ProbeData, ProbeResult


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "probe",
        help="linear probe: how much of the class the first n tokens tell",
        description="Logistic regression on the code vectors, and on the one-hot ids, of the first n tokens, for the "
        "sequence and for each segment. RUN brings its tokens and tokenizer; or give --train and --test.",
    )
    parser.add_argument("path", metavar="RUN", nargs="?", help="a run directory")
    parser.add_argument("--train", type=Path, metavar="FILE", help="tokens to fit on, with labels (default: RUN's)")
    parser.add_argument("--test", type=Path, metavar="FILE", help="tokens to test on (default: RUN's held-out ones)")
    parser.add_argument("--tokenizer", help="for code vectors (default: RUN's)")
    parser.add_argument("--tokens", metavar="LIST", help="list of n, such as 1,2,4,16 (default: 1, 2, 4, ... all)")
    parser.add_argument("--features", default="codes,ids", help="codes, ids or both (default: %(default)s)")
    parser.add_argument("--segment", action="append", metavar="NAME", help="only this one, or 'all' (may be repeated)")
    parser.add_argument("--rows", type=int, metavar="N", help="fit on N training rows, drawn at random (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="draw it: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fit, test, print; a run's report shows it from then on."""
    from overture.analysis.curves import probe_figure
    from overture.analysis.figures import check_figure_path, save_figure
    from overture.analysis.probe import probe
    from overture.cli.common import choose_device, model_hashes, parse_numbers, print_json
    from overture.runs.instruments import FOLDER, Finding, run_directory_of, save_finding

    kinds: list[Any] = [word.strip() for word in options.features.split(",")]
    if not kinds or set(kinds) - {"codes", "ids"}:
        raise UsageError(f"--features {options.features}: give codes, ids or codes,ids")
    if options.plot:
        check_figure_path(options.plot)
    lengths = parse_numbers(options.tokens, "--tokens") if options.tokens else ()
    device = choose_device(options.device)
    data = read_data(options)
    codes, hashes = None, {}
    if "codes" in kinds:
        from overture.pipeline import load_tokenizer

        where = options.tokenizer or options.path
        if not where:
            raise UsageError("probe: code vectors need --tokenizer; or probe --features ids")
        tokenizer = load_tokenizer(where, device=device)
        if tokenizer.layout != data.layout:
            raise OvertureError(f"{where}: its layout ({tokenizer.layout}) is not that of the tokens ({data.layout})")
        codes, hashes = tokenizer.codes, model_hashes(where, "tokenizer")
    results = probe(
        data, lengths, codes=codes, kinds=kinds, segments=options.segment or (), device=device, progress=True
    )
    record = {
        "train_images": len(data.train_ids),
        "test_images": len(data.test_ids),
        "classes": data.classes,
        **hashes,
        "results": [result.to_dict() for result in results],
    }
    figure = probe_figure(results)
    if options.plot:
        save_figure(figure, options.plot)
    place = run_directory_of(options.path) if options.path else None
    if place:
        save_figure(figure, place / FOLDER / "probe.svg")
        caption = (
            f"Logistic regression on the first n tokens of {len(data.train_ids):,} training images, tested on "
            f"{len(data.test_ids):,} held-out ones, {data.classes} classes. Bands: 95 % intervals for the number of "
            "test images."
        )
        save_finding(place, Finding("probe", "Linear probe", caption, record, "probe.svg"))
    if options.json:
        print_json(record)
    else:
        print(describe(data, results))
    return 0


def read_data(options: argparse.Namespace) -> ProbeData:
    """The ids and labels that the options name."""
    import torch

    from overture.analysis.probe import ProbeData
    from overture.data import load_ids

    if not options.path and not (options.train and options.test):
        raise UsageError("probe: give a RUN, or --train and --test token files")
    tokens = Path(options.path or ".") / "tokens"
    places = {"train": options.train or tokens / "train.tokens", "test": options.test or tokens / "val.tokens"}
    loaded = {part: load_ids(place) for part, place in places.items()}
    for part, found in loaded.items():
        if found.labels is None:
            raise OvertureError(f"{places[part]}: holds no labels, a probe needs them")
        if found.layout is None:
            raise OvertureError(f"{places[part]}: holds no layout; a probe needs a token file (overture tokenize)")
    layout = loaded["train"].layout
    if layout is None or layout != loaded["test"].layout:
        raise OvertureError(f"{places['test']}: its layout is not that of {places['train']}")
    tensors: dict[str, Any] = {}
    for part, found in loaded.items():
        tensors[f"{part}_ids"] = torch.from_numpy(found.ids[:].astype("int64"))
        tensors[f"{part}_labels"] = torch.from_numpy(found.labels[:].astype("int64"))  # type: ignore[index]
    if options.rows is not None:
        if not 1 <= options.rows <= len(tensors["train_ids"]):
            raise UsageError(f"--rows is {options.rows}, there are 1 to {len(tensors['train_ids'])}")
        chosen = torch.randperm(len(tensors["train_ids"]), generator=torch.Generator().manual_seed(0))[: options.rows]
        tensors["train_ids"], tensors["train_labels"] = tensors["train_ids"][chosen], tensors["train_labels"][chosen]
    return ProbeData(layout, **tensors)


def describe(data: ProbeData, results: list[ProbeResult]) -> str:
    """A table for people."""
    lines = [
        f"{len(data.train_ids):,} training and {len(data.test_ids):,} test images, {data.classes} classes",
        "",
        f"{'segment':<12} {'tokens':>6}  {'features':<8} {'top-1':>7}  {'95 % interval':>15}  {'top-5':>7}  {'training':>8}",
    ]
    for result in results:
        low, high = result.interval
        top5 = "-" if result.top5 is None else f"{result.top5:.2%}"
        lines.append(
            f"{result.segment:<12} {result.tokens:>6}  {result.features:<8} {result.top1:>7.2%}  "
            f"{f'{low:.2%} .. {high:.2%}':>15}  {top5:>7}  {result.train_top1:>8.2%}"
        )
    return "\n".join(lines)
