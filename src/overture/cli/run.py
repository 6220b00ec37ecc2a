"""``overture run RECIPE``: every stage of a recipe, each skipped when done."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import UsageError, nearest

if TYPE_CHECKING:
    from overture.runs.config import RunConfig

FROM_DATA = {
    "tokenizer.image_size": ": set --data.image-size",
    "tokenizer.channels": ": set --data.channels",
    "tokenizer.num_classes": "",
    "prior.num_classes": "",
}
"""Options of parts that are filled in from the data, and what to set instead."""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "run",
        help="run a recipe: train, sample, judge and report; the same command continues it",
        description="Run every stage of a recipe: tokenizer, tokens, prior, evaluation, report. A stage that is done "
        "is skipped, and one that was interrupted goes on. `overture recipes` lists the recipes.",
        epilog="Any part of the config can be set: --prior.depth 6 --data.source photos.zip; "
        "`overture run RECIPE --help` lists all of them.",
        add_help=False,
    )
    add_options(parser)
    parser.set_defaults(run=run, until="report")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs a recipe takes."""
    parser.add_argument("recipe", nargs="?", help="name of a recipe")
    parser.add_argument("--out", type=Path, help="the run's directory (default: runs/RECIPE)")
    parser.add_argument("--tiny", action="store_true", help="the recipe's tiny form, about a minute on a CPU")
    parser.add_argument("--only", metavar="NAME", help="of a recipe with several runs, this one alone")
    parser.add_argument("--preset", metavar="NAME", help="sample with the settings as published: paper, unguided")
    parser.add_argument("--jobs", type=int, default=0, help="runs worked on at the same time (default: as cores allow)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("-h", "--help", action="store_true", help="show this, or with a RECIPE all its options")
    parser.set_defaults(accepts_overrides=True, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Run the recipe."""
    from overture.recipes import RECIPES, load_recipe

    if options.recipe is None:
        options.parser.print_help()
        print("\nrecipes: " + ", ".join(RECIPES))
        return 0 if options.help else 2
    if options.help:
        recipe = load_recipe(options.recipe)
        print(f"{recipe.__doc__}\n")
        override(recipe(tiny=options.tiny)[0], ["--help"])
    configs = chosen_configs(options)

    from overture.runs.comparison import execute_recipe

    root = options.out or Path("runs") / (options.recipe + ("-tiny" if options.tiny else ""))
    results = execute_recipe(
        configs,
        root,
        title=options.recipe,
        several=len(load_recipe(options.recipe)()) > 1,
        jobs=options.jobs,
        device=options.device,
        until=options.until,
    )
    if options.json and results:
        print(json.dumps(results))
    return 0


def chosen_configs(options: argparse.Namespace) -> tuple[RunConfig, ...]:
    """The recipe's configs with ``--tiny``, ``--only``, ``--preset`` and overrides applied."""
    from overture.recipes import load_recipe
    from overture.recipes.presets import load_preset

    configs = load_recipe(options.recipe)(tiny=options.tiny)
    if options.only:
        names = [config.name for config in configs]
        if options.only not in names:
            raise UsageError(f"recipe {options.recipe} has no run '{options.only}'{nearest(options.only, names)}")
        configs = tuple(config for config in configs if config.name == options.only)
    if options.preset:
        preset = load_preset(options.recipe, options.preset)
        configs = tuple(replace(config, evaluation=preset.apply(config.evaluation)) for config in configs)
    return tuple(override(config, options.overrides) for config in configs)


def override(config: RunConfig, words: list[str]) -> RunConfig:
    """The config with ``--dotted.name value`` options applied; an unknown name is told with the nearest valid one."""
    import tyro

    from overture.config import option_names

    valid = option_names(config)
    size: list[str] = []
    for place, word in enumerate(words):
        if word.startswith("--") and word != "--help":
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            parts = name.split(".")
            plain = [*parts[:-1], parts[-1].removeprefix("no_")]
            if name not in valid and ".".join(plain) not in valid:
                raise UsageError(f"unknown option '{word}'{nearest(name, valid)}")
            if name in FROM_DATA:
                raise UsageError(f"{word} comes from the data{FROM_DATA[name]}")
            if name == "data.image_size":  # patches have to fit the images that there will be
                size = ["--tokenizer.image-size", value or "".join(words[place + 1 : place + 2])]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                type(config),
                args=[*words, *size],
                default=config,
                prog="overture run RECIPE",
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(_without_box(told.getvalue())) from error


def _without_box(text: str) -> str:
    """The message in the box that tyro draws, up to its first rule, in one line."""
    lines = [line.strip(" │|") for line in text.splitlines()[1:]]
    rule = next((place for place, line in enumerate(lines) if not line.strip("─-╰╯+")), len(lines))
    return " ".join(lines[:rule]) or " ".join(text.split())
