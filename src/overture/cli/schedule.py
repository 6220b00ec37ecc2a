"""``overture schedule NAME``: codebook sizes along the sequence, their bits, and where their cliff lies."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import Any, TextIO

from overture.errors import UsageError
from overture.schedules import FAMILIES, Schedule

PICTURE_WIDTH, PICTURE_HEIGHT = 64, 6
BLOCKS, PLAIN_BLOCKS = " ▁▂▃▄▅▆▇█", " ....::##"


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "schedule",
        help="codebook sizes along the sequence, their bits and their cliff",
        description="Example: overture schedule geometric --positions 256 --k-max 16384\n\n"
        "A growth law of the codebook size K_t, its bits, and t*: how many tokens suffice to name every "
        f"training image. NAME is one of {', '.join(FAMILIES)}, or module:function of yours.",
    )
    parser.add_argument("name", metavar="NAME", help=" | ".join((*FAMILIES, "module:function")))
    parser.add_argument("--positions", type=int, default=256, metavar="T", help="tokens of an image (default: 256)")
    parser.add_argument(
        "--k-min", type=int, default=2, metavar="A", help="first size (default: 2); not for uniform, steps"
    )
    parser.add_argument("--k-max", type=int, metavar="B", help="last size (default: 16384)")
    parser.add_argument("--images", type=int, default=1_281_167, metavar="N", help="training images (default: 1281167)")
    parser.add_argument("--exponent", type=float, metavar="P", help="of the power law (default: 2)")
    parser.add_argument(
        "--bits", type=float, metavar="TOTAL", help="solve power's exponent or geometric's k-max for this total"
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--reversed", action="store_true", help="largest size first (an ablation)")
    order.add_argument("--shuffled", type=int, metavar="SEED", help="the same sizes in random order (an ablation)")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="draw it: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Build the schedule, then print and draw."""
    if options.plot:
        from overture.analysis.figures import check_figure_path, save_figure, schedule_figure

        check_figure_path(options.plot)
    schedule = build(options)
    cliff = schedule.cliff(options.images)
    if options.plot:
        save_figure(schedule_figure(schedule, options.images), options.plot)
        print(f"figure written to {options.plot}", file=sys.stderr)
    if options.json:
        from overture.cli.common import print_json

        print_json(
            {
                "name": schedule.name,
                "positions": len(schedule),
                "sizes": list(schedule.sizes),
                "bits": list(schedule.bits),
                "cumulative_bits": list(schedule.cumulative_bits),
                "total_bits": schedule.total_bits,
                "images": options.images,
                "log2_n": math.log2(options.images),
                "cliff": cliff,
            }
        )
    else:
        print(describe(schedule, options.images, cliff, sys.stdout))
    return 0


def build(options: argparse.Namespace) -> Schedule:
    """The schedule the options ask for; an option that would have no effect on it is refused."""
    schedule = _solved(options) if options.bits is not None else _named(options)
    if options.reversed:
        return schedule.reversed()
    return schedule if options.shuffled is None else schedule.shuffled(options.shuffled)


def _named(options: argparse.Namespace) -> Schedule:
    if options.exponent is not None and options.name != "power":
        raise UsageError(f"schedule {options.name}: --exponent belongs to 'power'")
    exponent = 2.0 if options.exponent is None else options.exponent
    return Schedule.from_name(options.name, options.positions, options.k_min, _k_max(options), exponent)


def _solved(options: argparse.Namespace) -> Schedule:
    if not math.isfinite(options.bits):
        raise UsageError(f"schedule {options.name}: --bits is {options.bits}, needs a number of bits")
    if options.name == "power":
        if options.exponent is not None:
            raise UsageError("schedule power: --bits solves for the exponent; leave out --exponent")
        return Schedule.power_for_bits(options.positions, options.k_min, _k_max(options), options.bits)
    if options.name == "geometric":
        if options.k_max is not None:
            raise UsageError("schedule geometric: --bits solves for k-max; leave out --k-max")
        return Schedule.geometric_for_bits(options.positions, options.k_min, options.bits)
    if options.name in FAMILIES:
        raise UsageError(f"schedule {options.name}: --bits can be solved for 'power' and 'geometric' only")
    return Schedule.from_name(options.name, 1)  # says which names there are


def _k_max(options: argparse.Namespace) -> int:
    return 16384 if options.k_max is None else int(options.k_max)


def describe(schedule: Schedule, images: int, cliff: int | None, stream: TextIO) -> str:
    """A schedule for people: a picture of K_t, its bits and its cliff."""
    low, high = min(schedule.sizes), schedule.k_max
    sizes = f"K {low:,}" if low == high else f"K {low:,} .. {high:,}"
    log2_n = math.log2(images)
    lines = [f"{schedule.name}: {len(schedule)} positions, {sizes}, {schedule.total_bits:.1f} bits in all", ""]
    lines += picture(schedule, cliff, _blocks(stream))
    if cliff is None:
        told = f"no cliff: {schedule.total_bits:.2f} bits cannot name {images:,} images (log2 N = {log2_n:.2f} bits)"
    else:
        first = "the first token" if cliff == 1 else f"the first {cliff} tokens"
        held = schedule.cumulative_bits[cliff - 1]
        told = f"t* = {cliff}: {first} can hold {held:.2f} bits, enough to name {images:,} images ({log2_n:.2f} bits)"
    return "\n".join([*lines, "", told])


def picture(schedule: Schedule, cliff: int | None, blocks: str = BLOCKS) -> list[str]:
    """log2 K_t as columns of blocks, from 0 bits up, with t* marked below."""
    length = len(schedule)
    width = min(PICTURE_WIDTH, length)
    edges = [column * length // width for column in range(width + 1)]
    top = max(schedule.bits) or 1.0
    heights = []
    for start, stop in itertools.pairwise(edges):
        mean = math.fsum(schedule.bits[start:stop]) / (stop - start)
        heights.append(round(mean / top * PICTURE_HEIGHT * 8))
    margin = len(f"{schedule.k_max:,}") + 4
    lines = []
    for row in reversed(range(PICTURE_HEIGHT)):
        label = f"K {schedule.k_max:,} " if row == PICTURE_HEIGHT - 1 else "K 1 " if row == 0 else ""
        bars = "".join(blocks[min(max(height - 8 * row, 0), 8)] for height in heights)
        lines.append(f"{label:>{margin}}{bars}".rstrip())
    ends = f"{'t = 1':<{max(width - len(str(length)), 6)}}{length}"
    lines.append(" " * margin + ends)
    if cliff is not None:
        column = max(place for place in range(width) if edges[place] < cliff)
        lines.append(" " * (margin + column) + f"^ t* = {cliff}")
    return lines


def _blocks(stream: TextIO) -> str:
    """Block characters, or plain ones where the terminal's encoding has none."""
    try:
        BLOCKS.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN_BLOCKS
    return BLOCKS
