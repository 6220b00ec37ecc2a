"""The Inception Score, over logits that stream.

Salimans et al., "Improved Techniques for Training GANs" (arXiv 1606.03498): ``exp(mean KL(p(y|x) || p(y)))``, by ADM's
protocol the mean over splits of 5,000 images. Only sums per split are kept, so the score depends neither on the batch
size nor on the number of processes.

Shapes: B batch, K classes, S splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from overture.errors import OvertureError
from overture.processes import Processes

__all__ = ["InceptionScore", "InceptionScoreMeter"]


@dataclass(frozen=True)
class InceptionScore:
    """The mean over splits, and the standard deviation between them (0 for a single one)."""

    value: float
    deviation: float
    splits: int


class InceptionScoreMeter:
    """Sums of class probabilities and of their entropies, for every split of ``images`` images."""

    def __init__(self, images: int, split_size: int = 5000) -> None:
        if images < 1 or split_size < 1:
            raise OvertureError(f"Inception Score: {images} images in splits of {split_size}, needs at least 1 of each")
        self.images, self.split_size = images, split_size
        self.splits = -(-images // split_size)
        self._counts_S = torch.zeros(self.splits, dtype=torch.int64)
        self._entropies_S = torch.zeros(self.splits, dtype=torch.float64)
        self._sums_SK: Tensor | None = None

    def update(self, logits_BK: Tensor, places_B: Tensor) -> None:
        """Add the logits of the images at these places among all; a place decides the split."""
        if len(places_B) and not (int(places_B.min()) >= 0 and int(places_B.max()) < self.images):
            raise OvertureError(f"Inception Score: image {int(places_B.max())} of {self.images}")
        log_p_BK = logits_BK.detach().cpu().double().log_softmax(dim=1)
        if not torch.isfinite(log_p_BK).all():
            raise OvertureError("Inception Score: logits hold NaN or infinity; check the images")
        if self._sums_SK is None:
            self._sums_SK = torch.zeros(self.splits, log_p_BK.shape[1], dtype=torch.float64)
        p_BK = log_p_BK.exp()
        split_B = places_B // self.split_size
        self._sums_SK.index_add_(0, split_B, p_BK)
        self._entropies_S.index_add_(0, split_B, (p_BK * log_p_BK).sum(dim=1))
        self._counts_S.index_add_(0, split_B, torch.ones_like(split_B))

    def all_reduce(self, processes: Processes) -> None:
        """Add what all other processes have seen; each must have seen an image."""
        if self._sums_SK is None:
            raise OvertureError("Inception Score: a process saw no images; start fewer")
        self._sums_SK = processes.sum(self._sums_SK)
        self._entropies_S = processes.sum(self._entropies_S)
        self._counts_S = processes.sum(self._counts_S)

    def result(self) -> InceptionScore:
        """``exp(mean over x of sum_y p log p - sum_y m log m)`` of every split, with m the split's mean of p."""
        if self._sums_SK is None or int(self._counts_S.sum()) != self.images:
            raise OvertureError(f"Inception Score: saw {int(self._counts_S.sum())} of {self.images} images")
        mean_SK = self._sums_SK / self._counts_S[:, None]
        marginal_S = torch.special.entr(mean_SK).sum(dim=1)
        scores_S = (self._entropies_S / self._counts_S + marginal_S).exp()
        deviation = float(scores_S.std(correction=0))
        return InceptionScore(float(scores_S.mean()), deviation, self.splits)
