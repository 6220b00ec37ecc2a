"""``overture neighbours RUN``: are samples copies of training images?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from overture.errors import UsageError

YARDSTICK = 2000  # held-out images: enough that their nearest hundredth is known


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "neighbours",
        help="the nearest training image of samples: a check for memorisation",
        description="Samples images and finds the nearest training image of each, in the judge's feature space and by "
        "the tokens that differ. Held-out images are the yardstick: how many samples lie nearer to a training image "
        "than 99 % of them? Training and held-out images are decoded from their tokens.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory")
    parser.add_argument("--samples", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--rows", type=int, metavar="N", help="N training images, drawn at random (default: all)")
    parser.add_argument(
        "--pictures", type=int, default=12, help="samples shown, the nearest first (default: %(default)s)"
    )
    parser.add_argument("--network", help="the judge (default: RUN's own)")
    parser.add_argument("--guidance", default="1.0", help="as in generate")
    parser.add_argument("--temperature", default="1.0", help="as in generate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sample, search, draw, print."""
    import torch
    from torch import Tensor
    from tqdm import tqdm

    from overture.analysis.neighbours import nearest_by_features, nearest_by_tokens, suspicious_share
    from overture.cli.common import choose_device, find_judge, model_hashes, print_json
    from overture.data import load_ids
    from overture.data.transforms import to_uint8
    from overture.evaluation.networks import load_network
    from overture.pipeline import load_prior, load_tokenizer
    from overture.priors.guidance import Guidance, parse_temperature
    from overture.runs.evaluate import balanced_classes
    from overture.runs.instruments import FOLDER, Finding, save_finding
    from overture.runs.pictures import save_picture

    rows = 1 if options.rows is None else options.rows
    if min(options.samples, options.pictures, options.batch_size, rows) < 1:
        raise UsageError("neighbours: --samples, --rows, --pictures and --batch-size need to be at least 1")
    device, root = choose_device(options.device), Path(options.path)
    judge = load_network(options.network or f"domain:{find_judge(root)}", device)
    tokenizer, prior = load_tokenizer(options.path, device=device), load_prior(options.path, device=device)
    train, held_out = (load_ids(root / "tokens" / f"{part}.tokens").ids for part in ("train", "val"))

    if rows > len(train):
        raise UsageError(f"--rows is {rows:,}, there are {len(train):,} training images")

    def drawn(rows: Any, count: int | None) -> Tensor:
        """Token files are sorted as their data: a part of one is drawn from the whole."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
        return torch.from_numpy(rows[order.sort().values.numpy()].astype("int64"))

    training_ids = drawn(train, options.rows)
    held_out_ids = drawn(held_out, max(options.samples, YARDSTICK))
    settings: dict[str, Any] = {
        "guidance": Guidance.parse(options.guidance),
        "temperature": parse_temperature(options.temperature),
    }
    classes, parts = balanced_classes(options.samples, prior.config.num_classes), []
    for number, part in enumerate(tqdm(classes.split(options.batch_size), desc="sampling", unit="batch")):
        generator = torch.Generator(device).manual_seed(options.seed * 1_000_003 + number)
        parts.append(prior.layout.from_sequence(prior.generate(part, generator=generator, **settings)).cpu())
    sample_ids = torch.cat(parts)

    def decoded(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            return to_uint8(tokenizer.decode(ids.to(device))).cpu()

    def features(ids: Tensor, what: str) -> Tensor:
        batches = tqdm(ids.split(options.batch_size), desc=what, unit="batch")
        return torch.cat([judge(decoded(part)).cpu() for part in batches])

    training = features(training_ids, "training images")
    by_features = nearest_by_features(features(sample_ids, "samples"), training)
    by_tokens = nearest_by_tokens(sample_ids, training_ids)
    record: dict[str, Any] = {
        "samples": len(sample_ids),
        "training_images": len(training_ids),
        "held_out_images": len(held_out_ids),
        "judge": judge.name,
        "judge_hash": judge.weights_hash,
        "guidance": options.guidance,
        "temperature": options.temperature,
        "seed": options.seed,
        "batch_size": options.batch_size,
        **model_hashes(options.path, "tokenizer", "prior"),
        "features": suspicious_share(
            by_features, nearest_by_features(features(held_out_ids, "held-out images"), training)
        ),
        "tokens": suspicious_share(by_tokens, nearest_by_tokens(held_out_ids, training_ids)),
    }
    order = by_features.distances_N.argsort()[: options.pictures]
    columns = [sample_ids[order], training_ids[by_features.places_N[order]], training_ids[by_tokens.places_N[order]]]
    pictures = torch.stack([decoded(column) for column in columns])
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    save_picture(pictures.flatten(0, 1), pictures.shape[1], root / FOLDER / "neighbours.png")
    caption = (
        f"Above: the samples that lie nearest to a training image, of {len(sample_ids):,}. Below each: the nearest of "
        f"{len(training_ids):,} training images in the judge's features, and by tokens. Nearer than 99 % of held-out "
        f"images: {record['features']['suspicious_share']:.1%} of the samples by features, "
        f"{record['tokens']['suspicious_share']:.1%} by tokens (chance: 1 %). Guidance {options.guidance}."
    )
    save_finding(root, Finding("neighbours", "Nearest training images", caption, record, "neighbours.png"))
    if options.json:
        print_json(record)
    else:
        for kind, unit in (("features", "distance"), ("tokens", "tokens that differ")):
            part = record[kind]
            print(
                f"{kind}: {part['suspicious_share']:.1%} of {len(sample_ids)} samples nearer to training than 99 % of "
                f"held-out images; median {unit} {part['median']:.4g}, held-out {part['held_out_median']:.4g}; "
                f"{part['exact_copies']} exact copies"
            )
        print(f"picture: {root / FOLDER / 'neighbours.png'}")
    return 0
