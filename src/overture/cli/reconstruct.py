"""``overture reconstruct TOKENIZER --data SOURCE``: what a tokenizer loses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from overture.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "reconstruct",
        help="send images through a tokenizer and measure what is lost",
        description="PSNR, SSIM, LPIPS, codebook usage, the distance under a feature network, and a picture of originals over reconstructions.",
    )
    parser.add_argument("path", metavar="TOKENIZER", help="a tokenizer, a run, or a hub id")
    parser.add_argument("--data", required=True, help="a folder, zip, npz or data set")
    parser.add_argument("--weights", choices=("raw", "ema"), help="(default: the file's own, mostly ema)")
    parser.add_argument("--images", type=int, default=0, help="how many (default: all)")
    parser.add_argument("--network", help="also the distance under this feature network, such as inception")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (VGG16, version 0.1)")
    parser.add_argument(
        "--vgg-weights", default="", metavar="FILE", help="torchvision's VGG16 weights, if not in a cache"
    )
    parser.add_argument(
        "--lpips-heads", default="", metavar="FILE", help="LPIPS' heads, if the package is not installed"
    )
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="picture to write (.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and draw."""
    import sys

    import numpy as np
    import torch
    from tqdm import tqdm

    from overture.cli.common import check_image_place, choose_device, model_hashes, print_json, save_images
    from overture.data.sources import open_source, subset
    from overture.data.stream import DataConfig, evaluation_batches
    from overture.data.transforms import to_float, to_uint8
    from overture.evaluation.lpips import LpipsMeter
    from overture.evaluation.measure import reconstruction_report
    from overture.evaluation.networks import load_network
    from overture.evaluation.protocol import Protocol
    from overture.evaluation.reconstruction import ReconstructionMeter
    from overture.evaluation.usage import UsageMeter
    from overture.losses.perceptual import LpipsConfig
    from overture.pipeline import load_tokenizer

    if options.images < 0 or options.batch_size < 1:
        raise UsageError("reconstruct: --images needs to be at least 0 (all), --batch-size at least 1")
    if options.out:
        check_image_place(options.out)
    device = choose_device(options.device)
    meters = []
    if options.lpips:
        network = LpipsConfig(vgg_weights=options.vgg_weights, heads=options.lpips_heads).build()
        meters.append(LpipsMeter(network.to(device)))
    elif options.vgg_weights or options.lpips_heads:
        raise UsageError("--vgg-weights and --lpips-heads go with --lpips")
    tokenizer = load_tokenizer(options.path, options.weights, device=device)
    config = tokenizer.config
    data = DataConfig(
        source=options.data,
        image_size=config.image_size,
        channels=config.channels,
        corrupt_limit=0.0,  # what is measured has to be whole
    )
    source = open_source(options.data)
    if options.images and options.images > len(source):
        raise UsageError(f"--images is {options.images:,}, but {options.data} has {len(source):,}")
    if options.images:  # sources are sorted by class: a part of one is drawn from the whole
        order = np.random.default_rng(0).permutation(len(source))
        source = subset(source, np.sort(order[: options.images]))
    count = len(source)
    protocol = Protocol(
        images=count,
        image_size=data.image_size,
        crop="center",
        resize="box halving, bicubic",
        dtype="float32",
        weights=options.weights or tokenizer_weights(options.path),
        checkpoint=model_hashes(options.path, "tokenizer")["tokenizer_hash"],
    )

    def images() -> Any:
        return (batch.images for batch in evaluation_batches(source, data, options.batch_size))

    if options.network:
        result = reconstruction_report(
            tokenizer, images(), load_network(options.network, device), None, protocol, meters=meters, device=device
        ).to_dict()
    else:
        meter, usage = ReconstructionMeter(), UsageMeter(tokenizer.layout)
        with torch.inference_mode(), tqdm(total=count, unit="image", desc="reconstructing", file=sys.stderr) as bar:
            for part in images():
                ids = tokenizer.encode(to_float(part.to(device)))
                decoded = to_uint8(tokenizer.decode(ids)).cpu()
                meter.update(part, decoded)
                for each in meters:
                    each.update(part, decoded)
                usage.update(ids)
                bar.update(len(part))
        result = {"quality": meter.result().to_dict(), "usage": usage.result().to_dict()}
    if meters:
        result["quality"]["lpips"] = meters[0].result()
    if options.out:
        first = next(images())[:16]
        with torch.inference_mode():
            decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_float(first.to(device))))).cpu()
        save_images(
            torch.cat([first, decoded]), torch.zeros(2 * len(first), dtype=torch.int64), options.out, columns=len(first)
        )
    if options.json:
        print_json({"images": count, "source": options.data, "protocol": protocol.to_dict(), **result})
    else:
        quality = result["quality"]
        print(f"{count} images: " + ", ".join(f"{key} {value}" for key, value in quality.items()))
        for name, segment in result["usage"]["segments"].items():
            print(f"{name}: {segment['used']:.1%} of the codebook used, perplexity {segment['perplexity']:.1f}")
        if "distance" in result:
            distance = result["distance"]
            notes = f"   ({'; '.join(distance['notes'])})" if distance["notes"] else ""
            print(f"{distance['name']} {distance['value']:.4g}{notes}")
        print(
            f"{protocol.image_size} px, {protocol.crop} crop; {protocol.weights} weights of the tokenizer "
            f"[{(protocol.checkpoint or '?')[:12]}]"
        )
    return 0


def tokenizer_weights(path: str) -> str:
    """Which weights are used when nothing is said."""
    from overture.training.checkpoint import find_model, read_metadata

    return str(read_metadata(find_model(path, "tokenizer"), "tokenizer").get("use_weights", "ema"))
