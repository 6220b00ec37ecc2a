"""``overture watch``: what a run's folder says of it, and how the terminal shows it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from overture.cli import main, watch
from overture.errors import OvertureError, UsageError
from overture.files import append_line, write_json
from overture.runs.directory import RunDirectory
from overture.training.metric_log import MetricLog
from overture.watching.frame import draw_frame, one_line, span, sparkline
from overture.watching.run_reader import RunReader, find_runs

CONFIG = {
    "tokenizer_training": {"steps": 100, "batch_size": 8},
    "prior_training": {"steps": 50, "batch_size": 4},
    "judge": {"training": {"steps": 30, "batch_size": 64}},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has just begun."""
    write_json(tmp_path / "vcq" / "config.json", CONFIG)
    return RunDirectory(tmp_path / "vcq")


def log(run: RunDirectory, stage: str, *steps: int, rate: float = 2.0, start: int = 0, **more: float) -> None:
    """What the training loop writes."""
    metrics = MetricLog(run.metrics, stage, start)
    pace = MetricLog(run.root / "pace.jsonl", stage, start)
    for step in steps:
        metrics.write(step, {"l1": 1 / step, "loss": 2 / step, **more, "learning_rate": 1e-3})
        pace.write(step, {"time": 1e9 + step, "steps_per_second": rate, "memory_gib": 1.5})


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def shown(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["watch", *map(str, arguments)])
    return status, capsys.readouterr().out


# -- what a folder says ---------------------------------------------------------------------------------------------


def test_a_run_at_work(run: RunDirectory) -> None:
    log(run, "tokenizer", 10, 20, 40)
    append_line(run.metrics, {"stage": "tokenizer", "step": 40, "rfd": 3.5})
    with run.locked():
        state = RunReader(run.root).read()
    (training,) = state.trainings
    assert (state.state, state.stage) == ("running", "tokenizer")
    assert (training.step, training.steps) == (40, 100)
    assert training.images_per_second == 16.0
    assert training.memory_gib == 1.5
    assert training.seconds_left == pytest.approx(60 / 2.0)
    assert training.losses["loss"].values == [0.2, 0.1, 0.05]
    assert training.learning_rate == 1e-3
    assert set(training.losses) == {"l1", "loss"}
    assert training.measured["rfd"].values == [3.5]


def test_time_left_is_of_the_steps_and_not_of_the_pauses(run: RunDirectory) -> None:
    """Twenty steps of 0.5 s and, after a week, twenty of 0.25 s: sixty more take 60 x 15 / 40 s."""
    log(run, "tokenizer", 1, 21, rate=2.0)
    log(run, "tokenizer", 41, rate=4.0, start=21)
    (training,) = RunReader(run.root).read().trainings
    assert training.seconds_left == pytest.approx(59 * (0.5 + 10 + 5) / 41)


def test_a_killed_run_says_where_it_stopped_and_since_when(run: RunDirectory) -> None:
    log(run, "tokenizer", 10, 20)
    touch(run.tokenizer / "step-00000015" / "state.safetensors")
    newest = max(path.stat().st_mtime for path in run.root.rglob("*"))
    state = RunReader(run.root).read(newest + 300)
    assert state.state == "stopped"
    assert state.seconds_silent == pytest.approx(300, abs=1)
    assert one_line(state).startswith(
        f"{run.root}: stopped or killed in tokenizer at step 20, saved at step 15, last written 5 min 0 s ago; the same command goes on"
    )
    assert "left" not in one_line(state)


def test_a_run_without_numbers_yet(run: RunDirectory) -> None:
    with run.locked():
        state = RunReader(run.root).read()
    assert state.trainings == ()
    assert one_line(state) == f"{run.root}: tokenizer, no numbers yet"


@pytest.mark.parametrize(
    ("there", "stage"),
    [
        ((), "tokenizer"),
        (("tokenizer/model.safetensors",), "tokens"),
        (("tokenizer/model.safetensors", "tokens/train.tokens"), "tokens"),
        (("tokenizer/model.safetensors", "tokens/train.tokens", "tokens/held_out.tokens"), "prior"),
        (("tokenizer/model.safetensors", "prior/model.safetensors"), "evaluation"),
    ],
)
def test_stages_are_known_by_what_is_there(run: RunDirectory, there: tuple[str, ...], stage: str) -> None:
    touch(*(run.root / name for name in there))
    log(run, "tokenizer", 50, 100)
    assert RunReader(run.root).read().stage == stage


def test_a_run_that_rests_says_what_comes_next(run: RunDirectory) -> None:
    log(run, "tokenizer", 100)
    touch(run.tokenizer_model)
    assert one_line(RunReader(run.root).read()).startswith(
        f"{run.root}: nobody works in it, tokens would be next, last"
    )


def test_the_judge_is_a_stage_too(run: RunDirectory) -> None:
    folder = run.root.parent / "networks"
    MetricLog(folder / "judge" / "metrics.jsonl", "judge").write(15, {"loss": 1.0, "learning_rate": 0.1})
    reader = RunReader(run.root)
    state = reader.read()
    assert (state.stage, state.trainings[0].step, state.trainings[0].steps) == ("judge", 15, 30)
    touch(folder / "judge.safetensors")
    log(run, "tokenizer", 10)
    state = reader.read()
    assert (state.stage, state.trainings[0].step) == ("tokenizer", 10)


def finish(run: RunDirectory, **more: Any) -> None:
    measurements = {"fid": {"name": "FD(domain)", "value": 1.25}}
    parts = {kind: {"measurements": measurements, "skipped": {}} for kind in ("unguided", "held_out")}
    write_json(run.results, {"generation": parts, **more})
    touch(run.samples / "classes.png")


def test_a_finished_run_shows_its_trainings_and_distances(run: RunDirectory) -> None:
    log(run, "tokenizer", 50, 100)
    log(run, "prior", 25, 50)
    finish(run)
    state = RunReader(run.root).read()
    assert (state.state, [training.stage for training in state.trainings]) == ("finished", ["tokenizer", "prior"])
    lines = draw_frame([state], 100)
    assert lines[0] == f"{run.root}: finished"
    assert lines[-1].strip() == "unguided/FD(domain) 1.25"
    finish(run, failed={"held_out": "no room"})
    lines = draw_frame([RunReader(run.root).read()], 100)
    assert lines[-1].strip() == "could not measure held_out: no room"


def test_a_run_on_token_files_has_a_prior_alone(run: RunDirectory) -> None:
    write_json(run.config, {"train": "a.tokens", "held_out": "b.tokens", "prior_training": {"steps": 50}})
    assert RunReader(run.root).read().stage == "prior"
    log(run, "prior", 10, 20)
    with run.locked():
        state = RunReader(run.root).read()
    assert (state.state, state.stage, [training.step for training in state.trainings]) == ("running", "prior", [20])
    touch(run.prior_model)
    assert RunReader(run.root).read().stage == "evaluation"
    write_json(run.results, {"likelihood": {"held_out_allowed": {"bits_per_image": 7.5}}})
    state = RunReader(run.root).read()
    assert (state.state, [training.stage for training in state.trainings]) == ("finished", ["prior"])
    assert state.to_dict()["results"] == {"likelihood/held_out_allowed_bits_per_image": 7.5}


def test_a_reader_follows_a_run_that_grows_and_goes_back(run: RunDirectory) -> None:
    reader = RunReader(run.root)
    log(run, "tokenizer", 10, 20, 30)
    assert reader.read().trainings[0].step == 30
    append_line(run.metrics, {"stage": "tokenizer", "step": 40, "loss": 1.0, "learning_rate": 0.1})
    assert reader.read().trainings[0].losses["loss"].steps == [10, 20, 30, 40]
    log(run, "tokenizer", start=20)  # it was killed, and goes on from its checkpoint
    assert reader.read().trainings[0].losses["loss"].steps == [10, 20]


# -- which runs -----------------------------------------------------------------------------------------------------


def test_runs_are_found_in_recipes_and_suites(tmp_path: Path) -> None:
    for place in ("quickstart/vcq", "quickstart/prologue", "suite/runs/0abc/vcq-s0", "suite/runs/0abc/vcq-s1"):
        write_json(tmp_path / place / "config.json", CONFIG)
    assert [path.name for path in find_runs(tmp_path / "quickstart")] == ["prologue", "vcq"]
    assert [path.name for path in find_runs(tmp_path / "quickstart" / "vcq")] == ["vcq"]
    assert [path.name for path in find_runs(tmp_path / "suite")] == ["vcq-s0", "vcq-s1"]
    touch(tmp_path / "suite" / "members" / "vcq-s0.json")  # by which a suite knows that it is finished
    states = [RunReader(path).read().state for path in find_runs(tmp_path / "suite")]
    assert states == ["finished", "stopped"]
    with pytest.raises(UsageError, match="did you mean"):
        find_runs(tmp_path / "quickstar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no run yet"):
        find_runs(tmp_path / "empty")


# -- how it looks ---------------------------------------------------------------------------------------------------


def test_sparklines() -> None:
    assert sparkline([1, 2, 4, 8, 16, 32, 64, 128], 8) == "▁▂▃▄▅▆▇█"  # logarithmic
    assert sparkline([-7, 0], 8) == "▁█"
    assert sparkline([3, 3, 3], 8) == "▁▁▁"
    assert sparkline([], 8) == sparkline([1], 0) == ""
    assert sparkline([0, 2, -4, -4], 2) == "█▁"  # means of neighbours
    assert sparkline([1, 128], 8, plain=True) == "_#"
    assert len(sparkline(range(1, 1000), 48)) == 48


def test_spans() -> None:
    assert [span(x) for x in (0, 59.6, 61, 3600, 7_300, 90_000)] == [
        "0 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "2 h 1 min", "1 d 1 h",
    ]  # fmt: skip


@pytest.mark.parametrize("height", [None, 30, 12, 6, 3, 1])
@pytest.mark.parametrize("width", [20, 80])
def test_a_frame_keeps_to_the_terminal(run: RunDirectory, width: int, height: int | None) -> None:
    log(run, "tokenizer", 10, 20, **{f"term_{n}": float(n) for n in range(9)})
    states = [RunReader(run.root).read()] * 3
    lines = draw_frame(states, width, height)
    assert all(len(line) <= width for line in lines)
    assert height is None or len(lines) <= height
    assert lines[0].startswith(str(run.root)[:width])


def test_a_plain_frame_is_ascii(run: RunDirectory) -> None:
    log(run, "tokenizer", 10, 20)
    assert "\n".join(draw_frame([RunReader(run.root).read()], 100, plain=True)).isascii()


# -- the command ----------------------------------------------------------------------------------------------------


def test_once_and_json(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    log(run, "tokenizer", 10, 20)
    status, out = shown(run.root, "--once", capsys=capsys)
    assert status == 0
    assert "\x1b" not in out
    assert "20% of 100 steps" in out
    status, out = shown(run.root.parent, "--json", capsys=capsys)
    (told,) = json.loads(out)["runs"]
    assert status == 0
    assert told["trainings"][0]["losses"]["loss"] == {"step": 20, "value": 0.1}


def test_runs_that_nobody_works_on_are_shown_once(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    log(run, "tokenizer", 10)
    status, out = shown(run.root, capsys=capsys)
    assert (status, out.count("\n")) == (0, 1)
    assert "stopped or killed" in out


def test_a_damaged_run_takes_no_other_with_it(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    other = run.root.parent / "other"
    write_json(other / "config.json", CONFIG)
    (other / "metrics.jsonl").write_text("nonsense\n")
    log(run, "tokenizer", 10)
    status, out = shown(run.root.parent, "--once", capsys=capsys)
    assert status == 1
    assert "10% of 100 steps" in out
    assert f"{other / 'metrics.jsonl'}: damaged" in out
    with pytest.raises(OvertureError, match="damaged"):
        RunReader(other).read()


def test_wrong_use(tmp_path: Path, run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "nothing")]) == 2
    assert main(["watch", str(run.root), "--every", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_it_follows_until_the_runs_are_finished(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file: a line when there is something new."""
    lock = run.locked()
    lock.__enter__()
    log(run, "tokenizer", 10)

    def more(seconds: float) -> None:
        log(run, "tokenizer", 20, start=10)
        finish(run)
        lock.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", more)
    status, out = shown(run.root, capsys=capsys)
    assert status == 0
    first, last = out.splitlines()
    assert "tokenizer" in first
    assert "finished" in last


def test_ctrl_c_leaves_and_the_terminal_is_redrawn_in_place(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log(run, "tokenizer", 10)
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(watch.shutil, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    with run.locked():
        status, out = shown(run.root, "--every", "0.5", capsys=capsys)
    assert status == 0
    assert looks == [0.5, 0.5, 0.5]
    frames = out.split("\x1b[J")[:-1]
    assert len(frames) == 3
    height = frames[0].count("\n")
    assert not frames[0].startswith("\x1b[")
    assert all(frame.startswith(f"\x1b[{height}F") for frame in frames[1:])
