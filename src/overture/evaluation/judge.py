"""A feature network and a reference, to measure several files of samples with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from overture.errors import OvertureError, UsageError
from overture.evaluation.conditions import Conditions, Measurement
from overture.evaluation.evaluation import MISSING, Evaluation, chosen_metrics, evaluate, features_needed
from overture.evaluation.image_sets import is_statistics_file, open_images
from overture.evaluation.metrics import Metric
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.statistics import ImageStatistics, open_reference, open_samples
from overture.processes import Processes

__all__ = ["Judge"]


@dataclass(frozen=True)
class Judge:
    """``reference`` is a file of statistics or a set of images; all ``processes`` measure together."""

    network: FeatureNetwork
    reference: str
    processes: Processes = Processes()

    def check(self, names: Sequence[str], samples: int, size: int) -> None:
        """Refuse a reference without what the metrics need of it, too few samples, and a reference of another ``size``.

        Made to be asked before there are samples: no network runs. Of a file of statistics all but its images is read,
        of a set of images the first one. ``all`` among the names asks for nothing.
        """
        statistics, found = self._statistics, self._size()
        if found is not None and found != (size, size):
            raise OvertureError(
                f"{self.reference}: of images of {found[0]}x{found[1]}, the samples are {size}x{size}; give another one"
            )
        for metric in chosen_metrics([name for name in names if name != "all"] or ["fid"]):
            if samples < metric.least_images:
                raise UsageError(f"{samples} samples: {metric.title} needs at least {metric.least_images}")
            if lacking := metric.lacks(self.network.offers):
                raise OvertureError(
                    f"{metric.title}: {self.network.name} has no {lacking}; leave it out with --metrics"
                )
            if statistics is not None and (lacking := _lacking(metric, statistics)):
                raise OvertureError(
                    f"{metric.title}: {self.reference} {lacking}; give another --reference, or leave it out with --metrics"
                )

    def has_measured(self, found: Mapping[str, Measurement], names: Sequence[str]) -> bool:
        """Whether these numbers are all of the metrics, against this reference and under this network.

        Never so of a set of images, which is known by its hash only once all of it has been read.
        """
        if self._statistics is None:
            return False
        for metric in chosen_metrics(names):
            if metric.name not in found:
                return False
            made = found[metric.name].conditions
            if metric.uses_network and made.network_hash != self.network.weights_hash:
                return False
            if metric.uses_reference and made.reference_hash != self._statistics.hash:
                return False
        return True

    def measure(self, samples: Path, names: Sequence[str], conditions: Conditions) -> Evaluation:
        """The metrics of a file of samples."""
        keep = features_needed(chosen_metrics(names))
        side = open_samples(
            str(samples), self.network, keep_features=keep, processes=self.processes, progress=self.processes.is_main
        )
        reference = self._with_features if keep else self._statistics or self._open(keep=False)
        return evaluate(side, reference, self.network, names, conditions)

    @cached_property
    def _statistics(self) -> ImageStatistics | None:
        """Of a file of statistics; its images are not looked at."""
        return self._open(keep=False) if is_statistics_file(self.reference) else None

    @cached_property
    def _with_features(self) -> ImageStatistics:
        return self._open(keep=True)

    def _open(self, keep: bool) -> ImageStatistics:
        return open_reference(
            self.reference,
            self.network,
            keep_features=keep,
            processes=self.processes,
            progress=self.processes.is_main,
        )

    def _size(self) -> tuple[int, int] | None:
        """Height and width of the reference's images, where it tells."""
        if self._statistics is not None:
            return self._statistics.size
        first = next(open_images(self.reference).batches(np.zeros(1, np.int64), 1))
        return first.shape[2], first.shape[3]


def _lacking(metric: Metric, statistics: ImageStatistics) -> str:
    """What a file of statistics does not hold for a metric."""
    if "spatial" in metric.needs and statistics.spatial is None:
        return MISSING["spatial"]
    if statistics.pictures is None and {"features_ND", "pictures"} & set(metric.needs):
        return f"{MISSING['pictures']} (arr_0)"
    return ""
