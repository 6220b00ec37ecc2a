"""Loggers: told everything once and in order, whatever is killed; never a reason for a run to stop or to change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from overture.cli import main
from overture.errors import OvertureError, UsageError
from overture.files import append_line, read_json_lines, write_json
from overture.loggers import LOGGERS, attached, chosen_loggers, follower
from overture.loggers.attached import following
from overture.loggers.follower import Follower
from overture.loggers.growing_lines import GrowingLines
from overture.loggers.run_record import final_numbers
from overture.model_files import read_metadata
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.recipes import recipe_configs
from overture.runs import worker
from overture.runs.config import RunConfig
from overture.runs.worker import Task, run_task
from overture.training.metric_log import MetricLog
from overture.training.pace import Pace
from tiny_loggers import place, told

CONFIG = {
    "name": "vcq",
    "tokenizer_training": {"steps": 100, "batch_size": 8},
    "prior_training": {"steps": 50, "batch_size": 4},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has just begun."""
    folder = tmp_path / "quickstart" / "vcq"
    write_json(folder / "config.json", CONFIG)
    return folder


def log(run: Path, stage: str, steps: range, start: int = 0, **names: float) -> None:
    """What the training loop writes, from a checkpoint at ``start`` on."""
    metrics = MetricLog(run / "metrics.jsonl", stage, start)
    for step in steps:
        metrics.write(step, {name: slope * step for name, slope in (names or {"loss": 0.5}).items()})


def follow(run: Path, name: str = "Tells", *, close: bool = True) -> Follower:
    """Tell a logger all that is there."""
    follower = Follower(run, place(name))
    follower.close() if close else follower.catch_up()
    return follower


def beside(run: Path, name: str) -> list[str]:
    """The command that follows in a process of its own."""
    return [sys.executable, "-m", "overture.loggers.follower", str(run), place(name)]


def lines(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in told(run) if "values" in entry]


# -- which ----------------------------------------------------------------------------------------------------------


def test_names_are_chosen_once_each() -> None:
    strangers = place("Tells")
    assert chosen_loggers(f"tensorboard, {strangers},tensorboard") == ("tensorboard", strangers)
    assert set(LOGGERS) == {"tensorboard", "wandb", "trackio"}


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("tensorbord", UsageError, "unknown logger 'tensorbord' (did you mean 'tensorboard'?)"),
        (place("NoLogger"), UsageError, "is no logger, it needs to be a overture.loggers.logger.RunLogger"),
        (place("Telz"), UsageError, "has no 'Telz'"),
        (" , ", UsageError, "name a logger (tensorboard, wandb, trackio) or module:name"),
        (place("NeedsAPackage"), OvertureError, "pip install 'overture[log]'"),
    ],
)
def test_what_is_no_logger_or_not_installed_is_refused(text: str, kind: type[OvertureError], words: str) -> None:
    with pytest.raises(kind) as refused:
        chosen_loggers(text)
    assert words in str(refused.value)


def test_a_folder_of_the_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb leaves a folder ``wandb`` wherever it is used, from which Python would import an empty package."""
    (tmp_path / "package_that_nobody_has").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OvertureError, match="needs the package"):
        chosen_loggers(place("NeedsAPackage"))


def test_a_run_refuses_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", "quickstart", "--tiny", "--log", place("NeedsAPackage"), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs the package 'package_that_nobody_has'" in said
    assert main(["train", "tokenizer", "quickstart", "--tiny", "--log", "wandbb", "--out", str(out)]) == 2
    assert not out.exists()


# -- told once ------------------------------------------------------------------------------------------------------


def test_everything_is_told_in_order(run: Path) -> None:
    log(run, "tokenizer", range(1, 4), loss=2.0, l1=1.0)
    log(run, "prior", range(1, 3))
    follow(run)
    begin, *_, end = told(run)
    assert begin["name"] == "quickstart/vcq"
    assert not begin["resumed"]
    assert end == {"end": True}
    assert [(e["row"], e["stage"], e["step"]) for e in lines(run)] == [
        (0, "tokenizer", 1), (1, "tokenizer", 2), (2, "tokenizer", 3), (3, "prior", 1), (4, "prior", 2),
    ]  # fmt: skip
    assert lines(run)[1]["values"] == {"loss": 4.0, "l1": 2.0}


def test_a_run_that_goes_on_repeats_nothing_and_leaves_nothing_out(run: Path) -> None:
    """Killed at step 7 with a checkpoint of step 4, and again: steps of a name only go up, each is there once."""
    log(run, "tokenizer", range(1, 8))
    first = follow(run, close=False)
    log(run, "tokenizer", range(5, 10), start=4)
    MetricLog(run / "metrics.jsonl", "tokenizer", 9).write(9, {"rfd": 3.0})  # another number of the same step
    first.catch_up()  # the old process, which reads on for a moment
    follow(run)
    log(run, "tokenizer", range(8, 13), start=7)
    follow(run)
    begins = [entry for entry in told(run) if "begin" in entry]
    assert len({entry["begin"] for entry in begins}) == 1
    assert [entry["resumed"] for entry in begins] == [False, True, True]
    assert [e["step"] for e in lines(run) if "loss" in e["values"]] == list(range(1, 13))
    assert [e["step"] for e in lines(run) if "rfd" in e["values"]] == [9]
    assert [e["row"] for e in lines(run)] == list(range(13))


def test_a_logger_that_comes_late_is_told_everything(run: Path) -> None:
    log(run, "tokenizer", range(1, 6))
    write_json(run / "results.json", {"entropy": {"total_bits": 9.5, "cliff": 3}})
    follow(run)
    assert [e["step"] for e in lines(run)] == [1, 2, 3, 4, 5, 5]
    assert lines(run)[-1]["values"] == {"entropy/total_bits": 9.5, "entropy/cliff": 3.0}


@pytest.mark.parametrize("batch", [1, 3, 4, 32])
def test_an_error_loses_what_it_came_at_and_nothing_else(
    run: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(follower, "BATCH", batch)
    log(run, "tokenizer", range(1, 11))
    with pytest.raises(ConnectionError):
        follow(run, "Stumbles")
    follow(run, "Stumbles")
    log(run, "tokenizer", range(11, 13), start=10)
    follow(run, "Stumbles")
    entries = [entry for entry in told(run, "Stumbles") if "values" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, *range(4, 13)]
    assert [entry["row"] for entry in entries] == [0, 1, *range(3, 12)]


def test_who_is_killed_in_between_is_not_told_the_same_again(run: Path) -> None:
    """Its last batch is lost: nobody knows what of it was sent."""
    log(run, "tokenizer", range(1, 4))
    assert subprocess.run(beside(run, "Dies"), stdin=subprocess.DEVNULL, capture_output=True).returncode == 3
    log(run, "tokenizer", range(4, 6), start=3)
    (run / "loggers" / "tiny_loggers.py_Dies").rename(run / "loggers" / "tiny_loggers.py_Tells")
    follow(run)
    assert [entry["step"] for entry in lines(run)] == [4, 5]


def test_results_that_change_are_told_again(run: Path) -> None:
    log(run, "prior", range(1, 4))
    found = {"total_bits": 9.5, "cliff": 3}
    for bits in (9.5, 9.5, 5.0):
        write_json(run / "results.json", {"entropy": {**found, "total_bits": bits}})
        follow(run)
    log(run, "prior", range(2, 2), start=1)  # an earlier step is the last, now
    write_json(run / "results.json", {"entropy": {**found, "total_bits": 4.0}})
    follow(run)
    results = [(e["step"], e["values"]) for e in lines(run) if e["stage"] == "results"]
    assert results == [
        (3, {"entropy/total_bits": 9.5, "entropy/cliff": 3.0}),
        (3, {"entropy/total_bits": 5.0}),
        (3, {"entropy/total_bits": 4.0}),
    ]


def test_nothing_begins_before_the_run_has_a_config(tmp_path: Path) -> None:
    follow(tmp_path / "run")
    assert not (tmp_path / "run" / "loggers").exists()


def test_pictures_are_told_with_their_steps(run: Path) -> None:
    log(run, "prior", range(1, 31))
    for name in ("samples/training/gfd-00000020.png", "samples/reconstructions.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(run / name)
    follow(run)
    follow(run)
    pictures = [(e["picture"], e["step"], e["file"]) for e in told(run) if "picture" in e]
    assert pictures == [
        ("samples/reconstructions", 30, "reconstructions.png"),
        ("samples/gfd", 20, "gfd-00000020.png"),
    ]


def test_throughput_is_told_in_images(run: Path) -> None:
    clock = iter([0.0, 4.0, 5.0])
    pace = Pace(run / "pace.jsonl", "tokenizer", 10, torch.device("cpu"), lambda: next(clock))
    pace.write(20)
    pace.write(30)
    follow(run)
    assert [e["values"]["images_per_second"] for e in lines(run)] == [10 / 4 * 8, 10 / 1 * 8]
    assert all(e["values"]["memory_gib"] > 0.01 for e in lines(run))
    assert [e["steps_per_second"] for e in read_json_lines(run / "pace.jsonl")] == [2.5, 10.0]


def test_results_become_numbers_by_name() -> None:
    measurement = {"name": "FD(domain)", "value": 1.5}
    results: dict[str, Any] = {
        "models": {"tokenizer_hash": "0"},
        "generation": {"guided": {"measurements": {"fid": measurement}, "skipped": {}}},
        "reconstruction": {"quality": {"psnr": None, "ssim": 0.5}, "usage": {"segments": {"visual": {"used": 0.75}}}},
    }
    assert final_numbers(results) == {"guided/FD(domain)": 1.5, "reconstruction/ssim": 0.5, "usage/visual": 0.75}
    assert final_numbers({}) == {}
    assert final_numbers({"generation": {"guided": 3}}) == {}


# -- lines that grow ------------------------------------------------------------------------------------------------


def test_lines_are_read_once_and_a_half_one_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    growing = GrowingLines(path)
    assert growing.read() == []
    append_line(path, {"stage": "prior", "step": 1})
    with path.open("a") as file:
        file.write('{"stage": "prior", ')
    assert [e["step"] for e in growing.read()] == [1]
    with path.open("a") as file:
        file.write('"step": 2}\n')
    assert [e["step"] for e in growing.read()] == [2]
    assert growing.read() == []
    MetricLog(path, "prior", 1)  # writes it anew
    assert [e["step"] for e in growing.read()] == [1]
    assert growing.anew


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"stage": "prior"}', '{"stage": 1, "step": 1}', '{"stage": "a", "step": 1, "x": "y"}']
)
def test_damaged_lines_are_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(OvertureError, match=r"metrics\.jsonl: damaged"):
        GrowingLines(tmp_path / "metrics.jsonl").read()


# -- beside a run -----------------------------------------------------------------------------------------------------


def test_a_logger_works_beside_the_run_until_it_ends(run: Path) -> None:
    said: list[str] = []
    with following([place("Tells")], run, said.append):
        log(run, "tokenizer", range(1, 50))
    assert [e["step"] for e in lines(run)] == list(range(1, 50))
    assert told(run)[-1] == {"end": True}
    assert said == []
    assert "some library talks" in (run / "loggers" / "tiny_loggers.py_Tells" / "printed.log").read_text()


def test_what_fails_is_told_once_and_left_out(run: Path) -> None:
    said: list[str] = []
    log(run, "tokenizer", range(1, 5))
    names = ["LosesItsNetwork", "CannotBegin", "Dies", "Tells"]
    with following([place(name) for name in names], run, said.append):
        log(run, "prior", range(1, 5))
    assert len(said) == 3
    for name, reason in zip(
        names, ("ConnectionError: no route to host", "PermissionError: log in first", "status 3"), strict=False
    ):
        (line,) = (line for line in said if place(name) in line)
        assert reason in line
        assert "left out" in line
        assert "metrics.jsonl has every number" in line
    assert len(lines(run)) == 8
    assert told(run, "LosesItsNetwork")[-1] == {"end": True}  # so that it sends what it holds back


def test_all_loggers_have_one_deadline(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, deadlines = iter(range(100)), []
    monkeypatch.setattr(attached.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(attached._Attached, "wait", lambda logger, deadline: deadlines.append(deadline))
    with following([place("CannotBegin")] * 3, run, lambda line: None):
        pass
    assert deadlines == [attached.LAST_WAIT] * 3


def test_only_the_main_process_logs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    def pretended(*arguments: Any) -> None:
        processes = arguments[3]
        seen.append((processes.rank, (run / "loggers").exists()))

    monkeypatch.setattr(worker, "execute", pretended)
    task = Task("vcq", RunConfig(), str(run), str(run / "networks"), log=(place("Tells"),))
    for rank in (1, 0):
        run_task(task, SilentProgress(), Processes(rank))
    assert seen == [(1, False), (0, True)]


def tiny() -> RunConfig:
    changes = {"judge.training.steps": 2, "perceptual_network.training.steps": 2}
    training = {"tokenizer_training.steps": 4, "tokenizer_training.batch_size": 8, "tokenizer_training.log_every": 1}
    return recipe_configs("quickstart", tiny=True)[1].changed({**changes, **training})


def test_loggers_change_no_number_and_may_change_between_parts_of_a_run(tmp_path: Path) -> None:
    plain, logged = tmp_path / "plain", tmp_path / "logged"
    for root, names in ((plain, ()), (logged, (place("Tells"), place("Dies")))):
        run_task(
            Task("vcq", tiny(), str(root), str(tmp_path / "networks"), until="tokenizer", log=names),
            SilentProgress(),
            Processes(),
        )
    assert (plain / "metrics.jsonl").read_bytes() == (logged / "metrics.jsonl").read_bytes()
    assert (plain / "config.json").read_bytes() == (logged / "config.json").read_bytes()
    hashes = {
        read_metadata(root / "tokenizer/model.safetensors", "tokenizer")["weights_hash"] for root in (plain, logged)
    }
    assert len(hashes) == 1
    assert not (plain / "loggers").exists()
    metrics = read_json_lines(logged / "metrics.jsonl")
    trained = [e for e in lines(logged) if "gradient_norm" in e["values"]]
    assert [{"stage": e["stage"], "step": e["step"], **e["values"]} for e in trained] == metrics
    assert {"learning_rate", "gradient_norm", "loss"} <= metrics[0].keys()
    assert [e["step"] for e in read_json_lines(logged / "pace.jsonl")] == [1, 2, 3, 4]
    # The finished stage goes on with another logger, which hears of all that was.
    run_task(
        Task("vcq", tiny(), str(plain), str(tmp_path / "networks"), until="tokenizer", log=(place("Tells"),)),
        SilentProgress(),
        Processes(),
    )
    assert [e["values"] for e in lines(plain) if "gradient_norm" in e["values"]] == [e["values"] for e in trained]


# -- those of others --------------------------------------------------------------------------------------------------


def twice(run: Path, name: str) -> None:
    """A run that is killed at step 3 and goes on from step 2 to 5, with a picture."""
    said: list[str] = []
    log(run, "tokenizer", range(1, 4))
    with following([name], run, said.append):
        pass
    (run / "samples").mkdir()
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(run / "samples" / "reconstructions.png")
    with following([name], run, said.append):
        log(run, "tokenizer", range(3, 6), start=2)
    assert said == []


def test_tensorboard_reads_back_what_was_told(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    twice(run, "tensorboard")
    events = EventAccumulator(str(run / "loggers" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("tokenizer/loss")] == [(n, n / 2) for n in range(1, 6)]
    (image,) = events.Images("samples/reconstructions")
    assert (image.width, image.height) == (6, 4)
    assert image.encoded_image_string == (run / "samples" / "reconstructions.png").read_bytes()


def records(path: Path) -> Iterator[bytes]:
    """Of a ``.wandb`` file: after 7 bytes LevelDB's log, blocks of 32 KiB with a checksum, a length and a kind a piece."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if kind == 0:  # the rest of the block is empty
            place += 32768 - place % 32768
            continue
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_wandb_goes_on_with_one_run_offline(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(run.parent / "wandb-own"))
    twice(run, "wandb")
    history, ids = [], set()
    for path in sorted((run / "loggers" / "wandb").rglob("*.wandb")):
        for data in records(path):
            record = Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "tokenizer/loss" in items:
                history.append((items["tokenizer/step"], items["tokenizer/loss"]))
    assert ids == {json.loads((run / "loggers/wandb/told.json").read_text())["id"]}
    assert history == [(step, step / 2) for step in range(1, 6)]


def test_trackio_goes_on_with_one_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    twice(run, "trackio")
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; (name,) = S.get_runs('overture'); "
        "print(json.dumps(S.get_logs('overture', name)))"
    )
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    logs = json.loads(read.stdout.splitlines()[-1])
    assert [(e["step"], e["tokenizer/loss"]) for e in logs if "tokenizer/loss" in e] == [
        (n, n / 2) for n in range(1, 6)
    ]
    assert sum("samples/reconstructions" in e for e in logs) == 1
