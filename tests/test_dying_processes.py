"""A process that dies or raises ends the run everywhere, in a line each, and what was saved is kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from overture.training.checkpoint import latest_step, load_state

BREAKS = '''
import os, signal
from overture.data.known_sets import open_embedded
from overture.errors import OvertureError

count = 0
INNER = open_embedded("embedded:fashion-mnist")


class Breaks(type(INNER)):
    """The embedded images; the second process breaks at its 200th."""

    def __init__(self, how):
        vars(self).update(vars(INNER))
        self.how = how

    def read(self, index):
        global count
        count += 1
        if os.environ["RANK"] == "1" and count > 200:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "raise":
                raise OvertureError("the disk is gone")
            raise ZeroDivisionError("a bug of somebody")
        return super().read(index)
'''


def start(folder: Path, how: str) -> list[subprocess.Popen[str]]:
    """Two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [
        "run", "quickstart", "--tiny", "--only", "vcq", "--out", "out", "--device", "cpu",
        "--data.source", f"my_source:Breaks?{how}", "--judge.training.checkpoint-minutes", "0",
    ]  # fmt: skip
    found = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, "-m", "overture", *words]
        found.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    return found


@pytest.mark.parametrize(("how", "said"), [("raise", "the disk is gone"), ("bug", "a bug of somebody"), ("kill", None)])
def test_one_process_ends_all(tmp_path: Path, how: str, said: str | None) -> None:
    (tmp_path / "my_source.py").write_text(BREAKS)
    processes = start(tmp_path, how)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    lines = [[line for line in error.splitlines() if line.startswith("overture:")] for error in errors]
    assert processes[0].returncode == 1
    assert processes[1].returncode == (1 if said else -signal.SIGKILL)
    assert not any("Traceback" in error for error in errors), errors
    assert len(lines[0]) == 1
    assert lines[0][0].startswith("overture: process 0 of 2: another process has died")
    if said:
        assert len(lines[1]) == 1
        assert lines[1][0].startswith("overture: process 1 of 2: ")
        assert said in lines[1][0]
    directory = next(tmp_path.rglob("step-*")).parent
    step = latest_step(directory)
    assert step
    load_state(directory, step)
