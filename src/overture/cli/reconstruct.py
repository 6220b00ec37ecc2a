"""``overture reconstruct TOKENIZER --data SOURCE``: what a tokenizer loses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import add_output, at_least, device_of, images_as_trained, print_json
from overture.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from overture.data.base import Source
    from overture.evaluation.conditions import Conditions
    from overture.evaluation.reconstruction import ReconstructionReport


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "reconstruct",
        help="send images through a tokenizer and measure what is lost",
        description="Example: overture reconstruct runs/quickstart/vcq --data photos.zip --out pairs.png\n\n"
        "PSNR, SSIM, LPIPS, codebook usage, the distance under a feature network, and a picture of originals "
        "over reconstructions.",
    )
    parser.add_argument("path", metavar="TOKENIZER", help="a tokenizer, a run, or hf:owner/name")
    parser.add_argument("--data", help="a folder, zip, npz or data set (default: what the tokenizer was trained on)")
    parser.add_argument(
        "--part", choices=("held-out", "train", "all"),
        help="of the tokenizer's own data: images kept from its training, or those too (default: held-out)",
    )  # fmt: skip
    parser.add_argument("--weights", choices=("raw", "ema"), help="(default: the file's own, mostly ema)")
    parser.add_argument("--images", type=int, help="how many, drawn at random (default: all)")
    parser.add_argument("--network", help="also the distance under this feature network, such as inception")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (VGG16, version 0.1)")
    parser.add_argument(
        "--vgg-weights", default="", metavar="FILE", help="torchvision's VGG16 weights, if not in a cache"
    )
    parser.add_argument(
        "--lpips-heads", default="", metavar="FILE", help="LPIPS' heads, if the package is not installed"
    )
    parser.add_argument(
        "--corrupt-limit",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the images that may be unreadable (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--out", type=Path, help="picture to write (.png)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and draw."""
    from overture.data.base import subset
    from overture.data.order import some_of
    from overture.data.stream import evaluation_batches
    from overture.evaluation.conditions import CENTRE_CROP, Conditions
    from overture.evaluation.networks import load_network
    from overture.evaluation.reconstruction import measure_reconstruction
    from overture.losses.perceptual import LpipsConfig
    from overture.model_files import find_model, read_metadata
    from overture.pictures import save_picture
    from overture.pipeline import load_tokenizer

    at_least(options, images=1, batch_size=1)
    if options.out and options.out.suffix != ".png":
        raise UsageError(f"--out {options.out}: give a .png")
    if (options.vgg_weights or options.lpips_heads) and not options.lpips:
        raise UsageError("--vgg-weights and --lpips-heads go with --lpips")
    device = device_of(options)
    lpips = None
    if options.lpips:
        lpips = LpipsConfig(vgg_weights=options.vgg_weights, heads=options.lpips_heads).build().to(device)
    network = load_network(options.network, device) if options.network else None
    tokenizer = load_tokenizer(options.path, options.weights, device=device)
    file = find_model(options.path, "tokenizer")
    metadata = read_metadata(file, "tokenizer")
    source, which = chosen_images(options.data, options.part, metadata, file)
    # What is measured has to be whole.
    data = images_as_trained(options.path, tokenizer, corrupt_limit=options.corrupt_limit)
    if options.images and options.images > len(source):
        raise UsageError(f"--images is {options.images:,}, but there are {len(source):,} ({which})")
    source = subset(source, some_of(len(source), options.images))
    conditions = Conditions(
        images=len(source),
        image_size=data.image_size,
        **CENTRE_CROP,
        dtype="float32",
        weights=options.weights or metadata.get("use_weights", "ema"),
        checkpoint=metadata["weights_hash"],
    )

    def images() -> Iterator[Tensor]:
        return (batch.images for batch in evaluation_batches(source, data, options.batch_size))

    report = measure_reconstruction(tokenizer, images(), network, conditions, lpips=lpips, device=device, progress=True)
    if options.out:
        save_picture(report.shown.flatten(0, 1), report.shown.shape[1], options.out)
    if options.json:
        about = {"images": len(source), "source": which, "protocol": conditions.to_dict()}
        print_json({**about, **report.to_dict()})
    else:
        print(describe(report, conditions, which))
    return 0


def chosen_images(data: str | None, part: str | None, metadata: dict[str, Any], file: Path) -> tuple[Source, str]:
    """The images to send through, and which these are in words.

    Of the tokenizer's own data those that were kept from its training, if nothing else is asked for: what it has seen
    before says less. Of a ``file`` of the hub, data that are code or lie elsewhere are not opened unless they are given.
    """
    from overture.config import from_dict
    from overture.data.sources import open_source
    from overture.data.stream import DataConfig
    from overture.elsewhere import check_data, is_elsewhere, opens_here

    known = metadata.get("run_config", {}).get("data")
    own = from_dict(DataConfig, known, "data of the tokenizer's run") if known else None
    if own and data and is_elsewhere(file) and not opens_here(own.held_out):
        own = None
    if own is None and data is None:
        raise UsageError("reconstruct: this tokenizer does not say what it was trained on; give --data")
    if own is None or (data is not None and not _same_place(data, own.source)):
        if part not in (None, "all"):
            raise UsageError(f"--part {part}: {data} is not the data that this tokenizer was trained on")
        assert data is not None
        return open_source(data), f"all images of {data}"
    check_data(file, () if data else (own.source, own.held_out), "--data")
    if part == "all":
        return open_source(own.source), f"all images of {own.source}, those of the training among them"
    images = own.build()
    if part == "train":
        return images.train, f"training images of {own.source}"
    return images.held_out, f"images of {own.held_out or own.source} that were kept from the training"


def _same_place(first: str, second: str) -> bool:
    return first == second or Path(first).expanduser().resolve() == Path(second).expanduser().resolve()


def describe(report: ReconstructionReport, conditions: Conditions, which: str) -> str:
    """The numbers, and how they were made, for people."""
    data = report.to_dict()
    lines = [
        f"{report.quality.images} {which}: " + ", ".join(f"{key} {value}" for key, value in data["quality"].items())
    ]
    for segment in report.usage.segments:
        lines.append(f"{segment.name}: {segment.used:.1%} of the codebook used, perplexity {segment.perplexity:.1f}")
    if report.distance is not None:
        notes = f"   ({'; '.join(report.distance.notes)})" if report.distance.notes else ""
        lines.append(f"{report.distance.name} {report.distance.value:.4g}{notes}")
    lines.append(
        f"{conditions.image_size} px, {conditions.crop} crop; {conditions.weights} weights of the tokenizer "
        f"[{(conditions.checkpoint or '?')[:12]}]"
    )
    return "\n".join(lines)
