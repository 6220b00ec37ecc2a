"""Measuring while training: it changes nothing, keeps the best, and a failure loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

import overture.runs.monitor as monitor_module
from overture.errors import OvertureError, UsageError
from overture.model_files import read_metadata
from overture.pipeline import load_prior
from overture.priors.sampling import Sampling
from overture.processes import Processes
from overture.progress import Interrupted, Progress, SilentProgress
from overture.recipes import recipe_configs
from overture.runs.checks import check_evaluation
from overture.runs.config import RunConfig, WatchConfig
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import write_samples
from overture.runs.monitor import PriorMonitor, _Monitor
from overture.runs.stages import execute

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WATCH = WatchConfig(tokenizer_every=6, prior_every=6, images=30, samples=20, keep_best="gfd")


def config(watch: WatchConfig) -> RunConfig:
    tiny = recipe_configs("quickstart", tiny=True)[1]
    training = replace(tiny.tokenizer_training, steps=14, log_every=5)
    optimizer = replace(training.optimizer, warmup=2, flat=2)
    classifier = replace(tiny.judge.training, steps=10)
    return replace(
        tiny,
        judge=replace(tiny.judge, training=classifier),
        perceptual_network=replace(tiny.perceptual_network, training=classifier),
        tokenizer_training=replace(
            training,
            optimizer=optimizer,
            discriminator_optimizer=optimizer,
            adversarial=replace(training.adversarial, start=4),
        ),
        prior_training=replace(tiny.prior_training, steps=14, log_every=5, evaluate_every=10),
        evaluation=replace(tiny.evaluation, samples=40, batch_size=10, guidance="1.5"),
        watch=watch,
    )


def train(root: Path, watch: WatchConfig, progress: Progress | None = None) -> tuple[str, str]:
    """Weights hashes of the tokenizer and the prior."""
    torch.set_num_threads(1)
    run = RunDirectory(root)
    execute(config(watch), run, progress or SilentProgress(), Processes(), until="prior")
    return tuple(  # type: ignore[return-value]
        read_metadata(path, kind)["weights_hash"]
        for path, kind in ((run.tokenizer_model, "tokenizer"), (run.prior_model, "prior"))
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, tuple[str, str]]:
    root = tmp_path_factory.mktemp("measured")
    return root, train(root, WATCH)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_measuring_changes_no_bit(measured, tmp_path) -> None:
    assert train(tmp_path, WatchConfig()) == measured[1]
    assert not (tmp_path / "watch-prior.jsonl").exists()


def test_what_is_measured_is_logged_and_the_best_kept(measured) -> None:
    root, _ = measured
    entries = lines(root / "watch-prior.jsonl")
    assert [entry["step"] for entry in entries] == [6, 12]
    assert {"gfd", "gfd_guided"} == set(entries[0]["values"])
    logged = {entry["step"]: entry for entry in lines(root / "metrics.jsonl") if "gfd" in entry}
    for entry in entries:
        assert logged[entry["step"]]["gfd"] == round(entry["values"]["gfd"], 6)
        assert (root / "samples" / "training" / f"gfd-{entry['step']:08d}.png").is_file()
    best = min(entries, key=lambda entry: entry["values"]["gfd"])
    kept = root / "prior" / "best" / "model.safetensors"
    assert read_metadata(kept, "prior")["step"] == best["step"]
    assert load_prior(kept).layout == load_prior(root).layout
    tokenizer = lines(root / "watch-tokenizer.jsonl")
    assert [entry["step"] for entry in tokenizer] == [6, 12]
    assert {"rfd", "psnr", "ssim", "entropy_bits", "entropy_cliff", "used_visual"} == set(tokenizer[0]["values"])


class Told(SilentProgress):
    """Keeps what a user would read."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_failure_is_told_and_the_training_goes_on(measured, tmp_path, monkeypatch) -> None:
    measure, calls, told = monitor_module.frechet_measurement, [], Told()

    def failing(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:  # the first one at step 12
            raise RuntimeError("the evaluator\ndied")
        return measure(*arguments, **named)

    monkeypatch.setattr(monitor_module, "frechet_measurement", failing)
    assert train(tmp_path, WATCH, told) == measured[1]
    assert told.said[-1] == "measuring at step 12 failed: RuntimeError: the evaluator died"
    whole = lines(measured[0] / "watch-prior.jsonl")
    assert lines(tmp_path / "watch-prior.jsonl") == [entry for entry in whole if entry["step"] == 6]
    logged = lines(measured[0] / "metrics.jsonl")
    assert lines(tmp_path / "metrics.jsonl") == [e for e in logged if not ("gfd" in e and e["step"] == 12)]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="needs prior_every"):
        WatchConfig(keep_best="gfd")
    with pytest.raises(UsageError, match="samples is 1"):
        WatchConfig(samples=1)


def test_guided_samples_cannot_be_best_without_guidance() -> None:
    wanted = config(replace(WATCH, keep_best="gfd_guided"))
    check_evaluation(wanted)
    with pytest.raises(UsageError, match="keep_best is gfd_guided"):
        check_evaluation(replace(wanted, evaluation=replace(wanted.evaluation, guidance="1.0")))


class Counted(_Monitor):
    """A monitor that measures how often it was asked to measure."""

    count = 0

    def measure_now(self, step: int) -> dict[str, float]:
        self.count += 1
        return {"gfd": step / 10}


def test_an_interrupted_line_is_measured_again_and_damage_is_refused(tmp_path) -> None:
    monitor = Counted(RunDirectory(tmp_path), "prior", 5, Processes())
    monitor.measure(5)
    monitor.measure(10)
    whole = monitor.path.read_text()
    monitor.path.write_text(whole[:-4])
    assert monitor.known() == {5: {"gfd": 0.5}}
    assert (monitor.measure(10), monitor.count) == ({"gfd": 1.0}, 3)
    assert monitor.path.read_text() == whole
    monitor.path.write_text(whole[3:])
    with pytest.raises(OvertureError, match=r"watch-prior\.jsonl: damaged"):
        monitor.known()
    monitor.path.write_text('{"step": 5}\n')
    with pytest.raises(OvertureError, match=r"watch-prior\.jsonl: damaged"):
        monitor.known()


def test_a_step_is_measured_once(tmp_path) -> None:
    """A run that goes on from before a measurement asks again, and gets what was found."""
    monitor = Counted(RunDirectory(tmp_path), "prior", 5, Processes())
    assert [step for step in range(16) if monitor.due(step)] == [5, 10, 15]
    found = monitor.measure(10)
    again = Counted(RunDirectory(tmp_path), "prior", 5, Processes())
    assert (again.measure(10), again.count) == (found, 0)
    assert not any(Counted(RunDirectory(tmp_path), "prior", 0, Processes()).due(step) for step in range(16))


class Pipe:
    """Samples that tell their index by their grey level; writes down what it is asked for, and may be stopped."""

    calls: ClassVar[list[tuple[int, int, int, Sampling]]] = []
    """Seed, first image, how many, and how."""
    stops_at: ClassVar[int | None] = None
    tokenizer = SimpleNamespace(config=SimpleNamespace(channels=1, image_size=8))

    def sample(self, classes: torch.Tensor, sampling: Sampling, *, seed: int, first: int, batch_size: int):
        self.calls.append((seed, first, len(classes), sampling))
        for part in classes.split(batch_size):
            yield torch.zeros(len(part), 1, 8, 8, dtype=torch.uint8)

    def sample_together(
        self,
        classes: torch.Tensor,
        sampling: Sampling,
        *,
        processes: Processes,
        seed: int,
        first: int,
        batch_size: int,
        dtype: torch.dtype | None = None,
    ):
        for part in classes.split(batch_size):
            if first == self.stops_at:
                raise Interrupted("stopped")
            assert part.tolist() == [place % 10 for place in range(first, first + len(part))]
            self.calls.append((seed, first, len(part), sampling))
            levels = torch.arange(first, first + len(part), dtype=torch.uint8)
            first += len(part)
            yield levels[:, None, None, None].expand(-1, 1, 8, 8)


@pytest.fixture
def pipe(monkeypatch) -> type[Pipe]:
    monkeypatch.setattr(Pipe, "calls", [])
    monkeypatch.setattr(Pipe, "stops_at", None)
    return Pipe


def write(run: RunDirectory, kind: str = "unguided") -> None:
    shared = config(WATCH).resolve(10)
    sampling = shared.evaluation.samplings[kind]
    write_samples(shared, run, Pipe(), sampling, kind, SilentProgress())  # type: ignore[arg-type]


def test_samples_go_on_where_they_were_stopped(pipe, tmp_path) -> None:
    """Those that were made are on the disk, and the file is that of who was never stopped."""
    run, whole = RunDirectory(tmp_path / "parts"), RunDirectory(tmp_path / "whole")
    for stop in (20, 30):
        pipe.stops_at = stop
        with pytest.raises(Interrupted):
            write(run)
        assert not (run.samples / "unguided.npz").exists()
    pipe.stops_at = None
    write(run)
    assert [first for _, first, _, _ in pipe.calls] == [0, 10, 20, 30]
    write(whole)
    assert (run.samples / "unguided.npz").read_bytes() == (whole.samples / "unguided.npz").read_bytes()
    with np.load(run.samples / "unguided.npz") as file:
        assert (file["arr_0"] == np.arange(40, dtype=np.uint8)[:, None, None, None]).all()
        assert file["arr_1"].tolist() == [*range(10)] * 4


@pytest.mark.parametrize(
    "damage", [b"", b"\1", (10**9).to_bytes(8, "little"), (20).to_bytes(8, "little") + bytes(64 * 19)]
)
def test_samples_whose_file_is_cut_off_are_made_again(pipe, tmp_path, damage: bytes) -> None:
    run = RunDirectory(tmp_path)
    run.samples.mkdir()
    (run.samples / "unguided.partial").write_bytes(damage)
    write(run)
    assert [first for _, first, _, _ in pipe.calls] == [0, 10, 20, 30]


def test_samples_to_choose_by_are_not_those_of_the_results(pipe, tmp_path, monkeypatch) -> None:
    calls = pipe.calls
    shared = config(WATCH)
    run = RunDirectory(tmp_path)
    monitor = SimpleNamespace(config=shared, run=run, processes=Processes())
    for step in (6, 12):
        for kind in ("unguided", "guided"):
            batches = list(PriorMonitor._samples(monitor, pipe(), kind, f"{kind}-{step}.png"))  # type: ignore[arg-type]
            assert sum(map(len, batches)) == 20
            assert (run.samples / "training" / f"{kind}-{step}.png").is_file()
    assert calls[:2] == calls[2:]
    assert [sampling for *_, sampling in calls[:2]] == [shared.evaluation.unguided, shared.evaluation.guided]
    chosen_by = {seed for seed, *_ in calls}
    calls.clear()
    for kind in shared.evaluation.samplings:
        write(run, kind)
    assert [(first, count, sampling) for _, first, count, sampling in calls] == [
        (first, 10, sampling)
        for sampling in (shared.evaluation.unguided, shared.evaluation.guided)
        for first in (0, 10, 20, 30)
    ]
    assert not chosen_by & {seed for seed, *_ in calls}
