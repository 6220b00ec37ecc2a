"""Ways to end a command at a bad moment (Linux)."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

__all__ = ["KINDS", "PATIENCE", "end_all", "family", "seen", "send", "strike"]

POLITE = {"term": signal.SIGTERM, "int": signal.SIGINT}
KINDS = ("all", "save", "touch", "one", "term", "int", "group term", "group int")
"""As the benchmark describes them."""
PATIENCE = 30.0
"""Seconds in which processes have to end that were asked to, or whose companion died."""


def seen(root: Path, pattern: str) -> bool:
    """Whether a path below ``root`` matches; folders may vanish while one looks."""
    try:
        return any(root.rglob(pattern))
    except FileNotFoundError:
        return False


def strike(command: subprocess.Popen[bytes], kind: str, seconds: float, root: Path, draw: random.Random) -> list[int]:
    """Kill a command in one of the ways after some seconds; returns its processes, none if it had ended before."""
    if kind == "touch":  # it does so by itself
        return [command.pid] if command.wait() else []
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(seconds)
    while kind == "save" and command.poll() is None and not seen(root, ".*.partial"):
        pass
    if command.poll() is not None:
        return []
    members = family(command.pid)
    if kind in ("all", "save"):
        send(members, signal.SIGKILL)
    elif kind == "one":
        send([draw.choice(members)], signal.SIGKILL)
    elif kind in POLITE:
        send([command.pid], POLITE[kind])
    else:
        os.killpg(command.pid, POLITE[kind.split()[1]])
    return members


def end_all(command: subprocess.Popen[bytes], members: list[int]) -> list[int]:
    """Wait until all processes have ended; those that had to be killed because they did not."""
    deadline = time.monotonic() + PATIENCE
    while (alive := [pid for pid in members if _is_alive(pid)]) and time.monotonic() < deadline:
        command.poll()
        time.sleep(0.01)
    send(alive, signal.SIGKILL)
    command.wait()
    return alive


def family(pid: int) -> list[int]:
    """A process and all that came from it."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(member for child in children for member in family(child))]


def send(members: list[int], number: signal.Signals) -> None:
    """A signal to each that is still there."""
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
