"""How long the metrics take beside the network: ``python benchmarks/metrics.py``.

Two sets of ``--images`` features of ``--dims`` dimensions, as a network would give them, stand for 256 px images. Timed
are the statistics, the Fréchet distance, precision and recall, KID, and the hashes of the images; printed is the peak
memory of the process. ``--file`` also reads and hashes an ``.npz`` reference of 2 GB. Precision and recall compare all
pairs in float64.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from overture.evaluation.gaussian import GaussianStatistics
from overture.evaluation.image_hash import ImageSetHash
from overture.evaluation.image_sets import open_images
from overture.evaluation.metrics.frechet_distance import frechet_distance
from overture.evaluation.metrics.kernel_distance import kernel_distance
from overture.evaluation.metrics.precision_recall import share_inside
from overture.evaluation.networks import load_network
from overture.evaluation.statistics import collect

R = TypeVar("R")


def timed(what: str, work: Callable[[], R]) -> R:
    """Run ``work``; print its wall time and the peak memory so far."""
    start = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what:44} {time.perf_counter() - start:7.2f} s   peak {peak:.2f} GB", flush=True)
    return result


def features(count: int, dims: int, seed: int, rank: int) -> torch.Tensor:
    """Half-normal features that vary in ``rank`` directions, with less and less variance, and a little in all."""
    generator = torch.Generator().manual_seed(seed)
    mixing = (
        torch.randn(rank, dims, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1.5, rank)[:, None]
    )
    x = torch.empty(count, dims)
    for rows in x.split(5000):
        noise = 0.05 * torch.randn(len(rows), dims, generator=generator)
        rows[:] = (torch.randn(len(rows), rank, generator=generator) @ mixing / rank**0.5 + noise).relu()
    return x


def statistics(x: torch.Tensor) -> GaussianStatistics:
    accumulated = GaussianStatistics(x.shape[1])
    for batch in x.split(250):
        accumulated.update(batch)
    return accumulated


def hashes(count: int, size: int) -> str:
    digest = ImageSetHash()
    images = torch.randint(0, 256, (250, 3, size, size), dtype=torch.uint8)  # coloured: all channels are hashed
    for _ in range(count // 250):
        digest.update(images)
    return digest.hexdigest()


def reference_file(gigabytes: float) -> None:
    """Read and hash an ``.npz`` of images piece by piece, stored and compressed."""
    count = int(gigabytes * 1e9 / (256 * 256 * 3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.npz"
        np.savez(path, arr_0=np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (count, 256, 256, 3)))
        network = load_network("random:64")
        timed(
            f"read, hash and collect {path.stat().st_size / 1e9:.1f} GB",
            lambda: collect(open_images(str(path)), network),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument(
        "--reference-images", type=int, default=0, help="ADM's reference holds 10,000 (default: --images)"
    )
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--file", action="store_true")
    arguments = parser.parse_args()
    count, dims = arguments.images, arguments.dims
    print(
        f"{count:,} + {arguments.reference_images or count:,} images, {dims} features, {torch.get_num_threads()} threads"
    )
    if arguments.file:
        timed("start", lambda: None)
        return reference_file(2.0)
    others = arguments.reference_images or count
    samples = features(count, dims, 1, arguments.rank)
    reference = features(others, dims, 2, arguments.rank)
    start = time.perf_counter()
    timed("hash of the images, both sides", lambda: [hashes(n, arguments.size) for n in (count, others)])
    a, b = timed("statistics, both sides", lambda: [statistics(x).result() for x in (samples, reference)])
    distance = timed("Fréchet distance", lambda: frechet_distance(a, b))
    kid = timed("KID", lambda: kernel_distance(samples, reference))
    precision = timed("precision", lambda: share_inside(samples, reference))
    recall = timed("recall", lambda: share_inside(reference, samples))
    print(f"all: {time.perf_counter() - start:.1f} s")
    print(f"distance {distance.distance:.6g}, KID {kid.value:.6g}, precision {precision}, recall {recall}")
    return None


if __name__ == "__main__":
    main()
