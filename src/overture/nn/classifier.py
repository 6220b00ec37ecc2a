"""The domain classifier: a small convolutional network trained on the very data set it judges.

Where no weights of a large network can be had (a toy set, a machine without a network), its penultimate features carry
the Fréchet distance, and its intermediate maps a perceptual loss. A distance on it is never called FID.

Shapes: B batch, C channels, H W height and width, D features, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "ClassifierRecord",
    "load_classifier",
    "save_classifier",
    "tensors_hash",
]

FORMAT = "overture-classifier"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of the classifier: ``blocks`` convolutional blocks, each halving the image and doubling the width."""

    channels: int = 1
    image_size: int = 28
    num_classes: int = 10
    width: int = 32
    """Channels of the first block; the features have ``width * 2 ** (blocks - 1)``."""
    blocks: int = 3

    def __post_init__(self) -> None:
        for name in ("channels", "image_size", "num_classes", "width", "blocks"):
            if getattr(self, name) < 1:
                raise UsageError(f"classifier: {name} is {getattr(self, name)}, needs >= 1")
        if self.image_size < 2**self.blocks:
            raise UsageError(f"classifier: {self.blocks} blocks need images of {2**self.blocks} px, not {self.image_size}")

    @property
    def dims(self) -> int:
        """D, the number of features."""
        return self.width * 2 ** (self.blocks - 1)

    def build(self) -> Classifier:
        """A classifier with fresh weights."""
        return Classifier(self)


class Block(nn.Sequential):
    """Halve the image: strided convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


class Classifier(nn.Module):
    """Convolutional blocks, global average pooling, one linear layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels, *(config.width * 2**block for block in range(config.blocks))]
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(config.dims, config.num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1], float ``[B, C, H, W]`` -> logits ``[B, K]``."""
        return self.head(self.features(images_BCHW))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> the pooled activations before the last layer, ``[B, D]``."""
        return self.maps(images_BCHW)[-1].mean(dim=(2, 3))

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Images in [-1, 1] -> the activations after every block, finest first."""
        if images_BCHW.shape[1] != self.config.channels:
            raise OvertureError(f"classifier: images have {images_BCHW.shape[1]} channels, not {self.config.channels}")
        maps = []
        x_BCHW = images_BCHW
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
            maps.append(x_BCHW)
        return maps
