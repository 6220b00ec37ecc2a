"""The domain classifier: a small convolutional network trained on the very data set it judges.

Where no weights of a large network can be had (a toy set, a machine without a network), its penultimate features carry
the Fréchet distance, and its intermediate maps a perceptual loss. A distance on it is never called FID.

Shapes: B batch, C channels, H W height and width, D features, K classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.model_files import load_model, opened_weights, read_metadata, save_model
from overture.nn.global_batch_norm import GlobalBatchNorm2d
from overture.processes import Processes

__all__ = ["Classifier", "ClassifierConfig", "ClassifierRecord", "load_classifier", "save_classifier"]


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
        if (
            max(self.channels, self.width) > 2**16
            or self.num_classes > 2**24
            or max(self.blocks, self.image_size) > 2**14
        ):
            raise UsageError("classifier: channels and width are at most 65536, classes 2^24, image_size 16384")
        if self.image_size < 2 ** min(self.blocks, 20):
            raise UsageError(
                f"classifier: {self.blocks} blocks need images of {2**self.blocks} px, not {self.image_size}"
            )

    @property
    def dims(self) -> int:
        """D, the number of features."""
        return self.width * 2 ** (self.blocks - 1)

    def build(self, processes: Processes = Processes()) -> Classifier:
        """A classifier with fresh weights, whose batch norms see the batch of all ``processes``."""
        return Classifier(self, processes)


class Block(nn.Sequential):
    """Halve the image with a strided convolution, then look around once more; batch norm and ReLU after each."""

    def __init__(self, channels_in: int, channels_out: int, processes: Processes) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False),
            GlobalBatchNorm2d(channels_out, processes),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False),
            GlobalBatchNorm2d(channels_out, processes),
            nn.ReLU(),
        )


class Classifier(nn.Module):
    """Convolutional blocks, global average pooling, one linear layer."""

    def __init__(self, config: ClassifierConfig, processes: Processes) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels, *(config.width * 2**block for block in range(config.blocks))]
        self.blocks = nn.ModuleList(Block(a, b, processes) for a, b in itertools.pairwise(widths))
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
    """What is known about a trained classifier; stored beside its weights."""

    config: ClassifierConfig
    seed: int
    train_images: int
    """Images that it was trained on."""
    accuracy: float | None
    """Top-1 share (0..1) on held-out images; None in files of others that do not say."""
    held_out_images: int
    chance: float = 0.0
    """Share (0..1) of the held-out images that are of their most frequent class."""
    data: str = ""
    """Fingerprint of the images that it was trained on."""
    weights_hash: str = ""
    """The hash of the weights; filled in when they are saved."""
    training: dict[str, Any] = field(default_factory=dict)
    """The training config, as plain values."""


def save_classifier(classifier: Classifier, record: ClassifierRecord, path: Path | str, **more: Any) -> str:
    """Write weights, record and ``more`` metadata as a model file; returns the hash of the weights."""
    about = {"config": to_dict(record.config), "record": to_dict(record), **more}
    return save_model(Path(path), "classifier", {"raw": classifier.state_dict()}, about)


def load_classifier(path: Path | str) -> tuple[Classifier, ClassifierRecord]:
    """Read a file of :func:`save_classifier`: the classifier in evaluation mode, and its record.

    Raises ``OvertureError`` for a missing, foreign, corrupt or newer file.
    """
    path = Path(path)
    if not path.is_file():
        raise OvertureError(f"{path}: no such classifier file; train one with a run whose network is 'domain'")
    if _is_old(path):
        return _load_old(path)
    metadata = read_metadata(path, "classifier")
    record = from_dict(ClassifierRecord, metadata.get("record"), where=f"{path}: record")
    record = replace(record, weights_hash=metadata["weights_hash"])
    return load_model(path, "raw", record.config.build), record


def _is_old(path: Path) -> bool:
    """Whether the file was written before classifiers were model files like the others."""
    with opened_weights(path) as file:
        return bool((file.metadata() or {}).get("format") == "overture-classifier")


def _load_old(path: Path) -> tuple[Classifier, ClassifierRecord]:
    """As :func:`load_classifier`, from a file of version 0.1 and its own way to hash."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    try:
        record = from_dict(ClassifierRecord, json.loads(metadata["record"]), where=str(path))
        classifier = record.config.build()
        classifier.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OvertureError(f"{path}: the record beside the weights does not fit them ({reason})") from error
    if digest.hexdigest() != record.weights_hash:
        raise OvertureError(f"{path}: the weights are not those of the record (sha256 differs); train it again")
    return classifier.eval().requires_grad_(False), record
