"""What a run's folder says of the run: its stage, how far it is, who works in it, its last numbers. Free of torch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from overture.errors import OvertureError, UsageError
from overture.files import lock, near_path, read_json
from overture.loggers.growing_lines import GrowingLines
from overture.loggers.run_record import begins_with_tokens, final_numbers, images_per_second, training_of

__all__ = ["RunReader", "RunState", "Series", "Training", "find_runs", "read_states"]

State = Literal["running", "finished", "stopped"]
FRESH = 120.0
"""Seconds after which a run is held to be dead where its lock cannot be asked."""
RECENT = 20
"""Lines over which the pace is averaged."""
NETWORKS, TRAINED = ("judge", "perceptual"), ("tokenizer", "prior")


@dataclass
class Series:
    """One number of a stage as it went."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """The training of a stage, as far as it is logged."""

    stage: str
    step: int
    steps: int | None
    saved_step: int | None
    """Of the last checkpoint; None where there is none, or none any more."""
    seconds_left: float | None
    """At its recent pace."""
    images_per_second: float | None = None
    memory_gib: float | None = None
    device_memory_gib: float | None = None
    learning_rate: float | None = None
    losses: dict[str, Series] = field(default_factory=dict)
    """What every log line of the stage holds: losses and gradient norms."""
    measured: dict[str, Series] = field(default_factory=dict)
    """What was measured from time to time: distances, usage, entropy, likelihood."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of every series the last value and its step."""
        series = ("losses", "measured")
        last = {
            part: {name: {"step": s.steps[-1], "value": s.values[-1]} for name, s in getattr(self, part).items()}
            for part in series
        }
        return {**{name: value for name, value in vars(self).items() if name not in series}, **last}


@dataclass(frozen=True)
class RunState:
    """A run as it stands."""

    path: str
    state: State
    stage: str
    """The one that is under way, or would be the next."""
    trainings: tuple[Training, ...]
    """That of this stage, none where it has no line yet; where it is no training, all that came before."""
    seconds_silent: float | None = None
    """Since something was last written."""
    results: dict[str, float] = field(default_factory=dict)
    """Of the finished run."""
    failed: dict[str, str] = field(default_factory=dict)
    """Parts that could not be measured, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "trainings": [training.to_dict() for training in self.trainings]}


def find_runs(path: Path) -> list[Path]:
    """The run that ``path`` is, or those in it: of a recipe with several, or of a suite of ``overture bench``."""
    if (path / "config.json").is_file():
        return [path]
    if not path.exists():
        raise UsageError(f"{path}: no such folder{near_path(path)}")
    places = ("*/config.json", "*/*/config.json", "runs/*/*/config.json")
    found = sorted(config.parent for place in places for config in path.glob(place))
    if not found:
        raise UsageError(f"{path}: holds no run yet (no config.json)")
    return found


class RunReader:
    """Reads a run again and again; of its lines only those that are new."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics, self.pace = GrowingLines(root / "metrics.jsonl"), GrowingLines(root / "pace.jsonl")
        self.lines: dict[str, list[dict[str, Any]]] = {"metrics": [], "pace": []}

    def read(self, now: float | None = None) -> RunState:
        """The run as it stands; ``now`` in seconds since 1970."""
        config = read_json(self.root / "config.json", dict)
        results = read_json(self.root / "results.json", dict) if (self.root / "results.json").exists() else {}
        files = {"metrics": self.metrics, "pace": self.pace}
        stage, network = self._stage(config, results)
        if network is not None:
            files = {name: GrowingLines(network / f"{name}.jsonl") for name in files}
        for name, file in files.items():
            new = file.read()
            self.lines[name] = new if file.anew else self.lines[name] + new
        silent = _silence(self.root, network, time.time() if now is None else now)
        stages = (stage,) if stage in (*NETWORKS, *TRAINED) else TRAINED
        trainings = (self._training(config, each, network or self.root / each) for each in stages)
        return RunState(
            path=str(self.root),
            state=self._state(stage, silent),
            stage=stage,
            trainings=tuple(training for training in trainings if training is not None),
            seconds_silent=silent,
            results=final_numbers(results),
            failed={str(part): str(why) for part, why in (results.get("failed") or {}).items()},
        )

    def _training(self, config: dict[str, Any], stage: str, folder: Path) -> Training | None:
        """A stage from its lines; None where there are none."""
        metrics, pace = ([e for e in self.lines[name] if e["stage"] == stage] for name in ("metrics", "pace"))
        if not metrics:
            return None
        step, steps = max(entry["step"] for entry in metrics), training_of(config, stage).get("steps")
        losses, measured = _series(metrics)
        rate, last = losses.pop("learning_rate", None), pace[-1] if pace else {}
        return Training(
            stage=stage,
            step=step,
            steps=steps,
            saved_step=_saved_step(folder),
            seconds_left=_seconds_left(pace, step, steps),
            images_per_second=images_per_second(config, last) if last else None,
            memory_gib=last.get("memory_gib"),
            device_memory_gib=last.get("device_memory_gib"),
            learning_rate=rate.values[-1] if rate else None,
            losses=losses,
            measured=measured,
        )

    def _stage(self, config: dict[str, Any], results: dict[str, Any]) -> tuple[str, Path | None]:
        """The stage that is under way or next; where it is a network's training, the folder of that."""
        root, joint = self.root, config.get("prior_source") == "joint"
        trained = {kind: (root / kind / "model.safetensors").exists() for kind in ("tokenizer", "prior")}
        tokens = len(list((root / "tokens").glob("*.tokens"))) >= 2
        finished = results.get("generation") and (root / "samples" / "classes.png").exists()
        if finished or (root.resolve().parent.parent.parent / "members" / f"{root.name}.json").is_file():
            return "done", None
        if begins_with_tokens(config):
            return ("prior" if not trained["prior"] else "done" if results.get("likelihood") else "evaluation"), None
        if trained["prior"] and (tokens or not joint):
            return "evaluation", None
        if trained["tokenizer"]:
            return ("prior" if tokens else "tokens"), None
        for place in (root / "networks", root.resolve().parent / "networks"):
            for name in NETWORKS:
                if (place / name / "metrics.jsonl").exists() and not (place / f"{name}.safetensors").exists():
                    return name, place / name
        return "tokenizer", None

    def _state(self, stage: str, silent: float | None) -> State:
        held = _is_held(self.root / ".lock")
        if held or (held is None and silent is not None and silent < FRESH):
            return "running"
        return "finished" if stage == "done" else "stopped"


def _series(entries: Iterable[dict[str, Any]]) -> tuple[dict[str, Series], dict[str, Series]]:
    """What stands in the lines of the training, which tell its learning rate, and what in those of measurements."""
    losses: dict[str, Series] = {}
    measured: dict[str, Series] = {}
    for entry in entries:
        into = losses if "learning_rate" in entry else measured
        for name, value in entry.items():
            if name not in ("stage", "step"):
                series = into.setdefault(name, Series())
                series.steps.append(entry["step"])
                series.values.append(value)
    return losses, measured


def _seconds_left(pace: list[dict[str, Any]], step: int, steps: int | None) -> float | None:
    """At the pace of the last lines: the steps of each by its own rate, since there may have been pauses between them."""
    recent = pace[-RECENT:]
    before = [recent[0]["step"] - 1, *(entry["step"] for entry in recent)] if recent else []
    spans = [(e["step"] - b, e.get("steps_per_second", 0.0)) for b, e in zip(before, recent, strict=False)]
    spans = [(count, rate) for count, rate in spans if rate > 0]
    taken, seconds = sum(count for count, _ in spans), sum(count / rate for count, rate in spans)
    return None if steps is None or not taken else max(0, steps - step) * seconds / taken


def _silence(root: Path, network: Path | None, now: float) -> float | None:
    """Seconds since one of the files that grow, or that end a stage, was last written."""
    places = ["config.json", "metrics.jsonl", "pace.jsonl", "results.json", "samples/*", "tokens/*", "*/step-*"]
    found = [path for place in places for path in root.glob(place)]
    found += [network / "metrics.jsonl"] if network else []
    times = []
    for path in found:
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # replaced this very moment
            continue
    return max(0.0, now - max(times)) if times else None


def _saved_step(folder: Path) -> int | None:
    steps = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return max((int(step) for step in steps if step.isdecimal()), default=None)


def _is_held(path: Path) -> bool | None:
    """Whether a process works in the run; None where that cannot be asked, as in a run of somebody else."""
    try:
        with path.open("r+b") as file:
            return not lock(file)  # ours for a moment, which who begins to work there will wait
    except FileNotFoundError:
        return False
    except OSError:
        return None


def read_states(readers: Iterable[RunReader]) -> tuple[list[RunState], list[str]]:
    """Every run as it stands; of those that cannot be read, one line each."""
    states, errors = [], []
    for reader in readers:
        try:
            states.append(reader.read())
        except OvertureError as error:
            errors.append(str(error))
    return states, errors
