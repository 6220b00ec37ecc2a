"""The golden data through the importer: as model files of ours, and tensors of the release under our names."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from overture.interop import import_release
from overture.interop.names import NOT_WEIGHTS, release_name
from overture.interop.release_config import read_config

GOLDEN = Path(__file__).parent / "golden"
_KEPT = []  # temporary directories live as long as the tests


@functools.cache
def imported(name: str) -> Path:
    """``tests/golden/NAME`` imported into a directory with a tokenizer and a prior."""
    _KEPT.append(tempfile.TemporaryDirectory())
    out = Path(_KEPT[-1].name) / name
    for part in ("tokenizer", "ar"):
        import_release(GOLDEN / name / part, out, GOLDEN / name / "config_resolved.json")
    return out


@functools.cache
def _our_names() -> dict[str, str]:
    release, _ = read_config(GOLDEN / "prologue" / "config_resolved.json")
    assert release.prior is not None
    with torch.device("meta"):
        modules = release.tokenizer.build(), release.prior.build(release.tokenizer.layout)
    return {release_name(name): name for module in modules for name in module.state_dict()}


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names."""
    kept = {_our_names()[name]: tensor for name, tensor in tensors.items() if not NOT_WEIGHTS.fullmatch(name)}
    return {name: tensor[0] if name == "encoder.queries" else tensor for name, tensor in kept.items()}
