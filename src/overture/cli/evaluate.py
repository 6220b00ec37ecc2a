"""``overture evaluate SAMPLES --reference REF``: FID and its company by the ADM protocol, without TensorFlow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import add_output, at_least, print_json
from overture.errors import UsageError

if TYPE_CHECKING:
    from overture.evaluation.conditions import Conditions
    from overture.evaluation.evaluation import Evaluation


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="FID, sFID, IS, precision, recall, KID of images against a reference",
        description="Example: overture evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz\n\n"
        "Measures SAMPLES against a reference by the ADM protocol. Both are an ADM-style .npz, a folder or "
        "zip of images, a data source, or a statistics file (mu, sigma, perhaps mu_s, sigma_s). Under torchrun the "
        "processes share the images; no number depends on how many there are.",
    )
    parser.add_argument("samples", metavar="SAMPLES", help=".npz, folder, zip, data source or statistics file")
    parser.add_argument("--reference", metavar="REF", help="what to measure against, in the same forms")
    parser.add_argument(
        "--make-reference", type=Path, metavar="OUT.npz", help="write the statistics of SAMPLES and measure nothing"
    )
    parser.add_argument(
        "--keep-images",
        type=int,
        default=0,
        metavar="N",
        help="with --make-reference: keep N images, for precision, recall and KID",
    )
    parser.add_argument(
        "--network",
        default="inception",
        help="feature network: inception, domain:FILE, timm:MODEL@FILE, module:Class (default: %(default)s)",
    )
    parser.add_argument("--inception-weights", metavar="FILE", help="the Inception weights, if not in a cache")
    parser.add_argument(
        "--metrics",
        metavar="LIST",
        help="such as fid,precision,my_metrics:mmd (default: all of ours, if there is enough)",
    )
    parser.add_argument("--images", type=int, metavar="N", help="N of the samples, drawn at random (default: all)")
    parser.add_argument(
        "--image-size", type=int, metavar="S", help="resize and centre-crop to S pixels (default: as they are)"
    )
    parser.add_argument("--batch-size", type=int, default=100, help="images that the network sees at once")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the record, for overture compare")
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Collect both sides, measure, print."""
    words = [word.strip() for word in (options.metrics or "").split(",") if word.strip()]
    names = tuple(word if ":" in word else word.lower() for word in words)
    check(options)
    from overture.evaluation.evaluation import chosen_metrics, evaluate, features_needed
    from overture.evaluation.networks import load_network
    from overture.evaluation.statistics import open_reference, open_samples, save_reference
    from overture.files import write_record
    from overture.processes import Processes

    keep = features_needed(chosen_metrics(names))
    processes = Processes.join(options.device)
    weights = f"inception:{options.inception_weights}" if options.inception_weights else options.network
    network = load_network(weights, processes.device)
    common: dict[str, Any] = {
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "processes": processes,
        "progress": processes.is_main,
    }
    if options.make_reference:
        side = open_samples(options.samples, network, images=options.images, **common)
        if processes.is_main:
            save_reference(side, options.make_reference, options.keep_images)
            about = {"reference": str(options.make_reference), "images": side.images, "hash": side.hash}
            if options.json:
                print_json({**about, "network": network.name, "network_hash": network.weights_hash})
            else:
                print(f"{options.make_reference}: statistics of {side.images:,} images under {network.name}")
        return 0
    samples = open_samples(options.samples, network, keep_features=keep, images=options.images, **common)
    reference = open_reference(options.reference, network, keep_features=keep, **common)
    result = evaluate(samples, reference, network, names)
    if not processes.is_main:
        return 0
    record = {"samples": options.samples, "reference": options.reference, **result.to_dict()}
    if options.json:
        print_json(record)
    else:
        print(describe(result))
    if options.out:  # last: a full disk must not cost the numbers
        write_record(options.out, record)
    return 0


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is read."""
    if bool(options.reference) == bool(options.make_reference):
        raise UsageError("evaluate: give --reference REF to measure against, or --make-reference OUT.npz to make one")
    if options.make_reference and options.make_reference.suffix != ".npz":
        raise UsageError(f"--make-reference {options.make_reference}: a reference is an .npz file")
    if options.out and options.out.is_dir():
        raise UsageError(f"--out {options.out}: is a folder; name a .json file")
    if options.make_reference and (options.out or options.metrics):
        raise UsageError("evaluate: --make-reference measures nothing, so --out and --metrics do not go with it")
    if options.keep_images and not options.make_reference:
        raise UsageError("--keep-images goes with --make-reference")
    if options.inception_weights and options.network != "inception":
        raise UsageError(f"--inception-weights does not go with --network {options.network}")
    if options.keep_images < 0 or options.keep_images == 1:
        raise UsageError("evaluate: --keep-images needs to be at least 2 (or 0: none)")
    at_least(options, batch_size=1, images=2)


def describe(result: Evaluation) -> str:
    """The numbers, how they were made, and what is missing, for people."""
    lines = []
    for measurement in result.measurements.values():
        notes = f"   ({'; '.join(measurement.notes)})" if measurement.notes else ""
        lines.append(f"{measurement.name:<22} {measurement.value:>12.6g}{notes}")
    how: dict[str, list[str]] = {}
    for measurement in result.measurements.values():
        how.setdefault(_how(measurement.conditions), []).append(measurement.name)
    for words, names in how.items():
        lines += ["", *([f"{', '.join(names)}:"] if len(how) > 1 else []), words]
    lines += [f"not measured: {metric} ({reason})" for metric, reason in result.skipped.items()]
    return "\n".join(lines)


def _how(conditions: Conditions) -> str:
    """What was measured, and how, in some lines."""
    images = "an unknown number of" if conditions.images is None else f"{conditions.images:,}"
    size = f" of {conditions.image_size} px" if conditions.image_size else ""
    lines = [f"{images} images{size} ({conditions.crop or 'cut unknown'})"]
    if conditions.reference is not None:
        others = "an unknown number" if conditions.reference_images is None else f"{conditions.reference_images:,}"
        lines[0] += f" against {others} of {conditions.reference} [{(conditions.reference_hash or '?')[:12]}]"
    if conditions.network is not None:
        lines.append(
            f"network {conditions.network} [{(conditions.network_hash or '?')[:12]}], {conditions.preparation}"
        )
    return "\n".join(lines)
