"""What is kept of a model and of a training in progress; nothing pickled, nothing half written.

``model.safetensors`` holds weights by role (``raw.*``, ``ema.*``) and, in its metadata, everything needed to build the
model again. ``step-N/`` holds all that an exact resume needs. Both are written beside their place and renamed, so a
crash or a full disk leaves the last good one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from overture.config import differing_keys, from_dict, to_dict
from overture.errors import OvertureError

if TYPE_CHECKING:
    from overture.priors.model import Prior
    from overture.training.ema import EMA

__all__ = [
    "check_config", "find_model", "latest_step", "load_state", "read_metadata", "read_weights", "resume", "save_model",
    "save_prior", "save_state", "weights_hash",
]  # fmt: skip

FORMAT_VERSION = 1


class Resumable(Protocol):
    """What :func:`resume` needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


def save_model(path: Path, kind: str, weights: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> str:
    """Write ``weights`` (by role, then by name) with ``metadata``; returns the hash of the weights."""
    tensors = {f"{role}.{name}": t.detach() for role, named in weights.items() for name, t in named.items()}
    digest = weights_hash(tensors)
    header = {"format_version": FORMAT_VERSION, "kind": kind, "weights_hash": digest, **metadata}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    _replace(path, lambda temporary: save_file(contiguous, temporary, metadata=text))
    return digest


def save_prior(path: Path, prior: Prior, ema: EMA, step: int, metadata: Mapping[str, Any]) -> str:
    """Write a prior's ``model.safetensors`` (raw and EMA weights); returns its hash."""
    weights = {"raw": prior.state_dict(), "ema": ema.state_dict()}
    about = {"config": to_dict(prior.config), "layout": prior.layout.to_dict(), "step": step}
    return save_model(path, "prior", weights, {**about, **metadata})


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of names and values, the same on every machine."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_metadata(path: Path, kind: str) -> dict[str, Any]:
    """The metadata of a model file of ours; anything else is a one-line error."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except FileNotFoundError as error:
        raise OvertureError(f"{path}: no such file; train it or give another path") from error
    except (OSError, SafetensorError) as error:
        raise OvertureError(f"{path}: not a readable safetensors file ({error})") from error
    if header.get("kind") != kind:
        found = header.get("kind", "file without our metadata")
        raise OvertureError(f"{path}: is a {found}, expected a {kind}")
    if header["format_version"] != str(FORMAT_VERSION):
        raise OvertureError(f"{path}: format {header['format_version']}, this version reads {FORMAT_VERSION}")
    return {key: _parse(value) for key, value in header.items()}


def read_weights(path: Path, role: str) -> dict[str, Tensor]:
    """The tensors of one role, by name."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{role}.")]  # noqa: SIM118
        if not names:
            raise OvertureError(f"{path}: holds no '{role}' weights")
        return {name.removeprefix(f"{role}."): file.get_tensor(name) for name in names}


def find_model(path: str | Path, kind: str) -> Path:
    """The model file that ``path`` means: itself, in a directory, in a run, or on the hub."""
    given = Path(path)
    candidates = [given, given / "model.safetensors", given / kind / "model.safetensors"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if given.exists():
        raise OvertureError(f"{path}: holds no {kind}: neither model.safetensors nor {kind}/model.safetensors is there")
    parts = str(path).split("/")
    if len(parts) >= 2 and not str(path).startswith((".", "/", "~")) and not Path(parts[0]).is_dir():
        return _from_hub(str(path), kind)
    raise OvertureError(f"{path}: no such file, run or hub id")


def _from_hub(path: str, kind: str) -> Path:
    """Download ``owner/repository[/folder]``'s model file into the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, repository, *folder = path.split("/")
    errors = []
    for place in (["model.safetensors"], [kind, "model.safetensors"]):
        try:
            return Path(hf_hub_download(f"{owner}/{repository}", "/".join([*folder, *place])))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            errors.append(str(error).strip().split("\n")[0])
    raise OvertureError(f"{path}: neither a local path nor a {kind} on the hub ({errors[-1]})")


def save_state(directory: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write ``step-N/`` with a nested state of tensors and plain values, then drop older ones."""
    tensors: dict[str, Tensor] = {}
    plain = _flatten(state, "", tensors)

    def write(temporary: Path) -> None:
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(plain))

    target = directory / f"step-{step:08d}"
    _replace(target, write)
    for older in _steps(directory):
        if older != step:
            shutil.rmtree(directory / f"step-{older:08d}", ignore_errors=True)


def latest_step(directory: Path) -> int | None:
    """The last complete step saved in ``directory``."""
    return max(_steps(directory), default=None)


def load_state(directory: Path, step: int) -> dict[str, Any]:
    """Read a state back as it was given to :func:`save_state`."""
    place = directory / f"step-{step:08d}"
    try:
        plain = json.loads((place / "state.json").read_text())
        with safe_open(place / "state.safetensors", framework="pt") as file:
            return _unflatten(plain, file)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
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
        trainer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, OvertureError) as error:
        raise OvertureError(
            f"{directory / f'step-{step:08d}'}: a checkpoint of another config ({' '.join(str(error).split())[:200]}); "
            "delete it to start the stage over"
        ) from error


def check_config(path: Path, kind: str, config: Any) -> dict[str, Any]:
    """The metadata of a model file that has to have been built with ``config``."""
    metadata = read_metadata(path, kind)
    present = from_dict(type(config), metadata["config"], f"{path}: config")  # with defaults for fields added since
    different = differing_keys(to_dict(present), to_dict(config))
    if different:
        raise OvertureError(
            f"{path}: a {kind} of another config ({'; '.join(different[:3])}); move it away to train this run's own"
        )
    return metadata


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


def _replace(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside ``target`` and rename; a full disk is told in one line and leaves what was there."""
    temporary = target.with_name(f".{target.name}.partial")
    _remove(temporary)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if target.is_dir():  # a file is replaced in one step, a folder cannot be
            _remove(target)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        _remove(temporary)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full; free some space and run the same command again" if full else str(error)
        raise OvertureError(f"{target}: cannot save: {what} (the last good checkpoint is kept)") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
