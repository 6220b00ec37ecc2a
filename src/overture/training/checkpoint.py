"""Checkpoints of a training in progress: ``step-N/`` holds all that an exact resume needs; nothing in it is pickled."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from overture.errors import OvertureError
from overture.files import cannot_write, file_hash, read_json, replacing, write_json

STATE_FILES = ("state.safetensors", "state.json")

__all__ = ["latest_step", "load_state", "resume", "save_state"]


class Resumable(Protocol):
    """What :func:`resume` needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


def save_state(directory: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write ``step-N/`` with a nested state of tensors and plain values, then drop older ones.

    A step that is saved already stays as it is: its state is a function of the run's config.
    """
    target = directory / f"step-{step:08d}"
    if not target.exists():
        tensors: dict[str, Tensor] = {}
        plain = _flatten(state, "", tensors)
        try:
            with replacing(target) as temporary:
                temporary.mkdir()
                save_file(tensors, temporary / "state.safetensors")
                (temporary / "state.json").write_text(json.dumps(plain), encoding="utf-8")
                write_json(temporary / "hashes.json", {name: file_hash(temporary / name) for name in STATE_FILES})
        except SafetensorError as error:
            raise cannot_write(target, error) from error
    for older in _steps(directory):
        if older != step:
            shutil.rmtree(directory / f"step-{older:08d}", ignore_errors=True)


def latest_step(directory: Path) -> int | None:
    """The last complete step saved in ``directory``."""
    return max(_steps(directory), default=None)


def load_state(directory: Path, step: int) -> dict[str, Any]:
    """Read a state back as it was given to :func:`save_state`."""
    place = directory / f"step-{step:08d}"
    hashes = place / "hashes.json"
    for name, recorded in (read_json(hashes, dict) if hashes.exists() else {}).items():  # 0.1.0 wrote none
        if name not in STATE_FILES or file_hash(place / name) != recorded:
            raise OvertureError(f"{place}: this checkpoint is damaged ({name} was changed); delete it to start over")
    try:
        plain = json.loads((place / "state.json").read_text(encoding="utf-8"))
        with safe_open(place / "state.safetensors", framework="pt") as file:
            return _unflatten(plain, file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise OvertureError(
            f"{place}: this checkpoint is damaged ({error}); delete it to start the stage over"
        ) from error


def resume(trainer: Resumable, directory: Path) -> None:
    """Bring a trainer to the last state saved in ``directory``, if there is one."""
    step = latest_step(directory)
    if step is None:
        return
    state = load_state(directory, step)
    try:
        if state["step"] != step:
            raise OvertureError(f"it holds step {state['step']}")
        trainer.load_state_dict(state)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OvertureError) as error:
        raise OvertureError(
            f"{directory / f'step-{step:08d}'}: a checkpoint of another config ({' '.join(str(error).split())[:200]}); "
            "delete it to start the stage over"
        ) from error


def _steps(directory: Path) -> list[int]:
    matches = (re.fullmatch(r"step-(\d+)", entry.name) for entry in directory.glob("step-*"))
    return [int(match[1]) for match in matches if match]


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by references to ``tensors`` and keep the rest as JSON; integer keys are marked."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(value, Mapping):
        items = {f"int:{key}" if isinstance(key, int) else key: item for key, item in value.items()}
        return {key: _flatten(item, f"{name}/{key}", tensors) for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{name}/{place}", tensors) for place, item in enumerate(value)]
    return value


def _unflatten(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return file.get_tensor(value["__tensor__"])
        return {int(key[4:]) if key.startswith("int:") else key: _unflatten(item, file) for key, item in value.items()}
    if isinstance(value, list):
        return [_unflatten(item, file) for item in value]
    return value
