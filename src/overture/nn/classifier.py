"""The domain classifier: a small convolutional network trained on the very data set it judges.

Where no weights of a large network can be had (a toy set, a machine without a network), its penultimate features carry
the Fréchet distance, and its intermediate maps a perceptual loss. A distance on it is never called FID.

Shapes: B batch, C channels, H W height and width, D features, K classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
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
            raise UsageError(
                f"classifier: {self.blocks} blocks need images of {2**self.blocks} px, not {self.image_size}"
            )

    @property
    def dims(self) -> int:
        """D, the number of features."""
        return self.width * 2 ** (self.blocks - 1)

    def build(self) -> Classifier:
        """A classifier with fresh weights."""
        return Classifier(self)


class Block(nn.Sequential):
    """Halve the image with a strided convolution, then look around once more; batch norm and ReLU after each."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


class Classifier(nn.Module):
    """Convolutional blocks, global average pooling, one linear layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels, *(config.width * 2**block for block in range(config.blocks))]
        self.blocks = nn.ModuleList(Block(a, b) for a, b in itertools.pairwise(widths))
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


@dataclass(frozen=True)
class ClassifierRecord:
    """What is known about a trained classifier; stored beside its weights and quoted in every protocol."""

    config: ClassifierConfig
    seed: int
    train_images: int
    """Images it has seen, each counted once per presentation when they came as a stream."""
    accuracy: float | None
    """Top-1 share (0..1) on held-out images; None when there were none."""
    held_out_images: int
    weights_hash: str
    """sha256 of the weights, see :func:`tensors_hash`."""
    training: dict[str, Any] = field(default_factory=dict)
    """The training config, as plain values."""


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors, in the order of their names.

    Unlike the hash of a file it does not change with the metadata or the container.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_classifier(classifier: Classifier, record: ClassifierRecord, path: Path | str) -> None:
    """Write weights and record as one safetensors file, through a temporary file so that none is ever half written."""
    path = Path(path)
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "record": json.dumps(to_dict(record))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # runs side by side share this place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OvertureError(f"{path}: cannot write the classifier ({error})") from error


def load_classifier(path: Path | str) -> tuple[Classifier, ClassifierRecord]:
    """Read a file of :func:`save_classifier`: the classifier in evaluation mode, and its record.

    Raises ``OvertureError`` for a missing, foreign, corrupt or newer file, and for weights that are not those of the
    record.
    """
    path = Path(path)
    if not path.is_file():
        raise OvertureError(f"{path}: no such classifier file; train one with train_classifier")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise OvertureError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise OvertureError(f"{path}: not a classifier of this project; train one with train_classifier")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        version = metadata.get("format_version")
        raise OvertureError(
            f"{path}: classifier format {version}, this version reads {FORMAT_VERSION}; update overture"
        )
    try:
        record = from_dict(ClassifierRecord, json.loads(metadata["record"]), where=str(path))
        classifier = record.config.build()
        classifier.load_state_dict(tensors)
    except (KeyError, ValueError) as error:
        raise OvertureError(f"{path}: the record beside the weights is damaged ({error!r})") from error
    except RuntimeError as error:
        raise OvertureError(f"{path}: the weights do not fit the recorded config; train it again") from error
    if tensors_hash(tensors) != record.weights_hash:
        raise OvertureError(f"{path}: the weights are not those of the record (sha256 differs); train it again")
    return classifier.eval(), record
