"""Whether two runs on disk are the same: what the benchmark and the test of killed runs compare.

Files and folders by name; weights by tensor, bit for bit, with all their metadata; pictures and arrays by value; anything
else by its bytes. Times may differ, and they are these: ``seconds`` of ``results.json`` and the checksum that covers
them, training times in ``report.html``. Of ``worker.log`` and ``pace.jsonl`` only the names are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

__all__ = ["differences"]

DURATION = re.compile(r'<span class="value">[\d.]+ (s|min|h)</span>')


def differences(first: Path, second: Path) -> list[str]:
    """One line for everything in which the ``second`` run is not the ``first``; empty if they are the same."""
    names = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (first, second)]
    found = [f"{name}: missing" for name in sorted(names[0] - names[1])]
    found += [f"{name}: left over" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        paths = first / name, second / name
        if paths[0].is_file() and paths[0].name not in ("worker.log", "pace.jsonl"):
            read = READERS.get(paths[0].name) or READERS.get(paths[0].suffix, Path.read_bytes)
            one, other = (read(path) for path in paths)
            found += [f"{name}: {part}" for part in _unlike(one, other)]
    return found


def _unlike(one: Any, other: Any) -> list[str]:
    """The parts in which two contents differ."""
    if isinstance(one, dict):
        return [str(key) for key in one.keys() | other.keys() if not _same(one.get(key), other.get(key))]
    if isinstance(one, list):
        lines = [f"line {number}" for number, pair in enumerate(zip(one, other, strict=False), 1) if pair[0] != pair[1]]
        return lines + ([f"{len(other)} lines, not {len(one)}"] if len(one) != len(other) else [])
    return [] if _same(one, other) else ["other content"]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return bool(type(one) is type(other) and one == other)


def _tensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        arrays = {
            name: file.get_tensor(name).contiguous().view(torch.uint8).numpy()
            for name in file.keys()  # noqa: SIM118 (not a mapping)
            if file.get_slice(name).get_shape()
        }
        single = {name: file.get_tensor(name).item() for name in file.keys() if name not in arrays}  # noqa: SIM118
        return {**arrays, **single, **{f"metadata {key}": text for key, text in (file.metadata() or {}).items()}}


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _results(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return {name: part for name, part in found.items() if name not in ("seconds", "checksum")}


def _page(path: Path) -> list[str]:
    """Without durations, and without the place that the run lies at."""
    return DURATION.sub("", path.read_text()).replace(str(path.parent.absolute()), "").splitlines()


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _tensors,
    ".npz": _arrays,
    ".jsonl": _lines,
    ".png": lambda path: np.asarray(Image.open(path)),
    "results.json": _results,
    "report.html": _page,
}
