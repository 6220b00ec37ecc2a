"""A prior's pass in training: the cross-entropy of sequences without a table of all logits.

Shapes: B images, L sequence positions, D channels, V vocabulary, N rows of all positions of all images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.layout import Layout
from overture.losses.cross_entropy import projected_cross_entropy
from overture.priors.model import Prior
from overture.training.step import Precision, autocast

__all__ = ["PriorPass", "sequence_loss"]


class PriorPass(nn.Module):
    """Sequences to their summed cross-entropy over ``count`` ids: their mean, or a part's share of a batch's mean.

    ``allowed`` holds it over the ids that the layout allows at a position, which takes the table of all logits.
    """

    def __init__(self, prior: Prior, precision: Precision, *, allowed: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.prior, self.precision = prior, precision
        self.hidden = torch.compile(prior.hidden) if compiled else prior.hidden
        # Where the prior is already: a copy at every step would wait. No buffer, for processes would exchange it.
        self.allowed_LV = allowed_ids(prior.layout).to(prior.token_embedding.weight.device) if allowed else None

    def forward(self, inputs_BL: Tensor, sequence_BL: Tensor, classes_B: Tensor, count: int) -> Tensor:
        """Sequence ids that are seen and that are to be told, ``[B, L]``, and classes ``[B]``. The last is never seen."""
        with autocast(sequence_BL.device, self.precision):
            hidden_BLD = self.hidden(self.prior.token_embedding(inputs_BL[:, :-1]), classes_B)
        if self.allowed_LV is None:
            share_L = torch.full(sequence_BL.shape[1:], 1 / count, device=hidden_BLD.device)
            return sequence_loss(self.prior, hidden_BLD, sequence_BL, share_L)[0]
        logits_BLV = self.prior.head.project(hidden_BLD)
        logits_BLV = logits_BLV.masked_fill(~self.allowed_LV, -torch.inf)
        return F.cross_entropy(logits_BLV.flatten(0, 1), sequence_BL.flatten(), reduction="sum") / count


def sequence_loss(prior: Prior, hidden_BLD: Tensor, sequence_BL: Tensor, share_L: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of cross-entropies in which each position counts ``share_L``, and their values ``[B, L]``."""
    loss, losses_N = projected_cross_entropy(
        hidden_BLD.flatten(0, 1), prior.head.projection.weight, sequence_BL.flatten(), share_L.repeat(len(sequence_BL))
    )
    return loss, losses_N.view_as(sequence_BL)


def allowed_ids(layout: Layout) -> Tensor:
    """Which ids each sequence position may hold: ``[L, V]`` bool."""
    ids = torch.arange(layout.vocabulary_size)
    return torch.stack([(ids >= position.low) & (ids < position.high) for position in layout.positions])
