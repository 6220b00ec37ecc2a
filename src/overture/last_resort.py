"""What nobody foresaw, told in one line: the exception, its place, and where all of it is written down."""

from __future__ import annotations

import traceback
from pathlib import Path

from overture.errors import OvertureError, UsageError, error_line
from overture.registry import place_of

__all__ = ["as_line"]

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad allocation", "std::bad_alloc")
PEER_DIED = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL communicator was aborted",
    "Socket closed", "recvValue failed", "failed to recv",
)  # fmt: skip


def as_line(error: Exception, log: Path | None = None) -> OvertureError:
    """The error to raise or to print instead; the traceback goes into the file ``log``, if it can be written."""
    if isinstance(error, OvertureError):
        return error
    said = error_line(error)
    if isinstance(error, MemoryError) or any(words in said for words in OUT_OF_MEMORY):
        return OvertureError(
            f"out of memory ({said[:160]}); lower the batch size (--batch-size; of a run --tokenizer-training.batch-size, "
            "--prior-training.batch-size, --tokens.batch-size or --evaluation.batch-size), or take a prior's batch in parts "
            "(--engine.micro-batch)"
        )
    if isinstance(error, RuntimeError) and said.startswith("RuntimeError: DataLoader worker"):
        return OvertureError(f"a data worker died ({said[14:170]}); take fewer --data.workers, or more memory")
    if any(words in said for words in PEER_DIED):
        return OvertureError("another process has died, so this one ends too; what was saved before is kept")
    if isinstance(error, OSError):  # a full disk, a place that cannot be written
        where = f"{error.filename}: " if error.filename else ""
        return OvertureError(f"{where}{error.strerror or error}; what was saved before is kept")
    if isinstance(error, UnicodeError):
        return UsageError(f"a name or a text is no UTF-8 ({said})")
    return OvertureError(f"{place_of(error)}: {said}{_written(error, log)}")


def _written(error: Exception, log: Path | None) -> str:
    if log is None:
        return ""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return ""
    return f" (all of it: {log})"
