"""``overture completion SHELL``: a script that lets a shell complete commands, options and recipes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "completion",
        help="a script that completes commands in your shell",
        description="Example: overture completion bash > ~/.local/share/bash-completion/completions/overture\n\n"
        "Print a script that completes commands, options and the names of recipes. The line above is for bash with its "
        "package bash-completion; without it: source <(overture completion bash), in ~/.bashrc. For zsh: a file _overture "
        "in a folder of $fpath. For fish: ~/.config/fish/completions/overture.fish. The script holds all that it needs: "
        "completing starts no Python. Write it again after an upgrade.",
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from overture.cli import COMMANDS, build_parser

    parser = build_parser(*COMMANDS)
    for action in actions_of(parser):
        tell_values(action)
    print(shtab.complete(parser, options.shell))
    return 0


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of a parser and of the commands in it, whose descriptions become their one line of help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for line in action._get_subactions():
                action.choices[line.dest].description = line.help
            for command in action.choices.values():
                yield from actions_of(command)
        else:
            yield action


def tell_values(action: argparse.Action) -> None:
    """What may follow: the names of recipes and devices, or files where any text may be a path."""
    import shtab

    from overture.recipes import RECIPES

    names = {"recipe": list(RECIPES), "device": ["auto", "cpu", "cuda", "mps"]}
    if action.dest in names:
        action.choices = names[action.dest]
    elif action.nargs != 0 and action.choices is None and action.type in (None, Path):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
