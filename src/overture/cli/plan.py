"""``overture plan RECIPE``: what a run will take, before anything runs."""

from __future__ import annotations

import argparse
from typing import Any

from overture.cli.common import at_least, print_json
from overture.cli.run import add_growth, add_start_from
from overture.errors import UsageError

UTILISATION = 0.1
"""What Base models reached on an H100 (docs/experiments/performance.md); others may reach more or less."""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "plan",
        help="what a recipe will take: parameters, operations, steps, disk, memory",
        description="Example: overture plan imagenet-vcq --card h100\n\n"
        "Tell what a recipe will take before anything runs: parameters of each module, operations per image, "
        "steps and epochs, tokens and checkpoints on disk, memory of a device. The data need not be there.",
        epilog="Any part of the config can be set as for `overture run`: --prior.depth 6 --prior-training.batch-size 256",
    )
    parser.add_argument("recipe", help="name of a recipe, or module:function")
    parser.add_argument("--world-size", type=int, default=1, help="processes that share a batch (default: 1)")
    parser.add_argument("--images", type=int, help="training images, where the source is neither there nor known")
    parser.add_argument("--tiny", action="store_true", help="the recipe's tiny form")
    parser.add_argument("--only", metavar="NAME", help="of a recipe with several runs, this one alone")
    parser.add_argument("--preset", metavar="NAME", help="sampling settings as published: paper, unguided")
    add_growth(parser)
    add_start_from(parser)
    parser.add_argument("--card", metavar="NAME", help="accelerator-hours on it: h100, a100, l40s, ..., or module:name")
    parser.add_argument(
        "--utilisation",
        type=float,
        metavar="SHARE",
        help=f"of the card's peaks (default: {UTILISATION}, which Base models reached on an H100)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(accepts_overrides=True, run=run)


def run(options: argparse.Namespace) -> int:
    """Print the plans."""
    from overture.cli.run import chosen_configs
    from overture.plan.card_hours import card_hours
    from overture.plan.run_plan import count_images, make_plan

    at_least(options, images=1, world_size=1)
    if options.utilisation is not None and options.card is None:
        raise UsageError("--utilisation is a share of a card's peak; name it with --card")
    plans = []
    for config in chosen_configs(options):
        plan = make_plan(config, count_images(config, options.images), options.world_size)
        if options.card is not None:
            share = UTILISATION if options.utilisation is None else options.utilisation
            plan["card"] = card_hours(plan, config, options.card, share)
        plans.append(plan)
    if options.json:
        print_json({"recipe": options.recipe, "runs": plans})
        return 0
    for plan in plans:
        print("\n".join(table(plan)), end="\n\n")
    for number, text in enumerate(plans[0]["assumptions"], start=1):
        print(f"{number}. {text}")
    return 0


def table(plan: dict[str, Any]) -> list[str]:
    """A plan as lines for people."""
    images, layout, stages = plan["images"], plan["layout"], plan["stages"]
    lines = [
        f"{plan['run']}: {layout['segments']}",
        f"  {layout['sequence_length']} positions, vocabulary {layout['vocabulary']:,}, {layout['bits']:,.0f} bits",
        f"  {images['train']:,} training images ({images['how']})",
        "parameters",
    ]
    for name, count in plan["parameters"].items():
        note = " (part of the encoder)" if name == "encoder_quantizers" else ""
        lines += [f"  {_words(name):<20}{count / 1e6:>12.2f} M{note}"] if count else []
    lines.append("operations for an image")
    lines += [f"  {_words(name):<20}{_flops(count):>14}" for name, count in plan["flops_per_image"].items() if count]
    lines.append("stages")
    for name, stage in stages.items():
        if "bytes" in stage:
            amount, unit = stage["images_encoded"], f"crops, {stage['bytes_per_image']:,} bytes an image"
            rest = f"{_bytes(stage['bytes'])} on disk"
        else:
            amount, unit = stage["steps"], f"steps of {stage['batch_size']:,}, {stage['images_seen']:,} images"
            rest = f"{stage['epochs']:.1f} epochs"
        lines += [f"  {name:<20}{amount:>12,} {unit}, {rest}, {_flops(stage['flops'])}"] if amount else []
    lines.append(f"memory of a device, {plan['world_size']} in all")
    for name, memory in plan["memory_per_device"].items():
        if memory:
            parts = ", ".join(f"{use} {_bytes(size)}" for use, size in memory.items() if use != "total")
            lines.append(f"  {name:<20}{_bytes(memory['total']):>14}: {parts}")
    lines.append("checkpoints")
    lines += [f"  {_words(name):<20}{_bytes(size):>14}" for name, size in plan["checkpoints"].items() if size]
    return lines + (card_lines(plan) if "card" in plan else []) + reference_lines(plan)


def card_lines(plan: dict[str, Any]) -> list[str]:
    """Hours on a card, and whether a device has the memory."""
    from overture.plan.card_hours import SPARE

    card, size = plan["card"], plan["world_size"]
    lines = [
        f"accelerator-hours on {card['name']} ({_flops(card['flops'])}/s bfloat16, {_bytes(card['bandwidth'])}/s), if "
        f"{100 * card['utilisation']:g} % of both is reached (an assumption about your machine)"
    ]
    for name, hours in card["hours"].items():
        notes = [f"the first hour reaches step {card['first_hour'][name]:,}"] if name in card["first_hour"] else []
        notes += [f"{card['samples']:,} samples"] if name.startswith("samples") else []
        lines += [f"  {_words(name):<20}{hours:>14,.1f}  {''.join(notes)}".rstrip()] if hours else []
    together = f"  {card['elapsed_hours']:,.1f} hours on {size} at once" if size > 1 else ""
    lines.append(f"  {'in all':<20}{card['total_hours']:>14,.1f}{together}")
    lines.append(f"memory of {card['name']}, {_bytes(card['memory_bytes'])} of which {100 * SPARE:g} % is kept free")
    for stage, memory in card["memory"].items():
        fits = f"fits, {_bytes(memory['left'])} left" if memory["left"] >= 0 else f"does not fit: {memory['advice']}"
        lines.append(f"  {stage:<20}{fits}")
    return lines


def reference_lines(plan: dict[str, Any]) -> list[str]:
    """What the first log lines should say."""
    reference = plan["reference"]
    if not reference["step_0"]:
        return []
    lines = ["expected in the log at step 0 (docs/reference-curves.md)"]
    for stage, values in reference["step_0"].items():
        told = (f"{_words(name)} {value:,.{0 if value >= 100 else 3}f}" for name, value in values.items())
        lines.append(f"  {stage:<20}{', '.join(told)}")
    if reference["prior_first_nat"]:
        bits = f"first to the {plan['layout']['bits']:,.0f} bits of the layout or below"
        lines.append(f"  {'':<20}bits per image fall from about step {reference['prior_first_nat']:,} on, {bits}")
    return lines


def _words(name: str) -> str:
    return name.replace("_", " ")


def _flops(count: float) -> str:
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _bytes(count: float) -> str:
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB", "PB"))


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    place = 0
    while value >= step and place < len(units) - 1:
        value, place = value / step, place + 1
    return f"{value:.2f} {units[place]}" if place else f"{value:.0f} {units[0]}"
