"""The two ways a command can fail, each told in one line: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["OvertureError", "UsageError", "error_line", "missing_package", "nearest"]


class OvertureError(Exception):
    """Something went wrong while working; the command ends with exit status 1."""


class UsageError(OvertureError):
    """The request itself was wrong (an unknown name, an impossible value); exit status 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt ``name``: `` (did you mean 'depth'?)``, or the valid names, or nothing."""
    choices = sorted(set(valid))
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (valid: {', '.join(choices)})" if choices else ""


def error_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, OvertureError) and said else f"{type(error).__name__}: {said}".rstrip(": ")


def missing_package(package: str, extra: str, purpose: str) -> OvertureError:
    """The error for an optional dependency that is not installed; names the extra that brings it."""
    return OvertureError(f"{purpose} needs the package '{package}': pip install 'overture[{extra}]'")
