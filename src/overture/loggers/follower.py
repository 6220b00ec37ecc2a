"""Follows what a run writes and tells one logger: ``python -m overture.loggers.follower RUN NAME``.

It works in a process of its own, beside the main process of a run, until its standard input ends, as it does when that
process is gone. What it has told stands in ``RUN/loggers/NAME/told.json``: nothing is told twice, whatever was killed when, and
a logger that comes late is told everything from the beginning. An error of the logger loses what it came at, no more.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from overture.errors import OvertureError, error_line
from overture.files import lock, read_json, write_json
from overture.loggers import LOGGERS
from overture.loggers.growing_lines import GrowingLines
from overture.loggers.logger import Line, Picture, Record, RunLogger
from overture.loggers.run_record import final_numbers, images_per_second

__all__ = ["Follower", "logger_folder"]

PATIENCE = 1.0
"""Seconds between two looks at the run."""
BATCH = 32
"""Items that are remembered as told at once: a write to the disk for each would take longer than telling it."""


@dataclass
class Told:
    """What a logger has been told, as it is remembered on disk."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    rows: int = 0
    last_step: int = 0
    """Of the last line: the step of what has none of its own."""
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    """By stage and name, the last step that was told."""
    results: dict[str, float] = field(default_factory=dict)
    """By name, the last value that was told: results change without a step."""
    pictures: list[str] = field(default_factory=list)


def logger_folder(run: Path, name: str) -> Path:
    """Of a logger in a run: what it writes itself, ``told.json``, and in ``printed.log`` what its libraries print."""
    return run / "loggers" / re.sub(r"[^\w.-]+", "_", re.split(r"[/\\]", name)[-1])


class Follower:
    """Brings to one logger what is new in a run, each time that it is asked to."""

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name
        self.folder = logger_folder(run, name)
        self.memory = self.folder / "told.json"
        self.told = self._remembered()
        self.metrics, self.pace = GrowingLines(run / "metrics.jsonl"), GrowingLines(run / "pace.jsonl")
        self.results_seen = 0
        self.config: dict[str, Any] = {}
        self.logger: RunLogger | None = None

    def catch_up(self) -> None:
        """Tell the logger what it was not told yet; nothing while the run has no config."""
        if self.logger is None and not self._begin():
            return
        assert self.logger is not None
        items: Iterator[Line | Picture] = chain(self._lines(), self._results(), self._pictures())
        news = ((item, asdict(self.told)) for item in items)
        while batch := list(islice(news, BATCH)):
            self._tell(self.logger, batch)

    def close(self) -> None:
        """The last news, and the logger's end."""
        self.catch_up()
        if self.logger is not None:
            self.logger.close()

    def give_up(self) -> None:
        """The end of a logger that has failed: what it was told before may still wait to be sent."""
        if self.logger is not None:
            with suppress(Exception):
                self.logger.close()

    def _begin(self) -> bool:
        path = self.run / "config.json"
        if not path.exists():
            return False
        config = read_json(path, dict)
        self.config = {key: value for key, value in config.items() if key != "checksum"}
        resumed = self.told.rows > 0
        write_json(self.memory, asdict(self.told))  # the id, before anyone else hears it
        name = "/".join(self.run.resolve().parts[-2:])
        self.logger = LOGGERS.get(self.name)(Record(self.told.id, name, self.config, self.folder, resumed))
        return True

    def _remembered(self) -> Told:
        if not self.memory.exists():
            return Told()
        try:
            return Told(**read_json(self.memory, dict))
        except TypeError as error:
            raise OvertureError(f"{self.memory}: damaged ({error}); delete it to begin a new record") from error

    def _tell(self, logger: RunLogger, batch: list[tuple[Line | Picture, dict[str, Any]]]) -> None:
        """Tell some items, each with what has been told when it is told."""
        told = batch[-1][1]
        write_json(self.memory, told)  # first: who is killed between the two would otherwise tell it again
        try:
            for item, reached in batch:
                told = reached
                if isinstance(item, Line):
                    logger.numbers(item)
                else:
                    logger.picture(item)
            logger.flush()
        except Exception:
            write_json(self.memory, told)  # what came after it is told next time
            raise

    # -- news -------------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[Line]:
        for entry in self.metrics.read():
            values = {name: x for name, x in entry.items() if name not in ("stage", "step")}
            self.told.last_step = entry["step"]
            yield from self._line(entry["stage"], entry["step"], values)
        for entry in self.pace.read():
            values = {name: x for name, x in entry.items() if name not in ("stage", "step", "time", "steps_per_second")}
            rate = images_per_second(self.config, entry)
            yield from self._line(
                entry["stage"], entry["step"], {"images_per_second": rate, **values} if rate else values
            )

    def _results(self) -> Iterator[Line]:
        """The numbers that were not told with this value: they may be measured again when no step was made."""
        path = self.run / "results.json"
        changed = path.stat().st_mtime_ns if path.exists() else 0
        if changed == self.results_seen:
            return
        self.results_seen = changed
        found = final_numbers(read_json(path, dict)) if changed else {}
        new = {name: x for name, x in found.items() if self.told.results.get(name) != x}
        if new:
            steps = self.told.steps.setdefault("results", {})
            step = max([self.told.last_step, *steps.values()])  # it never goes back
            steps.update(dict.fromkeys(new, step))
            self.told.results.update(new)
            yield Line(self._row(), "results", step, new)

    def _line(self, stage: str, step: int, values: dict[str, float]) -> Iterator[Line]:
        """The values that are new: a run that goes on repeats steps, and they are what they were."""
        steps = self.told.steps.setdefault(stage, {})
        new = {name: x for name, x in values.items() if step > steps.get(name, -1)}
        if new:
            steps.update(dict.fromkeys(new, step))
            yield Line(self._row(), stage, step, new)

    def _pictures(self) -> Iterator[Picture]:
        samples = self.run / "samples"
        for path in sorted([*(samples / "training").glob("*.png"), *samples.glob("*.png")]):
            place = str(path.relative_to(samples))
            if place in self.told.pictures:
                continue
            self.told.pictures.append(place)
            numbered = re.fullmatch(r"(.+)-(\d+)", path.stem)
            name, step = (numbered[1], int(numbered[2])) if numbered else (path.stem, self.told.last_step)
            yield Picture(self._row(), f"samples/{name}", step, path)

    def _row(self) -> int:
        self.told.rows += 1
        return self.told.rows - 1


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process follows for this logger: that of a killed command may still be sending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        while not lock(file):
            time.sleep(0.1)
        yield


def main(run: str, name: str) -> int:
    """Follow until the standard input ends; what goes wrong is one line on the standard output."""
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no word of ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is interrupted is the run, and it will end our input
    ended, parent = threading.Event(), os.getppid()

    def listen() -> None:
        while os.read(sys.stdin.fileno(), 1024):  # unbuffered: Python's end would wait for the lock of a buffer
            pass
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with _alone(logger_folder(Path(run), name) / ".lock"):
            follower = Follower(Path(run), name)
            try:
                while not ended.wait(PATIENCE) and os.getppid() == parent:
                    follower.catch_up()
                follower.close()
            except Exception as error:
                print(error_line(error), file=said, flush=True)  # before the end, which may take long
                follower.give_up()
                return 1
    except Exception as error:
        print(error_line(error), file=said, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
