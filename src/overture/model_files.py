"""Model files: weights by role (``raw.*``, ``ema.*``), and in the metadata all that is needed to build the model again.

A model file is a safetensors file, so nothing in it is unpickled. Its metadata holds the ``kind`` of the model
(tokenizer, prior, classifier), its config, and a hash of its weights, which later stages and records refer to.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from overture.config import differences, from_dict
from overture.elsewhere import checked, last_parts
from overture.errors import OvertureError, UsageError
from overture.files import cannot_write, check_once, json_hash, near_path, replacing
from overture.hub import HubFolder, is_hub

__all__ = [
    "NoModel", "check_config", "find_model", "header_texts", "ids_hash", "load_model", "model_hash", "opened_weights", "read_metadata",
    "read_tensors", "read_weights", "save_model", "weights_hash", "without_folders",
]  # fmt: skip

FORMAT_VERSION = 1

M = TypeVar("M", bound=nn.Module)


class NoModel(OvertureError):
    """A run, a folder or a repository is there, and holds no model of the kind that was asked for."""


def save_model(path: Path, kind: str, weights: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> str:
    """Write ``weights`` (by role, then by name) with ``metadata``; returns the hash of the weights."""
    tensors = {f"{role}.{name}": t.detach() for role, named in weights.items() for name, t in named.items()}
    digest = weights_hash(tensors)
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(contiguous, temporary, metadata=header_texts(kind, digest, metadata))
    except SafetensorError as error:
        raise cannot_write(path, error) from error
    return digest


def header_texts(kind: str, digest: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a model file, as safetensors stores it."""
    header = {"format_version": FORMAT_VERSION, "kind": kind, "weights_hash": digest, **metadata}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    return {**texts, "metadata_hash": _texts_hash(texts)}


def _texts_hash(texts: Mapping[str, str]) -> str:
    """Of everything but the hashes themselves: a config decides numbers as weights do."""
    told = {key: text for key, text in texts.items() if key not in ("weights_hash", "metadata_hash")}
    return json_hash(told)


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of names and values, the same on every machine: 16 hexadecimal digits of sha256."""
    return _hash((name, tensors[name]) for name in sorted(tensors))


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@contextmanager
def opened_weights(path: Path) -> Iterator[Any]:
    """A safetensors file; anything else is a one-line error."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise OvertureError(f"{path}: no such file; train it or give another path") from error
    except (OSError, SafetensorError) as error:
        raise OvertureError(f"{path}: not a readable safetensors file ({error})") from error


def read_metadata(path: Path, kind: str) -> dict[str, Any]:
    """The metadata of a model file of ours; anything else is a one-line error."""
    with opened_weights(path) as file:
        header = file.metadata() or {}
    if header.get("kind") != kind:
        found = header.get("kind", "file without our metadata")
        raise OvertureError(f"{path}: is a {found}, expected a {kind}")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise OvertureError(f"{path}: format {header.get('format_version')}, this version reads {FORMAT_VERSION}")
    if "weights_hash" not in header or header.get("metadata_hash", _texts_hash(header)) != _texts_hash(header):
        raise OvertureError(
            f"{path}: its metadata were changed since it was written; take another copy, or train it again"
        )
    return checked(path, {key: value if key.endswith("_hash") else _parse(value) for key, value in header.items()})


def read_weights(path: Path, role: str) -> dict[str, Tensor]:
    """The tensors of one role, by name; all weights of the file are compared with the hash that it was written with."""
    check_once(path, lambda: _check_hash(path))
    with opened_weights(path) as file:
        names = _names(file, path, role)
        return {name.removeprefix(f"{role}."): file.get_tensor(name) for name in names}


def _names(file: Any, path: Path, role: str) -> list[str]:
    names = [name for name in file.keys() if name.startswith(f"{role}.")]  # noqa: SIM118 (not a mapping)
    if not names:
        raise OvertureError(f"{path}: holds no '{role}' weights")
    return names


def _check_hash(path: Path) -> None:
    """Refuse weights that are not those that were saved."""
    with opened_weights(path) as file:
        found = _hash((name, file.get_tensor(name)) for name in sorted(file.keys()))
        recorded = (file.metadata() or {}).get("weights_hash")
    if found != recorded:
        raise OvertureError(
            f"{path}: damaged (its weights have the hash {found}, {recorded} were saved); take another copy, or train again"
        )


def load_model(path: Path, role: str, build: Callable[[], M]) -> M:
    """The module that ``build`` makes, with the weights of one role, ready for use: no dropout, no gradients.

    It is built without memory first and compared with the shapes in the file: metadata may claim any size.
    """
    if role not in ("raw", "ema"):
        raise UsageError(f"weights '{role}' are none of raw, ema")
    with opened_weights(path) as file:
        names = _names(file, path, role)
        stored = {name.removeprefix(f"{role}."): tuple(file.get_slice(name).get_shape()) for name in names}
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise OvertureError(
                f"{path}: does not fit its own config ({name} is {stored.get(name, 'missing')}, "
                f"the config has {wanted.get(name, 'nothing')} there)"
            )
    module = build()
    module.load_state_dict(read_weights(path, role))
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise OvertureError(
                f"{path}: its weights are not all finite ({name} holds NaN or infinity); train it again"
            )
    return module.eval().requires_grad_(False)


def check_config(path: Path, kind: str, config: Any) -> dict[str, Any]:
    """The metadata of a model file that has to have been built with ``config``."""
    metadata = read_metadata(path, kind)
    present = from_dict(type(config), metadata["config"], f"{path}: config")  # with defaults for fields added since
    different = differences(present, config)
    if different:
        raise OvertureError(
            f"{path}: a {kind} of another config ({'; '.join(different[:3])}); move it away to train this run's own"
        )
    return metadata


def model_hash(path: str | Path, kind: str) -> str:
    """Which model a number is of: the hash of the weights that ``path`` means (see :func:`find_model`)."""
    return str(read_metadata(find_model(path, kind), kind)["weights_hash"])


def ids_hash(metadata: Mapping[str, Any]) -> str:
    """Whose ids a tokenizer gives, by the metadata of its file: its own hash, or the one of the tokenizer that its encoder
    and codebooks are from, where these have stayed as they were."""
    return str(metadata.get("ids_hash", metadata["weights_hash"]))


def without_folders(path: Path, kind: str) -> None:
    """Take the folders of this machine out of what a model file says of its run (where the data lie, and the like).

    Of a path the last part stays. Weights, config and hash of the weights are what they were.
    """
    metadata = read_metadata(path, kind)
    plain = last_parts(metadata)
    if plain != metadata:
        with opened_weights(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        roles = {name.partition(".")[0] for name in tensors}
        weights = {
            role: {name.removeprefix(f"{role}."): t for name, t in tensors.items() if name.startswith(f"{role}.")}
            for role in roles
        }
        told = {key: value for key, value in plain.items() if key != "metadata_hash"}
        if save_model(path, kind, weights, {**told, "kind": kind}) != metadata["weights_hash"]:
            raise OvertureError(f"{path}: damaged (its weights are not those that were saved); take another copy")


def find_model(path: str | Path | HubFolder, kind: str) -> Path:
    """The model file that ``path`` means: itself, in a directory, in a run, or on the hub (``hf:owner/name``)."""
    lacking = f"{path}: holds no {kind}: neither model.safetensors nor {kind}/model.safetensors is there"
    if isinstance(path, HubFolder) or is_hub(path):
        folder = HubFolder.parse(path)
        found = folder.fetch(f"{kind}/model.safetensors") or folder.fetch("model.safetensors")
        if found is None:
            raise NoModel(lacking)
        return found
    given = Path(path).expanduser()
    candidates = [given, given / "model.safetensors", given / kind / "model.safetensors"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if given.exists() and kind == "tokenizer" and (given / "prior" / "model.safetensors").is_file():
        raise OvertureError(
            f"{path}: holds a prior and no tokenizer, without which there are no pictures; of its tokens, "
            f"overture generate {path} --out ids.npy writes samples"
        )
    if given.exists():
        runs = [place.parents[1] for place in sorted(given.glob(f"*/{kind}/model.safetensors"))]
        raise NoModel(f"{lacking}; give one of its runs: {runs[0]}" if runs else lacking)
    raise OvertureError(f"{path}: no such file or run{near_path(given)} (of the hub, write hf:owner/name)")


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors by name from other people's ``.safetensors`` or ``.pth`` file; no code in it is run.

    ``what`` needs them, for the message.
    """
    if not path.is_file():
        raise OvertureError(f"{what}: no such weights file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; what is wrong is an error anyway
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, torch.load raises nearly anything: IndexError, KeyError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OvertureError(f"{what}: {path} is not a readable weights file ({reason})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise OvertureError(f"{what}: {path} holds no tensors by name; give the state dict of the network")
    return dict(state)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
