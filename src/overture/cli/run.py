"""``overture run RECIPE``: every stage of a recipe, each skipped when done."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.cli.common import print_json
from overture.errors import UsageError, nearest

if TYPE_CHECKING:
    from overture.runs.config import RunConfig


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "run",
        help="run a recipe: train, sample, judge and report; the same command continues it",
        description="Example: overture run quickstart --tiny\n\n"
        "Run every stage of a recipe: tokenizer, tokens, prior, evaluation, report. A stage that is done "
        "is skipped, and one that was interrupted goes on. `overture recipes` lists the recipes; your own is "
        "`overture run my_recipes:function`.",
        epilog="Any part of the config can be set: --prior.depth 6 --data.source photos.zip; "
        "`overture run RECIPE --help` lists all of them.",
        add_help=False,
    )
    add_options(parser)
    parser.set_defaults(run=run, until="report")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs a recipe takes."""
    parser.add_argument("recipe", nargs="?", help="name of a recipe, or module:function")
    parser.add_argument("--out", type=Path, help="the run's directory (default: runs/RECIPE)")
    parser.add_argument("--tiny", action="store_true", help="the recipe's tiny form, about a minute on a CPU")
    parser.add_argument("--only", metavar="NAME", help="of a recipe with several runs, this one alone")
    parser.add_argument("--preset", metavar="NAME", help="sample with the settings as published: paper, unguided")
    add_growth(parser)
    add_start_from(parser)
    parser.add_argument("--jobs", type=int, default=0, help="runs worked on at the same time (default: as cores allow)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--log", metavar="NAMES", help="loggers, too: tensorboard,wandb,trackio or module:name")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument(
        "-h", "--help", nargs="?", const="", metavar="WORD",
        help="show this; with a RECIPE the parts of its config, with a WORD the options that have it in their names",
    )  # fmt: skip
    parser.set_defaults(accepts_overrides=True, parser=parser)


def add_growth(parser: argparse.ArgumentParser) -> None:
    """``--growth``."""
    parser.add_argument(
        "--growth", metavar="LAW", help="how the codebooks grow: 'power 2', 'geometric 2..4096', 'visual: my_laws:late'"
    )


def add_start_from(parser: argparse.ArgumentParser) -> None:
    """``--start-from``."""
    parser.add_argument(
        "--start-from", metavar="RUN", help="begin with the models of a run, a directory of imports or hf:owner/name"
    )


def run(options: argparse.Namespace) -> int:
    """Run the recipe."""
    from overture.loggers import chosen_loggers
    from overture.recipes import RECIPES, recipe_configs

    if options.recipe is None and options.help:  # run --help RECIPE
        options.recipe, options.help = options.help, ""
    if options.recipe is None:
        options.parser.print_help()
        print("\nrecipes: " + ", ".join(RECIPES))
        return 2 if options.help is None else 0
    if options.help is not None:
        show_help(options)
        return 0
    log = chosen_loggers(options.log) if options.log is not None else ()
    configs = chosen_configs(options)

    from overture.recipes.execute import execute_recipe

    name = options.recipe.rpartition(":")[2]
    root = options.out or Path("runs") / (name + ("-tiny" if options.tiny else ""))
    results = execute_recipe(
        configs,
        root,
        title=name,
        several=len(recipe_configs(options.recipe)) > 1,
        jobs=options.jobs,
        device=options.device,
        until=options.until,
        log=log,
    )
    if options.json and results:
        print_json(results)
    return 0


def show_help(options: argparse.Namespace) -> None:
    """What the recipe is and the parts of its config; or, with a word, the options with it in their names."""
    from overture.cli.option_help import describe_options, describe_parts
    from overture.recipes import load_recipe, recipe_configs

    config = recipe_configs(options.recipe, options.tiny)[0]
    if options.help:
        found = describe_options(config, options.help)
        if not found:
            raise UsageError(f"--help {options.help}: no option of {options.recipe} has this in its name")
        print(found)
        return
    print(inspect.cleandoc(load_recipe(options.recipe).__doc__ or ""))
    print(f"\nExample: overture {options.command} {options.recipe} --tiny --seed 1 --out runs/first")
    print("\nOptions of every recipe (overture run --help):")
    print("--out --tiny --only --preset --growth --start-from --jobs --device --log --json\n")
    print("Options of the config, with what this recipe sets (--help WORD shows those with WORD in their names):\n")
    print(describe_parts(config))


def chosen_configs(options: argparse.Namespace) -> tuple[RunConfig, ...]:
    """The recipe's configs with ``--tiny``, ``--only``, ``--preset``, ``--growth``, ``--start-from`` and overrides
    applied."""
    from overture.recipes import recipe_configs
    from overture.recipes.growth import with_growth
    from overture.recipes.presets import preset_words
    from overture.runs.adopt import starting_from

    configs = recipe_configs(options.recipe, options.tiny)
    if options.only:
        names = [config.name for config in configs]
        if options.only not in names:
            raise UsageError(f"recipe {options.recipe} has no run '{options.only}'{nearest(options.only, names)}")
        configs = tuple(config for config in configs if config.name == options.only)
    if options.preset:
        words = preset_words(options.recipe, options.preset)
        configs = tuple(replace(config, evaluation=replace(config.evaluation, **words)) for config in configs)
    if options.growth is not None and options.start_from is not None:
        raise UsageError(
            "--growth does not go with --start-from: codebooks are those of the model that is started from"
        )
    if options.growth is not None:
        configs = with_growth(configs, options.growth)
    if options.start_from is not None:
        prior = getattr(options, "until", "prior") != "tokenizer"
        configs = tuple(starting_from(config, options.start_from, prior=prior) for config in configs)
    changes = parse_overrides(options.overrides)
    return tuple(config.changed(switched(config, changes)) for config in configs)


def parse_overrides(words: list[str]) -> dict[str, str | None]:
    """``--dotted.name value`` and ``--dotted.name=value`` by name; None where an option has no value."""
    changes: dict[str, str | None] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            changes[name] = value if equals else None
        elif name is None:
            raise UsageError(f"unexpected word '{word}'; options are written --dotted.name value")
        else:
            changes[name] = f"{changes[name] or ''} {word}".strip()
    return changes


def switched(config: RunConfig, changes: dict[str, str | None]) -> dict[str, str]:
    """The same with a value for each: a switch is on without one, and off with ``no-`` before its name."""
    from overture.config import option, options

    switches = {name for name, hint, _ in options(config) if hint is bool}
    given: dict[str, str] = {}
    for name, value in changes.items():
        head, _, last = name.rpartition(".")
        off = f"{head}.{last[3:]}".lstrip(".") if last.startswith("no_") else ""
        if value is not None:
            given[name] = value
        elif name in switches or off in switches:
            given[off or name] = "false" if off else "true"
        elif any(name == known for known, _, _ in options(config)):
            raise UsageError(f"{option(name)} needs a value")
        else:
            given[name] = "true"  # no such option: told by the one that changes the config
    return given
