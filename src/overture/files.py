"""Files: written whole or not at all, read with one-line errors, and told apart by their hashes.

Free of torch. What the package writes goes through :func:`replacing` or :func:`append_line`; token files, which many
processes write together, have a way of their own.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from overture.errors import OvertureError

__all__ = [
    "append_line", "cache_folder", "cannot_write", "check_once", "copy_file", "file_hash", "flush_to_disk", "json_hash", "lock", "near_path", "read_json", "read_json_lines",
    "read_record", "remove", "remove_leftovers", "replacing", "write_json", "write_record",
]  # fmt: skip


_UMASK = os.umask(0)
os.umask(_UMASK)
_HOST = socket.gethostname()
_WINDOWS = os.name == "nt"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place to write a file or a folder, then move it to ``path``.

    A crash, an exception, a full disk or a power cut leaves what was there before; a folder that is there is not
    replaced. What killed processes have left of earlier writings is removed. A failure to write is an ``OvertureError``.
    """
    # A folder of its own, beside the place: libraries leave temporary files where they write. Host and process number
    # keep apart runs that write one shared file side by side.
    folder = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.partial")
    temporary = folder / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        folder.mkdir()
        yield temporary
        _settle(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            remove(folder)


def copy_file(source: Path, path: Path) -> None:
    """A copy of a file."""
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what processes that are gone have left of writing files in a folder (or that of one ``name``)."""
    for left in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.partial"):
        host, _, process = left.name.removesuffix(".partial").rpartition(".")[2].rpartition("-")
        same = host in ("", _HOST)  # version 0.1.0 wrote no host
        alive = _alive(process) if same else None
        old = time.time() - left.lstat().st_mtime > 86_400
        if alive is False or (alive is None and old):
            remove(left)


def _alive(process: str) -> bool | None:
    """Whether a process works here that may be writing: any but ourselves. None where the system cannot be asked."""
    if not process.isdecimal() or int(process) == os.getpid():
        return False
    if _WINDOWS:  # there, signal 0 is no question: it is Ctrl-C
        return None
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _settle(place: Path) -> None:
    """Onto the disk, with the rights that the user gives to new files: some libraries write for the owner alone."""
    for path in [*(place.iterdir() if place.is_dir() else ()), place]:
        if path.is_file():
            path.chmod(0o666 & ~_UMASK)
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Windows opens no folders, and syncs what is writable."""
    if _WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: Exception) -> OvertureError:
    """The one-line error for a file that could not be written."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full; free some space and run the same command again" if full else None
    return OvertureError(f"{path}: cannot write it ({reason or getattr(error, 'strerror', None) or error})")


def near_path(path: Path) -> str:
    """A hint for a path that does not exist: a name beside it that is like it, if there is one."""
    while not path.parent.exists() and path.parent != path:  # a drive that is not there is its own parent
        path = path.parent
    try:
        siblings = {entry.name: entry for entry in path.parent.iterdir() if not entry.name.startswith(".")}
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    return f" (did you mean '{siblings[close[0]]}'?)" if close else ""


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


def write_record(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object of numbers that others will trust, with a checksum of it."""
    plain = json.loads(json.dumps(data, allow_nan=False))  # as it will be read: tuples are lists
    write_json(path, {**plain, "checksum": json_hash(plain)})


def read_record(path: Path, advice: str = "repair or delete it") -> dict[str, Any]:
    """What :func:`write_record` wrote; refused when it was changed since. Files without a checksum are older."""
    data: dict[str, Any] = read_json(path, dict, advice)
    recorded = data.pop("checksum", None)
    if recorded is not None and recorded != json_hash(data):
        raise OvertureError(
            f"{path}: was changed since it was written; {advice} (or take out its line 'checksum' if the change is meant)"
        )
    return data


def json_hash(data: Any) -> str:
    """A short hash of plain values: 16 hexadecimal digits of sha256."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def cache_folder(variable: str, name: str) -> Path:
    """A folder for what is fetched: the one that an environment variable names, or ``~/.cache/overture/NAME``."""
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "overture" / name


_passed: dict[Path, tuple[int, int]] = {}


def check_once(path: Path, check: Callable[[], None]) -> None:
    """A check that raises, left out where this process has made it of the file as it is now."""
    about, place = path.stat(), path.resolve()
    state = (about.st_mtime_ns, about.st_size)
    if _passed.get(place) != state:
        check()
        _passed[place] = state


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one JSON object as a line to a file that grows while work goes on.

    A last line that an interruption left unfinished is cut off first.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_json_lines(path: Path, **needs: type) -> list[dict[str, Any]]:
    """Every object of a file of :func:`append_line`; empty if there is no such file. An unfinished last line is left out.

    ``needs`` says which keys every object has to have, and of which type.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OvertureError(f"{path}: cannot read it ({error.strerror})") from error
    entries = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise OvertureError(f"{path}: damaged (line {number}: {error}); repair or delete it") from error
        if not isinstance(entries[-1], dict):
            raise OvertureError(f"{path}: damaged (line {number} holds no JSON object); repair or delete it")
        for key, kind in needs.items():
            if type(entries[-1].get(key)) is not kind:
                raise OvertureError(
                    f"{path}: damaged (line {number}: '{key}' is no {kind.__name__}); repair or delete it"
                )
    return entries


def file_hash(path: Path) -> str:
    """sha256 of a file of any size, 64 hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OvertureError(f"{path}: cannot read this file ({error.strerror})") from error


def lock(file: IO[Any]) -> bool:
    """Whether an open file is ours alone now, until it is closed: False where another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # flock's, and Windows's
        return False
    return True


def flush_to_disk(file: Any) -> None:
    """Wait until the bytes written to an open file are on the disk."""
    file.flush()
    os.fsync(file.fileno())
