"""What a tokenizer loses: every image encoded and decoded once, and all numbers taken from that one pass.

Images are uint8 ``[B, C, H, W]`` batches, as they would be saved; so are reconstructions before they are compared.
Under several processes each gives its own share of the images, and each gets the result for all of them.

Shapes: B batch, C channels, H W height and width, N images, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from overture.data.transforms import to_float, to_uint8
from overture.errors import OvertureError
from overture.evaluation.conditions import Conditions, Measurement
from overture.evaluation.evaluation import frechet_measurement
from overture.evaluation.gaussian import GaussianStatistics
from overture.evaluation.image_hash import ImageSetHash
from overture.evaluation.image_quality import ReconstructionMeter, ReconstructionQuality
from overture.evaluation.lpips import LpipsMeter
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.statistics import ImageStatistics
from overture.evaluation.usage import CodebookUsage, UsageMeter
from overture.layout import Layout
from overture.losses.perceptual import Lpips
from overture.processes import Processes, widest_float
from overture.progress import heed_stop, progress_bar

__all__ = ["ReconstructionReport", "measure_reconstruction"]


class TokenizerLike(Protocol):
    """What a tokenizer must offer to be measured."""

    @property
    def layout(self) -> Layout:
        """The layout of its ids."""

    def encode(self, images: Tensor) -> Tensor:
        """Float ``[B, C, H, W]`` in [-1, 1] -> local ids ``[B, T]``."""

    def decode(self, ids: Tensor) -> Tensor:
        """Local ids ``[B, T]`` -> float ``[B, C, H, W]``, unclamped."""


@dataclass(frozen=True, eq=False)
class ReconstructionReport:
    """What a tokenizer loses, and how it uses its codebooks."""

    quality: ReconstructionQuality
    usage: CodebookUsage
    l1: float
    """Mean absolute error of images in [-1, 1], before reconstructions are rounded to uint8."""
    distance: Measurement | None
    """``rFID`` or ``rFD(network)``, to the very images that were encoded."""
    lpips: float | None
    ids_NT: Tensor
    """The local ids of all images."""
    shown: Tensor
    """Some images and their reconstructions, uint8 ``[2, n, C, H, W]``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        quality = self.quality.to_dict() | ({} if self.lpips is None else {"lpips": self.lpips})
        distance = {} if self.distance is None else {"distance": self.distance.to_dict()}
        return {**distance, "quality": quality, "usage": self.usage.to_dict(), "l1": self.l1}


@torch.inference_mode()
def measure_reconstruction(
    tokenizer: TokenizerLike,
    batches: Iterable[Tensor],
    network: FeatureNetwork | None = None,
    conditions: Conditions = Conditions(),
    *,
    lpips: Lpips | None = None,
    shown: int = 16,
    device: torch.device | str = "cpu",
    processes: Processes = Processes(),
    progress: bool = False,
) -> ReconstructionReport:
    """Encode and decode every image once: PSNR, SSIM, codebook usage; with a ``network`` the distance of the
    reconstructions to their originals; with ``lpips`` that too. ``shown`` pairs are kept for a picture."""
    quality, usage = ReconstructionMeter(), UsageMeter(tokenizer.layout)
    perceptual = LpipsMeter(lpips) if lpips is not None else None
    sides = _Sides(network) if network is not None else None
    error_2 = torch.zeros(2, dtype=torch.double)  # sum of absolute errors, number of values
    ids: list[Tensor] = []
    pairs = _DrawnPairs(shown)
    with processes.agree(), progress_bar("reconstructing", shown=progress) as bar:
        for images in batches:
            heed_stop("the measurements")
            x = to_float(images.to(device))
            ids.append(tokenizer.encode(x).cpu())
            y = tokenizer.decode(ids[-1].to(device))
            if y.shape != x.shape:
                sizes = f"{tuple(x.shape)} and came back as {tuple(y.shape)}"
                raise OvertureError(f"reconstruction: images went in as {sizes}; give images of the tokenizer's size")
            apart = (y - x).abs().to(widest_float(x.device)).sum()
            error_2 += torch.tensor([float(apart), x.numel()], dtype=torch.double)
            images, decoded = images.cpu(), to_uint8(y).cpu()
            usage.update(ids[-1])
            quality.update(images, decoded)
            for meter in (perceptual, sides):
                if meter is not None:
                    meter.update(images, decoded)
            pairs.update(images, decoded)
            bar.update(len(images) * processes.size)
        if processes.size > 1 and not ids:
            raise OvertureError("reconstruction: there are no images for this process; start fewer")
    for part in (quality, usage, perceptual, sides):
        if part is not None:
            part.all_reduce(processes)
    total, values = processes.sum(error_2).tolist()
    result = quality.result()  # refuses no images at all
    return ReconstructionReport(
        quality=result,
        usage=usage.result(),
        l1=total / values,
        distance=sides.distance(conditions) if sides is not None else None,
        lpips=perceptual.result() if perceptual is not None else None,
        ids_NT=processes.gather_rows(torch.cat(ids)),
        shown=pairs.result(processes),
    )


class _DrawnPairs:
    """``count`` images with their reconstructions, drawn from all of them: data are often sorted by class.

    An image's draw is a function of its pixels, so that it does not hang on how many processes share the images.
    """

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, 0
        self.kept: list[tuple[int, int, Tensor]] = []

    def update(self, images: Tensor, decoded: Tensor) -> None:
        for image, reconstruction in zip(images, decoded, strict=True):
            digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest()
            draw = int.from_bytes(digest, "little") >> 1
            if len(self.kept) < self.count or (self.kept and draw < self.kept[-1][0]):
                pair = torch.stack([image, reconstruction])
                self.kept = sorted([*self.kept, (draw, self.seen, pair)], key=lambda one: one[0])[: self.count]
            self.seen += 1

    def result(self, processes: Processes) -> Tensor:
        """``[2, count, C, H, W]`` of all processes, in the order of the images."""
        if not self.count:
            return torch.empty(2, 0)
        self.kept.sort(key=lambda one: one[1])
        draws = processes.gather_rows(torch.tensor([draw for draw, _, _ in self.kept]))
        pairs = processes.gather_rows(torch.stack([pair for _, _, pair in self.kept]))
        chosen = draws.argsort(stable=True)[: self.count].sort().values
        return pairs[chosen].transpose(0, 1)


class _Sides:
    """Feature statistics of images and of their reconstructions."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network, self.digest = network, ImageSetHash()
        self.originals, self.decoded = GaussianStatistics(network.dims), GaussianStatistics(network.dims)

    def update(self, images: Tensor, decoded: Tensor) -> None:
        self.digest.update(images)
        self.originals.update(self.network(images))
        self.decoded.update(self.network(decoded))

    def all_reduce(self, processes: Processes) -> None:
        for part in (self.digest, self.originals, self.decoded):
            part.all_reduce(processes)

    def distance(self, conditions: Conditions) -> Measurement:
        network, digest = self.network, self.digest.hexdigest()
        about: dict[str, Any] = {"network": network.name, "network_hash": network.weights_hash}
        count = self.originals.count
        decoded = ImageStatistics("the reconstructions", digest, count, self.decoded.result(), **about)
        originals = ImageStatistics("the same images", digest, count, self.originals.result(), **about)
        return frechet_measurement(f"r{network.label}", decoded, originals, network, conditions)
