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
from overture.processes import Processes

__all__ = ["KernelDistance", "kernel_distance"]

STRIP = 250


@dataclass(frozen=True)
class KernelDistance:
    """The mean over subsets, and the standard deviation between them."""

    value: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    samples_ND: Tensor,
    reference_MD: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    processes: Processes = Processes(),
) -> KernelDistance:
    """KID between two sets of features; subsets are drawn without replacement, always the same for the same seed.

    Every process must hold all features; they share the subsets among them.
    """
    size = min(subset_size, len(samples_ND), len(reference_MD))
    if size < 2 or subsets < 1:
        raise OvertureError(f"KID: {subsets} subsets of {size} samples, needs at least 1 of at least 2")
    if samples_ND.shape[1] != reference_MD.shape[1]:
        dims = f"{samples_ND.shape[1]} against {reference_MD.shape[1]}"
        raise OvertureError(f"KID: {dims} features; both sides need the same network")
    rng = np.random.default_rng(seed)
    drawn = [
        [torch.from_numpy(rng.choice(len(side), size, replace=False)) for side in (samples_ND, reference_MD)]
        for _ in range(subsets)
    ]
    values = torch.zeros(subsets, dtype=torch.float64)

    def measure(number: int) -> None:
        x_nD, y_nD = (side[rows].float() for side, rows in zip((samples_ND, reference_MD), drawn[number], strict=True))
        values[number] = _unbiased_mmd(x_nD, y_nD)

    with processes.agree():
        processes.in_turns(measure, range(subsets))
    values = processes.sum(values)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), subsets, size)


def _unbiased_mmd(x_nD: Tensor, y_nD: Tensor) -> Tensor:
    n = len(x_nD)
    between = torch.stack([_kernel(rows, y_nD).sum() for rows in x_nD.split(STRIP)]).sum() / n**2
    return (_sum_of_others(x_nD) + _sum_of_others(y_nD)) / (n * (n - 1)) - 2 * between


def _sum_of_others(x_nD: Tensor) -> Tensor:
    """The sum of the kernel over all pairs of different members; each pair is computed once."""
    total = torch.zeros((), dtype=torch.float64, device=x_nD.device)
    for start in range(0, len(x_nD), STRIP):
        rows = x_nD[start : start + STRIP]
        total += _kernel(rows, rows).fill_diagonal_(0).sum() + 2 * _kernel(rows, x_nD[start + STRIP :]).sum()
    return total


def _kernel(a_nD: Tensor, b_mD: Tensor) -> Tensor:
    # Products in float32, all else in float64: their rounding is far below the spread between subsets.
    base_nm = (a_nD @ b_mD.T).double().div_(a_nD.shape[1]).add_(1)
    return (base_nm * base_nm).mul_(base_nm)
