"""``benchmarks/accelerator.py``: every part at toy size, and what becomes of parts that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import accelerator
from accelerating.fitting import fitting
from accelerating.inference import sampling_bytes
from accelerating.isolation import Emit, alone
from accelerating.machine import Machine
from accelerating.sizes import FULL, TOY
from overture.interop.releases import BASE
from overture.layout import Layout, Segment


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict]]:
    """The toy run but for the tests, which would run themselves."""
    out = tmp_path_factory.mktemp("accelerator") / "lines.jsonl"
    parts = [name for name in accelerator.PARTS if name != "tests"]
    # In a process of its own, for it forks: threads of what other tests have done here would not survive that.
    command = [sys.executable, accelerator.__file__, "--toy", "--device", "cpu", "--out", str(out), "--only", *parts]
    status = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True).returncode
    return status, [json.loads(line) for line in out.read_text().splitlines()]


def test_every_part_runs_on_a_cpu(ran: tuple[int, list[dict]]) -> None:
    status, rows = ran
    assert [row for row in rows if "failed" in row] == []
    assert status == 0
    assert {row["part"] for row in rows} == accelerator.PARTS.keys() - {"tests"}
    assert [row["batch"] for row in rows if row["part"] == "sample, Base"] == list(TOY.sample_batches)
    assert [row["case"] for row in rows if row["part"] == "golden data"] == ["2d", "prologue"]


def test_rows_hold_what_they_say(ran: tuple[int, list[dict]]) -> None:
    about = next(row for row in ran[1] if "card" in row)
    assert about["torch"] == torch.__version__
    assert all(rate > 1e6 for rate in (*about["products"].values(), about["bandwidth"]))
    measured = [row for row in ran[1] if "seconds" in row]
    assert len(measured) == 2 + 4 + 1 + 2 + 2 * len(TOY.sample_batches)
    for row in measured:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert row["flops"] > 0
        assert row.get("peak") is None or row["peak"] > 0
        assert "planned" not in row or row["planned"] > 0
    assert all(row["first"] > 0 for row in measured if row["part"].startswith("sample"))
    table = accelerator.table(ran[1])
    assert about["card"] in table
    assert table.count("\n| ") == len(ran[1]) + 1  # the head, and all rows but the card's


def test_shares_are_of_what_was_measured() -> None:
    about = {"card": "x", "products": {"bfloat16": 1e12}, "bandwidth": 1e9, "torch": "", "training_precision": ""}
    row = {
        "part": "p", "batch": 4, "seconds": 0.5, "images_per_second": 8.0, "precision": "bfloat16", "flops": 1e10,
        "bytes": 1e8, "peak": 2_500_000_000, "planned": 2_000_000_000,
    }  # fmt: skip
    assert accelerator.cells(row, about) == ("p", "4", "8", "500", "8.0%", "20.0%", "2.5", "2", "bfloat16")
    assert accelerator.cells({"part": "p", "failed": "no"}, None)[-1] == "FAILED: no"


def test_the_parts_take_at_most_ten_minutes() -> None:
    assert sum(part.seconds for part in accelerator.PARTS.values()) <= 600


def test_a_part_that_fails_keeps_its_rows_and_says_why() -> None:
    def dies(emit: Emit) -> None:
        emit({"a": 1})
        os._exit(3)

    def raises(emit: Emit) -> None:
        emit({"a": 1})
        raise ValueError("two\nlines")

    def hangs(emit: Emit) -> None:
        emit({"a": 1})
        time.sleep(60)

    expected = {
        dies: "its process ended with 3",
        raises: "ValueError: two lines",
        hangs: "took longer than its 0 seconds",
    }
    for work, failure in expected.items():
        assert alone(work, 0.3 if work is hangs else 30) == ([{"a": 1}], failure)


def test_the_batch_is_halved_until_it_fits() -> None:
    tried: list[int] = []

    def work(batch: int) -> str:
        tried.append(batch)
        if batch > 20:
            raise torch.OutOfMemoryError
        return f"did {batch}"

    assert fitting(work, 64) == ("did 16", 16, "out of memory at batch 64, 32; 16 fits")
    assert tried == [64, 32, 16]
    assert fitting(work, 8) == ("did 8", 8, "")

    def never(batch: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        fitting(never, 4)


def test_bytes_of_sampling_by_hand() -> None:
    """Two positions of one code and of four: the first needs no output."""
    layout = Layout((Segment("a", (1, 4)),))
    config = TOY.prior(BASE)
    matrices = 2 * (4 * 32**2 + 3 * 32 * 88)  # two layers
    cache = 2 * 2 * 2 * 32 * (2 * 3)  # bytes, keys and values, layers, channels of both halves of three images
    assert sampling_bytes(config, layout, 3, 2) == 2 * 2 * matrices + cache * (1 + 2) + 4 * 32 * 4


def test_full_sizes_are_the_recipes() -> None:
    run = FULL.run("prologue-b-b", "bfloat16", 32)
    assert run.tokenizer.image_size == 256
    assert run.tokenizer_training.batch_size == run.prior_training.batch_size == 32
    assert FULL.prior(BASE) == BASE
    layout = run.tokenizer.layout
    # The roofline of one image at 3.35 TB/s: the weights, 273 times.
    assert sampling_bytes(BASE, layout, 1, 2) / 3.35e12 == pytest.approx(1 / 59, rel=0.2)


def test_a_machine_measures_time_and_memory() -> None:
    machine = Machine(torch.device("cpu"))
    machine.remember_base()
    machine.forget_memory()
    peak = machine.peak_memory()
    tensor = torch.ones(2**24)
    assert peak is None or machine.peak_memory() - peak > 0.9 * tensor.nbytes  # type: ignore[operator]
    calls: list[int] = []
    assert machine.seconds(lambda: calls.append(1), 1.0, most=7) > 0
    assert len(calls) == 7


def test_the_command_itself_leaves_the_device_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has met CUDA cannot fork one that uses it."""
    parent, met = os.getpid(), []
    for name in ("is_available", "init", "_lazy_init", "device_count"):
        known = getattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, lambda known=known: (met.append(os.getpid()), known())[1])
    monkeypatch.setattr(accelerator, "FULL", replace(TOY, toy=False))
    assert accelerator.main(["--device", "auto", "--only", "ceilings", "--out", str(tmp_path / "lines")]) == 0
    assert parent not in met


def test_only_known_parts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        accelerator.main(["--only", "nothing", "--out", str(tmp_path / "x")])
    assert "nothing" in capsys.readouterr().err
