"""Files: written whole or not at all, read with one-line errors, and told apart by their hashes.

Free of torch. What the package writes goes through :func:`replacing` or :func:`append_line`; token files, which many
processes write together, have a way of their own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overture.errors import OvertureError

__all__ = [
    "append_line", "cannot_write", "complete_lines", "file_hash", "flush_to_disk", "read_json", "read_json_lines",
    "remove", "replacing", "write_json",
]  # fmt: skip


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to write a file or a folder, then move it to ``path``.

    A crash, an exception or a full disk leaves what was there before; a folder that is there is not replaced. A failure
    to write is an ``OvertureError``.
    """
    # The process number keeps apart runs that write one shared file side by side.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


def cannot_write(path: Path, error: Exception) -> OvertureError:
    """The one-line error for a file that could not be written."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full; free some space and run the same command again" if full else None
    return OvertureError(f"{path}: cannot write it ({reason or getattr(error, 'strerror', None) or error})")


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing happens if it is not there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON; NaN and infinity are refused, since JSON has no words for them."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, kind: type, advice: str = "repair or delete it") -> Any:
    """The content of a JSON file, which has to be a ``kind`` (dict or list)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OvertureError(f"{path}: cannot read it ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise OvertureError(f"{path}: not valid JSON ({error}); {advice}") from error
    if not isinstance(data, kind):
        raise OvertureError(f"{path}: holds a {type(data).__name__}, expected a {kind.__name__}; {advice}")
    return data


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one JSON object as a line to a file that grows while work goes on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def complete_lines(path: Path) -> list[str]:
    """The lines of a file. A last line that an interruption left unfinished is cut off, in the file as well."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return data[:end].decode().splitlines()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every object of a file of :func:`append_line`; empty if there is no such file."""
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in complete_lines(path)]
    except OSError as error:
        raise OvertureError(f"{path}: cannot read it ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise OvertureError(f"{path}: damaged ({error}); repair or delete it") from error
    if not all(isinstance(entry, dict) for entry in entries):
        raise OvertureError(f"{path}: damaged (a line holds no JSON object); repair or delete it")
    return entries


def file_hash(path: Path) -> str:
    """sha256 of a file of any size, 64 hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OvertureError(f"{path}: cannot read this file ({error.strerror})") from error


def flush_to_disk(file: Any) -> None:
    """Wait until the bytes written to an open file are on the disk."""
    file.flush()
    os.fsync(file.fileno())
