"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from overture.errors import OvertureError
from overture.evaluation.image_quality import ReconstructionMeter, psnr, ssim


def pair(count: int, channels: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    smooth = np.cumsum(random.normal(size=(count, channels, height, width)), axis=-1) * 20 + 128
    noisy = smooth + random.normal(size=smooth.shape) * 12
    return tuple(torch.from_numpy(np.clip(x, 0, 255).astype(np.uint8)) for x in (smooth, noisy))  # type: ignore[return-value]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 40, 33), (3, 11, 11)])
def test_agrees_with_scikit_image(channels: int, height: int, width: int) -> None:
    images, others = pair(3, channels, height, width)
    for index in range(3):
        x, y = (batch[index].numpy().astype(np.float64) / 255 for batch in (images, others))
        expected = structural_similarity(
            x, y, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
        )
        assert float(ssim(images, others)[index]) == pytest.approx(expected, abs=1e-7)
        expected = peak_signal_noise_ratio(x, y, data_range=1)
        assert float(psnr(images, others)[index]) == pytest.approx(expected, rel=1e-10)


def test_flat_images_keep_their_precision() -> None:
    images = torch.full((1, 1, 16, 16), 0.9)
    others = torch.full((1, 1, 16, 16), 0.5)
    luminance = (2 * 0.9 * 0.5 + 1e-4) / (0.9**2 + 0.5**2 + 1e-4)
    assert float(ssim(images, others)) == pytest.approx(luminance, abs=1e-6)


def test_uint8_and_floats_on_unit_range_agree() -> None:
    images, others = pair(2, 3, 16, 16)
    assert torch.allclose(ssim(images, others), ssim(images.double() / 255, others.double() / 255))
    assert torch.allclose(psnr(images, others), psnr(images.double() / 255, others.double() / 255))


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_meter_does_not_depend_on_the_batches(sizes: list[int]) -> None:
    images, others = pair(sum(sizes), 1, 12, 12)
    meter, whole = ReconstructionMeter(), ReconstructionMeter()
    whole.update(images, others)
    for x, y in zip(images.split(sizes), others.split(sizes), strict=True):
        meter.update(x, y)
    a, b = meter.result(), whole.result()
    assert a.images == b.images == sum(sizes)
    for name in ("psnr", "ssim", "mean_squared_error", "psnr_of_mean_error"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-12)
    assert b.psnr == pytest.approx(float(psnr(images, others).mean()))


def test_identical_images_are_infinite_and_json_says_so() -> None:
    images, others = pair(2, 1, 12, 12)
    meter = ReconstructionMeter()
    meter.update(images[:1], images[:1])
    meter.update(images[1:], others[1:])
    quality = meter.result()
    assert math.isinf(quality.psnr)
    assert math.isfinite(quality.psnr_of_mean_error)
    assert float(ssim(images, images)[0]) == pytest.approx(1, abs=1e-12)
    values = json.loads(json.dumps(quality.to_dict(), allow_nan=False))
    assert values["psnr"] is None
    assert "1 of 2 images" in values["note"]


def test_images_under_the_window_have_no_ssim_and_keep_the_other_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.randint(0, 256, (5, 1, 10, 12), generator=generator, dtype=torch.uint8) for _ in range(2))
    others[0] = images[0]
    meter = ReconstructionMeter()
    meter.update(images, others)
    values = meter.result().to_dict()
    assert values["ssim"] is None
    assert values["note"] == (
        "psnr is infinite: 1 of 5 images are reproduced exactly; images under 11 pixels have no ssim"
    )
    error = (images.double() - others.double()).square().mean() / 255**2
    assert values["mean_squared_error"] == pytest.approx(float(error), rel=1e-12)
    json.dumps(values, allow_nan=False)


def test_impossible_requests_are_refused() -> None:
    images, others = pair(2, 1, 12, 12)
    with pytest.raises(OvertureError, match="two equal"):
        psnr(images, others[:1])
    with pytest.raises(OvertureError, match="at least 11x11"):
        ssim(images[..., :8], others[..., :8])
    with pytest.raises(OvertureError, match=r"leave \[0, 1\]"):
        psnr(images.float(), others.float())
    with pytest.raises(OvertureError, match=r"leave \[0, 1\]"):
        psnr(torch.full((1, 1, 12, 12), math.nan), torch.zeros(1, 1, 12, 12))
    with pytest.raises(OvertureError, match="no images"):
        ReconstructionMeter().result()
