"""The prologue's loss: the cross-entropy of a small prior, as a loss of the encoder that made the tokens.

:class:`PrologueLoss` is for training loops of anyone's own (docs/parts.md); ours uses its parts in
:mod:`overture.training.joint_prior`. Source: "Prologue" (arXiv 2605.06137), docs/prologue.md, section 6.

Shapes: B images, T local tokens, L sequence positions, D channels of an encoder output or of the prior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.nn.transformer import Transformer
from overture.priors.model import Prior
from overture.training.prior_pass import sequence_loss

__all__ = [
    "Judged",
    "PrologueLoss",
    "input_fillers",
    "position_terms",
    "soft_embeddings",
    "sum_by_term",
    "with_fillers",
]


class Judged(NamedTuple):
    """What a prior says of a batch of tokens, in nats per position of the sequence."""

    loss: Tensor
    """The weighted sum of the terms; its gradient goes to the encoder."""
    terms: dict[str, Tensor]
    """The mean cross-entropy by segment (``ce_NAME``, ``ce_separator``), unweighted and without gradient."""


class PrologueLoss(nn.Module):
    """A small prior that judges tokens while their encoder learns.

    Its cross-entropy reaches the encoder through the tokens of soft-backward quantizers (``SoftConfig``), which are the
    prologue; all other tokens are constants to it. Its parameters are the prior's, to be trained by an optimizer of
    their own with :meth:`prior_loss`, on the ids of the same batch::

        judge = PrologueLoss(PriorConfig(dim=64, depth=2, heads=4, num_classes=1).build(layout))
        loss = reconstruction + judge(quantizers, features, ids).loss  # the encoder's step
        judge.prior_loss(ids).backward()                               # the prior's step

    ``weights`` says how much each segment counts in the encoder's loss: one number for all, or one by name; a separator
    counts as the segment before it. With probability ``input_dropout`` per image everything after a separator is hidden
    from the prior, so that the segments before it have to tell what follows.
    """

    fillers: Tensor

    def __init__(self, prior: Prior, weights: float | Mapping[str, float] = 3.0, input_dropout: float = 0.5) -> None:
        super().__init__()
        self.prior, self.layout, self.input_dropout = prior, prior.layout, input_dropout
        names = self.layout.names
        self.weights = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(names, float(weights))
        if set(self.weights) != set(names) or min(self.weights.values()) < 0:
            raise UsageError(
                f"prologue loss: weights are {self.weights}, need a number >= 0 for each of {', '.join(names)}"
            )
        if not 0 <= input_dropout <= 1:
            raise UsageError(f"prologue loss: input_dropout is {input_dropout}, needs a probability")
        self._check_recompute()
        self.register_buffer("fillers", input_fillers(self.layout), persistent=False)

    def forward(
        self,
        quantizers: Mapping[str, nn.Module] | nn.ModuleDict,
        features: Mapping[str, Tensor],
        ids: Tensor,
        classes: Tensor | None = None,
    ) -> Judged:
        """The loss of the encoder; the prior's weights are constants to it, and its dropout rests.

        ``quantizers`` and ``features`` (encoder outputs ``[B, T of the segment, D]``) by name of the segment, local ids
        ``[B, T]``, and ``classes`` ``[B]`` if the prior is to be told them.

        Raises :class:`~overture.errors.OvertureError` for names and shapes that are not those of the prior's layout.
        """
        self._check_recompute()
        self._check(quantizers, features, ids)
        with frozen(self.prior):
            hidden = self._dropped(len(ids))
            embeddings = soft_embeddings(self.prior, self.fillers, quantizers, features, ids, hidden)
            hidden_BLD = self.prior.hidden(embeddings[:, :-1], self._classes(ids, classes))
            sequence_BL = self.layout.to_sequence(ids)
            share_L = torch.tensor(self._position_weights(), device=ids.device) / sequence_BL.numel()
            loss, losses_BL = sequence_loss(self.prior, hidden_BLD, sequence_BL, share_L)
        return Judged(loss, sum_by_term(losses_BL.detach(), self.layout))

    def prior_loss(self, ids: Tensor, classes: Tensor | None = None) -> Tensor:
        """The loss of the prior itself on local ids ``[B, T]``: its mean cross-entropy per position, in nats."""
        sequence_BL = self.layout.to_sequence(ids)
        inputs_BL = with_fillers(sequence_BL, self.fillers, self._dropped(len(ids)))
        hidden_BLD = self.prior.hidden(self.prior.token_embedding(inputs_BL[:, :-1]), self._classes(ids, classes))
        share_L = torch.full(sequence_BL.shape[1:], 1 / sequence_BL.numel(), device=ids.device)
        return sequence_loss(self.prior, hidden_BLD, sequence_BL, share_L)[0]

    def _dropped(self, batch: int) -> Tensor:
        """Which images lose their inputs after a separator; drawn by torch's own generator."""
        return torch.rand(batch, device=self.fillers.device) < self.input_dropout

    def _classes(self, ids: Tensor, classes: Tensor | None) -> Tensor:
        if classes is None:
            return torch.full((len(ids),), self.prior.unconditional, device=ids.device)
        if classes.shape != ids.shape[:1]:
            raise OvertureError(f"prologue loss: {len(ids)} images and classes of shape {list(classes.shape)}")
        self.prior.check_classes(classes)
        return classes

    def _position_weights(self) -> list[float]:
        """The weight of every sequence position."""
        before, weights = self.layout.names[0], []
        for position in self.layout.positions:
            before = before if position.is_separator else self.layout.names[position.segment]
            weights.append(self.weights[before])
        return weights

    def _check_recompute(self) -> None:
        """Recomputing happens in the backward pass, which comes when the prior is no longer frozen."""
        if any(isinstance(part, Transformer) and part.recompute != "nothing" for part in self.prior.modules()):
            raise UsageError('prologue loss: its prior recomputes activations; call set_recompute(prior, "nothing")')

    def _check(
        self, quantizers: Mapping[str, nn.Module] | nn.ModuleDict, features: Mapping[str, Tensor], ids: Tensor
    ) -> None:
        names = self.layout.names
        for what, given in (("quantizers", quantizers), ("features", features)):
            if missing := [name for name in names if name not in given]:
                raise OvertureError(
                    f"prologue loss: {what} of '{missing[0]}' are missing; the segments are {', '.join(names)}"
                )
        if ids.ndim != 2 or ids.shape[1] != self.layout.length:
            raise OvertureError(
                f"prologue loss: ids have shape {list(ids.shape)}, need [B, {self.layout.length}]: the segments side by side"
            )
        for segment in self.layout.segments:
            if features[segment.name].shape[:-1] != (len(ids), len(segment)):
                raise OvertureError(
                    f"prologue loss: features of '{segment.name}' have shape {list(features[segment.name].shape)}, need "
                    f"[{len(ids)}, {len(segment)}, D]"
                )


@contextmanager
def frozen(prior: Prior) -> Iterator[None]:
    """Its weights are constants to what is computed here, and nothing is dropped; afterwards all is as it was."""
    wanted = [(parameter, parameter.requires_grad) for parameter in prior.parameters()]
    training = prior.training
    prior.eval().requires_grad_(False)
    try:
        yield
    finally:
        prior.train(training)
        for parameter, needs in wanted:
            parameter.requires_grad_(needs)


def soft_embeddings(
    prior: Prior,
    fillers_L: Tensor,
    quantizers: Mapping[str, nn.Module] | nn.ModuleDict,
    features: Mapping[str, Tensor],
    ids_BT: Tensor,
    dropped_B: Tensor,
) -> Tensor:
    """The prior's input embeddings ``[B, L, D]``, differentiable where the segment's quantizer is.

    Of the images ``dropped_B`` every input with a filler (:func:`input_fillers`) is replaced by it.
    """
    layout, table_VD = prior.layout, prior.token_embedding.weight
    sequence_BL = layout.to_sequence(ids_BT)
    parts, start = [], 0
    for segment, offset in zip(layout.segments, layout.offsets, strict=True):
        rows_KD = table_VD[offset : offset + segment.codebook_size]
        ids = ids_BT[:, layout.slice(segment.name)]
        parts.append(quantizers[segment.name].embed(features[segment.name], ids, rows_KD))  # type: ignore[operator]
        start += len(segment)
        if segment.separator:
            parts.append(F.embedding(sequence_BL[:, start : start + 1], table_VD))
            start += 1
    filler_LD = F.embedding(fillers_L.clamp(min=0), table_VD)
    replaced_BL = dropped_B[:, None] & (fillers_L >= 0)
    return torch.where(replaced_BL[..., None], filler_LD, torch.cat(parts, dim=1))


def with_fillers(sequence_BL: Tensor, fillers_L: Tensor, dropped_B: Tensor) -> Tensor:
    """Sequence ids in which every input with a filler is replaced by it, of the images ``dropped_B``."""
    return torch.where(dropped_B[:, None] & (fillers_L >= 0), fillers_L, sequence_BL)


def sum_by_term(losses_BL: Tensor, layout: Layout) -> dict[str, Tensor]:
    """``ce_NAME`` of each segment (and ``ce_separator``): sums over its positions, mean over images, divided by L.

    Together they are the mean cross-entropy per position, in nats.
    """
    by_position_L = losses_BL.mean(dim=0) / layout.sequence_length
    terms: dict[str, Tensor] = {}
    for name, loss in zip(position_terms(layout), by_position_L, strict=True):
        terms[name] = terms[name] + loss if name in terms else loss
    return terms


def position_terms(layout: Layout) -> list[str]:
    """The term that each position belongs to."""
    return [
        "ce_separator" if position.is_separator else f"ce_{layout.names[position.segment]}"
        for position in layout.positions
    ]


def input_fillers(layout: Layout) -> Tensor:
    """What input dropout puts at each position ``[L]``: the separator before it, or -1 where nothing is replaced."""
    fillers, current = [], -1
    for position in layout.positions:
        if position.is_separator:
            fillers.append(-1)
            current = position.low
        else:
            fillers.append(current)
    return torch.tensor(fillers)
