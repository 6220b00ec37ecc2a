"""The ways a command can end early, each told in one line: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["Interrupted", "OvertureError", "UsageError", "error_line", "missing_package", "near", "nearest"]


class OvertureError(Exception):
    """Something went wrong while working; the command ends with exit status 1."""


class Interrupted(OvertureError):
    """The user asked to stop; what was done is saved. Exit status 130."""


class UsageError(OvertureError):
    """The request itself was wrong (an unknown name, an impossible value); exit status 2."""


def near(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt ``name``: the up to three names that are like it, or nothing where none is.

    Of a dotted name its last part may be all that was written.
    """

    def likeness(choice: str) -> float:
        parts = (choice, choice.rpartition(".")[2])
        words = (name, name.lstrip("-").rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in zip(words, parts, strict=True))

    alike = sorted(((likeness(choice), choice) for choice in set(valid)), key=lambda pair: (-pair[0], pair[1]))
    close = [f"'{choice}'" for value, choice in alike[:3] if value >= 0.6]
    return f" (did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}?)" if close else ""


def nearest(name: str, valid: Iterable[str]) -> str:
    """As :func:`near`; where no name is like it, all the valid ones, if they fit on a line."""
    choices = sorted(set(valid))
    everything = ", ".join(choices)
    return near(name, choices) or (f" (valid: {everything})" if 0 < len(everything) <= 400 else "")


LONGEST = 900
"""Characters of a line; of what is longer, and quotes a file perhaps, both ends are told."""


def error_line(error: BaseException) -> str:
    """What an exception says, in one line that a terminal can show: without control characters, and not too long."""
    said = " ".join(str(error).split())
    if len(said) > LONGEST:
        said = f"{said[: LONGEST // 2]} ... {said[-LONGEST // 3 :]}"
    said = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)
    return said if isinstance(error, OvertureError) and said else f"{type(error).__name__}: {said}".rstrip(": ")


def missing_package(package: str, extra: str, purpose: str) -> OvertureError:
    """The error for an optional dependency that is not installed; names the extra that brings it."""
    return OvertureError(f"{purpose} needs the package '{package}': pip install 'overture[{extra}]'")
