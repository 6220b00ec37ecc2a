"""A part in a process of its own: what it breaks, and what it takes too long for, is its own loss alone.

A failed operation may leave a device unusable for its process, so that the next part could not even begin. Processes are
forked, so nothing is imported again; that is allowed as long as the parent leaves the device alone.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["alone"]

Emit = Callable[[dict[str, Any]], None]


def alone(work: Callable[[Emit], None], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """What ``work`` emitted, and in one line why it did not come to its end (or nothing)."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, sender))
    process.start()
    sender.close()
    rows: list[dict[str, Any]] = []
    failure, deadline = "", time.monotonic() + seconds
    try:
        while True:
            if not receiver.poll(max(0.0, deadline - time.monotonic())):
                failure = f"took longer than its {seconds:.0f} seconds"
                break
            kind, value = receiver.recv()
            if kind == "row":
                rows.append(value)
            else:
                failure = value
    except EOFError:  # the process has ended
        pass
    if failure.startswith("took longer"):
        process.kill()
    process.join()
    if process.exitcode and not failure:
        failure = f"its process ended with {process.exitcode}"  # -9: the system had no memory left
    return rows, failure


def _run(work: Callable[[Emit], None], sender: Connection) -> None:
    try:
        work(lambda row: sender.send(("row", row)))
    except BaseException as error:
        traceback.print_exc()
        words = " ".join(str(error).split())
        sender.send(("failure", f"{type(error).__name__}: {words[:200]}"))
    finally:
        sender.close()
