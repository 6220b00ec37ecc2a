"""The joint prior of stage 1: the small prior whose cross-entropy trains a prologue ("Prologue", docs/prologue.md, section 6).

Generator step: with the prior's weights frozen, the cross-entropy of the sequence reaches the encoder through the
embeddings of soft-backward tokens (:meth:`Quantizer.embed`); all other tokens are constants to it. Discriminator step:
the prior learns from the detached tokens of the same batch.

Shapes: B images, L sequence positions, D channels, N rows of all positions of all images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from overture.errors import UsageError
from overture.layout import Layout
from overture.priors.model import Prior, PriorConfig
from overture.processes import Processes, placed
from overture.tokenizers.tokenizer import Encoded, Tokenizer
from overture.training.optim import OptimizerConfig
from overture.training.prior_pass import PriorPass, sequence_loss
from overture.training.prologue_loss import input_fillers, position_terms, soft_embeddings, sum_by_term, with_fillers
from overture.training.step import Precision, Trainable, autocast

__all__ = ["JointPrior", "JointPriorConfig"]


@dataclass(frozen=True)
class JointPriorConfig:
    """A prior trained beside the tokenizer.

    In the generator step ``encoder_weight`` weighs the cross-entropy of the segments that the decoder sees, and
    ``prologue_weight`` that of the others and of the separators: the lower it is, the less a prologue is drawn to
    saying the same of every image. With probability ``input_dropout`` per image,
    all inputs after a separator are replaced by that separator (targets stay), so that they have to be predicted from
    the segments before it. ``label_drop`` 1 makes the prior unconditional.
    """

    prior: PriorConfig = PriorConfig(dim=512, depth=7, heads=8, dropout=0.0)
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, learning_rate_min=1e-5, betas=(0.9, 0.99), weight_decay=0.03, warmup=20_000, flat=100_000
    )
    encoder_weight: float = 3.0
    prologue_weight: float = 3.0
    input_dropout: float = 0.5
    label_drop: float = 1.0
    ema_half_life: float = 2500.0

    def __post_init__(self) -> None:
        for name in ("encoder_weight", "prologue_weight"):
            if getattr(self, name) < 0:
                raise UsageError(f"joint prior: {name} is {getattr(self, name)}, needs >= 0")
        for name in ("input_dropout", "label_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"joint prior: {name} is {getattr(self, name)}, needs a probability")

    def build(self, layout: Layout, steps: int, processes: Processes, precision: Precision) -> JointPrior:
        """Make the prior and its optimizer for ``steps`` discriminator steps."""
        return JointPrior(self, layout, steps, processes, precision)


class EncoderLoss(NamedTuple):
    """A joint prior's word on a batch of tokens, for the encoder that made them."""

    terms: dict[str, Tensor]
    """The cross-entropy by segment, unweighted."""
    loss: Tensor
    """Their weighted sum."""
    embeddings: Tensor
    """The prior's inputs, which hang on the encoder."""
    gradient: Tensor | None
    """The gradient of the loss by them, to hand on."""


class JointPrior:
    """The prior in training, and the two kinds of step."""

    def __init__(
        self, config: JointPriorConfig, layout: Layout, steps: int, processes: Processes, precision: Precision
    ) -> None:
        self.config, self.layout, self.device, self.precision = config, layout, processes.device, precision
        self.processes = processes
        self.prior: Prior = config.prior.build(layout).to(self.device)
        self.fillers = input_fillers(layout).to(self.device)
        self.trained = Trainable(
            self.prior, config.optimizer, steps, processes,
            ema_half_life=config.ema_half_life, forward=PriorPass(self.prior, precision),
        )  # fmt: skip
        self.prior.requires_grad_(False)  # frozen but for its own step

    def encoder_loss(self, tokenizer: Tokenizer, encoded: Encoded, classes: Tensor) -> EncoderLoss:
        """The cross-entropy as the encoder's loss.

        The prior's own backward pass is run here, down to its input embeddings, so that its activations are gone before
        the decoder's come.
        """
        self.prior.eval()
        with autocast(self.device, self.precision):
            embeddings_BLD = self.embeddings(tokenizer, encoded, self.draw_dropped(len(encoded.ids)))
            leaf_BLD = embeddings_BLD.detach().requires_grad_(embeddings_BLD.requires_grad)
            hidden_BLD = self.prior.hidden(leaf_BLD[:, :-1], classes)
            weights, sequence_BL = self.weights(tokenizer), self.layout.to_sequence(encoded.ids)
            shares = [weights[name] / sequence_BL.numel() for name in position_terms(self.layout)]
            share_L = placed(torch.tensor(shares), self.device)
            loss, losses_BL = sequence_loss(self.prior, hidden_BLD, sequence_BL, share_L)
        if loss.requires_grad:
            loss.backward()
        return EncoderLoss(sum_by_term(losses_BL, self.layout), loss.detach(), embeddings_BLD, leaf_BLD.grad)

    def weights(self, tokenizer: Tokenizer) -> dict[str, float]:
        """How much each term counts in the generator's loss."""
        decoded = {f"ce_{segment.name}" for segment in tokenizer.config.segments if segment.decoded}
        weights = {True: self.config.encoder_weight, False: self.config.prologue_weight}
        return {name: weights[name in decoded] for name in position_terms(self.layout)}

    def embeddings(self, tokenizer: Tokenizer, encoded: Encoded, dropped_B: Tensor) -> Tensor:
        """The prior's input embeddings ``[B, L, D]``, differentiable where the segment's quantizer is."""
        return soft_embeddings(self.prior, self.fillers, tokenizer.quantizers, encoded.features, encoded.ids, dropped_B)

    def draw_dropped(self, batch: int) -> Tensor:
        """Which images of the batch lose their inputs after a separator."""
        return self.processes.uniform(batch) < self.config.input_dropout

    def draw_classes(self, labels: Tensor) -> Tensor:
        """Labels, or "unconditional" with probability ``label_drop``."""
        kept = self.processes.uniform(len(labels)) >= self.config.label_drop
        return torch.where(kept, labels, self.prior.unconditional)

    def train_step(self, ids: Tensor, classes: Tensor, step: int) -> dict[str, Tensor]:
        """The prior takes one step on detached local ids ``[B, T]``."""
        self.prior.train().requires_grad_(True)
        sequence_BL = self.layout.to_sequence(ids)
        inputs_BL = with_fillers(sequence_BL, self.fillers, self.draw_dropped(len(ids)))
        loss = self.trained.forward(inputs_BL, sequence_BL, classes, sequence_BL.numel())
        loss.backward()
        norm = self.trained.optimizer_step(step)
        self.prior.requires_grad_(False)
        return {"joint_prior": loss.detach(), "joint_prior_gradient_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return self.trained.state_dict("prior")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.trained.load_state_dict(state, "prior")
