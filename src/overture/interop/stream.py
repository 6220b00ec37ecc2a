"""Writes a model file of ours from tensors that lie in other files, one tensor in memory at a time.

A safetensors file is a length, a JSON header that says where every tensor lies, and the bytes of the tensors. The
header is known before any tensor is read, all but the hash of the weights: its place is kept and filled at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from overture.errors import OvertureError
from overture.training.checkpoint import FORMAT_VERSION

__all__ = ["StoredTensor", "write_model"]

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_PLACEHOLDER = "0" * 16


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * _BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether it can be a weight."""
        return self.dtype in _BYTES

    def load(self) -> torch.Tensor:
        """The tensor itself; the file is closed again, so nothing of it stays mapped."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name)


def write_model(
    path: Path,
    kind: str,
    weights: Mapping[str, Mapping[str, StoredTensor]],
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, Any],
) -> str:
    """As :func:`overture.training.checkpoint.save_model`, from stored tensors (by role, then by our name).

    ``shapes`` are those in the new file (the same numbers of elements). Returns the hash of the weights.
    """
    tensors = {f"{role}.{name}": tensor for role, named in weights.items() for name, tensor in named.items()}
    header = {"format_version": FORMAT_VERSION, "kind": kind, "weights_hash": _PLACEHOLDER, **metadata}
    entries: dict[str, Any] = {
        "__metadata__": {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    }
    start = 0
    for name in sorted(tensors):
        shape = shapes[name.split(".", 1)[1]]
        end = start + tensors[name].size
        entries[name] = {"dtype": tensors[name].dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            digest = hashlib.sha256()
            for name in sorted(tensors):
                data = tensors[name].load().contiguous().flatten().view(torch.uint8).numpy().data
                digest.update(name.encode())
                digest.update(data)
                file.write(data)
            found = digest.hexdigest()[: len(_PLACEHOLDER)]
            file.seek(8 + text.index(f'"weights_hash": "{_PLACEHOLDER}"'.encode()) + len('"weights_hash": "'))
            file.write(found.encode())
        os.replace(temporary, path)
    except OSError as error:
        raise OvertureError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return found
