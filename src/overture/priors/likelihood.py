"""How well a prior predicts tokens: bits per position, in one pass over the rows.

Shapes: N rows, B rows of a batch, T local tokens, L sequence positions, V vocabulary, S ids a position may hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from overture.errors import OvertureError
from overture.priors.model import Prior
from overture.processes import Processes, widest_float

__all__ = ["Likelihood", "measure_likelihood"]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Means over ``rows`` rows, ``[L]`` float64, in bits; their sums are bits per image."""

    vocabulary: Tensor
    """Cross-entropy with probabilities normalised over the whole vocabulary, as both papers train."""
    allowed: Tensor
    """Cross-entropy with probabilities normalised over the ids that the layout allows, as in sampling."""
    expected: Tensor
    """Entropy of the prediction over the allowed ids: what the prior itself expects ``allowed`` to be."""
    rows: int


@torch.inference_mode()
def measure_likelihood(
    prior: Prior,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    done: Callable[[int], object] = lambda rows: None,
    processes: Processes = Processes(),
) -> Likelihood:
    """Predict batches of local ids ``[B, T]``, told their classes ``[B]``; ``done`` hears of every batch.

    Each process gives its own share of the rows, and gets the result for all of them.
    """
    layout, device = prior.layout, prior.token_embedding.weight.device
    was_training = prior.training
    prior.eval()
    wide = widest_float(device)
    total_3L = torch.zeros(3, layout.sequence_length, dtype=wide, device=device)
    rows = 0
    with processes.agree():
        for ids_BT, classes_B in batches:
            if len(ids_BT) != len(classes_B):
                raise OvertureError(f"likelihood: {len(ids_BT)} rows and {len(classes_B)} classes")
            sequence_BL = layout.to_sequence(ids_BT.to(device))
            classes_B = classes_B.to(device)
            prior.check_classes(classes_B)
            hidden_BLD = prior.hidden(prior.token_embedding(sequence_BL[:, :-1]), classes_B)
            for place, position in enumerate(layout.positions):  # never the logits of all positions at once
                logits_BV = prior.head.project(hidden_BLD[:, place]).to(wide)
                chosen_B = logits_BV.gather(1, sequence_BL[:, place, None])[:, 0]
                allowed_BS = logits_BV[:, position.low : position.high]
                total_3L[0, place] += (logits_BV.logsumexp(dim=1) - chosen_B).sum()
                total_3L[1, place] += (allowed_BS.logsumexp(dim=1) - chosen_B).sum()
                total_3L[2, place] += torch.special.entr(allowed_BS.softmax(dim=1)).sum()
            rows += len(ids_BT)
            done(len(ids_BT) * processes.size)
    prior.train(was_training)
    rows, total_3L = int(processes.sum(torch.tensor(rows))), processes.sum(total_3L)
    if not rows:
        raise OvertureError("likelihood: there are no rows to predict")
    bits_3L = total_3L.cpu().double() / (rows * math.log(2))
    return Likelihood(bits_3L[0], bits_3L[1], bits_3L[2], rows)
