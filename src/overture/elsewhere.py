"""What comes from another machine, and what leaves this one: no code by its place, and no folders.

A model of the hub names code of its author as ``module:name``. Such a module is taken from the current folder or from
the packages that are installed; a file anywhere else on this machine is never meant. Everyone who reads a model file or
the config of a run reads it by :func:`checked`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from overture.errors import UsageError

__all__ = ["MARK", "check_data", "checked", "is_elsewhere", "last_parts", "names_in", "opens_here"]

MARK = "pulled.json"
"""Lies in a folder that was pulled, and says from where."""

PARTS = (".zip", ".npz", ".parquet", ".tar")
"""Files that hold parts, which are named after a slash."""

T = TypeVar("T")

_CODE = re.compile(r"(?P<code>[^?]+:[^\W\d][\w.]*)(?:\?.*)?", re.DOTALL)
_BEFORE = r"(?:^|(?<=[\s?,;=:'\"(\[{<>|&+@`]))"
_ROOTS = (
    r"[A-Za-z]:[\\/]",  # a drive
    r"\\\\",  # another machine of a network
    r"~[\w.-]*[\\/]",  # a home
    r"(?<!http:)(?<!https:)/+(?=[^\s/])",
    r"(?:[^\s?\\/]+[\\/])*\.\.[\\/]",  # out of the current folder
)
_START = re.compile(_BEFORE + "(?:" + "|".join(_ROOTS) + ")", re.MULTILINE)
_END = re.compile(r": |\n|\?")


def is_elsewhere(path: Path) -> bool:
    """Whether a file is of the hub: in its cache, or in a folder (or in one of its folders) that was pulled."""
    for place in (path.expanduser().absolute(), path.expanduser().resolve()):
        cached = any(part.startswith("models--") for part in place.parts) and "snapshots" in place.parts
        if cached or any((folder / MARK).is_file() for folder in list(place.parents)[:2]):
            return True
    return False


def checked(path: Path, said: T) -> T:
    """What the file at ``path`` has said, as it is; refused where the file is of the hub and names code by its place."""
    if is_elsewhere(path):
        _check_places(said, str(path))
    return said


def _check_places(said: Any, where: str) -> None:
    """Refuse plain values of someone else that name code by a place outside of the current folder."""
    for text in _texts(said):
        for name in (text, text.partition("?")[0]):
            file = name.rpartition(":")[0]
            if file.endswith(".py") and _leads_out(file):
                raise UsageError(
                    f"{where}: asks for code by its place on a machine ({name}); a model from elsewhere may not"
                )


def check_data(path: Path, data: Iterable[str], option: str) -> None:
    """Refuse data that a file of the hub at ``path`` names, where nobody has asked for them: code, and other folders."""
    for name in data:
        if is_elsewhere(path) and not opens_here(name):
            raise UsageError(f"{path}: was pulled, and its data ({name}) are code or lie elsewhere; give {option}")


def opens_here(data: str) -> bool:
    """Whether data that a file of the hub names may be opened unasked: no code, and nothing outside of this folder."""
    return data.startswith("embedded:") or (_CODE.fullmatch(data) is None and not _leads_out(data))


def names_in(said: Any) -> list[str]:
    """Every ``module:name``, of any module, that stands anywhere in plain values, each once."""
    found = (_CODE.fullmatch(text) for text in _texts(said))
    return list(dict.fromkeys(match["code"] for match in found if match and not match["code"].startswith("embedded:")))


def _leads_out(path: str) -> bool:
    """Whether a path is absolute or leaves the current folder."""
    return path.startswith(("/", "\\", "~")) or ".." in path or last_parts(path) != path


def _texts(said: Any) -> Iterator[str]:
    if isinstance(said, str):
        yield said
    parts = said.values() if isinstance(said, dict) else said if isinstance(said, list | tuple) else ()
    for part in parts:
        yield from _texts(part)


def last_parts(said: Any) -> Any:
    """Plain values with every path that is absolute or leads out of the folder, anywhere in a text, cut to its last part:
    ``/home/me/set.npz/test`` is ``set.npz/test``, ``my_data:Photos?/home/me/all`` is ``my_data:Photos?all``."""
    if isinstance(said, dict):
        return {last_parts(key): last_parts(part) for key, part in said.items()}
    if isinstance(said, list):
        return [last_parts(part) for part in said]
    return _without_folders(said) if isinstance(said, str) else said


def _without_folders(text: str) -> str:
    """A path ends where the next one begins, at the end of its line, and before what follows a colon and a space."""
    ends = [0, *(found.start() for found in _START.finditer(text)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(ends)]
    return pieces[0] + "".join(map(_last_part, pieces[1:]))


def _last_part(piece: str) -> str:
    end = found.start() if (found := _END.search(piece)) else len(piece)
    parts = [part for part in re.split(r"[\\/]", piece[:end]) if part]
    inside = len(parts) > 1 and parts[-2].endswith(PARTS)
    return "/".join(parts[-2 if inside else -1 :]) + piece[end:]
