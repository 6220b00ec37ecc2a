"""The kernel distance (KID), of two sets of features.

Binkowski et al., "Demystifying MMD GANs" (arXiv 1801.01401): the unbiased squared MMD under the kernel
``(x . y / D + 1)^3``, as the mean over subsets; unlike the Fréchet distance it has no bias at small counts.

Shapes: N M samples of the two sides, n samples of a subset, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from overture.errors import OvertureError

__all__ = ["KernelDistance", "kernel_distance"]


@dataclass(frozen=True)
class KernelDistance:
    """The mean over subsets, and the standard deviation between them."""

    value: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    samples_ND: Tensor, reference_MD: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID between two sets of features; subsets are drawn without replacement, always the same for the same seed."""
    size = min(subset_size, len(samples_ND), len(reference_MD))
    if size < 2 or subsets < 1:
        raise OvertureError(f"KID: {subsets} subsets of {size} samples, needs at least 1 of at least 2")
    if samples_ND.shape[1] != reference_MD.shape[1]:
        dims = f"{samples_ND.shape[1]} against {reference_MD.shape[1]}"
        raise OvertureError(f"KID: {dims} features; both sides need the same network")
    rng = np.random.default_rng(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for number in range(subsets):
        x_nD = samples_ND[torch.from_numpy(rng.choice(len(samples_ND), size, replace=False))]
        y_nD = reference_MD[torch.from_numpy(rng.choice(len(reference_MD), size, replace=False))]
        values[number] = _unbiased_mmd(x_nD.float(), y_nD.float())
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), subsets, size)


def _unbiased_mmd(x_nD: Tensor, y_nD: Tensor) -> Tensor:
    n = len(x_nD)

    def kernel(a_nD: Tensor, b_nD: Tensor) -> Tensor:
        # Products in float32, all else in float64: their rounding is far below the spread between subsets.
        return ((a_nD @ b_nD.T).double() / a_nD.shape[1] + 1) ** 3

    within = [(matrix.sum() - matrix.trace()) / (n * (n - 1)) for matrix in (kernel(x_nD, x_nD), kernel(y_nD, y_nD))]
    return within[0] + within[1] - 2 * kernel(x_nD, y_nD).mean()
