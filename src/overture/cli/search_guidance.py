"""``overture search-guidance RUN``: the guidance and temperature of the lowest distance."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from overture.evaluation.networks import FeatureNetwork
    from overture.evaluation.reference import Reference
    from overture.pipeline import Pipeline
    from overture.runs.config import RunConfig


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "search-guidance",
        help="the guidance and temperature of the lowest distance, coarse to fine",
        description="Tries a grid of guidance settings at a small number of samples, refines around the best, and "
        "measures the finalists at the full number. The distance is to the held-out images: the numbers that a run "
        "reports are against its training images, and tuning on these would flatter them. Interrupted, the same "
        "command goes on.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory")
    parser.add_argument("--scales", default="1,1.25,1.5,2,3", help="(default: %(default)s)")
    parser.add_argument("--schedules", default="constant,linear,cosine", help="(default: %(default)s)")
    parser.add_argument("--powers", default="1", help="of the cosine schedule (default: %(default)s)")
    parser.add_argument("--first", metavar="SCALES", help="split guidance: constant scales of the first segment")
    parser.add_argument("--temperatures", default="1", help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="of the coarse and fine steps (default: %(default)s)")
    parser.add_argument("--final-samples", type=int, help="of the finalists (default: as the run's own evaluation)")
    parser.add_argument("--finalists", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--reference", help="a statistics file to tune against (default: the held-out images)")
    parser.add_argument(
        "--on-test-reference", action="store_true", help="tune against the reference that the results are reported on"
    )
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1, help="other than the run's own samples (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dry-run", action="store_true", help="show the cost and stop")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="the figure once more: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the cost, search, draw, print."""
    from overture.analysis.curves import landscape_figure
    from overture.analysis.figures import check_figure_path, save_figure
    from overture.cli.common import choose_device, find_judge, find_networks, model_hashes, print_json, read_run_config
    from overture.evaluation.measure import generation_distance
    from overture.evaluation.networks import load_network
    from overture.pipeline import Pipeline, load_prior, load_tokenizer
    from overture.priors.guidance import Guidance
    from overture.runs.instruments import FOLDER, Finding, save_finding
    from overture.runs.search import GuidanceSearch, Scored, Setting, SettingLog

    device, root = choose_device(options.device), Path(options.path)
    if options.plot:
        check_figure_path(options.plot)
    if options.batch_size < 1:
        raise UsageError("search-guidance: --batch-size needs to be at least 1")
    config = read_run_config(root)
    name = config.evaluation.network
    judge = load_network(f"domain:{find_judge(root)}" if name == "domain" else name, device)
    pipe = Pipeline(load_tokenizer(options.path, device=device), load_prior(options.path, device=device))
    search = GuidanceSearch(
        scales=_numbers(options.scales, "--scales"),
        schedules=tuple(word.strip() for word in options.schedules.split(",")),
        powers=_numbers(options.powers, "--powers"),
        firsts=_numbers(options.first, "--first") if options.first else (),
        temperatures=_numbers(options.temperatures, "--temperatures"),
        coarse_samples=options.samples,
        final_samples=config.evaluation.samples if options.final_samples is None else options.final_samples,
        finalists=options.finalists,
        segments=pipe.prior.layout.names,
    )
    reference = choose_reference(options, config, judge, find_networks(root))
    cost = print_cost(search, pipe, options)
    if options.dry_run:
        if options.json:
            print_json(cost)
        return 0
    protocol = {
        **model_hashes(root, "tokenizer", "prior"),
        "network": judge.name,
        "network_hash": judge.weights_hash,
        "reference": reference.name,
        "reference_hash": reference.hash,
        "reference_images": reference.gaussian.count,
        "classes": "balanced",
        "seed": options.seed,
        "batch_size": options.batch_size,
        "top_k": config.evaluation.top_k,
        "top_p": config.evaluation.top_p,
    }
    log = SettingLog(root / FOLDER / "guidance-search.jsonl", protocol)
    measured: list[tuple[str, Scored]] = []

    def measure(setting: Setting, samples: int) -> float:
        if (setting, samples) not in log:
            guidance = Guidance.parse(setting.guidance(pipe.prior.layout.names))
            batches = sampled(pipe, config, guidance, setting.temperature, samples, options)
            value = generation_distance(judge, batches, reference, progress=True).value
            log.add(setting, samples, value)
        return log[setting, samples]

    def seen(scored: Scored, step: str) -> None:
        measured.append((step, scored))
        setting = scored.setting
        text = f"{setting.guidance(pipe.prior.layout.names)}, temperature {setting.temperature:g}"
        print(f"{step:<9} {scored.samples:>6} samples  {scored.value:>10.5g}  {text}", file=sys.stderr, flush=True)

    finalists = search.run(measure, seen)
    best = finalists[0]
    at_edge = len(search.scales) > 1 and best.setting.scale == max(search.scales)
    if at_edge:
        print(f"the best scale ({best.setting.scale:g}) is the largest that was tried: widen --scales", file=sys.stderr)
    record = {
        "name": f"g{judge.label}",
        **protocol,
        "best": _entry(best, pipe),
        "best_at_edge": at_edge,
        "finalists": [_entry(scored, pipe) for scored in finalists],
        "measured": [{"step": step, **_entry(scored, pipe)} for step, scored in measured],
    }
    figure = landscape_figure(measured, f"g{judge.label}")
    for path in (root / FOLDER / "guidance-search.svg", *([options.plot] if options.plot else [])):
        save_figure(figure, path)
    caption = (
        f"g{judge.label} against {reference.name} at {search.coarse_samples:,} samples; large markers: finalists at "
        f"{search.final_samples:,}. Best: {record['best']['guidance']}, temperature {best.setting.temperature:g}, "  # type: ignore[index]
        f"{best.value:.4g}. A higher number of samples gives a lower distance, so the two sizes are not to be compared."
    )
    save_finding(root, Finding("guidance-search", "Guidance search", caption, record, "guidance-search.svg"))
    if options.json:
        print_json(record)
    else:
        for scored in finalists:
            entry = _entry(scored, pipe)
            print(
                f"g{judge.label} {scored.value:.5g} at {scored.samples:,} samples: "
                f"--guidance '{entry['guidance']}' --temperature {entry['temperature']:g}"
            )
    return 0


def choose_reference(
    options: argparse.Namespace, config: RunConfig, judge: FeatureNetwork, networks: Path
) -> Reference:
    """What is tuned against: held-out images unless told otherwise; never unknowingly what results are reported on."""
    from overture.data.stream import evaluation_batches
    from overture.evaluation.measure import check_reference, make_reference
    from overture.evaluation.reference import Reference

    reported = networks / "reference.npz"
    if options.reference or options.on_test_reference:
        place = Path(options.reference or reported)
        reference = Reference.load(place)
        check_reference(reference, judge, str(place))
        if options.on_test_reference:
            return reference
        if reported.is_file() and same_statistics(reference, Reference.load(reported)):
            raise UsageError(
                f"{options.reference}: the run reports its results against these images; tuning on them would flatter "
                "the numbers. Add --on-test-reference if that is meant"
            )
        return reference
    data = config.data.build()
    batches = (batch.images for batch in evaluation_batches(data.held_out, config.data, options.batch_size))
    return make_reference(f"{data.held_out.name}, held-out images", judge, batches, progress=True)


def same_statistics(one: Reference, other: Reference) -> bool:
    """Whether two references are of the same images, whatever their files say."""
    return one.hash == other.hash or one.gaussian.mean.equal(other.gaussian.mean)


def print_cost(search: Any, pipe: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    """How many images, and how long at the speed of one batch (guided, so the dearer kind)."""
    import torch

    start = time.perf_counter()
    count = min(options.batch_size, search.coarse_samples)
    pipe(torch.arange(count) % pipe.prior.config.num_classes, seed=0, guidance=1.5)
    seconds = (time.perf_counter() - start) / count * search.most_images
    settings = len(search.coarse())
    print(
        f"{settings} settings at {search.coarse_samples:,} samples, the best refined, {search.finalists} finalists at "
        f"{search.final_samples:,}: at most {search.most_images:,} images, about {max(seconds / 60, 0.1):.1f} min",
        file=sys.stderr,
        flush=True,
    )
    return {"settings": settings, "most_images": search.most_images, "most_seconds": seconds}


def sampled(
    pipe: Pipeline, config: RunConfig, guidance: Any, temperature: float, samples: int, options: argparse.Namespace
) -> Iterator[Tensor]:
    """Images of balanced classes; the same classes and random numbers for every setting."""
    from overture.data.transforms import to_uint8
    from overture.runs.evaluate import balanced_classes

    classes = balanced_classes(samples, pipe.prior.config.num_classes)
    for number, part in enumerate(classes.split(options.batch_size)):
        images = pipe(
            part,
            seed=options.seed * 1_000_003 + number,
            guidance=guidance,
            temperature=temperature,
            top_k=config.evaluation.top_k,
            top_p=config.evaluation.top_p,
        )
        yield to_uint8(images).cpu()


def _entry(scored: Any, pipe: Pipeline) -> dict[str, Any]:
    return {
        "guidance": scored.setting.guidance(pipe.prior.layout.names),
        "temperature": scored.setting.temperature,
        "samples": scored.samples,
        "value": scored.value,
    }


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        raise UsageError(f"{option} {text}: give numbers such as 1,1.5,2") from None
