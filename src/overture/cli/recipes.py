"""``overture recipes``: what can be run."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from overture.cli.common import print_json


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "recipes",
        help="list the recipes",
        description="Example: overture recipes quickstart\n\nList the recipes, or tell all about one.",
    )
    parser.add_argument("name", nargs="?", help="a recipe (or module:function), to read all about it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List the recipes, or show one recipe's documentation."""
    from overture.recipes import RECIPES, load_recipe, summary

    if options.name:
        about = inspect.getdoc(load_recipe(options.name)) or f"{options.name} has no docstring"
        print_json({"name": options.name, "about": about}) if options.json else print(about)
        return 0
    lines = {name: summary(load_recipe(name)) for name in RECIPES}
    if options.json:
        print_json(lines)
        return 0
    width = max(map(len, lines))
    for name, about in lines.items():
        print(f"{name:<{width}}  {about}")
    return 0
