"""Stage 3: the prior, by next-token prediction on token files (docs/prologue.md, section 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.data.tokens import TokenFile, TokenStream
from overture.errors import UsageError
from overture.layout import Layout
from overture.nn.transformer import Recompute, set_recompute
from overture.priors.model import Prior, PriorConfig
from overture.training.checkpoint import resume, save_prior
from overture.training.distributed import World
from overture.training.ema import EMA
from overture.training.keeper import Keeper
from overture.training.metrics import MetricLog, check_finite
from overture.training.optim import OptimizerConfig, set_learning_rate
from overture.training.progress import Progress
from overture.training.tokenizer import Precision, autocast
from overture.training.watch import Watch, observe

__all__ = ["PriorTrainer", "PriorTrainingConfig", "bits_per_image", "train_prior"]


@dataclass(frozen=True)
class PriorTrainingConfig:
    """How a prior is trained.

    ``loss`` runs over the whole ``vocabulary`` (both papers' setting), or only over the ids that the layout
    ``allowed`` at a position. Every ``evaluate_every`` steps the loss in bits per image is measured on
    ``evaluate_rows`` training and held-out rows.
    """

    steps: int = 1_000_000
    batch_size: int = 512
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
    compile: bool = False
    recompute: Recompute = "nothing"
    """What transformer blocks compute again in the backward pass instead of keeping it; no number changes."""
    log_every: int = 25
    evaluate_every: int = 5000
    evaluate_rows: int = 2000
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "evaluate_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"prior training: {name} is {getattr(self, name)}, needs >= 1")
        if not 0 <= self.label_drop <= 1:
            raise UsageError(f"prior training: label_drop is {self.label_drop}, needs a probability")


class PriorTrainer:
    """The prior in training; ``state_dict`` holds everything an exact resume needs."""

    def __init__(
        self, config: PriorConfig, training: PriorTrainingConfig, layout: Layout, *, seed: int, world: World
    ) -> None:
        self.config, self.training, self.seed, self.world = config, training, seed, world
        world.seed(seed, "prior weights", 0)
        self.prior = config.build(layout).to(world.device)
        world.share(self.prior)
        self.ema = EMA(self.prior, training.ema_half_life)
        self.optimizer, self.schedule = training.optimizer.build(self.prior.named_parameters(), training.steps)
        set_recompute(self.prior, training.recompute)
        self.forward = torch.compile(self.prior) if training.compile else self.prior
        self.allowed_LV = allowed_ids(layout).to(world.device) if training.loss == "allowed" else None
        self.step = 0

    def train_batch(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step on local ids ``[B, T]`` and labels ``[B]``."""
        training, device = self.training, self.world.device
        self.world.seed(self.seed, "prior", self.step)
        self.prior.train()
        sequence = self.prior.layout.to_sequence(ids.to(device, non_blocking=True))
        classes = labels.to(device).clone()
        classes[torch.rand(len(classes), device=device) < training.label_drop] = self.prior.unconditional
        with autocast(device, training.precision):
            logits_BLV = self.forward(sequence, classes)
        if self.allowed_LV is not None:
            logits_BLV = logits_BLV.masked_fill(~self.allowed_LV, -torch.inf)
        loss = F.cross_entropy(logits_BLV.flatten(0, 1).float(), sequence.flatten())
        check_finite({"cross_entropy": loss}, "prior", self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for parameter in self.prior.parameters() if parameter.grad is not None]
        self.world.average_gradients(parameters)
        if training.optimizer.clip:
            norm = nn.utils.clip_grad_norm_(parameters, training.optimizer.clip)
            check_finite({"gradient_norm": norm}, "prior", self.step)  # clipping would make all weights NaN
        set_learning_rate(self.optimizer, self.schedule.learning_rate(self.step))
        self.optimizer.step()
        self.ema.update(self.prior)
        self.step += 1
        return {"loss": loss, "bits_per_image": loss.detach() * sequence.shape[1] / math.log(2)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "prior": self.prior.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step = state["step"]
        self.prior.load_state_dict(state["prior"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def save(self, path: Path, metadata: dict[str, Any]) -> str:
        """Write ``model.safetensors`` (raw and EMA weights); returns its hash."""
        return save_prior(path, self.prior, self.ema, self.step, metadata)


def train_prior(
    trainer: PriorTrainer,
    train: TokenFile,
    held_out: TokenFile,
    directory: Path,
    metrics: Path,
    progress: Progress,
    watch: Watch | None = None,
) -> None:
    """Train to the end, resuming from the last checkpoint in ``directory`` and saving there.

    ``watch`` looks at the prior from time to time.

    Raises :class:`overture.training.progress.Interrupted` after saving when the user asks to stop.
    """
    world, training = trainer.world, trainer.training
    for file in (train, held_out):
        file.check_layout(trainer.prior.layout)
    resume(trainer, directory)
    log = MetricLog(metrics, "prior", trainer.step) if world.is_main else None
    stream = TokenStream(train, training.batch_size, trainer.seed, world.rank, world.size)
    progress.start("prior", training.steps, trainer.step)
    keeper = Keeper(trainer, directory, "prior", training.steps, training.checkpoint_minutes)
    batches = stream.batches(trainer.step)
    observe(watch, keeper, log)  # one that failed before the run went on
    while trainer.step < training.steps:
        batch = next(batches)
        terms = trainer.train_batch(batch.ids, batch.labels)
        progress.advance(1)
        if trainer.step % training.log_every == 0 or trainer.step == training.steps:
            bits = world.mean(terms["bits_per_image"]).item()
            if log:
                log.write(
                    trainer.step,
                    {"bits_per_image": bits, "learning_rate": trainer.schedule.learning_rate(trainer.step - 1)},
                )
            progress.advance(0, bits_per_image=bits)
        if trainer.step % training.evaluate_every == 0 or trainer.step == training.steps:
            measured = {
                f"{name}_bits_per_image": sum(bits_per_image(trainer.prior, file, training.evaluate_rows).tolist())
                for name, file in (("train", train), ("held_out", held_out))
            }
            if log:
                log.write(trainer.step, measured)
        observe(watch, keeper, log)
        keeper.after_step()
    keeper.finish()
    progress.finish()


@torch.inference_mode()
def bits_per_image(
    prior: Prior,
    file: TokenFile,
    rows: int = 0,
    *,
    loss: Literal["vocabulary", "allowed"] = "vocabulary",
    conditional: bool = True,
    batch_size: int = 256,
) -> Tensor:
    """The prior's cross-entropy on the central crop of the first ``rows`` rows (0: all), in bits per sequence position.

    ``[L]`` float64; the sum is bits per image. With ``loss="allowed"`` the probability is normalised over the ids the
    layout allows, which is what sampling uses.
    """
    device = prior.token_embedding.weight.device
    was_training = prior.training
    prior.eval()
    count, crop = min(rows or file.rows, file.rows), file.central_crop
    mask = ~allowed_ids(prior.layout).to(device) if loss == "allowed" else None
    total_L = torch.zeros(prior.layout.sequence_length, dtype=torch.double, device=device)
    for start in range(0, count, batch_size):
        part = slice(start, min(start + batch_size, count))
        sequence = prior.layout.to_sequence(torch.as_tensor(file.ids(part, crop), device=device))
        labels = torch.as_tensor(file.labels[part], device=device)
        classes = labels if conditional else torch.full_like(labels, prior.unconditional)
        logits_BLV = prior(sequence, classes).float()
        if mask is not None:
            logits_BLV = logits_BLV.masked_fill(mask, -torch.inf)
        total_L += F.cross_entropy(logits_BLV.transpose(1, 2), sequence, reduction="none").double().sum(dim=0)
    prior.train(was_training)
    return total_L.cpu() / count / math.log(2)


def allowed_ids(layout: Layout) -> Tensor:
    """Which ids each sequence position may hold: ``[L, V]`` bool."""
    ids = torch.arange(layout.vocabulary_size)
    return torch.stack([(ids >= position.low) & (ids < position.high) for position in layout.positions])
