"""Writes a model file of ours from tensors that lie in other files, one tensor in memory at a time.

A safetensors file is a length, a JSON header that says where every tensor lies, and the bytes of the tensors. The
header is known before any tensor is read, all but the hash of the weights: its place is kept and filled at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from overture.files import replacing
from overture.model_files import header_texts

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
    """As :func:`overture.model_files.save_model`, from stored tensors (by role, then by our name).

    ``shapes`` are those in the new file (the same numbers of elements). Returns the hash of the weights.
    """
    tensors = {f"{role}.{name}": tensor for role, named in weights.items() for name, tensor in named.items()}
    entries: dict[str, Any] = {"__metadata__": header_texts(kind, _PLACEHOLDER, metadata)}
    start = 0
    for name in sorted(tensors):
        shape = shapes[name.split(".", 1)[1]]
        end = start + tensors[name].size
        entries[name] = {"dtype": tensors[name].dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
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
    return found
