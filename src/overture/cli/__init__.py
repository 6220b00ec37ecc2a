"""The command line: ``overture COMMAND``. Commands are imported when they run, so ``--help`` is quick."""

from __future__ import annotations

import argparse
import importlib
import io
import keyword
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from overture import __version__
from overture.cli.help_format import HelpFormatter
from overture.errors import Interrupted, UsageError, error_line, nearest
from overture.last_resort import as_line

__all__ = ["main"]

COMMANDS = {
    "run": "a recipe: train, sample, judge, report; or go on",
    "plan": "what a recipe will take: parameters, memory, disk",
    "train": "a recipe up to its tokenizer or its prior",
    "app": "a page in the browser: draw, keep, edit, blend",
    "generate": "sample images from a trained run",
    "reconstruct": "send images through a tokenizer, measure the loss",
    "tokenize": "write the tokens of a data source to a token file",
    "evaluate": "FID, sFID, IS, precision, recall, KID of images",
    "compare": "records side by side, unlike protocols marked",
    "search-guidance": "the guidance of the lowest distance",
    "probe": "how much of the class the first n tokens tell",
    "prefix": "keep the first n tokens, resample the rest",
    "entropy": "conditional entropy per position of any tokens",
    "neighbours": "nearest training images: a check for memorisation",
    "attention": "where in the image the first tokens look",
    "schedule": "codebook sizes along the sequence, bits, cliff",
    "watch": "runs as they stand, live: progress, curves",
    "report": "write the page of one or several runs",
    "import": "turn files of others into ours",
    "reproduce": "a published row again, with its released weights",
    "bench": "recipes x seeds side by side, with chance measured",
    "push": "a run into a repository of the hub, with a card",
    "pull": "fetch a repository of the hub, to use like a run",
    "weights": "fetch trained networks for LPIPS and distances",
    "recipes": "list the recipes",
    "completion": "a script that completes commands in your shell",
}

SHARED = ("run", "train", "tokenize", "generate", "evaluate", "reproduce")
"""Commands whose work several processes share."""


class Parser(argparse.ArgumentParser):
    """Tells a wrong usage in one line, with the nearest valid word."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **words})

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("overture").strip()
        if "invalid choice" in message and self.prog == "overture":
            wrong = message.split("invalid choice: ")[1].split("'")[1]
            message = f"unknown command '{wrong}'{nearest(wrong, COMMANDS)}"
        help_line = f"overture {command} --help".replace("  ", " ")
        self.exit(2, f"{self.prog}: {message}; see {help_line}\n")


def build_parser(*commands: str) -> Parser:
    """The parser; only the modules of ``commands`` are imported."""
    parser = Parser(
        prog="overture",
        usage="overture COMMAND [options]",
        description="Example: overture run quickstart",
        epilog="exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"overture {__version__}", help="show it")
    parser.add_argument("--traceback", action="store_true", help="of any command: show where an error comes from")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands", prog="overture"
    )
    for name, about in COMMANDS.items():
        if name in commands:
            module = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
            importlib.import_module(f"overture.cli.{module}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=about, add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    # Torch's own warnings of its insides (sockets, unused parameters) are none for who uses a command; errors stay.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, the CPU does
    _print_anything()
    words = list(sys.argv[1:] if arguments is None else arguments)
    shown = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        return _run(words or ["--help"])
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


def _print_anything() -> None:
    """Letters that the terminal's or the file's encoding lacks are printed as question marks, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


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
    options, rest = build_parser(*([] if command is None else [command])).parse_known_args(words)
    if getattr(options, "accepts_overrides", False):
        options.overrides = rest
    elif rest:
        raise UsageError(f"{command}: unknown option '{rest[0]}'; see overture {command} --help")
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
