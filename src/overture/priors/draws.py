"""The draws of a sample, and what they make of logits.

The draws of an image are a function of (seed, index of the image), so it is the same in a batch of any size, up to the
float rounding of the logits: a draw that falls within rounding of the border between two ids may take either.

Shapes: B images, S ids a position may hold.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from overture.data.order import generator
from overture.errors import UsageError
from overture.processes import widest_float

__all__ = ["draw", "image_draws", "restrict"]


def image_draws(seed: int, first: int, count: int, length: int) -> np.ndarray:
    """Numbers in [0, 1) ``[count, length]`` float64: row i is a function of (seed, first + i) alone."""
    if seed < 0:
        raise UsageError(f"seed is {seed}, needs >= 0")
    rows = [generator("sample", seed, first + row).random(length) for row in range(count)]
    return np.stack(rows) if rows else np.empty((0, length))


def draw(logits_BS: Tensor, draws_B: Tensor) -> Tensor:
    """The id at which the cumulative probability passes each draw: an inverse of the distribution function, ``[B]``."""
    wide = widest_float(logits_BS.device)
    cumulative_BS = logits_BS.to(wide).softmax(dim=-1).cumsum(dim=-1)
    # Scaled to the last sum, which rounding leaves near 1, and below it: ids of probability 0 are never chosen.
    total_B1 = cumulative_BS[:, -1:]
    threshold_B1 = torch.minimum(draws_B.to(wide)[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BS, threshold_B1, right=True)[:, 0]


def restrict(logits_BS: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with all but the ``top_k`` largest, then all outside the ``top_p`` nucleus, set to -inf.

    Exactly ``top_k`` survive, ties or not. The nucleus is the smallest set of likeliest ids whose probability reaches
    ``top_p``; of equally likely ids the lower one comes first.
    """
    if 0 < top_k < logits_BS.shape[-1]:
        largest = logits_BS.topk(top_k, dim=-1)
        logits_BS = torch.full_like(logits_BS, -torch.inf).scatter(-1, largest.indices, largest.values)
    if top_p < 1:
        ordered, order = logits_BS.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(dim=-1)
        # The probability of all likelier ids: the id that crosses top_p is still inside.
        outside = probability.cumsum(dim=-1) - probability >= top_p
        logits_BS = logits_BS.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits_BS
