"""Progress with time left, and the polite end of long work.

Ctrl-C and SIGTERM set a flag; the loop ends after the current step, saves, and raises :class:`Interrupted`. The same
command then goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from overture.errors import Interrupted

__all__ = [
    "Interrupted",
    "Progress",
    "SilentProgress",
    "TerminalProgress",
    "WireProgress",
    "each_with_progress",
    "heed_stop",
    "progress_bar",
    "stop_requested",
    "stoppable",
]


T = TypeVar("T")


class _StopFlag:
    raised = False


def stop_requested() -> bool:
    """Whether the user asked to stop."""
    return _StopFlag.raised


def heed_stop(where: str, asked: bool | None = None) -> None:
    """Leave work that goes on where it was left, if the user asked to stop (``asked``: here or in another process)."""
    if stop_requested() if asked is None else asked:
        raise Interrupted(f"stopped in {where}, saved; the same command goes on")


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM (Ctrl-Break on Windows) set the flag of :func:`stop_requested`; a second Ctrl-C ends at
    once."""
    _StopFlag.raised = False

    def ask(number: int, frame: FrameType | None) -> None:
        if _StopFlag.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        _StopFlag.raised = True

    heeded = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    previous = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Progress(Protocol):
    """Where long work tells how far it is."""

    def start(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None:
        """A stage of ``total`` units begins, with ``done`` of them already behind it."""

    def advance(self, count: int = 1, **shown: float) -> None:
        """``count`` more units are done; ``shown`` are figures worth seeing."""

    def finish(self) -> None:
        """The stage is over."""

    def say(self, text: str) -> None:
        """A line for the reader."""


class SilentProgress:
    """For tests, and for all processes but the main one."""

    def start(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None: ...

    def advance(self, count: int = 1, **shown: float) -> None: ...

    def finish(self) -> None: ...

    def say(self, text: str) -> None: ...


FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {unit}s, {remaining} left{postfix}"
LINE_FORMAT = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} {unit}s, {remaining} left{postfix}"
ENDLESS_FORMAT = "{desc} {n_fmt} {unit}s, {elapsed}{postfix}"


def progress_bar(what: str, total: int | None = None, unit: str = "image", *, done: int = 0, shown: bool = True) -> Any:
    """A bar on stderr with ``update(count)``, for ``with``: where no terminal is, a line every few seconds instead."""
    if not shown or sys.stderr.isatty():
        form = ENDLESS_FORMAT if total is None else FORMAT
        return tqdm(
            desc=what, total=total, initial=done, unit=unit, file=sys.stderr, disable=not shown, bar_format=form
        )
    return LineBar(what, total, unit, done)


def each_with_progress(items: Iterable[T], what: str, unit: str, *, shown: bool = True) -> Iterator[T]:
    """``items``, one after the other, with a :func:`progress_bar`."""
    with progress_bar(what, len(items) if isinstance(items, Sized) else None, unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()


class LineBar:
    """How far long work is, for log files: a line at most every ``every`` seconds, and one at the end."""

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        done: int = 0,
        *,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.every, self.clock = what, total, unit, every, clock
        self.n = self.initial = done
        self.start = self.told = clock()
        self.postfix = ""

    def __enter__(self) -> LineBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_postfix(self, values: dict[str, str], refresh: bool = True) -> None:
        """Figures worth seeing, in the next line."""
        self.postfix = ", ".join(f"{name}={value}" for name, value in values.items())

    def update(self, count: int = 1) -> None:
        """``count`` more units are done."""
        self.n += count
        if self.clock() - self.told >= self.every:
            self._tell()

    def close(self) -> None:
        """The last line."""
        self._tell()

    def _tell(self) -> None:
        self.told = self.clock()
        form = ENDLESS_FORMAT if self.total is None else LINE_FORMAT
        line = tqdm.format_meter(
            self.n, self.total or 0, self.told - self.start, prefix=self.what, unit=self.unit, postfix=self.postfix,
            initial=self.initial, bar_format=form,
        )  # fmt: skip
        print(line, file=sys.stderr, flush=True)


class TerminalProgress:
    """One bar on stderr, or lines where that is no terminal."""

    def __init__(self, label: str = "", position: int = 0) -> None:
        self.label, self.position = label, position
        self.bar: Any = None

    def start(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None:
        self.finish()
        name = f"{self.label} {stage}".strip()
        if not sys.stderr.isatty():
            self.bar = LineBar(name, total, unit, done)
            return
        self.bar = tqdm(
            desc=f"{name:<22}", total=total, initial=done, unit=unit, position=self.position, file=sys.stderr,
            leave=self.position == 0, dynamic_ncols=True, smoothing=0.05,
            bar_format=FORMAT,
        )  # fmt: skip

    def advance(self, count: int = 1, **shown: float) -> None:
        if shown:
            self.bar.set_postfix({key: f"{value:.4g}" for key, value in shown.items()}, refresh=False)
        self.bar.update(count)

    def finish(self) -> None:
        if self.bar is None:
            return
        self.bar.close()
        if isinstance(self.bar, tqdm) and self.position == 0:  # it stays; the row below may show another job's bar
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", file=sys.stderr, flush=True)
        self.bar = None

    def say(self, text: str) -> None:
        tqdm.write(f"{self.label}: {text}" if self.label else text, file=sys.stderr)  # above the bars


class WireProgress:
    """Progress as JSON lines on stdout, for a parent process that draws the bars; at most some ten lines a second.

    When the parent is gone the pipe is closed, and the work stops politely.
    """

    def __init__(self) -> None:
        self.pending, self.last, self.shown = 0, 0.0, dict[str, float]()

    def start(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None:
        self.finish()
        self.shown = {}
        self._send({"start": stage, "total": total, "done": done, "unit": unit})

    def advance(self, count: int = 1, **shown: float) -> None:
        self.pending += count
        self.shown |= shown
        if time.monotonic() - self.last > 0.1:
            self._flush()

    def finish(self) -> None:
        if self.pending:
            self._flush()

    def say(self, text: str) -> None:
        self._send({"say": text})

    def _flush(self) -> None:
        self._send({"advance": self.pending, "shown": {k: v for k, v in self.shown.items() if v == v}})
        self.pending, self.last = 0, time.monotonic()

    def _send(self, event: dict[str, Any]) -> None:
        try:
            print(json.dumps(event) + "\n", end="", flush=True)  # in one piece, whichever thread tells it
        except OSError:  # the pipe is closed: on Windows this is no BrokenPipeError
            _StopFlag.raised = True
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
