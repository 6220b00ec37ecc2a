"""Stage 1: the tokenizer (docs/prologue.md, section 6).

Every batch is used twice: a generator step (encoder, quantizers, decoder) and a discriminator step on the same images
and the reconstructions of the generator step, in which a joint prior, where there is one, learns from the tokens of the
generator step. All schedules count batches, which is each optimiser's own steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from overture.config import to_dict
from overture.data.stream import Batch, TrainingStream
from overture.data.transforms import to_float
from overture.errors import OvertureError, UsageError
from overture.losses.adversarial import AdversarialConfig
from overture.losses.perceptual import DomainConfig, NoPerceptual, Perceptual, PerceptualConfig
from overture.losses.reconstruction import ReconstructionConfig
from overture.nn.transformer import Recompute, set_recompute
from overture.tokenizers.config import TokenizerConfig
from overture.tokenizers.tokenizer import Tokenized, Tokenizer
from overture.training.checkpoint import (
    find_model,
    read_metadata,
    read_weights,
    resume,
    save_model,
)
from overture.training.descent import Leaf, descend, give_back_freed
from overture.training.distributed import World
from overture.training.elbo import negative_elbo
from overture.training.ema import EMA
from overture.training.joint import JointPriorConfig
from overture.training.keeper import Keeper
from overture.training.metrics import MetricLog, check_finite
from overture.training.optim import OptimizerConfig
from overture.training.progress import Progress
from overture.training.watch import Watch, observe

__all__ = [
    "Precision", "TokenizerTrainer", "TokenizerTrainingConfig", "autocast", "start_from",
    "train_tokenizer",
]  # fmt: skip

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TokenizerTrainingConfig:
    """How a tokenizer is trained. ``steps`` counts batches; ``batch_size`` is that of all processes together.

    ``start_from`` is a trained tokenizer (a model file, a run or a hub id): its parts are copied, with its EMA weights,
    and where the new tokenizer has a post encoder they stay as they are ("Prologue-Post").

    ``checkpoint_minutes`` is the time between checkpoints for an exact resume; it does not change any number.
    """

    steps: int = 750_000
    batch_size: int = 256
    start_from: str = ""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, learning_rate_min=1e-5, betas=(0.0, 0.99), weight_decay=0.0, warmup=20_000, flat=100_000
    )
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, learning_rate_min=1e-5, betas=(0.0, 0.99), weight_decay=1e-4, warmup=20_000, flat=100_000
    )
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    perceptual: PerceptualConfig = NoPerceptual()
    perceptual_weight: float = 1.0
    adversarial: AdversarialConfig = AdversarialConfig()
    joint: JointPriorConfig | None = None
    quantizer_weight: float = 1.0
    ema_half_life: float = 1000.0
    precision: Precision = "bfloat16"
    compile: bool = False
    recompute: Recompute = "nothing"
    """What transformer blocks compute again in the backward pass instead of keeping it: the same numbers, less memory,
    more time (see docs/experiments/performance.md)."""
    log_every: int = 25
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"tokenizer training: {name} is {getattr(self, name)}, needs >= 1")
        for name in ("perceptual_weight", "quantizer_weight"):
            if getattr(self, name) < 0:
                raise UsageError(f"tokenizer training: {name} is {getattr(self, name)}, needs >= 0")


class TokenizerTrainer:
    """All that stage 1 trains, and the two kinds of step. ``state_dict`` holds everything an exact resume needs."""

    def __init__(
        self,
        config: TokenizerConfig,
        training: TokenizerTrainingConfig,
        *,
        seed: int,
        world: World,
        perceptual_network: nn.Module | None = None,
    ) -> None:
        self.config, self.training, self.seed, self.world = config, training, seed, world
        world.seed(seed, "tokenizer weights", 0)
        self.tokenizer = config.build().to(world.device)
        if training.start_from:
            start_from(self.tokenizer, training.start_from)
        trained = dict(self.tokenizer.trained_parameters())
        for name, parameter in self.tokenizer.named_parameters():
            parameter.requires_grad_(name in trained)
        self.adversarial = training.adversarial.build(config.channels, config.image_size).to(world.device)
        self.reconstruction = training.reconstruction.build()
        self.perceptual: Perceptual
        if isinstance(training.perceptual, DomainConfig):
            self.perceptual = training.perceptual.build(perceptual_network).to(world.device)  # type: ignore[arg-type]
        else:
            self.perceptual = training.perceptual.build().to(world.device)
        world.share(self.tokenizer)
        world.share(self.adversarial)
        self.ema = EMA(self.tokenizer, training.ema_half_life)
        self.optimizer, self.schedule = training.optimizer.build(self.tokenizer.trained_parameters(), training.steps)
        self.discriminator_optimizer, self.discriminator_schedule = training.discriminator_optimizer.build(
            self.adversarial.named_parameters(), training.steps
        )
        self.joint = training.joint.build(config.layout, training.steps, world) if training.joint else None
        for module in (self.tokenizer, *([self.joint.prior] if self.joint else [])):
            set_recompute(module, training.recompute)
        self.read, self.show = self.tokenizer.read, self.tokenizer.show
        if training.compile:
            self.read, self.show = torch.compile(self.read), torch.compile(self.show)
        self.step, self.under_way = 0, False

    def train_batch(self, batch: Batch) -> dict[str, Tensor]:
        """One generator step and one discriminator step; returns every term, and raises before a NaN is used."""
        self.under_way = True  # until the end: what an exception leaves is half a step
        self.world.seed(self.seed, "tokenizer", self.step)
        images = to_float(batch.images.to(self.world.device, non_blocking=True))
        classes = self.joint.draw_classes(batch.labels.to(self.world.device)) if self.joint else None
        terms, out = self.generator_step(images, classes)
        if self.training.adversarial.active(self.step):
            terms |= self.discriminator_step(images, out.reconstruction.detach())
        if self.joint and classes is not None:
            with autocast(self.world.device, self.training.precision):
                terms |= self.joint.train_step(out.ids, classes, self.step)
        self.step, self.under_way = self.step + 1, False
        return terms

    def generator_step(self, images: Tensor, classes: Tensor | None = None) -> tuple[dict[str, Tensor], Tokenized]:
        """Encoder, quantizers and decoder take one step; also returns what the tokenizer said.

        ``classes`` are those that a joint prior is told.
        """
        training = self.training
        self.tokenizer.train()
        with autocast(self.world.device, training.precision):
            read = self.read(images)
            likelihood: dict[str, Tensor] = {}
            weighted: list[Tensor] = []
            if self.joint and classes is not None:  # before the decoder: its activations and the prior's never meet
                likelihood, loss = self.joint.encoder_loss(self.tokenizer, read, classes)
                weighted.append(loss)
                if self.world.device.type == "cpu" and training.recompute != "nothing":
                    give_back_freed()  # where memory is worth more than time, for its pages have to be asked for again
            out = Tokenized(self.show(read), *read)
            leaf = Leaf(out.reconstruction)  # nor do those of the networks that judge the reconstruction
            terms = self.reconstruction(leaf.tensor, images)
            weighted.append(leaf.descend_from(terms.pop("total")))
            if not isinstance(training.perceptual, NoPerceptual):
                terms["perceptual"] = self.perceptual(leaf.tensor, images)
                weighted.append(leaf.descend_from(training.perceptual_weight * terms["perceptual"]))
            if training.adversarial.active(self.step):
                terms["adversarial"] = self.adversarial.generator_loss(leaf.tensor)
                weighted.append(leaf.descend_from(training.adversarial.weight * terms["adversarial"]))
        terms = {name: term.detach() for name, term in terms.items()} | likelihood
        weighted.append(leaf.owed)
        terms["quantizer"] = read.quantizer_loss
        weighted.append(training.quantizer_weight * terms["quantizer"])
        check_finite(terms, "tokenizer", self.step)
        total = torch.stack([term.float() for term in weighted]).sum()
        rate = self.schedule.learning_rate(self.step)
        descend(total, self.optimizer, rate, world=self.world, clip=training.optimizer.clip)
        self.ema.update(self.tokenizer)
        for quantizer in self.tokenizer.quantizers.values():
            if any(parameter.requires_grad for parameter in quantizer.parameters()):
                quantizer.maintain(self.seed, self.step)  # type: ignore[operator]
        return {**terms, "loss": total}, out

    def discriminator_step(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """The discriminator takes one step on the same images and their reconstructions."""
        training = self.training
        with autocast(self.world.device, training.precision):
            terms = self.adversarial.discriminator_step_loss(images, reconstruction, self.step)
        check_finite(terms, "tokenizer", self.step)
        rate = self.discriminator_schedule.learning_rate(self.step)
        clip = training.discriminator_optimizer.clip
        descend(terms.pop("total"), self.discriminator_optimizer, rate, world=self.world, clip=clip)
        return terms

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; refused where a step was broken off, for some weights have moved."""
        if self.under_way:
            raise OvertureError(f"tokenizer: step {self.step} was broken off half way; its state cannot be used")
        return {
            "step": self.step,
            "tokenizer": self.tokenizer.state_dict(),
            "adversarial": self.adversarial.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "joint": self.joint.state_dict() if self.joint else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step, self.under_way = state["step"], False
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.adversarial.load_state_dict(state["adversarial"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        if self.joint:
            self.joint.load_state_dict(state["joint"])

    def save(self, path: Path, metadata: dict[str, Any]) -> str:
        """Write ``model.safetensors`` (raw and EMA weights); returns its hash."""
        weights = {"raw": self.tokenizer.state_dict(), "ema": self.ema.state_dict()}
        return save_model(path, "tokenizer", weights, {"config": to_dict(self.config), "step": self.step, **metadata})


def start_from(tokenizer: Tokenizer, path: str) -> None:
    """Copy the EMA weights of the trained tokenizer at ``path``.

    All its parts have to fit. Parts that it lacks keep their fresh weights, if they are to be trained.
    """
    file = find_model(path, "tokenizer")
    read_metadata(file, "tokenizer")
    weights, own = read_weights(file, "ema"), tokenizer.state_dict()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            here = list(own[name].shape) if name in own else "nothing"
            raise OvertureError(f"{file}: {name} is {list(tensor.shape)}, the new tokenizer has {here} in its place")
    trained = dict(tokenizer.trained_parameters())
    for name in own.keys() - weights.keys() - trained.keys():
        raise OvertureError(f"{file}: has no {name}, which the new tokenizer needs and does not train")
    tokenizer.load_state_dict(weights, strict=False)


def train_tokenizer(
    trainer: TokenizerTrainer,
    stream: TrainingStream,
    directory: Path,
    metrics: Path,
    progress: Progress,
    watch: Watch | None = None,
) -> None:
    """Train to the end, resuming from the last checkpoint in ``directory`` and saving there.

    ``watch`` looks at the tokenizer from time to time.

    Raises :class:`overture.training.progress.Interrupted` after saving when the user asks to stop.
    """
    world, training = trainer.world, trainer.training
    resume(trainer, directory)
    log = MetricLog(metrics, "tokenizer", trainer.step) if world.is_main else None
    progress.start("tokenizer", training.steps, trainer.step)
    keeper = Keeper(trainer, directory, "tokenizer", training.steps, training.checkpoint_minutes)
    observe(watch, keeper, log)  # one that failed before the run went on
    for batch in _until(stream.batches(trainer.step), training.steps - trainer.step):
        terms = trainer.train_batch(batch)
        if trainer.step % training.log_every == 0 or trainer.step == training.steps:
            names = sorted(terms)
            values = world.mean(torch.stack([terms[name].detach().float() for name in names])).tolist()
            shown = dict(zip(names, values, strict=True))
            shown |= negative_elbo(shown, batch.images[0].numel(), trainer.config.layout.sequence_length)
            if log:
                log.write(trainer.step, {**shown, "learning_rate": trainer.schedule.learning_rate(trainer.step - 1)})
            progress.advance(0, **{name: shown[name] for name in ("l1", "loss") if name in shown})
        progress.advance(1)
        observe(watch, keeper, log)
        keeper.after_step()
    keeper.finish()
    progress.finish()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 where asked for; float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _until(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    for _ in range(count):
        try:
            yield next(batches)
        except StopIteration as error:
            raise OvertureError("tokenizer: the data stream ended early") from error
