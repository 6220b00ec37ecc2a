"""Other people's files into weights under the names of torchvision, lpips and timm.

Shapes: H, W of a kernel, I and O its input and output channels.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from overture.errors import OvertureError
from overture.model_files import read_tensors
from overture.pretrained.array_pickle import Arrays, read_array_pickle
from overture.pretrained.backbones import ALEXNET, VGG16, Backbone

__all__ = ["lpips_alexnet", "lpips_vgg16", "timm_lite0"]


def lpips_vgg16(data: bytes) -> dict[str, Tensor]:
    """VGG16's convolutions and LPIPS' heads from a pickle of Flax weights."""
    return _lpips(read_array_pickle(data, "VGG16 for Flax"), VGG16, "VGG16_0")


def lpips_alexnet(data: bytes) -> dict[str, Tensor]:
    """AlexNet's convolutions and LPIPS' heads from a pickle of Flax weights."""
    return _lpips(read_array_pickle(data, "AlexNet for Flax"), ALEXNET, "AlexNet_0")


def timm_lite0(data: bytes) -> dict[str, Tensor]:
    """EfficientNet-Lite0 under timm's names, from a state dict under the names of the first port to PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        path.write_bytes(data)
        state = read_tensors(path, "EfficientNet-Lite0")
    return {_timm_name(name): tensor for name, tensor in state.items()}


# -- LPIPS --------------------------------------------------------------------------------------------------------------


def _lpips(arrays: Arrays, backbone: Backbone, network: str) -> dict[str, Tensor]:
    """torchvision's names for the convolutions, those of the package lpips for the heads: every array, none twice."""
    names = {}
    for number, place in enumerate(backbone.convolutions):
        names[f"{network}/Conv_{number}/kernel"] = f"features.{place}.weight"
        names[f"{network}/Conv_{number}/bias"] = f"features.{place}.bias"
    for number, head in enumerate(backbone.heads):
        names[f"NetLinLayer_{number}/Conv_0/kernel"] = head
    _same_names(names, arrays)
    return {name: _tensor(arrays[theirs]) for theirs, name in names.items()}


def _tensor(array: NDArray[Any]) -> Tensor:
    """Kernels of Flax are ``[H, W, I, O]``, those of torch ``[O, I, H, W]``."""
    tensor = torch.tensor(array)
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.dim() == 4 else tensor


def _same_names(expected: Mapping[str, str], found: Arrays) -> None:
    different = sorted(expected.keys() ^ found.keys())
    if different:
        lacking = "is missing" if different[0] in expected else "is not expected"
        raise OvertureError(f"these weights are of another network: {different[0]} {lacking}")


# -- EfficientNet-Lite0 -------------------------------------------------------------------------------------------------

LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of every stage."""
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Parts of a block in the order they work; the first stage's block does not widen its input.
NARROW = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
WIDE = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def _timm_name(name: str) -> str:
    """``_blocks.4._bn1.bias`` -> ``blocks.2.1.bn2.bias``."""
    found = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", name)
    block = None if found is None or found[1] is None else int(found[1])
    stage = None if block is None else _stage(block)
    parts = OUTSIDE if stage is None else WIDE if stage else NARROW
    if found is None or found[2] not in parts or stage == len(LITE0_BLOCKS):
        raise OvertureError(f"these weights are of another network than EfficientNet-Lite0: {name} is not expected")
    if block is None or stage is None:
        return f"{parts[found[2]]}.{found[3]}"
    return f"blocks.{stage}.{block - sum(LITE0_BLOCKS[:stage])}.{parts[found[2]]}.{found[3]}"


def _stage(block: int) -> int:
    """Which stage the block of this number belongs to."""
    return sum(block >= end for end in itertools.accumulate(LITE0_BLOCKS))
