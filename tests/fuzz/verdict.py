"""One changed file and what becomes of it; a process that tries many, in little memory and time.

A case is (seed, target, number): the same case is the same file, on every machine.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from good_files import make
from mutators import BYTES, Mutation, pick
from targets import TARGETS, Target

from overture.errors import OvertureError, error_line

MEMORY, SECONDS, LINE = 2 * 2**30, 20, 1000
"""What one file may take, and how long its error may be."""


@dataclass(frozen=True)
class Case:
    """Which change of which file."""

    seed: int
    target: str
    number: int


@dataclass(frozen=True)
class Outcome:
    """``same``, ``refused`` (in one line), ``changed`` (what the file now says), or ``fault``."""

    kind: str
    mutation: str
    told: str = ""


def changed_file(case: Case, target: Target, good: bytes) -> tuple[Mutation, bytes]:
    """The file of a case."""
    rng = np.random.default_rng((case.seed, zlib.crc32(target.name.encode()), case.number))
    own = target.mutations and rng.random() < 0.5
    mutation: Mutation = pick(rng, target.mutations if own else BYTES)
    return mutation, mutation.change(good, rng)


class _TooLong(BaseException):
    """A file took more than ``SECONDS``."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def judged(read: Callable[[], str], expected: str, free: bool) -> tuple[str, str]:
    """The kind of the outcome, and what was told. Where the reading is ``free``, it may differ from the expected."""
    signal.alarm(SECONDS)
    try:
        found = read()
    except OvertureError as error:
        line = error_line(error)
        if len(line) > LINE or not line.isprintable():
            return "fault", f"no line for people ({len(line)} characters): {line[:300]!r}"
        return "refused", line
    except _TooLong:
        return "fault", f"took more than {SECONDS} s"
    except Exception as error:
        return "fault", "".join(traceback.format_exception(error)[-6:])
    finally:
        signal.alarm(0)
    if found == expected:
        return "same", ""
    return ("changed", "") if free else ("fault", "accepted, with other numbers")


class Reader:
    """Reads changed files, one after the other, in a folder of its own."""

    def __init__(self, good: Path, place: Path) -> None:
        shutil.copytree(good, place, dirs_exist_ok=True)
        os.chdir(place)
        self.targets = {target.name: target for target in TARGETS}
        self.files = {target.name: Path(target.file).read_bytes() for target in TARGETS}
        self.expected = {target.name: target.read() for target in TARGETS}
        self.clock = 10**18

    def outcome(self, case: Case) -> Outcome:
        """What becomes of a case."""
        target, good = self.targets[case.target], self.files[case.target]
        mutation, data = changed_file(case, target, good)
        free = mutation.resigned or not target.protected
        self._write(target, data)
        try:
            kind, told = judged(target.read, self.expected[case.target], free)
        finally:
            self._write(target, good)
        return Outcome(kind, mutation.name, told)

    def _write(self, target: Target, data: bytes) -> None:
        """With a time of its own: files are known by size and time, and these come faster than clocks tick."""
        path = Path(target.file)
        path.write_bytes(data)
        self.clock += 1
        os.utime(path, ns=(self.clock, self.clock))


def _serve(connection: Connection, good: Path) -> None:
    """The process that reads: cases in, outcomes out."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as place:
        reader = Reader(good, Path(place))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        connection.send("ready")
        while (case := connection.recv()) is not None:
            connection.send(reader.outcome(case))
        os.chdir("/")


class _Process:
    """The reading process, from the outside."""

    def __init__(self, good: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, inner = context.Pipe()
        self.process = context.Process(target=_serve, args=(inner, good), daemon=True)
        self.process.start()
        inner.close()
        if self.ask(600) != "ready":
            raise RuntimeError("the good files cannot be read; see above")

    def ask(self, seconds: float) -> Any:
        """The next answer; None if the process has died, or is too late for its own alarm."""
        try:
            return self.connection.recv() if self.connection.poll(seconds) else None
        except (EOFError, ConnectionError):
            return None

    def end(self) -> None:
        """By its own will, or by force."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
            self.process.join(SECONDS)
        self.process.kill()
        self.process.join()


def outcomes(cases: Iterable[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Every case with its outcome; a process that dies or hangs is a fault, and another one goes on."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        process: _Process | None = None
        try:
            for case in cases:
                process = process or _Process(Path(folder))
                process.connection.send(case)
                outcome = process.ask(3 * SECONDS)
                if outcome is None:
                    process.end()
                    code, process = process.process.exitcode, None
                    outcome = Outcome("fault", "?", f"the process died or hung (exit code {code})")
                yield case, outcome
        finally:
            if process:
                process.end()
