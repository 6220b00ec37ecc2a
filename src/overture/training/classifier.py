"""Train the domain classifier: one readable loop, the same weights for the same seed on a CPU.

Shapes: N images, B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from overture.config import to_dict
from overture.data.transforms import to_float
from overture.errors import OvertureError, UsageError
from overture.nn.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierRecord,
    load_classifier,
    save_classifier,
    tensors_hash,
)

__all__ = ["ClassifierTrainingConfig", "LabelledBatch", "load_classifier", "top1_accuracy", "train_classifier"]

LabelledBatch = tuple[Tensor, Tensor]
"""Images uint8 ``[B, C, H, W]`` and their labels, integers ``[B]``."""


@dataclass(frozen=True)
class ClassifierTrainingConfig:
    """AdamW, the learning rate going up in a line and down in half a cosine; the defaults take seconds on one core at 28 px."""

    steps: int = 700
    batch_size: int = 64
    """Ignored for a stream, whose batches come as they are."""
    learning_rate: float = 4e-3
    """The peak, reached after ``warm_up`` of the steps."""
    warm_up: float = 0.2
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    mirror: bool = True
    """Mirror each image with probability 1/2; off for data in which left and right mean something (digits)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"classifier training: {name} is {getattr(self, name)}, needs >= 1")
        if not self.learning_rate > 0:
            raise UsageError(f"classifier training: learning_rate is {self.learning_rate}, needs > 0")
        if not 0 < self.warm_up < 1:
            raise UsageError(f"classifier training: warm_up is {self.warm_up}, needs 0 < warm_up < 1")


def train_classifier(
    images: Tensor | Iterable[LabelledBatch],
    labels: Tensor | None,
    config: ClassifierConfig,
    training: ClassifierTrainingConfig,
    *,
    seed: int,
    out: Path | str,
    held_out: LabelledBatch | Iterable[LabelledBatch] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ClassifierRecord:
    """Train a classifier and write it to ``out``; the record says what came of it.

    ``images`` are uint8 ``[N, C, H, W]`` with ``labels`` ``[N]``, shuffled anew every epoch; or a stream of
    :data:`LabelledBatch` (then ``labels`` is None), which must last for ``training.steps`` batches. ``held_out`` images
    only measure the accuracy. The caller's random state is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(images, Tensor):
        if labels is None:
            raise UsageError("classifier training: images in memory need labels")
        _check(images, labels, config)
        batches = _shuffled(images, labels, min(training.batch_size, len(images)), generator)
    else:
        batches = iter(images)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Channels-last convolutions are a quarter faster on a CPU.
        classifier = config.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = _fit(classifier, batches, training, generator, progress)
    classifier.eval()
    accuracy, count = None, 0
    if held_out is not None:
        accuracy, count = top1_accuracy(classifier, [held_out] if isinstance(held_out, tuple) else held_out)
    record = ClassifierRecord(
        config=config,
        seed=seed,
        train_images=len(images) if isinstance(images, Tensor) else seen,
        accuracy=accuracy,
        held_out_images=count,
        weights_hash=tensors_hash(classifier.state_dict()),
        training=to_dict(training),
    )
    save_classifier(classifier, record, out)
    return record


@torch.inference_mode()
def top1_accuracy(classifier: Classifier, batches: Iterable[LabelledBatch], chunk: int = 500) -> tuple[float, int]:
    """The share of images whose largest logit is their label, and how many images there were."""
    device = next(classifier.parameters()).device
    correct = count = 0
    for images, labels in batches:
        _check(images, labels, classifier.config)
        for images_BCHW, labels_B in zip(images.split(chunk), labels.split(chunk), strict=True):
            predicted_B = classifier(to_float(images_BCHW.to(device))).argmax(dim=1)
            correct += int((predicted_B == labels_B.to(device)).sum())
            count += len(labels_B)
    if count == 0:
        raise OvertureError("classifier accuracy: there are no held-out images; give some or none at all (None)")
    return correct / count, count


def _fit(
    classifier: Classifier,
    batches: Iterator[LabelledBatch],
    training: ClassifierTrainingConfig,
    generator: torch.Generator,
    progress: bool,
) -> int:
    """The training loop; returns how many images went through it."""
    device = next(classifier.parameters()).device
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_peak(step, training))
    classifier.train()
    seen = 0
    for step in tqdm(range(training.steps), desc="classifier", unit="step", disable=not progress):
        batch = next(batches, None)
        if batch is None:
            raise OvertureError(f"classifier training: the stream ended after {step} of {training.steps} batches")
        images_BCHW, labels_B = batch
        _check(images_BCHW, labels_B, classifier.config)
        x_BCHW = to_float(images_BCHW.to(device)).contiguous(memory_format=torch.channels_last)
        if training.mirror:
            mirrored_B = (torch.rand(len(x_BCHW), generator=generator) < 0.5).to(device)
            x_BCHW = torch.where(mirrored_B[:, None, None, None], x_BCHW.flip(-1), x_BCHW)
        logits_BK = classifier(x_BCHW)
        loss = F.cross_entropy(logits_BK, labels_B.to(device).long(), label_smoothing=training.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        seen += len(x_BCHW)
    if not torch.isfinite(loss):
        raise OvertureError(f"classifier training: the loss is {loss.item()}; lower learning_rate")
    return seen


def _share_of_peak(step: int, training: ClassifierTrainingConfig) -> float:
    """The learning rate of a step as a share of the peak; above 0 in the first and in the last step."""
    place = (step + 1) / (training.steps + 1)
    if place < training.warm_up:
        return place / training.warm_up
    return (1 + math.cos(math.pi * (place - training.warm_up) / (1 - training.warm_up))) / 2


def _shuffled(
    images_NCHW: Tensor, labels_N: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[LabelledBatch]:
    """Full batches without end, in a new order every epoch."""
    while True:
        order_N = torch.randperm(len(images_NCHW), generator=generator)
        for rows_B in order_N.split(batch_size):
            if len(rows_B) == batch_size:  # a short batch would disturb the batch norm
                yield images_NCHW[rows_B], labels_N[rows_B]


def _check(images: Tensor, labels: Tensor, config: ClassifierConfig) -> None:
    size = (config.channels, config.image_size, config.image_size)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != size:
        wanted = "x".join(map(str, size))
        raise OvertureError(f"classifier: images are {images.dtype} {tuple(images.shape)}, need uint8 Nx{wanted}")
    if len(images) == 0:
        raise OvertureError("classifier: there are no images; give at least one")
    if labels.shape != images.shape[:1]:
        raise OvertureError(f"classifier: {len(images)} images but labels of shape {tuple(labels.shape)}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < config.num_classes:
        raise OvertureError(
            f"classifier: labels run from {int(labels.min())} to {int(labels.max())}, "
            f"this config has {config.num_classes} classes (0..{config.num_classes - 1})"
        )
