"""Domain networks: a classifier trained on the run's own images, as a judge or for a perceptual loss.

Shapes: B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overture.config import no_number, to_dict
from overture.data.order import generator
from overture.data.stream import Batch
from overture.data.transforms import to_float
from overture.errors import OvertureError, UsageError
from overture.nn.classifier import Classifier, ClassifierConfig, ClassifierRecord, save_classifier
from overture.processes import Processes
from overture.training.hardware import trained_with
from overture.training.optim import OptimizerConfig
from overture.training.step import NonFinite, Trainable

__all__ = ["ClassifierTrainer", "ClassifierTrainingConfig", "top1_accuracy"]


@dataclass(frozen=True)
class ClassifierTrainingConfig:
    """AdamW, the learning rate going up and down in a line; the defaults take seconds on one core at 28 px."""

    steps: int = 700
    batch_size: int = 64
    learning_rate: float = 4e-3
    """The peak, reached after ``warm_up`` of the steps."""
    warm_up: float = 0.2
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    mirror: bool = True
    """Mirror each image with probability 1/2; off for data in which left and right mean something (digits)."""
    log_every: int = no_number(25)
    checkpoint_minutes: float = no_number(10.0)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"classifier training: {name} is {getattr(self, name)}, needs >= 1")
        if not self.learning_rate > 0:
            raise UsageError(f"classifier training: learning_rate is {self.learning_rate}, needs > 0")
        if not 0 < self.warm_up < 1:
            raise UsageError(f"classifier training: warm_up is {self.warm_up}, needs 0 < warm_up < 1")

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW with the learning rate of these settings."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            learning_rate_min=0.01 * self.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=self.weight_decay,
            warmup=round(self.warm_up * self.steps),
            flat=0,
        )


class ClassifierTrainer:
    """A classifier in training; ``stage`` is what it is called in a run (judge, perceptual)."""

    shown: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        config: ClassifierConfig,
        training: ClassifierTrainingConfig,
        *,
        seed: int,
        processes: Processes,
        stage: str = "classifier",
    ) -> None:
        self.config, self.training, self.seed, self.processes, self.stage = config, training, seed, processes, stage
        processes.seed(seed, f"{stage} weights", 0)
        classifier = config.build(processes)
        # Channels-last convolutions are a quarter faster on a CPU.
        self.classifier: Classifier = classifier.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = Trainable(self.classifier, training.optimizer, training.steps, processes)
        self.step, self.nonfinite = 0, NonFinite(stage)

    def train_batch(self, batch: Batch) -> dict[str, Tensor]:
        """One step of cross-entropy with smoothed labels."""
        device = self.processes.device
        check_labelled(batch.images, batch.labels, self.config)
        self.processes.seed(self.seed, self.stage, self.step)
        self.classifier.train()
        x_BCHW = to_float(batch.images.to(device)).contiguous(memory_format=torch.channels_last)
        if self.training.mirror:
            mirrored_B = self.draw_mirrored(len(x_BCHW)).to(device)
            x_BCHW = torch.where(mirrored_B[:, None, None, None], x_BCHW.flip(-1), x_BCHW)
        logits_BK = self.trained.forward(x_BCHW)
        loss = F.cross_entropy(logits_BK, batch.labels.to(device), label_smoothing=self.training.label_smoothing)
        loss.backward()
        norm = self.trained.optimizer_step(self.step)
        self.step += 1
        return {"loss": loss.detach(), "gradient_norm": norm}

    def draw_mirrored(self, count: int) -> Tensor:
        """Which of this process's ``count`` images are mirrored: drawn for the batch of all processes."""
        start = count * self.processes.rank
        draws = generator("mirror", self.seed, self.step).random(start + count)
        return torch.from_numpy(draws[start:] < 0.5)

    def logged(self, values: dict[str, float]) -> dict[str, float]:
        """The loss and the learning rate."""
        return {**values, "learning_rate": self.trained.schedule.learning_rate(self.step - 1)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"step": self.step, **self.trained.state_dict("classifier")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step = state["step"]
        self.trained.load_state_dict(state, "classifier")

    def save(self, path: Path, train_images: int, held_out: Iterable[Batch], data: str = "") -> ClassifierRecord:
        """Write the trained classifier; the record says what came of it on ``held_out`` images.

        ``data`` is the fingerprint of those that it was trained on.
        """
        accuracy, chance, count = top1_accuracy(self.classifier, held_out)
        record = ClassifierRecord(
            self.config, self.seed, train_images, accuracy, count, chance, data, training=to_dict(self.training)
        )
        save_classifier(self.classifier, record, path, trained_with=trained_with(self.processes))
        return record


@torch.inference_mode()
def top1_accuracy(classifier: Classifier, batches: Iterable[Batch]) -> tuple[float, float, int]:
    """The share of images whose largest logit is their label, that of the most frequent label, and how many there were."""
    classifier.eval()
    device = next(classifier.parameters()).device
    correct, labels_K = 0, torch.zeros(classifier.config.num_classes, dtype=torch.long)
    for batch in batches:
        check_labelled(batch.images, batch.labels, classifier.config)
        predicted_B = classifier(to_float(batch.images.to(device))).argmax(dim=1)
        correct += int((predicted_B == batch.labels.to(device)).sum())
        labels_K += batch.labels.bincount(minlength=len(labels_K))
    count = int(labels_K.sum())
    if count == 0:
        raise OvertureError("classifier: there are no held-out images to measure its accuracy on")
    return correct / count, int(labels_K.max()) / count, count


def check_labelled(images: Tensor, labels: Tensor, config: ClassifierConfig) -> None:
    """Refuse images of another size or type, and labels that are no classes."""
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
