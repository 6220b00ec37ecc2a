"""Stage 3: the prior, by next-token prediction on token files (docs/prologue.md, section 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from overture.config import no_number, to_dict
from overture.data.order import some_of
from overture.data.token_files import TokenBatch, TokenFile
from overture.errors import UsageError
from overture.layout import Layout
from overture.model_files import save_model
from overture.nn.transformer import Recompute, set_recompute
from overture.priors.likelihood import measure_likelihood
from overture.priors.model import Prior, PriorConfig
from overture.processes import Processes, placed
from overture.training.hardware import trained_with
from overture.training.loop import Measure
from overture.training.optim import OptimizerConfig
from overture.training.prior_pass import PriorPass
from overture.training.sharding import gathered
from overture.training.start_from import Start, start_prior
from overture.training.step import NonFinite, Precision, Trainable

__all__ = ["EngineConfig", "PriorTrainer", "PriorTrainingConfig", "bits_of_files", "save_prior"]


@dataclass(frozen=True)
class PriorTrainingConfig:
    """How a prior is trained.

    ``start_from`` is a trained prior (a model file, a run or ``hf:owner/name``) whose weights are copied: all but those of
    classes that it does not know, see :func:`overture.training.start_from.start_prior`. ``start_hash`` is the hash of its
    weights, which a run fills in.
    ``loss`` runs over the whole ``vocabulary`` (both papers' setting), or only over the ids that the layout
    ``allowed`` at a position. Every ``evaluate_every`` steps the loss in bits per image is measured on
    ``evaluate_rows`` training and held-out rows.
    """

    steps: int = 1_000_000
    batch_size: int = 512
    start_from: str = ""
    start_hash: str = no_number("")
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=4e-4,
        learning_rate_min=1e-5,
        betas=(0.9, 0.96),
        weight_decay=0.03,
        warmup=62_500,
        flat=0,
        clip=1.0,
    )
    label_drop: float = 0.1
    loss: Literal["vocabulary", "allowed"] = "vocabulary"
    ema_half_life: float = 2500.0
    precision: Precision = "bfloat16"
    compile: bool = no_number(False)
    recompute: Recompute = no_number("nothing")
    """What transformer blocks compute again in the backward pass instead of keeping it; no number changes."""
    log_every: int = no_number(25)
    evaluate_every: int = 5000
    evaluate_rows: int = 2000
    checkpoint_minutes: float = no_number(10.0)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "evaluate_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"prior training: {name} is {getattr(self, name)}, needs >= 1")
        if not 0 <= self.label_drop <= 1:
            raise UsageError(f"prior training: label_drop is {self.label_drop}, needs a probability")


@dataclass(frozen=True)
class EngineConfig:
    """How the prior's training uses its devices; no number changes, but for rounding.

    Of a process's share of a batch ``micro_batch`` images go through the prior at a time, their gradients added up: the
    same step in less memory (0: all at once). ``shard`` spreads weights, gradients and moments over the processes, for
    priors that do not fit one device. The tokenizer takes its batch whole: the discriminator's batch norm is that of the
    whole batch; ``tokenizer_training.recompute`` saves memory there.
    """

    micro_batch: int = no_number(0)
    shard: bool = no_number(False)

    def __post_init__(self) -> None:
        if self.micro_batch < 0:
            raise UsageError(f"--engine.micro-batch is {self.micro_batch}, needs >= 0 (0: all at once)")


class PriorTrainer:
    """The prior in training; ``state_dict`` holds everything an exact resume needs."""

    stage = "prior"
    shown: tuple[str, ...] = ("bits_per_image",)

    def __init__(
        self,
        config: PriorConfig,
        training: PriorTrainingConfig,
        layout: Layout,
        *,
        seed: int,
        processes: Processes,
        engine: EngineConfig = EngineConfig(),
        classes: Sequence[str] = (),
    ) -> None:
        self.config, self.training, self.seed, self.processes = config, training, seed, processes
        self.engine, self.classes = engine, classes
        processes.seed(seed, "prior weights", 0)
        self.prior = config.build(layout).to(processes.device)
        self.start = Start.find(training.start_from, "prior") if training.start_from else None
        if self.start is not None:
            start_prior(self.prior, self.start, classes)
        set_recompute(self.prior, training.recompute)
        self.trained = Trainable(
            self.prior, training.optimizer, training.steps, processes,
            ema_half_life=training.ema_half_life,
            forward=PriorPass(
                self.prior, training.precision, allowed=training.loss == "allowed", compiled=training.compile
            ),
            sharded_layers=sharded_layers(self.prior) if engine.shard else None,
        )  # fmt: skip
        self.step, self.nonfinite = 0, NonFinite(self.stage)

    def train_batch(self, batch: TokenBatch) -> dict[str, Tensor]:
        """One step on local ids ``[B, T]`` and labels ``[B]``."""
        training, device = self.training, self.processes.device
        self.processes.seed(self.seed, "prior", self.step)
        self.prior.train()
        sequence_BL = self.prior.layout.to_sequence(placed(batch.ids, device))
        labels_B = placed(batch.labels, device)
        dropped_B = self.processes.uniform(len(labels_B)) < training.label_drop
        classes_B = torch.where(dropped_B, self.prior.unconditional, labels_B)
        loss = torch.zeros((), device=device)
        parts = self.trained.micro_batches(sequence_BL, classes_B, size=self.engine.micro_batch)
        for part_BL, part_B in parts:
            part = self.trained.forward(part_BL, part_BL, part_B, sequence_BL.numel())
            part.backward()
            loss += part.detach()
        norm = self.trained.optimizer_step(self.step)
        self.step += 1
        return {"bits_per_image": loss * sequence_BL.shape[1] / math.log(2), "gradient_norm": norm}

    def logged(self, values: dict[str, float]) -> dict[str, float]:
        """The loss in bits per image, and the learning rate."""
        return {**values, "learning_rate": self.trained.schedule.learning_rate(self.step - 1)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"step": self.step, **self.trained.state_dict("prior")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step = state["step"]
        self.trained.load_state_dict(state, "prior")

    def save(self, path: Path, metadata: dict[str, Any]) -> None:
        """Write ``model.safetensors`` (raw and EMA weights), on the main process; all take part."""
        origin = {} if self.start is None else {"started_from": self.start.record}
        save_prior(path, self.trained, {"step": self.step, "classes": list(self.classes), **origin, **metadata})

    def whole_prior(self) -> Prior:
        """The prior as it is now, in one piece: itself, or a copy where it is spread over processes (all take part)."""
        if not self.trained.sharded:
            return self.prior
        copy = self.config.build(self.prior.layout).to(self.processes.device)
        copy.load_state_dict(gathered(self.prior.state_dict(), keep=True))
        return copy


def sharded_layers(prior: Prior) -> list[nn.Module]:
    """The parts of a prior that hold most of its weights, each called once a pass."""
    return [part for block in prior.transformer.blocks for part in (block.attention, block.feed_forward)]  # type: ignore[misc,union-attr]


def save_prior(path: Path, trained: Trainable, metadata: dict[str, Any]) -> None:
    """Write a trained prior's ``model.safetensors``, on the main process; all take part."""
    prior: Any = trained.module
    about = {"config": to_dict(prior.config), "layout": prior.layout.to_dict()}
    about |= {"trained_with": trained_with(trained.processes), **metadata}
    weights = trained.weights()
    if trained.processes.is_main:
        save_model(path, "prior", weights, about)


def bits_of_files(trainer: PriorTrainer, files: dict[str, TokenFile]) -> Measure:
    """Every ``evaluate_every`` steps: bits per image on some rows of each token file (their central crops)."""
    training = trainer.training
    rows = {name: some_of(file.rows, training.evaluate_rows) for name, file in files.items()}

    def measure(step: int) -> dict[str, float]:
        if step % training.evaluate_every and step != training.steps:
            return {}
        prior, processes = trainer.whole_prior(), trainer.processes
        values = {}
        for name, file in files.items():
            mine = processes.share_out(len(rows[name]), 100)
            batches = file.parts(100, rows[name][mine.start : mine.stop])
            found = measure_likelihood(prior, batches, processes=processes)
            values[f"{name}_bits_per_image"] = float(found.vocabulary.sum())
        return values

    return measure
