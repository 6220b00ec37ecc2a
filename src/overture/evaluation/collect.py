"""One pass of a feature network over a set of images: everything that metrics need of one side.

Every process takes a share of the images and gets the result for all of them; it depends neither on the number of
processes nor on the batch size. Features themselves are kept only where a metric needs them (N x D float32).

Shapes: N images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from overture.errors import OvertureError
from overture.evaluation.frechet import Gaussian, GaussianStatistics
from overture.evaluation.image_sets import ImageSet
from overture.evaluation.inception_score import InceptionScore, InceptionScoreMeter
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.processes import my_share, sum_over_processes, world_size
from overture.evaluation.reference import ImageSetHash

__all__ = ["Collected", "collect"]


@dataclass(frozen=True, eq=False)
class Collected:
    """What is known of one side: images that were measured, or a statistics file."""

    name: str
    hash: str
    """Of the images (:class:`ImageSetHash`), or of the file that says no more."""
    images: int | None
    """How many; None where a statistics file does not tell."""
    gaussian: Gaussian
    spatial: Gaussian | None = None
    score: InceptionScore | None = None
    features_ND: Tensor | None = None
    size: tuple[int, int] | None = None
    """Height and width of the images."""
    cut: str | None = None
    """What was done to the images before, in words."""
    network_hash: str | None = None


def collect(
    images: ImageSet,
    network: FeatureNetwork,
    count: int | None = None,
    *,
    keep_features: bool = False,
    batch_size: int = 100,
    split_size: int = 5000,
    progress: bool = False,
) -> Collected:
    """The first ``count`` images (all of them by default) under the network.

    ``split_size`` is that of the Inception Score. Fewer images than asked are an error.
    """
    available = len(images)
    total = available if count is None else count
    if total > available:
        raise OvertureError(f"{images.name}: asked for {total:,} images but it has {available:,}; ask for fewer")
    if total < 2:
        raise OvertureError(f"{images.name}: {total} images give no statistics, needs at least 2")
    if batch_size < 1:
        raise OvertureError(f"batch size is {batch_size}, needs at least 1")
    share = my_share(total)
    if total < world_size():
        raise OvertureError(f"{images.name}: {total} images for {world_size()} processes; start fewer")
    features, digest = GaussianStatistics(network.dims), ImageSetHash()
    spatial: GaussianStatistics | None = None
    score = InceptionScoreMeter(total, split_size) if "logits" in network.offers else None
    kept_ND = torch.zeros(total, network.dims) if keep_features else None
    size, place = (0, 0), share.start
    with tqdm(total=len(share), desc=images.name, unit="image", disable=not progress) as bar:
        for batch in images.batches(share.start, share.stop, batch_size):
            outputs = network.outputs(batch)
            digest.update(batch)
            features.update(outputs.features)
            if outputs.spatial is not None:
                spatial = spatial or GaussianStatistics(outputs.spatial.shape[1])
                spatial.update(outputs.spatial)
            if score is not None and outputs.logits is not None:
                score.update(outputs.logits, place)
            if kept_ND is not None:
                kept_ND[place : place + len(batch)] = outputs.features.cpu()
            size, place = (batch.shape[2], batch.shape[3]), place + len(batch)
            bar.update(len(batch))
    if place != share.stop:
        raise OvertureError(f"{images.name}: gave {place - share.start} of {len(share)} images")
    features.all_reduce()
    digest.all_reduce()
    if spatial is not None:
        spatial.all_reduce()
    if score is not None:
        score.all_reduce()
    return Collected(
        name=images.name,
        hash=digest.hexdigest(),
        images=total,
        gaussian=features.result(),
        spatial=spatial.result() if spatial else None,
        score=score.result() if score else None,
        features_ND=None if kept_ND is None else sum_over_processes(kept_ND),
        size=size,
        cut=images.cut,
        network_hash=network.weights_hash,
    )
