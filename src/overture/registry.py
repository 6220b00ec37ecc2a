"""Open lists: wherever a name of ours is asked for, anyone's ``module:name`` works too.

``my_codes:Spherical`` is looked for in the current folder, then where Python looks; ``some/folder/my_codes.py:Spherical``
names the file. Modules are imported when they are used, so lists of names cost nothing.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overture.errors import OvertureError, UsageError, nearest

__all__ = ["OpenList", "place_of", "resolve", "resolve_class", "strangers_code"]


_FILES: dict[str, str] = {}
"""The file of every module that was asked for by its file: another process will not find it by its name."""


class OpenList:
    """Things of one kind by name: ours (``entries``: where each lies), and anyone's by ``module:name``.

    ``what`` they are called in messages; ``kind`` is the class that they have to be instances of, or subclasses.
    """

    def __init__(self, what: str, entries: Mapping[str, str], kind: str = "") -> None:
        self.what, self.entries, self.kind = what, dict(entries), kind

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def get(self, name: str) -> Any:
        """What ``name`` stands for; an unknown name is answered with the nearest one."""
        if name not in self.entries and ":" not in name:
            raise UsageError(f"unknown {self.what} '{name}'{nearest(name, self.entries)}, or write module:name")
        found = resolve(self.entries.get(name, name))
        kind = resolve(self.kind) if self.kind else object
        if not (isinstance(found, kind) or (isinstance(found, type) and issubclass(found, kind))):
            raise UsageError(f"{name}: is no {self.what}, it needs to be a {kind.__module__}.{kind.__name__}")
        return found

    def name_of(self, thing: Any) -> str:
        """The name under which :meth:`get` finds a class or function again."""
        place = f"{_FILES.get(thing.__module__, thing.__module__)}:{thing.__qualname__}"
        return next((name for name, entry in self.entries.items() if entry == place), place)


def resolve(spec: str) -> Any:
    """The object that ``module:name`` or ``file.py:name`` means."""
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise UsageError(f"'{spec}': write module:name, such as my_codes:Spherical or folder/my_codes.py:Spherical")
    module = _import(module_name)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            valid = [word for word in vars(module) if not word.startswith("_")]
            place = getattr(module, "__file__", None) or module_name
            raise UsageError(f"{spec}: {place} has no '{part}'{nearest(part, valid)}")
        found = getattr(found, part)
    return found


def resolve_class(spec: str, kind: type) -> Any:
    """The subclass of ``kind`` that ``spec`` means. A file of someone else may name anything, so nothing else is called."""
    found = resolve(spec)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UsageError(f"{spec}: is no {kind.__module__}.{kind.__name__}")
    return found


def _import(name: str) -> Any:
    """A module by its name or by its file."""
    file = Path(name).expanduser()
    if name.endswith(".py"):
        if not file.is_file():
            raise UsageError(f"{name}: no such file")
        folder, name = str(file.resolve().parent), file.stem
    else:
        folder, file = str(Path.cwd()), Path()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with strangers_code(name):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and what it imports is not
            raise UsageError(f"no module '{name}': neither in {folder} nor where Python looks") from error
    if not file.name:
        return module
    if Path(module.__file__ or "").resolve() != file.resolve():
        raise UsageError(f"{file}: Python knows another module '{name}' ({module.__file__}); rename the file")
    _FILES[name] = str(file)
    return module


@contextmanager
def strangers_code(what: str) -> Iterator[None]:
    """Any exception of code that is not ours becomes one line with its place in that code."""
    try:
        yield
    except OvertureError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{error.filename}:{error.lineno}"
        else:
            place = place_of(error)
        raise OvertureError(f"{what}: {place}: {type(error).__name__}: {reason}") from error


def place_of(error: Exception) -> str:
    """File and line of the last frame that is neither ours nor a library's; else of the last one at all."""
    libraries = (str(Path(__file__).parent), str(Path(traceback.__file__).parent), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(libraries) and "site-packages" not in f.filename]
    if not frames:
        return "an unknown place"
    frame = (theirs or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"
