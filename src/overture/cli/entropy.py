"""``overture entropy FILE``: how many bits each token adds, and after how many the image is named."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import at_least, check_plot, drawn_tokens, open_run, print_json
from overture.data.order import some_of
from overture.errors import OvertureError, UsageError
from overture.schedules import predicted_cliff

if TYPE_CHECKING:
    from overture.analysis.entropy import ConditionalEntropy
    from overture.analysis.expectations import Expectations

LONG_TABLE = 20
"""Positions shown before the cliff; of more, the first and the last ones."""
SHOWN_CLASSES = 10
TEXT_TOKENS = 64
PRIOR_ROWS = 2000


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "entropy",
        help="conditional entropy per position of anyone's tokens",
        description="Example: overture entropy tokens.npy --plot entropy.png\n\n"
        "Exact conditional entropy H(x_t | x_<t) of every position of a token matrix [N, T], with the "
        "entropy cliff: the position from which on the tokens before name the image, so that the rest can only be "
        "memorised. Reads token files, .npy, .npz and texts (.txt). For a run directory it measures the training tokens, and "
        "what its prior expects at every position of training and of held-out tokens: the memorisation gap.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="token files, .npy, .npz, .txt, or runs")
    parser.add_argument("--images", type=int, metavar="N", help="predict the cliff for N images (default: the rows)")
    parser.add_argument("--rows", type=int, metavar="N", help="use N rows, drawn at random")
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
        metavar="N",
        help=f"rows of each kind a run's prior is tried on (default: {PRIOR_ROWS}, or all where there are fewer)",
    )
    parser.add_argument("--plot", type=Path, metavar="OUT", help="draw it: .png, .svg or .pdf")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (several files: a list in 'results')"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure every file, then print and draw."""
    from overture.analysis.figures import entropy_figure, save_figure

    at_least(options, images=1, rows=1, codebook_size=1, text_tokens=1, prior_rows=1)
    check_plot(options)
    results: dict[Path, ConditionalEntropy] = {}
    for path in sorted(options.files, key=_is_text):  # texts take their length from the others
        print(f"{path}: measuring", file=sys.stderr, flush=True)
        result = measure_text(path, options, results) if _is_text(path) else measure(path, options)
        if options.images:
            result = replace(result, predicted_cliff=predicted_cliff(result.sizes, options.images))
        results[path] = result
    results = {path: results[path] for path in options.files}
    expected = {path: measure_prior(path, options) for path in options.files if path.is_dir()}
    if options.plot:
        save_figure(entropy_figure(dict(zip(_short_names(list(results)), results.values(), strict=True))), options.plot)
        print(f"figure written to {options.plot}", file=sys.stderr)
    if options.json:
        data = []
        for path, result in results.items():
            about = {"file": str(path), "images": options.images or result.rows, **result.to_dict()}
            data.append({**about, "prior": expected[path][1]} if path in expected else about)
        print_json(data[0] if len(options.files) == 1 else {"results": data})
        return 0
    parts = []
    for path, result in results.items():
        parts.append(describe(str(path), result, options.images))
        parts += [expected[path][0].describe()] if path in expected else []
    print("\n\n".join(parts))
    return 0


def measure(path: Path, options: argparse.Namespace) -> ConditionalEntropy:
    """The result of one file or run, as the options ask."""
    from overture.analysis.entropy import conditional_entropy
    from overture.data.ids import load_ids

    path = open_run(path).tokens("train") if path.is_dir() else path
    loaded = load_ids(path)
    if loaded.layout is not None and options.codebook_size:
        raise UsageError(f"{path}: the file knows its codebook sizes; leave out --codebook-size")
    if options.per_class and loaded.labels is None:
        raise UsageError(f"{path}: --per-class needs labels, this file has none")
    rows = _drawn_rows(path, len(loaded.ids), options)
    labels = loaded.labels[rows] if options.per_class and loaded.labels is not None else None
    try:
        result = conditional_entropy(loaded.ids[rows], layout=loaded.layout, sizes=options.codebook_size, labels=labels)
    except OvertureError as error:
        raise type(error)(f"{path}: {error}") from error
    if loaded.layout is None and options.codebook_size is None:
        known = f"K = {max(result.sizes):,} (largest id + 1) at every position; --codebook-size tells it better"
        print(f"{path}: no layout in this file, so {known}", file=sys.stderr)
    return result


def measure_text(path: Path, options: argparse.Namespace, others: dict[Path, ConditionalEntropy]) -> ConditionalEntropy:
    """The result of a text in rows as long as those of the first other file."""
    from overture.analysis.entropy import conditional_entropy
    from overture.analysis.text import text_rows

    if options.per_class or options.codebook_size:
        raise UsageError(
            f"{path}: a text has no classes, and knows its codes: no --per-class or --codebook-size for it"
        )
    like = next(iter(others.values()), None)
    positions = options.text_tokens or (like.positions if like else TEXT_TOKENS)
    ids, size = text_rows(path, positions, options.text_tokenizer)
    return conditional_entropy(ids[_drawn_rows(path, len(ids), options)], sizes=size)


def _drawn_rows(path: Path, rows: int, options: argparse.Namespace) -> Any:
    if options.rows is None:
        return slice(None)
    if options.rows > rows:
        raise UsageError(f"{path}: --rows is {options.rows:,}, the file has {rows:,}")
    return some_of(rows, options.rows)


def measure_prior(path: Path, options: argparse.Namespace) -> tuple[Expectations, dict[str, Any]]:
    """What the prior of a run expects of training and of held-out tokens; its report shows it from then on."""
    from overture.analysis.entries import save_entries
    from overture.analysis.expectations import study
    from overture.pipeline import load_prior

    run, prior = open_run(path), load_prior(path)
    tokens = {}
    for name, part in (("training", "train"), ("held_out", "held_out")):
        tokens[name] = drawn_tokens(
            run.tokens(part), options.prior_rows, prior.layout, option="--prior-rows", at_most=PRIOR_ROWS
        )
    result = study(prior, tokens, progress=True)
    about = {**run.model_hashes("prior"), "weights": "raw"}
    save_entries(result, run.instruments, about)
    return result, {**about, **result.to_dict()}


def describe(name: str, result: ConditionalEntropy, images: int | None = None) -> str:
    """A result for people: a table up to the cliff, what is left after it, and what that means."""
    low, high = min(result.sizes), max(result.sizes)
    sizes = f"K {low:,}" if low == high else f"K {low:,} .. {high:,}"
    lines = [f"{name}: {result.rows:,} images x {result.positions} tokens, {sizes}", ""]
    lines += _table(result)
    lines += ["", f"log2 N {result.log2_n:.2f} bits; {_predicted(result, images)}; measured cliff {_measured(result)}"]
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


def _measured(result: ConditionalEntropy) -> str:
    *others, last = [f"{cliff} at {share}" for share, cliff in result.cliffs.items()]
    return f"{last} of the bits ({', '.join(others)})"


def _predicted(result: ConditionalEntropy, images: int | None) -> str:
    of = f" for {images:,} images" if images else ""
    if result.predicted_cliff is None:
        return f"no predicted cliff{of} (all tokens together cannot name every image)"
    return f"predicted cliff t* = {result.predicted_cliff}{of}"


def _meaning(result: ConditionalEntropy) -> str:
    rest = result.positions - result.cliff
    if result.total_bits == 0:
        return "All rows are equal: these tokens tell no image from another."
    if result.collapsed:
        return f"{result.total_bits:.2f} bits tell hardly any image from another: their tokenizer has collapsed."
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
