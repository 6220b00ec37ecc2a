"""``overture prefix RUN``: pictures and numbers of what the first n tokens hold."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import OvertureError, UsageError

if TYPE_CHECKING:
    from overture.analysis.prefix import PrefixStudy


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "prefix",
        help="keep the first n tokens, resample the rest: pictures and numbers",
        description="Keeps the first n tokens of held-out images and lets the prior write the rest, without telling it "
        "the class; and takes the rest of another image. Pictures, class accuracy under a judge, and distance to the "
        "image they come from, against n.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory")
    parser.add_argument("--tokens", metavar="LIST", help="list of n, such as 0,1,4,16 (default: 0, 1, 2, 4, ... all)")
    parser.add_argument("--ids", type=Path, metavar="FILE", help="tokens of the images (default: RUN's held-out ones)")
    parser.add_argument("--network", help="the judge, such as domain:FILE (default: RUN's own)")
    parser.add_argument("--images", type=int, default=500, help="how many are measured (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=6, help="how many are shown (default: %(default)s)")
    parser.add_argument("--conditional", action="store_true", help="tell the prior the class")
    parser.add_argument("--guidance", default="1.0", help="as in generate; goes with --conditional")
    parser.add_argument("--temperature", default="1.0", help="as in generate")
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw", help="of the prior (default: raw)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="pictures and figure (default: RUN/instruments)")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="the figure once more: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Resample, judge, draw, print."""
    import torch

    from overture.analysis.curves import prefix_figure
    from overture.analysis.figures import check_figure_path, save_figure
    from overture.analysis.prefix import study_prefixes
    from overture.analysis.probe import prefix_lengths
    from overture.cli.common import choose_device, find_judge, model_hashes, parse_numbers, print_json
    from overture.data import load_ids
    from overture.evaluation.networks import load_network
    from overture.pipeline import Pipeline, load_prior, load_tokenizer
    from overture.priors.guidance import Guidance, parse_temperature
    from overture.runs.instruments import FOLDER, Finding, save_finding
    from overture.runs.pictures import save_picture

    if options.plot:
        check_figure_path(options.plot)
    if options.images < 2 or options.pictures < 1 or options.batch_size < 1:
        raise UsageError("prefix: --images needs to be at least 2, --pictures and --batch-size at least 1")
    if not options.conditional and options.guidance not in ("1", "1.0"):
        raise UsageError("prefix: guidance needs the class; add --conditional")
    device, root = choose_device(options.device), Path(options.path)
    lengths = parse_numbers(options.tokens, "--tokens") if options.tokens else ()
    judge = load_network(options.network or f"domain:{find_judge(root)}", device)
    pipe = Pipeline(
        load_tokenizer(options.path, device=device), load_prior(options.path, options.weights, device=device)
    )
    place = options.ids or root / "tokens" / "val.tokens"
    loaded = load_ids(place)
    if loaded.labels is None:
        raise OvertureError(f"{place}: holds no labels")
    if loaded.layout != pipe.prior.layout:
        raise OvertureError(f"{place}: its layout is not that of {options.path}")
    if options.images > len(loaded.ids):
        raise OvertureError(f"{place}: asked for {options.images} images but it has {len(loaded.ids)}")
    # Token files are sorted as their data; a fixed shuffle shows all classes.
    chosen = torch.randperm(len(loaded.ids), generator=torch.Generator().manual_seed(0))[: options.images].numpy()
    ids = torch.from_numpy(loaded.ids[chosen].astype("int64"))
    labels = torch.from_numpy(loaded.labels[chosen].astype("int64"))
    study = study_prefixes(
        pipe,
        ids,
        labels,
        lengths or (0, *prefix_lengths(pipe.prior.layout.length)),
        judge,
        pictures=options.pictures,
        conditional=options.conditional,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=True,
        guidance=Guidance.parse(options.guidance),
        temperature=parse_temperature(options.temperature),
    )
    record: dict[str, Any] = {
        "images": study.images,
        "conditional": options.conditional,
        "guidance": options.guidance,
        "temperature": options.temperature,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "weights": options.weights,
        **model_hashes(options.path, "tokenizer", "prior"),
        "judge": judge.name,
        "judge_hash": judge.weights_hash,
        "reconstruction_accuracy": study.reconstruction_accuracy,
        "results": [result.to_dict() for result in study.results],
    }
    folder = options.out or root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, pictures in (("prefix-resampled", study.resampled), ("prefix-swapped", study.swapped)):
        save_picture(pictures.flatten(0, 1), pictures.shape[1], folder / f"{name}.png")
    figure = prefix_figure(study.results, study.reconstruction_accuracy)
    for path in (folder / "prefix.svg", *([options.plot] if options.plot else [])):
        save_figure(figure, path)
    if options.out is None:
        for finding in findings(record, study):
            save_finding(root, Finding(**finding))
    if options.json:
        print_json({**record, "folder": str(folder)})
    else:
        print(describe(study))
        print(f"pictures: {folder}")
    return 0


def findings(record: dict[str, Any], study: PrefixStudy) -> list[dict[str, Any]]:
    """What the report says of them."""
    kept = ", ".join(str(result.tokens) for result in study.results)
    told = "told the class" if record["conditional"] else "not told the class"
    return [
        {
            "name": "prefix",
            "title": "What the first n tokens hold",
            "caption": f"{study.images:,} held-out images, their first n tokens kept. The prior was {told}; guidance "
            f"{record['guidance']}, temperature {record['temperature']}. Judge: {record['judge']}.",
            "data": record,
            "figure": "prefix.svg",
        },
        {
            "name": "prefix-resampled",
            "title": "Keep the first n tokens, resample the rest",
            "caption": f"Left: the image decoded from all of its tokens. Then n = {kept}.",
            "data": {},
            "figure": "prefix-resampled.png",
        },
        {
            "name": "prefix-swapped",
            "title": "The first n tokens of one image, the rest of another",
            "caption": f"Left: the image that gives the first tokens, and the one that gives the rest. Then n = {kept}.",
            "data": {},
            "figure": "prefix-swapped.png",
        },
    ]


def describe(study: PrefixStudy) -> str:
    """A table for people."""
    lines = [
        f"{study.images:,} images; the judge names the class of {study.reconstruction_accuracy:.1%} of their "
        "reconstructions",
        "",
        f"{'':>6}  {'rest resampled':^28}  {'rest of another image':^24}",
        f"{'kept':>6}  {'class kept':>10}  {'distance (relative)':>16}  {'class of first':>12}  {'of other':>8}",
    ]
    for result in study.results:
        lines.append(
            f"{result.tokens:>6}  {result.accuracy:>10.1%}  {result.relative_distance:>19.3f}  "
            f"{result.swapped_first:>14.1%}  {result.swapped_other:>8.1%}"
        )
    return "\n".join(lines)
