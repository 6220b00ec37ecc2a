"""Measure images and tokenizers: the calls that training stages and commands make.

Images are uint8 ``[B, C, H, W]`` batches, as they would be saved. Under ``torch.distributed`` every process gives its
own share of the images, and each gets the result for all of them.

Shapes: B batch, C channels, H W height and width, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor
from tqdm import tqdm

from overture.data.transforms import to_float, to_uint8
from overture.errors import OvertureError
from overture.evaluation.frechet import Gaussian, GaussianStatistics, frechet_distance
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.protocol import Measurement, Protocol
from overture.evaluation.reconstruction import ReconstructionMeter, ReconstructionQuality
from overture.evaluation.reference import ImageSetHash, Reference
from overture.evaluation.usage import CodebookUsage, UsageMeter
from overture.layout import Layout

__all__ = [
    "ReconstructionReport",
    "check_reference",
    "feature_statistics",
    "generation_distance",
    "make_reference",
    "measure_distance",
    "reconstruction_report",
    "take",
]


class TokenizerLike(Interface):
    """What a tokenizer must offer to be measured."""

    @property
    def layout(self) -> Layout:
        """The layout of its ids."""

    def encode(self, images: Tensor) -> Tensor:
        """Float ``[B, C, H, W]`` in [-1, 1] -> local ids ``[B, T]``."""

    def decode(self, ids: Tensor) -> Tensor:
        """Local ids ``[B, T]`` -> float ``[B, C, H, W]``, unclamped."""


class PairMeter(Interface):
    """Something that sees images and their reconstructions, uint8 ``[B, C, H, W]``."""

    def update(self, images: Tensor, others: Tensor) -> None:
        """Add pairs."""

    def all_reduce(self) -> None:
        """Add what all other processes have seen."""


def take(batches: Iterable[Tensor], images: int) -> Iterator[Tensor]:
    """The first ``images`` images of the batches; an error when there are fewer."""
    left = images
    for batch in batches:
        if left <= 0:
            return
        yield batch[:left]
        left -= len(batch)
    if left > 0:
        raise OvertureError(f"asked for {images} images but the source has {images - left}; ask for fewer")


def feature_statistics(
    network: FeatureNetwork, batches: Iterable[Tensor], *, progress: bool = False
) -> GaussianStatistics:
    """Statistics of the network's features over all batches (and all processes)."""
    statistics = GaussianStatistics(network.dims)
    for images in _shown(batches, network.name, progress):
        statistics.update(network(images))
    statistics.all_reduce()
    return statistics


def make_reference(
    name: str, network: FeatureNetwork, batches: Iterable[Tensor], *, progress: bool = False
) -> Reference:
    """A reference from images; ``Reference.save`` keeps it for the next time."""
    digest = ImageSetHash()

    def hashed() -> Iterator[Tensor]:
        for images in batches:
            digest.update(images)
            yield images

    gaussian = feature_statistics(network, hashed(), progress=progress).result()
    digest.all_reduce()
    return Reference(name, gaussian, digest.hexdigest(), network.name, network.weights_hash)


def check_reference(reference: Reference, network: FeatureNetwork, where: str = "") -> None:
    """Refuse statistics of another network; ``where`` they lie, if not only their name is known."""
    where = where or f"reference '{reference.name}'"
    if reference.network_hash is not None and reference.network_hash != network.weights_hash:
        raise OvertureError(
            f"{where}: these statistics were made with {reference.network} of other weights than {network.name}; "
            "make them again with this network"
        )
    if reference.gaussian.dims != network.dims:
        raise OvertureError(
            f"{where}: {reference.gaussian.dims} features, {network.name} has {network.dims}; "
            "make the statistics with this network"
        )


def measure_distance(
    name: str,
    gaussian: Gaussian,
    network: FeatureNetwork,
    reference: Reference,
    protocol: Protocol,
    measured: str = "the images",
) -> Measurement:
    """The Fréchet distance of statistics to a reference, with the rest of ``protocol`` filled in.

    ``measured`` is what errors call the side that is no reference. Callers have seen to it (:func:`check_reference`)
    that both sides are of this network.
    """
    result = frechet_distance(gaussian, reference.gaussian, (measured, reference.name))
    notes = []
    if reference.network_hash is None:
        notes.append("the reference does not say which network made it")
    for side, rank in (("images", result.rank_a), ("reference", result.rank_b)):
        if rank < result.dims:
            notes.append(f"the covariance of the {side} is singular: rank {rank} of {result.dims}")
    return Measurement(
        name=name,
        value=result.distance,
        unit="",
        protocol=dataclasses.replace(
            protocol,
            network=network.name,
            network_hash=network.weights_hash,
            preparation=network.preparation,
            reference=reference.name,
            reference_hash=reference.hash,
            reference_images=reference.gaussian.count,
            images=gaussian.count,
        ),
        notes=tuple(notes),
    )


def generation_distance(
    network: FeatureNetwork,
    batches: Iterable[Tensor],
    reference: Reference,
    protocol: Protocol | None = None,
    *,
    progress: bool = False,
) -> Measurement:
    """``gFID`` or ``gFD(<network>)`` of generated images; ``protocol`` says how they were generated."""
    check_reference(reference, network)
    gaussian = feature_statistics(network, batches, progress=progress).result()
    return measure_distance(f"g{network.label}", gaussian, network, reference, protocol or Protocol())


@dataclass(frozen=True)
class ReconstructionReport:
    """What a tokenizer loses, and how it uses its codebooks."""

    distance: Measurement
    quality: ReconstructionQuality
    usage: CodebookUsage

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "distance": self.distance.to_dict(),
            "quality": self.quality.to_dict(),
            "usage": self.usage.to_dict(),
        }


@torch.inference_mode()
def reconstruction_report(
    tokenizer: TokenizerLike,
    batches: Iterable[Tensor],
    network: FeatureNetwork,
    reference: Reference | None = None,
    protocol: Protocol | None = None,
    *,
    meters: Sequence[PairMeter] = (),
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> ReconstructionReport:
    """Encode and decode every image once: ``rFID`` or ``rFD(<network>)``, PSNR, SSIM and codebook usage.

    Reconstructions are compared as uint8. Without a ``reference`` they are measured against the very images they
    come from, as rFID is meant. ``meters`` see every pair as well.
    """
    if reference is not None:
        check_reference(reference, network)
    originals, reconstructions = GaussianStatistics(network.dims), GaussianStatistics(network.dims)
    meter, usage, digest = ReconstructionMeter(), UsageMeter(tokenizer.layout), ImageSetHash()
    for images in _shown(batches, "reconstruction", progress):
        ids = tokenizer.encode(to_float(images.to(device)))
        decoded = to_uint8(tokenizer.decode(ids)).cpu()
        if decoded.shape != images.shape:
            sizes = f"{tuple(images.shape)} and came back as {tuple(decoded.shape)}"
            raise OvertureError(f"reconstruction: images went in as {sizes}; give images of the tokenizer's size")
        usage.update(ids)
        meter.update(images.cpu(), decoded)
        for each in meters:
            each.update(images.cpu(), decoded)
        reconstructions.update(network(decoded))
        if reference is None:
            originals.update(network(images))
            digest.update(images)
    for part in (reconstructions, originals, meter, usage, digest):
        part.all_reduce()
    for each in meters:
        each.all_reduce()
    if reference is None:
        reference = Reference(
            "the same images", originals.result(), digest.hexdigest(), network.name, network.weights_hash
        )
    distance = measure_distance(
        f"r{network.label}", reconstructions.result(), network, reference, protocol or Protocol()
    )
    return ReconstructionReport(distance, meter.result(), usage.result())


def _shown(batches: Iterable[Tensor], what: str, progress: bool) -> Iterator[Tensor]:
    """The batches, with the images counted on stderr."""
    with tqdm(desc=what, unit="image", disable=not progress) as bar:
        for images in batches:
            yield images
            bar.update(len(images))
