"""Stage 1: the tokenizer (docs/prologue.md, section 6).

Every batch is used twice: a generator step (encoder, quantizers, decoder) and a discriminator step on the same images
and the reconstructions of the generator step, in which a joint prior, where there is one, learns from the tokens of the
generator step. All schedules count batches, which is each optimizer's own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from overture.config import no_number, to_dict
from overture.data.stream import Batch
from overture.data.transforms import to_float
from overture.errors import UsageError
from overture.losses.adversarial import AdversarialConfig
from overture.losses.perceptual import FeatureMaps, NoPerceptual, PerceptualConfig
from overture.losses.pixel import ReconstructionConfig
from overture.model_files import ids_hash, save_model
from overture.nn.transformer import Recompute, set_recompute
from overture.processes import Processes, placed
from overture.tokenizers.config import TokenizerConfig
from overture.tokenizers.tokenizer import Encoded, Tokenizer, TrainedPart
from overture.training.elbo import negative_elbo
from overture.training.hardware import trained_with, was_trained_with
from overture.training.joint_prior import EncoderLoss, JointPriorConfig
from overture.training.optim import OptimizerConfig
from overture.training.start_from import Start, start_tokenizer
from overture.training.step import NonFinite, Precision, Trainable, autocast

__all__ = ["TokenizerTrainer", "TokenizerTrainingConfig", "save_finished"]

J = TypeVar("J")


@dataclass(frozen=True)
class TokenizerTrainingConfig:
    """How a tokenizer is trained. ``steps`` counts batches; ``batch_size`` is that of all processes together.

    ``start_from`` is a trained tokenizer (a model file, a run or ``hf:owner/name``): its parts are copied, with the weights
    that it is used with, and where the new tokenizer has a post encoder they stay as they are ("Prologue-Post").
    ``start_hash`` is the hash of its weights, which a run fills in. ``trains`` says which part is trained then:
    ``everything``; the ``decoder`` alone, so that images keep their ids; or ``nothing``, which takes the tokenizer as it
    is, and leaves ``steps`` and losses without a meaning.

    ``checkpoint_minutes`` is the time between checkpoints for an exact resume; it does not change any number.
    """

    steps: int = 750_000
    batch_size: int = 256
    start_from: str = ""
    start_hash: str = no_number("")
    trains: TrainedPart = "everything"
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
    compile: bool = no_number(False)
    recompute: Recompute = no_number("nothing")
    """What transformer blocks compute again in the backward pass instead of keeping it: the same numbers, less memory,
    more time (see docs/experiments/performance.md)."""
    log_every: int = no_number(25)
    checkpoint_minutes: float = no_number(10.0)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"tokenizer training: {name} is {getattr(self, name)}, needs >= 1")
        for name in ("perceptual_weight", "quantizer_weight"):
            if getattr(self, name) < 0:
                raise UsageError(f"tokenizer training: {name} is {getattr(self, name)}, needs >= 0")
        if self.trains != "everything" and not self.start_from:
            raise UsageError(
                f"tokenizer training: trains is {self.trains}, and the rest has to come from somewhere: set "
                "--tokenizer-training.start-from"
            )
        if self.trains != "everything" and self.joint is not None:
            raise UsageError(
                f"tokenizer training: a joint prior teaches the encoder, and trains is {self.trains}; set "
                "--tokenizer-training.joint none"
            )


class _GeneratorPass(nn.Module):
    """The tokenizer's forward pass in training, as one call.

    Between encoder and decoder the tokens are judged: the activations of a judge and the decoder's never meet.
    """

    def __init__(self, tokenizer: Tokenizer, training: TokenizerTrainingConfig) -> None:
        super().__init__()
        self.tokenizer, self.precision = tokenizer, training.precision
        self.encode, self.reconstruct = tokenizer.encode_for_training, tokenizer.reconstruct
        if training.compile:
            self.encode, self.reconstruct = torch.compile(self.encode), torch.compile(self.reconstruct)

    def forward(self, images: Tensor, judge: Callable[[Encoded], J]) -> tuple[Encoded, J, Tensor]:
        """Images ``[B, C, H, W]`` to tokens, what ``judge`` says of them, and reconstructions."""
        with autocast(images.device, self.precision):
            encoded = self.encode(images)
        judged = judge(encoded)
        with autocast(images.device, self.precision):
            return encoded, judged, self.reconstruct(encoded)


class TokenizerTrainer:
    """All that stage 1 trains, and the two kinds of step. ``state_dict`` holds everything an exact resume needs."""

    stage = "tokenizer"
    shown: tuple[str, ...] = ("l1", "loss")

    def __init__(
        self,
        config: TokenizerConfig,
        training: TokenizerTrainingConfig,
        *,
        seed: int,
        processes: Processes,
        perceptual_network: FeatureMaps | None = None,
    ) -> None:
        self.config, self.training, self.seed, self.processes = config, training, seed, processes
        device = processes.device
        processes.seed(seed, "tokenizer weights", 0)
        self.tokenizer = config.build().to(device)
        self.start = Start.find(training.start_from, "tokenizer") if training.start_from else None
        if self.start is not None:
            start_tokenizer(self.tokenizer, self.start, training.trains)
        trained = dict(self.tokenizer.trained_parameters(training.trains))
        for name, parameter in self.tokenizer.named_parameters():
            parameter.requires_grad_(name in trained)
        self.adversarial = training.adversarial.build(config.channels, config.image_size, processes).to(device)
        self.pixels = training.reconstruction.build()
        perceptual = training.perceptual.build(perceptual_network)
        self.perceptual = None if perceptual is None else perceptual.to(device)
        set_recompute(self.tokenizer, training.recompute)
        self.generator = Trainable(
            self.tokenizer, training.optimizer, training.steps, processes,
            parameters=trained.items(), ema_half_life=training.ema_half_life,
            forward=_GeneratorPass(self.tokenizer, training), all_used=False,
        )  # fmt: skip
        self.discriminator = Trainable(self.adversarial, training.discriminator_optimizer, training.steps, processes)
        self.joint = None
        if training.joint is not None:
            self.joint = training.joint.build(config.layout, training.steps, processes, training.precision)
            set_recompute(self.joint.prior, training.recompute)
        self.step, self.nonfinite = 0, NonFinite(self.stage)

    def train_batch(self, batch: Batch) -> dict[str, Tensor]:
        """One generator step and one discriminator step; returns every term of the losses."""
        device = self.processes.device
        self.processes.seed(self.seed, "tokenizer", self.step)
        images = to_float(placed(batch.images, device))
        classes = self.joint.draw_classes(placed(batch.labels, device)) if self.joint else None
        terms, ids, reconstruction = self.generator_step(images, classes)
        if self.training.adversarial.active(self.step):
            terms |= self.discriminator_step(images, reconstruction)
        if self.joint and classes is not None:
            terms |= self.joint.train_step(ids, classes, self.step)
        self.step += 1
        return terms

    def generator_step(self, images: Tensor, classes: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Encoder, quantizers and decoder take one step; returns the terms, the ids and the reconstruction.

        ``classes`` are those that a joint prior is told.
        """
        training, device = self.training, self.processes.device
        self.tokenizer.train()

        def judge_tokens(encoded: Encoded) -> EncoderLoss | None:
            if self.joint is None or classes is None:
                return None
            return self.joint.encoder_loss(self.tokenizer, encoded, classes)

        encoded, judged_tokens, reconstruction = self.generator.forward(images, judge_tokens)
        terms: dict[str, Tensor] = {"quantizer": encoded.quantizer_loss}
        total = training.quantizer_weight * terms["quantizer"].float()
        ends: list[tuple[Tensor, Tensor | None]] = [(total, None)]  # where the last backward pass starts, with what
        if judged_tokens is not None:
            terms, total = {**terms, **judged_tokens.terms}, total + judged_tokens.loss
            ends.append((judged_tokens.embeddings, judged_tokens.gradient))
        # Each judge runs its backward pass at once, down to the reconstruction: its graph is gone before the next one's.
        leaf = reconstruction.detach().requires_grad_(reconstruction.requires_grad)
        for judge in self.judges(leaf, images):
            with autocast(device, training.precision):
                judged, loss = judge()
            if loss.requires_grad:
                loss.backward()
            terms, total = {**terms, **judged}, total + loss.detach()
        if leaf.grad is not None:  # None: nothing judges it yet
            ends.append((reconstruction, leaf.grad))
        reached = [(end, gradient) for end, gradient in ends if end.requires_grad]
        torch.autograd.backward([end for end, _ in reached], [gradient for _, gradient in reached])
        norm = self.generator.optimizer_step(self.step)
        for quantizer in self.tokenizer.quantizers.values():
            if any(parameter.requires_grad for parameter in quantizer.parameters()):
                quantizer.maintain(self.seed, self.step, self.processes)  # type: ignore[operator]
        terms = {name: term.detach() for name, term in terms.items()}
        return {**terms, "loss": total.detach(), "gradient_norm": norm}, encoded.ids, reconstruction.detach()

    def judges(
        self, reconstruction: Tensor, images: Tensor
    ) -> Iterator[Callable[[], tuple[dict[str, Tensor], Tensor]]]:
        """What is held against a reconstruction: each call gives terms (unweighted) and their weighted sum."""
        training, loss = self.training, self.perceptual

        def pixels() -> tuple[dict[str, Tensor], Tensor]:
            terms = self.pixels(reconstruction, images)
            return terms, terms.pop("total")

        def perceptual() -> tuple[dict[str, Tensor], Tensor]:
            assert loss is not None
            term = loss(reconstruction, images)
            return {"perceptual": term}, training.perceptual_weight * term

        def adversarial() -> tuple[dict[str, Tensor], Tensor]:
            term = self.adversarial.generator_loss(reconstruction)
            return {"adversarial": term}, training.adversarial.weight * term

        yield pixels
        if loss is not None:
            yield perceptual
        if training.adversarial.active(self.step):
            yield adversarial

    def discriminator_step(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """The discriminator takes one step on the same images and their reconstructions."""
        with autocast(self.processes.device, self.training.precision):
            terms = self.discriminator.forward(images, reconstruction, self.step)
        terms.pop("total").backward()
        norm = self.discriminator.optimizer_step(self.step)
        return {**{name: term.detach() for name, term in terms.items()}, "discriminator_gradient_norm": norm}

    def logged(self, values: dict[str, float]) -> dict[str, float]:
        """The losses, the negative ELBO where there is a joint prior, and the learning rate."""
        pixels = self.config.channels * self.config.image_size**2
        elbo = negative_elbo(values, pixels, self.config.layout.sequence_length)
        return {**values, **elbo, "learning_rate": self.generator.schedule.learning_rate(self.step - 1)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            **self.generator.state_dict("tokenizer"),
            **self.discriminator.state_dict("adversarial", "discriminator_optimizer"),
            "joint": self.joint.state_dict() if self.joint else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step = state["step"]
        self.generator.load_state_dict(state, "tokenizer")
        self.discriminator.load_state_dict(state, "adversarial", "discriminator_optimizer")
        if self.joint:
            self.joint.load_state_dict(state["joint"])

    def save(self, path: Path, metadata: dict[str, Any]) -> str:
        """Write ``model.safetensors`` (raw and EMA weights); returns its hash."""
        about = {"config": to_dict(self.config), "step": self.step, "trained_with": trained_with(self.processes)}
        about |= {**_origin(self.start, self.training), **metadata}
        return save_model(path, "tokenizer", self.generator.weights(), about)


def save_finished(
    config: TokenizerConfig, training: TokenizerTrainingConfig, path: Path, metadata: dict[str, Any]
) -> str:
    """Write the tokenizer that ``training`` starts from as it is, for data of another number of classes; returns its hash."""
    start, tokenizer = Start.find(training.start_from, "tokenizer"), config.build()
    start_tokenizer(tokenizer, start, training.trains)
    about = {"config": to_dict(config), "step": 0, **_origin(start, training), **metadata}
    if known := was_trained_with(start.metadata):
        about["trained_with"] = known  # nothing is trained here
    weights = {role: {name: t.clone() for name, t in tokenizer.state_dict().items()} for role in ("raw", "ema")}
    return save_model(path, "tokenizer", weights, about)


def _origin(start: Start | None, training: TokenizerTrainingConfig) -> dict[str, Any]:
    """What a model file says of the tokenizer that it was trained from, and of whose ids it gives."""
    if start is None:
        return {}
    kept = {} if training.trains == "everything" else {"ids_hash": ids_hash(start.metadata)}
    return {"started_from": start.record, **kept}
