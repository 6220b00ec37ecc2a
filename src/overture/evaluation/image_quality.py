"""PSNR and SSIM between images and their reconstructions, on [0, 1], image by image.

SSIM is Wang et al. 2004 ("Image Quality Assessment: From Error Visibility to Structural Similarity"): Gaussian window
of sigma 1.5 and 11 pixels, K1 = 0.01, K2 = 0.03, covariances with N, averaged over the places where the whole window
fits, channels averaged.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overture.errors import OvertureError
from overture.processes import Processes

__all__ = ["ReconstructionMeter", "ReconstructionQuality", "mean_squared_error", "psnr", "ssim"]

WINDOW = 11
SIGMA = 1.5


def mean_squared_error(images: Tensor, others: Tensor) -> Tensor:
    """Per image ``[B]``, float64, on [0, 1]. Images are uint8, or floating within [0, 1], ``[B, C, H, W]``."""
    x_BCHW, y_BCHW = _unit_pair(images, others)
    return (x_BCHW - y_BCHW).square().mean(dim=(1, 2, 3))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image ``[B]``, decibel; infinite for identical images."""
    return _psnr(mean_squared_error(images, others))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity per image ``[B]``, float64; 1 for identical images."""
    x_BCHW, y_BCHW = _unit_pair(images, others)
    if min(x_BCHW.shape[-2:]) < WINDOW:
        size = "x".join(map(str, x_BCHW.shape[-2:]))
        raise OvertureError(f"SSIM: images are {size}, its window needs at least {WINDOW}x{WINDOW}")
    x, y = (image.flatten(0, 1).unsqueeze(1) for image in (x_BCHW, y_BCHW))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
    return (numerator / denominator).mean(dim=(1, 2, 3)).unflatten(0, x_BCHW.shape[:2]).mean(dim=1)


@dataclass(frozen=True)
class ReconstructionQuality:
    """Means over images."""

    images: int
    psnr: float
    """Decibel, the mean of the images' PSNR; infinite as soon as one image is reproduced exactly."""
    psnr_of_mean_error: float
    """Decibel, the PSNR of the mean squared error over all images: finite unless every image is exact."""
    ssim: float
    """NaN of images that are smaller than its window."""
    mean_squared_error: float
    exact: int
    """Images reproduced exactly."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: infinite PSNR is null, and ``note`` says why."""
        values: dict[str, Any] = {
            "images": self.images,
            "psnr": _finite(self.psnr),
            "psnr_of_mean_error": _finite(self.psnr_of_mean_error),
            "ssim": _finite(self.ssim),
            "mean_squared_error": self.mean_squared_error,
            "exact": self.exact,
        }
        notes = []
        if self.exact:
            notes.append(f"psnr is infinite: {self.exact} of {self.images} images are reproduced exactly")
        if math.isnan(self.ssim):
            notes.append(f"images under {WINDOW} pixels have no ssim")
        return {**values, "note": "; ".join(notes)} if notes else values


class ReconstructionMeter:
    """PSNR and SSIM over batches; how the images are split into batches does not matter."""

    def __init__(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64)  # images, PSNR, SSIM, squared error, exact images

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add a batch of pairs ``[B, C, H, W]``, both uint8 or both floating within [0, 1]."""
        error_B = mean_squared_error(images, reconstructions)
        small = min(images.shape[-2:]) < WINDOW
        ssim_B = torch.full_like(error_B, math.nan) if small else ssim(images, reconstructions)
        columns = (torch.ones_like(error_B), _psnr(error_B), ssim_B, error_B, error_B == 0)
        self._sums += torch.stack([column.double().sum() for column in columns]).cpu()

    def all_reduce(self, processes: Processes) -> None:
        """Add what all other processes have seen."""
        self._sums = processes.sum(self._sums)

    def result(self) -> ReconstructionQuality:
        """The means so far."""
        count = int(self._sums[0])
        if count == 0:
            raise OvertureError("reconstruction: no images were given")
        _, mean_psnr, mean_ssim, mean_error, _ = (self._sums / count).tolist()
        return ReconstructionQuality(
            images=count,
            psnr=mean_psnr,
            psnr_of_mean_error=-10 * math.log10(mean_error) if mean_error > 0 else math.inf,
            ssim=mean_ssim,
            mean_squared_error=mean_error,
            exact=int(self._sums[4]),
        )


def _psnr(error: Tensor) -> Tensor:
    return -10 * torch.log10(error)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unit_pair(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != others.shape or images.dim() != 4:
        raise OvertureError(
            f"reconstruction: shapes {tuple(images.shape)} and {tuple(others.shape)}, need two equal [B, C, H, W]"
        )
    return _unit(images), _unit(others)


def _unit(images: Tensor) -> Tensor:
    """float64 on [0, 1]."""
    if images.device.type == "mps":  # knows no float64
        images = images.cpu()
    if images.dtype == torch.uint8:
        return images.double() / 255
    if not images.is_floating_point():
        raise OvertureError(f"reconstruction: images are {images.dtype}, need uint8 or floating")
    if not ((images >= 0) & (images <= 1)).all():
        raise OvertureError("reconstruction: floating images leave [0, 1]; convert them first (to_uint8)")
    return images.double()


def _blur(maps: Tensor) -> Tensor:
    """Gaussian mean of ``[N, 1, H, W]`` where the whole window fits."""
    offset = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    kernel = torch.exp(-offset.square() / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    return F.conv2d(F.conv2d(maps, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
