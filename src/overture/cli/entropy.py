"""``overture entropy FILE``: how many bits each token adds, and after how many the image is named."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import OvertureError, UsageError

if TYPE_CHECKING:
    from overture.analysis.entropy import ConditionalEntropy
    from overture.analysis.predictive import Prediction

LONG_TABLE = 20
"""Positions shown before the cliff; of more, the first and the last ones."""
SHOWN_CLASSES = 10
TEXT_TOKENS = 64


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "entropy",
        help="conditional entropy per position of anyone's tokens",
        description="Exact conditional entropy H(x_t | x_<t) of every position of a token matrix [N, T], with the "
        "entropy cliff: the position from which on the tokens before name the image, so that the rest can only be "
        "memorised. Reads token files, .npy, .npz and texts (.txt). For a run directory it measures the training tokens, and "
        "what its prior expects at every position of training and of held-out tokens: the memorisation gap.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="token files, .npy, .npz, .txt, or runs")
    parser.add_argument("--images", type=int, metavar="N", help="predict the cliff for N images (default: the rows)")
    parser.add_argument("--rows", type=int, metavar="N", help="use the first N rows only")
    parser.add_argument(
        "--codebook-size", type=int, metavar="K", help="of files without a layout (default: largest id + 1)"
    )
    parser.add_argument("--per-class", action="store_true", help="also for each class alone; the file needs labels")
    parser.add_argument(
        "--text-tokens", type=int, metavar="T", help="tokens per row of a text (default: as the other files, else 64)"
    )
    parser.add_argument(
        "--text-tokenizer", type=Path, metavar="JSON", help="a Hugging Face tokenizer.json for texts (default: bytes)"
    )
    parser.add_argument(
        "--prior-rows",
        type=int,
        default=2000,
        metavar="N",
        help="rows a run's prior is tried on (default: %(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="OUT", help="draw it: .png, .svg or .pdf")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (several files: a list in 'results')"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure every file, then print and draw."""
    from overture.analysis.figures import check_figure_path, entropy_figure, save_figure
    from overture.cli.common import print_json

    for name in ("images", "rows", "codebook_size", "text_tokens", "prior_rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, needs >= 1")
    if options.plot:
        check_figure_path(options.plot)
    results: dict[Path, ConditionalEntropy] = {}
    for path in sorted(options.files, key=_is_text):  # texts take their length from the others
        print(f"{path}: measuring", file=sys.stderr, flush=True)
        if _is_text(path):
            results[path] = measure_text(path, options, next(iter(results.values()), None))
        else:
            results[path] = measure(path / "tokens" / "train.tokens" if path.is_dir() else path, options)
    results = {path: results[path] for path in options.files}
    predictions = {path: measure_prior(path, options) for path in options.files if path.is_dir()}
    if options.plot:
        save_figure(entropy_figure(dict(zip(_short_names(list(results)), results.values(), strict=True))), options.plot)
        print(f"figure written to {options.plot}", file=sys.stderr)
    if options.json:
        data = [
            {
                "file": str(path),
                "images": options.images or result.rows,
                **result.to_dict(),
                **({"prior": prior_record(path, predictions[path])} if path in predictions else {}),
            }
            for path, result in results.items()
        ]
        print_json(data[0] if len(options.files) == 1 else {"results": data})
    else:
        parts = []
        for path, result in results.items():
            parts.append(describe(str(path), result, options.images))
            if path in predictions:
                parts.append(describe_prior(predictions[path]))
        print("\n\n".join(parts))
    return 0


def measure(path: Path, options: argparse.Namespace) -> ConditionalEntropy:
    """The result of one file, as the options ask."""
    from dataclasses import replace

    from overture.analysis.entropy import conditional_entropy
    from overture.data import load_ids
    from overture.schedules import predicted_cliff

    loaded = load_ids(path)
    if loaded.layout is not None and options.codebook_size:
        raise UsageError(f"{path}: the file knows its codebook sizes; leave out --codebook-size")
    if options.per_class and loaded.labels is None:
        raise UsageError(f"{path}: --per-class needs labels, this file has none")
    labels = loaded.labels[: options.rows] if options.per_class and loaded.labels is not None else None
    _check_rows(path, len(loaded.ids), options)
    try:
        result = conditional_entropy(
            loaded.ids[: options.rows], layout=loaded.layout, sizes=options.codebook_size, labels=labels
        )
    except OvertureError as error:
        raise type(error)(f"{path}: {error}") from error
    if loaded.layout is None and options.codebook_size is None:
        known = f"K = {max(result.sizes):,} (largest id + 1) at every position; --codebook-size tells it better"
        print(f"{path}: no layout in this file, so {known}", file=sys.stderr)
    if options.images:
        result = replace(result, predicted_cliff=predicted_cliff(result.sizes, options.images))
    return result


def measure_text(path: Path, options: argparse.Namespace, like: ConditionalEntropy | None) -> ConditionalEntropy:
    """The result of a text in rows as long as those of ``like``."""
    from dataclasses import replace

    from overture.analysis.entropy import conditional_entropy
    from overture.analysis.text import text_rows
    from overture.schedules import predicted_cliff

    positions = options.text_tokens or (like.positions if like else TEXT_TOKENS)
    ids, size = text_rows(path, positions, options.text_tokenizer)
    _check_rows(path, len(ids), options)
    result = conditional_entropy(ids[: options.rows], sizes=size)
    if options.images:
        result = replace(result, predicted_cliff=predicted_cliff(result.sizes, options.images))
    return result


def _check_rows(path: Path, rows: int, options: argparse.Namespace) -> None:
    if options.rows is not None and options.rows > rows:
        raise UsageError(f"{path}: --rows is {options.rows:,}, the file has {rows:,}")


def measure_prior(run: Path, options: argparse.Namespace) -> dict[str, Prediction]:
    """What the prior of a run expects of training and of held-out tokens; its report shows it from then on."""
    import torch

    from overture.analysis.curves import predictive_figure
    from overture.analysis.figures import save_figure
    from overture.analysis.predictive import predict
    from overture.data import load_ids
    from overture.pipeline import load_prior
    from overture.runs.instruments import FOLDER, Finding, save_finding

    prior, predictions = load_prior(run), {}
    for name, part in (("training", "train"), ("held-out", "val")):
        place = run / "tokens" / f"{part}.tokens"
        loaded = load_ids(place)
        if loaded.labels is None or loaded.layout != prior.layout:
            raise OvertureError(f"{place}: its layout is not that of the prior of {run}, or it holds no labels")
        order = torch.randperm(len(loaded.ids), generator=torch.Generator().manual_seed(0))
        chosen = order[: options.prior_rows].numpy()
        ids, labels = (torch.from_numpy(rows[chosen].astype("int64")) for rows in (loaded.ids, loaded.labels))
        predictions[name] = predict(prior, ids, labels, name=name, progress=True)
    save_figure(predictive_figure(predictions), run / FOLDER / "predictive.svg")
    caption = (
        f"The prior's cross-entropy and its own predictive entropy at every position, on "
        f"{predictions['training'].rows:,} training and {predictions['held-out'].rows:,} held-out rows, told the class. "
        f"Memorisation gap: {gap_bits(predictions):.2f} bits per image."
    )
    finding = Finding("predictive", "What the prior expects", caption, prior_record(run, predictions), "predictive.svg")
    save_finding(run, finding)
    return predictions


def gap_bits(predictions: dict[str, Prediction]) -> float:
    """The memorisation gap of a whole image."""
    return float((predictions["held-out"].loss_bits - predictions["training"].loss_bits).sum())


def prior_record(run: Path, predictions: dict[str, Prediction]) -> dict[str, Any]:
    """Plain values for JSON."""
    from overture.cli.common import model_hashes

    gap = predictions["held-out"].loss_bits - predictions["training"].loss_bits
    parts = {name.replace("-", "_"): prediction.to_dict() for name, prediction in predictions.items()}
    gaps = {"memorisation_gap_bits": gap.tolist(), "memorisation_gap_bits_per_image": float(gap.sum())}
    return {**model_hashes(run, "prior"), "weights": "raw", **parts, **gaps}


def describe_prior(predictions: dict[str, Prediction]) -> str:
    """Sums over the positions, for people."""
    lines = [f"{'the prior on':<14} {'rows':>7}  {'cross-entropy':>13}  {'predictive entropy':>18}   (bits per image)"]
    for name, prediction in predictions.items():
        loss, entropy = prediction.loss_bits.sum(), prediction.entropy_bits.sum()
        lines.append(f"{name:<14} {prediction.rows:>7,}  {loss:>13.2f}  {entropy:>18.2f}")
    return "\n".join([*lines, f"memorisation gap: {gap_bits(predictions):.2f} bits per image"])


def describe(name: str, result: ConditionalEntropy, images: int | None = None) -> str:
    """A result for people: a table up to the cliff, what is left after it, and what that means."""
    low, high = min(result.sizes), max(result.sizes)
    sizes = f"K {low:,}" if low == high else f"K {low:,} .. {high:,}"
    lines = [f"{name}: {result.rows:,} images x {result.positions} tokens, {sizes}", ""]
    lines += _table(result)
    lines += ["", f"log2 N {result.log2_n:.2f} bits; {_predicted(result, images)}; measured cliff {result.cliff}"]
    lines += [_meaning(result)]
    if result.per_class:
        lines += ["", *_class_table(result)]
    return "\n".join(lines)


def _table(result: ConditionalEntropy) -> list[str]:
    header = f"{'t':>6}  {'K_t':>7}  {'bits':>6}  {'sum':>6}  {'of log2 N':>9}  {'prefixes':>10}  {'unique rows':>11}"
    lines, held, ceiling = [header], result.cumulative_bits, result.log2_n or 1.0
    shown = list(range(result.cliff))
    if len(shown) > LONG_TABLE:
        shown = [*shown[: LONG_TABLE - 5], -1, *shown[-4:]]
    for t in shown:
        if t < 0:
            lines.append(f"{'...':>6}")
            continue
        lines.append(
            f"{t + 1:>6}  {result.sizes[t]:>7,}  {result.bits[t]:>6.3f}  {held[t]:>6.2f}  {held[t] / ceiling:>9.1%}"
            f"  {result.prefixes[t]:>10,}  {result.unique_share[t]:>11.1%}"
        )
    rest = result.positions - result.cliff
    if rest:
        bits = float(result.bits[result.cliff :].sum())
        lines.append(
            f"{'rest':>6}  {'':>7}  {bits:>6.3f}  {held[-1]:>6.2f}  {held[-1] / ceiling:>9.1%}"
            f"  {result.prefixes[-1]:>10,}  {result.unique_share[-1]:>11.1%}"
        )
    return lines


def _predicted(result: ConditionalEntropy, images: int | None) -> str:
    of = f" for {images:,} images" if images else ""
    if result.predicted_cliff is None:
        return f"no predicted cliff{of} (all tokens together cannot name every image)"
    return f"predicted cliff t* = {result.predicted_cliff}{of}"


def _meaning(result: ConditionalEntropy) -> str:
    rest = result.positions - result.cliff
    if result.total_bits == 0:
        return "All rows are equal: these tokens tell no image from another."
    if rest * 10 < result.positions:
        return "There is no cliff: the tokens tell images apart up to the last ones."
    first = "The first token holds" if result.cliff == 1 else f"The first {result.cliff} tokens hold"
    after = f"the {rest} after follow from them" if result.cliff > 1 else f"the {rest} after follow from it"
    return f"{first} 99 % of what tells these images apart; {after}, and a prior can only memorise them."


def _class_table(result: ConditionalEntropy) -> list[str]:
    classes = result.per_class
    mean = sum(each.rows * each.total_bits for each in classes.values()) / result.rows
    lines = [f"{len(classes)} classes; given the class, {mean:.2f} bits tell an image from the others", ""]
    lines.append(f"{'class':>6}  {'images':>8}  {'bits':>6}  {'cliff':>5}  {'t*':>4}")
    for label, each in list(classes.items())[:SHOWN_CLASSES]:
        predicted = "-" if each.predicted_cliff is None else each.predicted_cliff
        lines.append(f"{label:>6}  {each.rows:>8,}  {each.total_bits:>6.2f}  {each.cliff:>5}  {predicted:>4}")
    if len(classes) > SHOWN_CLASSES:
        lines.append(f"{'...':>6}  ({len(classes) - SHOWN_CLASSES} more: --json has them all)")
    return lines


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in (".txt", ".md") and path.is_file()


def _short_names(paths: list[Path]) -> list[str]:
    """File names without folder and suffix, if these tell the files apart."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
