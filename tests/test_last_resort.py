"""What nobody foresaw is one line with a way on, its traceback in a file; commands that do not share their work say so."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch

from overture import cli
from overture.cli import COMMANDS, SHARED, main
from overture.errors import OvertureError, UsageError, error_line
from overture.last_resort import as_line
from overture.processes import Processes
from overture.progress import Interrupted

OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has\na total capacity of 79.10 GiB"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_names_what_to_lower(error: Exception) -> None:
    said = str(as_line(error))
    assert said.startswith("out of memory (")
    assert "\n" not in said
    for option in (
        "--batch-size",
        "--tokenizer-training.batch-size",
        "--prior-training.batch-size",
        "--engine.micro-batch",
    ):
        assert option in said


def test_torch_says_it_in_these_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert str(as_line(caught.value)).startswith("out of memory (")


@pytest.mark.parametrize(
    "words",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31220",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Read error [127.0.0.1]:20: Connection reset by peer",
        "NCCL communicator was aborted on rank 1.",
        "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d: Socket closed",
    ],
)
def test_the_death_of_another_process_is_told_as_what_it_is(words: str) -> None:
    assert str(as_line(RuntimeError(words))).startswith("another process has died, so this one ends too")


def test_a_data_worker_that_dies() -> None:
    error = RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. ")
    assert str(as_line(error)) == (
        "a data worker died (DataLoader worker (pid 77) is killed by signal: Killed.); take fewer --data.workers, or more memory"
    )


def test_places_that_cannot_be_written() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert str(as_line(full)) == "/data/x: No space left on device; what was saved before is kept"
    with pytest.raises(UnicodeEncodeError) as caught:
        os.fsdecode(b"caf\xe9").encode()
    assert isinstance(as_line(caught.value), UsageError)
    assert "no UTF-8" in str(as_line(caught.value))


def test_our_own_errors_stay_what_they_are() -> None:
    for error in (OvertureError("a"), UsageError("b"), Interrupted("c")):
        assert as_line(error) is error


def test_the_unforeseen_names_its_place_and_its_file(tmp_path: Path) -> None:
    def fault() -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        fault()
    log = tmp_path / "deep" / "traceback.txt"
    line = fault.__code__.co_firstlineno + 1
    assert str(as_line(caught.value)) == f"{__file__}:{line}: ZeroDivisionError: division by zero"
    assert (
        str(as_line(caught.value, log)) == f"{__file__}:{line}: ZeroDivisionError: division by zero (all of it: {log})"
    )
    text = log.read_text()
    assert text.startswith("Traceback (most recent call last):")
    assert "return 1 / 0" in text
    assert "all of it" not in str(as_line(caught.value, log / "below" / "a file"))  # where nothing can be written


def test_a_line_is_one_that_a_terminal_can_show() -> None:
    shown = error_line(ValueError("two\nlines \x1b[2J\x00 and \ud800 " + "x" * 5000 + " the end"))
    assert shown.startswith(r"ValueError: two lines \x1b[2J\x00 and \ud800 xxx")
    assert shown.endswith("x the end")
    assert len(shown) < 1000


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (OvertureError("it went wrong"), 1, "overture: it went wrong"),
        (UsageError("you went wrong"), 2, "overture: you went wrong"),
        (Interrupted("stopped, saved"), 130, "overture: stopped, saved"),
        (KeyboardInterrupt(), 130, "overture: interrupted; the same command goes on from the last checkpoint"),
        (BrokenPipeError(), 1, ""),
        (KeyError("key\nof two lines"), 1, r"KeyError: 'key\nof two lines' (all of it: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_of_a_command_is_a_status_and_a_line(
    error: BaseException,
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "_run", run)
    assert main(["report", "x"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.count("\n") == (1 if told else 0)
    logs = list(tmp_path.iterdir())
    assert len(logs) == isinstance(error, KeyError)
    if logs:
        assert str(logs[0]) in err
        assert "Traceback" in logs[0].read_text()


def test_a_traceback_for_who_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def run(words: list[str]) -> int:
        seen.extend(words)
        raise OvertureError("it went wrong")

    monkeypatch.setattr(cli, "_run", run)
    assert main(["report", "--traceback", "x"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "overture: it went wrong"
    assert seen == ["report", "x"]


# -- several processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in SHARED])
def test_commands_that_do_not_share_their_work_refuse_torchrun(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every process would do everything and write the same file. The first one alone tells it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main([command, "x"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        told = f"{command} works in one process; start it without torchrun (with it: {', '.join(SHARED)})"
        assert err == (f"overture: process 0 of 2: {told}\n" if rank == "0" else "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told", ["RANK", "WORLD_SIZE"])
def test_half_of_what_torchrun_says_is_refused(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank alone would write nothing, and say that all is well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(told, "1")
    with pytest.raises(UsageError, match=f"{told} is set in the environment without its companion"):
        Processes.join("cpu")
    for words in (
        ["generate", "run"],
        ["evaluate", "a.npz", "--reference", "b.npz"],
        ["run", "quickstart", "--tiny", "--only", "vcq", "--out", "new"],
    ):
        assert main(words) == 2
        assert f"{told} is set in the environment" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
