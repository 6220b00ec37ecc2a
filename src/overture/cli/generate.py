"""``overture generate RUN``: images of given classes from a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import UsageError

if TYPE_CHECKING:
    from overture.recipes.presets import Preset


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "generate",
        help="sample images from a trained run",
        description="Sample images. RUN is a run directory, or give --tokenizer and --prior.",
    )
    parser.add_argument("path", metavar="RUN", nargs="?", help="a run directory (or a hub id)")
    parser.add_argument("--tokenizer", help="path of the tokenizer, if not RUN's")
    parser.add_argument("--prior", help="path of the prior, if not RUN's")
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw", help="of the prior (default: raw)")
    parser.add_argument("--classes", default="all", help="class ids: 'all', '3', '0,5,7' or '0-9' (default: all)")
    parser.add_argument("--count", type=int, default=8, help="images of each class (default: 8)")
    parser.add_argument("--preset", help="settings as published: 'paper' or 'unguided' of RUN's recipe, or RECIPE:NAME")
    parser.add_argument("--guidance", help="'1.5', 'cosine 4 power 1.5', 'prologue: 0.7, visual: 3' (default: 1.0)")
    parser.add_argument("--temperature", help="'0.9', or 'prologue: 0.7, visual: 0.9' (default: 1.0)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k likeliest ids (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the nucleus of this probability (1: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--bf16", action="store_true", help="run the transformer in bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help=".png grid, .npz (ADM style) or a folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sample and save."""
    import sys

    import torch
    from tqdm import tqdm

    from overture.cli.common import check_image_place, choose_device, print_json, save_images
    from overture.data.transforms import to_uint8
    from overture.pipeline import Pipeline, load_prior, load_tokenizer
    from overture.priors.guidance import Guidance, parse_temperature

    if not (options.path or (options.tokenizer and options.prior)):
        raise UsageError("generate: give a RUN, or --tokenizer and --prior")
    if options.count < 1 or options.batch_size < 1:
        raise UsageError("generate: --count and --batch-size need to be at least 1")
    check_image_place(options.out)
    device = choose_device(options.device)
    pipe = Pipeline(
        load_tokenizer(options.tokenizer or options.path, device=device),
        load_prior(options.prior or options.path, options.weights, device=device),
    )
    classes = torch.tensor(parse_classes(options.classes, pipe.prior.config.num_classes))
    labels = classes.repeat_interleave(options.count)
    preset = chosen_preset(options)
    guidance = Guidance.parse(preset.guidance if options.guidance is None else options.guidance)
    temperature = parse_temperature(preset.temperature if options.temperature is None else options.temperature)
    parts = []
    for number, part in enumerate(
        tqdm(labels.split(options.batch_size), unit="batch", desc="sampling", file=sys.stderr)
    ):
        images = pipe(
            part,
            seed=options.seed * 1_000_003 + number,
            guidance=guidance,
            temperature=temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            dtype=torch.bfloat16 if options.bf16 else None,
        )
        parts.append(to_uint8(images).cpu())
    save_images(torch.cat(parts), labels, options.out, columns=options.count)
    if options.json:
        about = {"images": len(labels), "guidance": str(guidance), "temperature": temperature}
        print_json({**about, "seed": options.seed, "out": str(options.out), "classes": classes.tolist()})
    else:
        print(f"{len(labels)} images: {options.out}", file=sys.stderr)
    return 0


def chosen_preset(options: argparse.Namespace) -> Preset:
    """What ``--preset`` means for this model; plain sampling without it."""
    from overture.pipeline import find_model
    from overture.recipes.presets import Preset, load_preset
    from overture.training.checkpoint import read_metadata

    if not options.preset:
        return Preset()
    recipe, _, name = options.preset.rpartition(":")
    if not recipe:
        metadata = read_metadata(find_model(options.prior or options.path, "prior"), "prior")
        recipe = metadata.get("run_config", {}).get("recipe", "")
        if not recipe:
            raise UsageError(f"--preset {name}: this prior does not say its recipe; write --preset RECIPE:{name}")
    return load_preset(recipe, name)


def parse_classes(text: str, num_classes: int) -> list[int]:
    """``all``, ``3``, ``0,5,7`` or ``0-9``."""
    if text == "all":
        return list(range(num_classes))
    classes: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            classes += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise UsageError(f"--classes '{text}': write all, 3, 0,5,7 or 0-9") from error
    if not classes:
        raise UsageError(f"--classes '{text}' names no class")
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong:
        raise UsageError(f"--classes {text}: class {wrong[0]} is out of range, the model knows 0..{num_classes - 1}")
    return classes
