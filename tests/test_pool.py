"""Workers beside each other: how each end of theirs is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from overture.errors import OvertureError, UsageError
from overture.progress import Interrupted
from overture.runs.config import RunConfig
from overture.runs.pool import Pool
from overture.runs.worker import Task


def run(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> None:
    """Tasks whose workers do what the shell script says."""
    shell = folder / "python"
    shell.write_text(f"#!/bin/sh\n{script}\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    tasks = [Task(f"run{n}", RunConfig(), str(folder / f"run{n}"), str(folder / "networks")) for n in range(count)]
    Pool(count).run_all(tasks)


@pytest.mark.parametrize(
    ("script", "kind", "told"),
    [
        ("kill -KILL $$", OvertureError, "run0: the process died (killed by SIGKILL; was there enough memory?)"),
        ("kill -SEGV $$", OvertureError, "run0: the process died (killed by SIGSEGV; was there enough memory?)"),
        ("echo all the reasons >&2; exit 3", OvertureError, "run0: the process died (see LOG)"),
        ("""echo '{"error": "no such thing", "status": 2}'; exit 2""", UsageError, "run0: no such thing"),
        ("""echo '{"error": "it broke", "status": 1}'; kill -KILL $$""", OvertureError, "run0: it broke"),
        ("""echo '{"error": "stopped, saved", "status": 130}'; exit 130""", Interrupted, "run0: stopped, saved"),
    ],
)
def test_the_end_of_a_worker_is_told_with_its_reason(
    script: str, kind: type[OvertureError], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OvertureError) as caught:
        run(script, tmp_path, monkeypatch)
    log = tmp_path / "run0" / "worker.log"
    assert type(caught.value) is kind
    assert str(caught.value) == told.replace("LOG", str(log))
    assert log.read_text() == ("all the reasons\n" if "LOG" in told else "")


def test_what_libraries_print_is_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    event = json.dumps({"say": "hello"})
    run(f"echo a banner; echo '{{'; echo 3; echo null; echo '{event}'", tmp_path, monkeypatch, count=2)
    said = capsys.readouterr().err
    assert "run0: hello" in said
    assert "run1: hello" in said
    assert "banner" not in said
