"""LPIPS between images and their reconstructions, mean over images (Zhang et al., arXiv 1801.03924).

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from overture.data.transforms import to_float
from overture.errors import OvertureError
from overture.evaluation.networks import check_images
from overture.losses.perceptual import Lpips
from overture.processes import Processes

__all__ = ["LpipsMeter"]


class LpipsMeter:
    """Adds up LPIPS; the result depends neither on the batch size nor on the number of processes."""

    def __init__(self, network: Lpips) -> None:
        self.network = network
        self.device = next(iter(network.state_dict().values())).device
        self._sums_2 = torch.zeros(2, dtype=torch.float64)  # of distances, of images

    @torch.inference_mode()
    def update(self, images: Tensor, others: Tensor) -> None:
        """Add pairs of uint8 images ``[B, C, H, W]``."""
        for part in (images, others):
            check_images(part)
        mean = self.network(to_float(others.to(self.device)), to_float(images.to(self.device)))
        if not torch.isfinite(mean):
            raise OvertureError("LPIPS: the network gave NaN or infinity; check its weights")
        self._sums_2 += torch.tensor([float(mean) * len(images), len(images)], dtype=torch.float64)

    def all_reduce(self, processes: Processes) -> None:
        """Add what all other processes have seen."""
        self._sums_2 = processes.sum(self._sums_2)

    def result(self) -> float:
        """The mean over images."""
        total, count = self._sums_2.tolist()
        if not count:
            raise OvertureError("LPIPS: no images were measured")
        return total / count
