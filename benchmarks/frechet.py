"""How long the Fréchet distance takes: ``OMP_NUM_THREADS=1 python benchmarks/frechet.py``.

Prints one line per step for 2048 features, the size of the Inception network's. Aim: the distance in under 10 s on one
core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from overture.evaluation.gaussian import Gaussian, GaussianStatistics
from overture.evaluation.metrics.frechet_distance import frechet_distance

R = TypeVar("R")


def timed(what: str, work: Callable[[], R]) -> R:
    """Run ``work`` and print its wall time."""
    start = time.perf_counter()
    result = work()
    print(f"{what:40} {time.perf_counter() - start:7.2f} s")
    return result


def statistics(samples: int, dims: int, seed: int) -> Gaussian:
    """Statistics of half-normal features with very different scales, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    accumulated = GaussianStatistics(dims)
    scale = torch.logspace(-2, 0, dims)
    for batch in torch.randn(samples, dims, generator=generator).abs().mul_(scale).split(250):
        accumulated.update(batch)
    return accumulated.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=5000)
    arguments = parser.parse_args()
    dims, samples = arguments.dims, arguments.samples
    print(f"{dims} features, {torch.get_num_threads()} threads")
    a = timed(f"statistics of {samples} samples", lambda: statistics(samples, dims, 0))
    b = timed(f"statistics of {samples} samples", lambda: statistics(samples, dims, 1))
    few = statistics(dims // 4, dims, 2)
    result = timed("distance, full rank", lambda: frechet_distance(a, b))
    print(f"    {result.distance:.6g}, ranks {result.rank_a} and {result.rank_b}")
    result = timed("distance, one side rank-deficient", lambda: frechet_distance(few, b))
    print(f"    {result.distance:.6g}, ranks {result.rank_a} and {result.rank_b}")
    result = timed("distance to itself", lambda: frechet_distance(a, a))
    print(f"    {result.distance:.3g}")


if __name__ == "__main__":
    main()
