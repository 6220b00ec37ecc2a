"""``overture search-guidance RUN``: the guidance and temperature of the lowest distance."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import (
    add_instrument,
    at_least,
    check_plot,
    device_of,
    finish,
    open_judge,
    open_run,
    parse_numbers,
    print_json,
)
from overture.errors import UsageError

if TYPE_CHECKING:
    from overture.analysis.guidance_search import GuidanceSearch, Scored
    from overture.evaluation.networks import FeatureNetwork
    from overture.evaluation.statistics import ImageStatistics
    from overture.pipeline import Pipeline
    from overture.runs.config import RunConfig
    from overture.runs.directory import RunDirectory


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "search-guidance",
        help="the guidance and temperature of the lowest distance, coarse to fine",
        description="Example: overture search-guidance runs/quickstart/vcq\n\n"
        "Tries a grid of guidance settings at a small number of samples, refines around the best, and "
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
    parser.add_argument("--batch-size", type=int, default=250, help="no sample depends on it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="other than the run's own samples (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="show the cost and stop")
    add_instrument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the cost, search, draw, print."""
    from overture.analysis.guidance_search import study
    from overture.pipeline import Pipeline

    check_plot(options)
    at_least(options, batch_size=1, samples=2, final_samples=2, finalists=1, seed=0)
    directory, device = open_run(options.path), device_of(options)
    config = directory.read_config()
    named = config.evaluation.network
    judge = open_judge(directory, None if named == "domain" else named, device)
    pipe = Pipeline.load(options.path, device)
    search = chosen_search(options, config, pipe)
    reference = choose_reference(options, config, judge, directory)
    cost = print_cost(search, pipe, options)
    if options.dry_run:
        if options.json:
            print_json(cost)
        return 0

    def seen(step: str, scored: Scored) -> None:
        setting = scored.setting
        text = f"{setting.guidance(pipe.layout.names)}, temperature {setting.temperature:g}"
        print(f"{step:<9} {scored.samples:>6} samples  {scored.value:>10.5g}  {text}", file=sys.stderr, flush=True)

    hashes = directory.model_hashes("tokenizer", "prior")
    log = (options.out or directory.instruments) / "guidance-search.jsonl"
    result = study(
        pipe, judge, reference, search, log,
        about=hashes, seed=options.seed, top_k=config.evaluation.top_k, top_p=config.evaluation.top_p,
        batch_size=options.batch_size, seen=seen, progress=True,
    )  # fmt: skip
    return finish(options, result, hashes, directory)


def chosen_search(options: argparse.Namespace, config: RunConfig, pipe: Pipeline) -> GuidanceSearch:
    """What the options ask to search."""
    from overture.analysis.guidance_search import GuidanceSearch

    return GuidanceSearch(
        scales=parse_numbers(options.scales, "--scales", float),
        schedules=tuple(word.strip() for word in options.schedules.split(",")),
        powers=parse_numbers(options.powers, "--powers", float),
        firsts=parse_numbers(options.first, "--first", float),
        temperatures=parse_numbers(options.temperatures, "--temperatures", float),
        coarse_samples=options.samples,
        final_samples=config.evaluation.samples if options.final_samples is None else options.final_samples,
        finalists=options.finalists,
        segments=pipe.layout.names,
    )


def choose_reference(
    options: argparse.Namespace, config: RunConfig, judge: FeatureNetwork, run: RunDirectory
) -> ImageStatistics:
    """What is tuned against: held-out images unless told otherwise; never unknowingly what results are reported on."""
    from overture.data.stream import evaluation_batches
    from overture.elsewhere import check_data
    from overture.evaluation.statistics import measure_batches, read_statistics

    if options.reference or options.on_test_reference:
        reference = read_statistics(Path(options.reference or run.reference), judge)
        if options.on_test_reference:
            return reference
        if run.reference.is_file() and same_statistics(reference, read_statistics(run.reference)):
            raise UsageError(
                f"{options.reference}: the run reports its results against these images; tuning on them would flatter "
                "the numbers. Add --on-test-reference if that is meant"
            )
        return reference
    check_data(run.config, (config.data.source, config.data.held_out), "--reference")
    data = config.data.build()
    batches = (batch.images for batch in evaluation_batches(data.held_out, config.data, options.batch_size))
    return measure_batches(f"{data.held_out.name}, held-out images", judge, batches, progress=True)


def same_statistics(one: ImageStatistics, other: ImageStatistics) -> bool:
    """Whether two references are of the same images, whatever their files say."""
    return one.hash == other.hash or one.gaussian.mean.equal(other.gaussian.mean)


def print_cost(search: GuidanceSearch, pipe: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    """How many images, and how long at the speed of one batch (guided, so the dearer kind)."""
    from overture.pipeline import balanced_classes
    from overture.priors.sampling import Sampling

    start = time.perf_counter()
    count = min(options.batch_size, search.coarse_samples)
    pipe(balanced_classes(count, pipe.prior.config.num_classes), Sampling.parse(1.5), batch_size=count)
    seconds = (time.perf_counter() - start) / count * search.most_images
    settings = len(search.coarse())
    print(
        f"{settings} settings at {search.coarse_samples:,} samples, the best refined, {search.finalists} finalists at "
        f"{search.final_samples:,}: at most {search.most_images:,} images, about {max(seconds / 60, 0.1):.1f} min",
        file=sys.stderr,
        flush=True,
    )
    return {"settings": settings, "most_images": search.most_images, "most_seconds": seconds}
