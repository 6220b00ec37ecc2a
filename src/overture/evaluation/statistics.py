"""What metrics need of one side, samples or reference: collected in one pass of a feature network, or read from a file.

Every process takes a share of the images and gets the result for all of them. The network sees images in blocks of a
fixed size that begin at the same places whatever the number of processes: only sums are rounded otherwise.
Features themselves are kept only where a metric needs them (N x D float32).

Shapes: N images, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overture.data.npz import ArrayEntry, array_entries, read_array, write_arrays
from overture.data.order import generator, some_of
from overture.errors import OvertureError, UsageError
from overture.evaluation.gaussian import Gaussian, GaussianStatistics
from overture.evaluation.image_hash import ImageSetHash
from overture.evaluation.image_sets import DrawnImages, ImageSet, is_statistics_file, open_images
from overture.evaluation.metrics.inception_score import InceptionScore, InceptionScoreMeter
from overture.evaluation.metrics.precision_recall import neighbour_squares
from overture.evaluation.networks import FeatureNetwork, Outputs
from overture.files import file_hash
from overture.processes import Processes
from overture.progress import heed_stop, progress_bar

__all__ = [
    "BLOCK", "ImageStatistics", "collect", "measure_batches", "open_reference", "open_samples", "read_statistics",
    "save_reference",
]  # fmt: skip

BLOCK = 100
"""Images that a feature network sees at once, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """What is known of one side: images that were measured, or a statistics file."""

    name: str
    hash: str
    """Of the images (:class:`ImageSetHash`), or of the file that says no more."""
    images: int | None
    """How many; None where a statistics file does not tell."""
    gaussian: Gaussian
    """Mean and covariance of the features."""
    spatial: Gaussian | None = None
    """The same of the spatial features (for sFID), where the network has any."""
    score: InceptionScore | None = None
    features_ND: Tensor | None = None
    size: tuple[int, int] | None = None
    """Height and width of the images."""
    cut: str | None = None
    """What was done to the images before, in words."""
    network: str | None = None
    """Name and weights of the network that gave the features; None in plain files of ``mu`` and ``sigma``."""
    network_hash: str | None = None
    pictures: ImageSet | None = None
    """The images themselves, for metrics that look at them."""
    processes: Processes = Processes()
    """Who measures together; all of them hold this."""

    @cached_property
    def neighbour_squares_N(self) -> Tensor:
        """The size of every feature's ball in precision and recall; a reference is asked for it by every set of samples."""
        assert self.features_ND is not None
        return neighbour_squares(self.features_ND, processes=self.processes)

    def check_network(self, network: FeatureNetwork) -> None:
        """Refuse statistics of another network."""
        made, wanted = (self.network, self.network_hash), (network.name, network.weights_hash)
        if self.network_hash is not None and made != wanted:
            other = (
                f"of other weights than {network.name}" if self.network == network.name else f"and not {network.name}"
            )
            raise OvertureError(
                f"{self.name}: these statistics were made with {self.network} {other}; make them again with this network"
            )
        if self.gaussian.dims != network.dims:
            raise OvertureError(
                f"{self.name}: {self.gaussian.dims} features, {network.name} has {network.dims}; "
                "make the statistics with this network"
            )

    def save(self, path: Path, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Write an ``.npz`` that plain readers of ``mu`` and ``sigma`` understand too; ``arrays`` go beside them."""
        words = {"name": self.name, "hash": self.hash, "network": self.network, "network_hash": self.network_hash}
        if self.size is not None:
            words["size"] = f"{self.size[0]}x{self.size[1]}"
        content: dict[str, Any] = {key: np.str_(text) for key, text in words.items() if text is not None}
        if self.images is not None:
            content["count"] = np.int64(self.images)
        for end, gaussian in (("", self.gaussian), ("_s", self.spatial)):
            if gaussian is not None:
                content |= {f"mu{end}": gaussian.mean.numpy(), f"sigma{end}": gaussian.covariance.numpy()}
        write_arrays(path, {**content, **(arrays or {})})


# -- from images ----------------------------------------------------------------------------------------------------


def collect(
    images: ImageSet,
    network: FeatureNetwork,
    count: int | None = None,
    *,
    keep_features: bool = False,
    batch_size: int = BLOCK,
    split_size: int = 5000,
    processes: Processes = Processes(),
    progress: bool = False,
) -> ImageStatistics:
    """``count`` images of a set, drawn from all of it, or all (by default), under the network.

    ``split_size`` is that of the Inception Score, whose splits are drawn too. Fewer images than asked are an error.
    """
    available = len(images)
    total = available if count is None else count
    if total > available:
        raise OvertureError(f"{images.name}: asked for {total:,} images but it has {available:,}; ask for fewer")
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, needs at least 1")
    if total < processes.size:
        raise OvertureError(f"{images.name}: {total} images for {processes.size} processes; start fewer")
    share = processes.share_out(total, batch_size)
    drawn = images if total == available else DrawnImages(images, some_of(available, total))
    rows = np.arange(share.start, share.stop, dtype=np.int64)
    measured = measure_batches(
        images.name,
        network,
        drawn.batches(rows, batch_size),
        total=total,
        start=share.start,
        keep_features=keep_features,
        split_size=split_size,
        processes=processes,
        progress=progress,
    )
    return replace(measured, cut=images.cut, pictures=drawn)


def measure_batches(
    name: str,
    network: FeatureNetwork,
    batches: Iterable[Tensor],
    *,
    total: int | None = None,
    start: int = 0,
    keep_features: bool = False,
    split_size: int = 5000,
    processes: Processes = Processes(),
    progress: bool = False,
) -> ImageStatistics:
    """Statistics of uint8 ``[B, C, H, W]`` batches: this process's share of ``total`` images, the first being ``start``.

    Where the total is not known before, there is no Inception Score: its splits are drawn.
    """
    collector = _Collector(network, total, start, keep_features, split_size)
    with processes.agree(), progress_bar(name, total, shown=progress) as bar:
        for batch in in_blocks(batches):
            heed_stop("the measurements")
            collector.update(batch, network.outputs(batch))
            bar.update(len(batch) * processes.size)
        if processes.size > 1 and not collector.count:
            raise OvertureError(f"{name}: there are no images for this process; start fewer")
    return collector.result(name, processes)


def in_blocks(batches: Iterable[Tensor], size: int = BLOCK) -> Iterator[Tensor]:
    """The same images in batches of ``size``: what a network says of an image may hang on its company, by rounding."""
    kept: list[Tensor] = []
    count = 0
    for batch in batches:
        for part in batch.split(max(size - count, 1)) if count + len(batch) > size else (batch,):
            kept, count = [*kept, part], count + len(part)
            while count >= size:
                joined = torch.cat(kept)
                yield joined[:size]
                kept, count = ([joined[size:]], count - size) if count > size else ([], 0)
    if count:
        yield torch.cat(kept)


class _Collector:
    """Everything that one pass over images adds up."""

    def __init__(
        self, network: FeatureNetwork, total: int | None, start: int, keep_features: bool, split_size: int
    ) -> None:
        self.network, self.total = network, total
        self.features, self.digest = GaussianStatistics(network.dims), ImageSetHash()
        self.spatial: GaussianStatistics | None = None
        scored = total is not None and "logits" in network.offers
        self.score = InceptionScoreMeter(total or 1, split_size) if scored else None
        # Splits are drawn, since sets are often sorted by class: the place of each image, of this process's in order.
        self.places = generator("order", 0, 0).permutation(total or 0)[start:]
        self.kept: list[Tensor] | None = [] if keep_features else None
        self.count, self.size = 0, (0, 0)

    def update(self, images: Tensor, outputs: Outputs) -> None:
        self.digest.update(images)
        self.features.update(outputs.features)
        if outputs.spatial is not None:
            self.spatial = self.spatial or GaussianStatistics(outputs.spatial.shape[1])
            self.spatial.update(outputs.spatial)
        if self.score is not None and outputs.logits is not None:
            places = self.places[self.count : self.count + len(images)]
            self.score.update(outputs.logits, torch.from_numpy(places))
        if self.kept is not None:
            self.kept.append(outputs.features.cpu())
        self.count, self.size = self.count + len(images), (images.shape[2], images.shape[3])

    def result(self, name: str, processes: Processes) -> ImageStatistics:
        total = int(processes.sum(torch.tensor(self.count)))
        if self.total is not None and total != self.total:
            raise OvertureError(f"{name}: gave {total} of {self.total} images")
        if total < 2:
            raise OvertureError(f"{name}: {total} images give no statistics, needs at least 2")
        for part in (self.features, self.digest, self.spatial, self.score):
            if part is not None:
                part.all_reduce(processes)
        return ImageStatistics(
            name=name,
            hash=self.digest.hexdigest(),
            images=total,
            gaussian=self.features.result(),
            spatial=self.spatial.result() if self.spatial else None,
            score=self.score.result() if self.score else None,
            features_ND=None if self.kept is None else processes.gather_rows(torch.cat(self.kept)),
            size=self.size,
            network=self.network.name,
            network_hash=self.network.weights_hash,
            processes=processes,
        )


# -- by what the user calls it --------------------------------------------------------------------------------------


def open_samples(
    spec: str,
    network: FeatureNetwork,
    *,
    keep_features: bool = False,
    images: int | None = None,
    image_size: int | None = None,
    batch_size: int = BLOCK,
    processes: Processes = Processes(),
    progress: bool = False,
) -> ImageStatistics:
    """The measured side: an image set, or a statistics file (as :func:`open_reference` reads it)."""
    how: dict[str, Any] = {"batch_size": batch_size, "processes": processes, "progress": progress}
    if not is_statistics_file(spec):
        return collect(open_images(spec, image_size), network, images, keep_features=keep_features, **how)
    if images is not None:
        raise UsageError(f"{spec}: holds statistics, so it cannot be cut to {images:,} images; leave out --images")
    return open_reference(spec, network, keep_features=keep_features, image_size=image_size, **how)


def open_reference(
    spec: str,
    network: FeatureNetwork,
    *,
    keep_features: bool = False,
    image_size: int | None = None,
    batch_size: int = BLOCK,
    processes: Processes = Processes(),
    progress: bool = False,
) -> ImageStatistics:
    """The side that is measured against. Statistics in a file count for more than its images.

    ADM's references hold the statistics of the whole set and 10,000 of its images: as there, FID and sFID are taken
    against the former, precision and recall (and KID) against the latter.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "processes": processes, "progress": progress}
    if not is_statistics_file(spec):
        return open_samples(spec, network, keep_features=keep_features, image_size=image_size, **how)
    side = read_statistics(Path(spec).expanduser(), network)
    if "arr_0" not in array_entries(Path(spec).expanduser()):
        return side
    found = open_images(spec, image_size)
    if not keep_features:
        return replace(side, pictures=found)
    kept = collect(found, network, keep_features=True, **how)
    return replace(
        side, features_ND=kept.features_ND, size=side.size or kept.size, cut=kept.cut, pictures=kept.pictures
    )


def save_reference(side: ImageStatistics, path: Path, keep: int = 0) -> None:
    """Write statistics, and with ``keep`` so many of the images too (for precision, recall and KID), as ADM's files do."""
    if path.suffix != ".npz":
        raise UsageError(f"{path}: a reference is an .npz file")
    if side.pictures is None or side.images is None:
        raise UsageError(f"{side.name}: holds statistics already; a reference is made of images")
    if keep > side.images:
        raise OvertureError(f"{side.name}: asked to keep {keep:,} images of {side.images:,}")
    arrays = {}
    if keep:
        rows = some_of(len(side.pictures), keep)
        arrays["arr_0"] = joined_pixels(side.pictures.batches(rows, 1000))
    side.save(path, arrays)


def joined_pixels(batches: Iterable[Tensor]) -> NDArray[np.uint8]:
    """uint8 ``[N, H, W, C]`` of ``[B, C, H, W]`` batches; grey batches among coloured ones become coloured."""
    parts: list[Any] = [batch.permute(0, 2, 3, 1).numpy() for batch in batches]
    if len({part.shape[3] for part in parts}) > 1:
        parts = [np.broadcast_to(part, (*part.shape[:3], 3)) for part in parts]
    return np.concatenate(parts)


# -- statistics files -----------------------------------------------------------------------------------------------


def read_statistics(path: Path, network: FeatureNetwork | None = None) -> ImageStatistics:
    """A file of :meth:`ImageStatistics.save`, or anyone's ``.npz`` with ``mu`` and ``sigma`` (``mu_s``, ``sigma_s``).

    With a ``network``, statistics of another one are refused. Other arrays of the file, such as gigabytes of images,
    are not read.
    """
    entries = array_entries(path)
    if "mu" not in entries or "sigma" not in entries:
        raise OvertureError(f"{path}: holds {', '.join(entries) or 'nothing'}, needs mu and sigma")
    words = dict(_words(entries))
    count = _count(entries, path)
    spatial = _gaussian(entries, "mu_s", "sigma_s", count, path) if {"mu_s", "sigma_s"} <= entries.keys() else None
    pictures = entries.get("arr_0")
    size = _size(words["size"], path) if "size" in words else None
    if pictures is not None and len(pictures.shape) >= 3:
        kept = (pictures.shape[1], pictures.shape[2])
        if size is not None and size != kept:
            raise OvertureError(
                f"{path}: contradicts itself: statistics of images of {size[0]}x{size[1]}, beside images of "
                f"{kept[0]}x{kept[1]}; make it again"
            )
        if count is not None and pictures.shape[0] > count:
            raise OvertureError(
                f"{path}: contradicts itself: statistics of {count:,} images, beside {pictures.shape[0]:,}; make it again"
            )
        size = kept
    side = ImageStatistics(
        name=words.get("name", path.name),
        hash=words.get("hash") or file_hash(path),
        images=count,
        gaussian=_gaussian(entries, "mu", "sigma", count, path),
        spatial=spatial,
        size=size,
        network=words.get("network"),
        network_hash=words.get("network_hash"),
    )
    if network is not None:
        try:
            side.check_network(network)
        except OvertureError as error:
            raise OvertureError(f"{path}: {error}") from error
    return side


def _words(entries: Mapping[str, ArrayEntry]) -> Iterator[tuple[str, str]]:
    for key, entry in entries.items():
        if entry.dtype.kind == "U" and entry.shape == ():
            yield key, str(read_array(entry))


def _count(entries: Mapping[str, ArrayEntry], path: Path) -> int | None:
    if "count" not in entries:
        return None
    if entries["count"].shape != () or entries["count"].dtype.kind not in "iu":
        raise OvertureError(f"{path}: count is no whole number")
    count = int(read_array(entries["count"]))
    if count < 2:
        raise OvertureError(f"{path}: count is {count}, statistics need at least 2 images")
    return count


def _gaussian(entries: Mapping[str, ArrayEntry], mean: str, covariance: str, count: int | None, path: Path) -> Gaussian:
    for key in (mean, covariance):
        if entries[key].dtype.kind not in "iuf":
            raise OvertureError(f"{path}: {key} is {entries[key].dtype}, needs real numbers")
    try:
        mu, sigma = (torch.from_numpy(read_array(entries[key]).astype(np.float64)) for key in (mean, covariance))
        return Gaussian(mu, sigma, count)
    except OvertureError as error:
        raise OvertureError(f"{path}: {error}") from error


def _size(text: str, path: Path) -> tuple[int, int]:
    try:
        height, width = map(int, text.split("x"))
    except ValueError as error:
        raise OvertureError(f"{path}: the size of its images is '{text}', needs HEIGHTxWIDTH") from error
    return height, width
