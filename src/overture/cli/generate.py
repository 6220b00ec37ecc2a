"""``overture generate RUN``: images of given classes from a trained run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import add_output, add_sampling, at_least, print_json, read_sampling
from overture.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from overture.priors.sampling import Sampling


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "generate",
        help="sample images from a trained run",
        description="Example: overture generate runs/quickstart/vcq --classes 0-3 --out samples.png\n\n"
        "Sample images. RUN is a run directory, or give --tokenizer and --prior. Image i is the same at any "
        "batch size and on any number of processes.",
    )
    parser.add_argument("path", metavar="RUN", nargs="?", help="a run directory, or hf:owner/name")
    parser.add_argument("--tokenizer", help="path of the tokenizer, if not RUN's")
    parser.add_argument("--prior", help="path of the prior, if not RUN's")
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw", help="of the prior (default: raw)")
    parser.add_argument("--classes", default="all", help="'all', ids ('3', '0,5,7', '0-9') or names (default: all)")
    parser.add_argument("--count", type=int, default=8, help="images of each class (default: 8)")
    parser.add_argument("--preset", help="settings as published: 'paper' or 'unguided' of RUN's recipe, or RECIPE:NAME")
    parser.add_argument("--like", type=Path, metavar="PNG", help="make a picture again that overture app saved")
    add_sampling(parser)
    parser.add_argument("--bf16", action="store_true", help="run the transformer in bfloat16")
    parser.add_argument(
        "--out", type=Path, default=Path("samples.png"), help=".png grid, .npz (ADM style), a folder; .npy: token ids"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sample and save."""
    import torch

    from overture.pipeline import Pipeline
    from overture.processes import Processes
    from overture.progress import progress_bar
    from overture.runs.class_names import class_names

    if options.like is not None:
        from overture.cli.like_picture import like_picture

        return like_picture(options)
    if options.out.suffix == ".npy":
        from overture.cli.sample_ids import sample_ids

        return sample_ids(options)
    if not (options.path or (options.tokenizer and options.prior)):
        raise UsageError("generate: give a RUN, or --tokenizer and --prior")
    at_least(options, count=1, batch_size=1, seed=0)
    check_place(options.out)
    sampling = read_sampling(options, preset_sampling(options))
    processes = Processes.join(options.device)
    pipe = Pipeline.load(
        options.path,
        processes.device,
        tokenizer=options.tokenizer,
        prior=options.prior,
        prior_weights=options.weights,
    )
    names = list(pipe.prior.class_names) or class_names(options.path, pipe.prior.config.num_classes)
    classes = parse_classes(options.classes, names)
    # A picture has a row for each class. Elsewhere classes come in turn, so that any part of the set holds all of them.
    by_class = options.out.suffix == ".png"
    labels = [c for c in classes for _ in range(options.count)] if by_class else classes * options.count
    sampling.check(pipe.layout)

    def batches() -> Iterator[Tensor]:
        dtype = torch.bfloat16 if options.bf16 else None
        with progress_bar("sampling", len(labels), shown=processes.is_main) as bar:
            for images in pipe.sample_together(
                labels, sampling, processes=processes, seed=options.seed, batch_size=options.batch_size, dtype=dtype
            ):
                yield images
                bar.update(len(images))

    if not processes.is_main:
        for _ in batches():  # the main process writes them
            pass
        return 0
    save(batches(), labels, names, options.out, options.count)
    if options.json:
        about = {"images": len(labels), **sampling.to_dict(), "seed": options.seed}
        print_json({**about, "out": str(options.out), "classes": classes})
    else:
        print(f"{len(labels)} images: {options.out}", file=sys.stderr)
    return 0


def check_place(out: Path) -> None:
    """Refuse a place that there is no format for, or where old pictures would be counted among the new, before the work."""
    if out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {out}: give a .png (one grid), an .npz (ADM style), a folder, or a .npy (token ids)")
    if not out.suffix and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is not empty; old pictures would be counted among the new ones")


def save(batches: Iterator[Tensor], labels: Sequence[int], names: Sequence[str], out: Path, columns: int) -> None:
    """One PNG grid, an ADM-style ``.npz``, or a folder with one for each class."""
    import torch

    from overture.pictures import save_folder, save_npz, save_picture

    if out.suffix == ".png":
        save_picture(torch.cat(list(batches)), columns, out)
    elif out.suffix == ".npz":
        save_npz(batches, labels, out)
    else:
        save_folder(batches, labels, names, out)


def preset_sampling(options: argparse.Namespace) -> Sampling | None:
    """What ``--preset`` means for this model."""
    from overture.model_files import find_model, read_metadata
    from overture.recipes.presets import load_preset

    if not options.preset:
        return None
    recipe, _, name = options.preset.rpartition(":")
    if not recipe:
        metadata = read_metadata(find_model(options.prior or options.path, "prior"), "prior")
        recipe = metadata.get("run_config", {}).get("recipe", "")
        if not recipe:
            raise UsageError(f"--preset {name}: this prior does not say its recipe; write --preset RECIPE:{name}")
    return load_preset(recipe, name)


def parse_classes(text: str, names: Sequence[str]) -> list[int]:
    """``all``, ``3``, ``0,5,7``, ``0-9``, or names."""
    if text == "all":
        return list(range(len(names)))
    classes: list[int] = []
    for part in (word.strip() for word in text.split(",")):
        first, _, last = part.partition("-")
        if part in names:
            classes.append(names.index(part))
        elif first.isdecimal() and (last or first).isdecimal():
            classes += range(int(first), int(last or first) + 1)
        else:
            hint = nearest(part, names)
            raise UsageError(f"--classes '{text}': no class '{part}'{hint}; write all, 3, 0,5,7, 0-9 or names")
    if not classes:
        raise UsageError(f"--classes '{text}' names no class")
    wrong = [c for c in classes if not 0 <= c < len(names)]
    if wrong:
        raise UsageError(f"--classes {text}: class {wrong[0]} is out of range, the model knows 0..{len(names) - 1}")
    return classes
