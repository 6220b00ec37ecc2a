"""What several commands share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import OvertureError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overture.analysis.entries import InstrumentResult
    from overture.data.ids import LoadedIds
    from overture.data.stream import DataConfig
    from overture.evaluation.networks import FeatureNetwork
    from overture.layout import Layout
    from overture.priors.sampling import Sampling
    from overture.runs.directory import RunDirectory
    from overture.tokenizers.tokenizer import Tokenizer


# -- options --------------------------------------------------------------------------------------------------------


def add_instrument(parser: argparse.ArgumentParser, *, plot: bool = True) -> None:
    """What every instrument takes: ``--out``, ``--plot``, ``--device`` and ``--json``."""
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="figures and numbers (default: RUN/instruments)")
    if plot:
        parser.add_argument("--plot", type=Path, metavar="OUT", help="draw it: .png, .svg or .pdf")
    add_output(parser)


def add_output(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    """``--device`` and ``--json``."""
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How samples are drawn."""
    parser.add_argument("--guidance", help="'1.5', 'cosine 4 power 1.5', 'prologue: 0.7, visual: 3' (default: none)")
    parser.add_argument("--temperature", help="'0.9', or 'prologue: 0.7, visual: 0.9' (default: 1.0)")
    parser.add_argument("--top-k", type=int, help="keep the k likeliest ids (default: 0, all)")
    parser.add_argument("--top-p", type=float, help="keep the nucleus of this probability (default: 1, all)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="no sample depends on it (default: %(default)s)")


def read_sampling(options: argparse.Namespace, start: Sampling | None = None) -> Sampling:
    """What the options of :func:`add_sampling` say, over ``start``."""
    from overture.priors.sampling import Sampling

    known = start or Sampling()
    words = known.to_dict()
    return Sampling.parse(
        words["guidance"] if options.guidance is None else options.guidance,
        words["temperature"] if options.temperature is None else options.temperature,
        known.top_k if options.top_k is None else options.top_k,
        known.top_p if options.top_p is None else options.top_p,
    )


def at_least(options: argparse.Namespace, **limits: int) -> None:
    """Refuse numbers below their limits, by the name of the option; options that were not given pass."""
    for name, least in limits.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, needs >= {least}")


def parse_numbers(text: str | None, option: str, kind: type = int) -> tuple[Any, ...]:
    """``0,1,4`` as ascending numbers without repetition; nothing for no text."""
    try:
        return tuple(sorted({kind(word) for word in text.split(",")})) if text else ()
    except ValueError:
        example = "1,2,4" if kind is int else "1,1.5,2"
        raise UsageError(f"{option} {text}: give numbers such as {example}") from None


def device_of(options: argparse.Namespace) -> torch.device:
    """The device of ``--device``."""
    from overture.processes import choose_device

    return choose_device(options.device)


# -- runs -----------------------------------------------------------------------------------------------------------


def open_run(path: str | Path) -> RunDirectory:
    """The run directory called ``path``."""
    from overture.runs.directory import RunDirectory

    run = RunDirectory(path)
    run.check_is_run()
    return run


def open_judge(run: RunDirectory, network: str | None, device: torch.device) -> FeatureNetwork:
    """The network that ``--network`` names, else the run's own judge."""
    from overture.evaluation.networks import load_network
    from overture.model_files import find_model

    if network is None and not run.judge.is_file():
        find_model(run.root, "tokenizer")  # a run without pictures needs none, and says so
        raise UsageError(f"{run.root}: holds no judge; give one with --network domain:FILE")
    return load_network(network or f"domain:{run.judge}", device)


def drawn_tokens(
    path: Path,
    count: int | None = None,
    layout: Layout | None = None,
    *,
    option: str = "--rows",
    at_most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``count`` rows of a token file (default: all, or ``at_most`` so many): local ids ``[N, T]`` and labels ``[N]``.

    Rows and their order are drawn, always the same: token files are often sorted by class. ``option`` asked for them.
    """
    import torch

    from overture.data.order import generator, some_of

    loaded = labelled_ids(path)
    if layout is not None and loaded.layout != layout:
        raise OvertureError(f"{path}: its layout ({loaded.layout}) is not that of the model ({layout})")
    count = how_many(count, len(loaded.ids), str(path), option=option, at_most=at_most)
    rows = generator("order", 0, 0).permutation(some_of(len(loaded.ids), count))
    assert loaded.labels is not None
    return torch.from_numpy(loaded.ids[rows].astype("int64")), torch.from_numpy(loaded.labels[rows])


def how_many(count: int | None, there: int, where: str, *, option: str, at_most: int | None = None) -> int:
    """What ``option`` asks for of the rows or images that are ``there``, by default all, or ``at_most`` so many."""
    if count is None:
        return there if at_most is None else min(at_most, there)
    if count > there:
        raise UsageError(f"{option} is {count:,}, but {where} has {there:,}")
    return count


def labelled_ids(path: Path) -> LoadedIds:
    """A token file that has labels and a layout."""
    from overture.data.ids import load_ids

    loaded = load_ids(path)
    if loaded.labels is None:
        raise OvertureError(f"{path}: holds no labels")
    if loaded.layout is None:
        raise OvertureError(f"{path}: holds no layout; make a token file of it (overture tokenize)")
    return loaded


def images_as_trained(path: str, tokenizer: Tokenizer, **options: Any) -> DataConfig:
    """How images of others are read for a tokenizer: of its size, on the background that it was trained with."""
    from overture.data.stream import DataConfig
    from overture.model_files import find_model, read_metadata

    config, known = tokenizer.config, read_metadata(find_model(path, "tokenizer"), "tokenizer").get("run_config", {})
    background = known.get("data", {}).get("background", DataConfig.background)
    return DataConfig(image_size=config.image_size, channels=config.channels, background=background, **options)


# -- results --------------------------------------------------------------------------------------------------------


def print_json(data: dict[str, Any]) -> None:
    """The one object on stdout that ``--json`` promises."""
    print(json.dumps(data, allow_nan=False))


def check_plot(options: argparse.Namespace) -> None:
    """Refuse a figure that cannot be written, before the work."""
    if getattr(options, "out", None) and options.out.suffix in (".png", ".svg", ".pdf"):
        raise UsageError(f"--out {options.out}: is the folder for figures and numbers; one figure goes to --plot")
    if options.plot:
        from overture.analysis.figures import check_figure_path

        check_figure_path(options.plot)


def finish(
    options: argparse.Namespace, result: InstrumentResult, about: dict[str, Any], run: RunDirectory | None = None
) -> int:
    """Draw, leave the figures in the run for its report or where ``--out`` says, print."""
    from overture.analysis.entries import save_entries
    from overture.analysis.figures import save_figure

    folder = options.out or (run.instruments if run else None)
    if folder is not None:
        save_entries(result, folder, about)
    if getattr(options, "plot", None):
        save_figure(result.entries()[0].drawing, options.plot)  # type: ignore[arg-type]
    if options.json:
        print_json({**about, **result.to_dict()})
    else:
        print(result.describe())
        if folder is not None:
            print(f"figures: {folder}")
    return 0
