"""Squares that are resized by themselves are those cut from the whole resized image, as Pillow makes it."""

import numpy as np
import pytest
from PIL import Image

from overture.data import transforms
from overture.data.transforms import WINDOW_FROM, center_crop, random_crop, ten_crop


def whole(image, shorter):
    """The papers' way: halve with a box filter while at least twice too large, then bicubic."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    pixels = np.asarray(
        image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    )
    return pixels if pixels.ndim == 3 else pixels[..., None]


def noise(width, height, mode="RGB", seed=0):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


SHAPES = [
    (500, 375), (375, 500), (333, 500), (1000, 751), (501, 1001), (256, 256), (400, 256), (257, 256), (300, 299), (1300, 300),
    (90, 70), (300, 590), (300, 900),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "mode"), [(256, "RGB"), (100, "L"), (64, "RGB"), (63, "RGB")])
def test_windows_are_within_a_level_of_the_whole(shape, size, mode):
    image = noise(*shape, mode)
    pixels = whole(image, size)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    pairs = [(center_crop(image, size), pixels[top : top + size, left : left + size])]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        pixels = whole(image, int(rng.integers(size, -(-5 * size // 4), endpoint=True)))
        top = int(rng.integers(0, pixels.shape[0] - size, endpoint=True))
        left = int(rng.integers(0, pixels.shape[1] - size, endpoint=True))
        pairs.append(
            (random_crop(image, size, np.random.default_rng(seed)), pixels[top : top + size, left : left + size])
        )
    for ours, expected in pairs:
        gap = np.abs(ours.astype(int) - expected)
        assert ours.shape == expected.shape == (size, size, 3 if mode == "RGB" else 1)
        assert gap.max() <= (1 if size >= WINDOW_FROM else 0)
        assert (gap > 0).mean() < 0.002


@pytest.mark.parametrize("shape", [(100, 80), (250, 500), (255, 300)])
def test_what_is_enlarged_or_tall_is_cut_from_the_whole(shape):
    image = noise(*shape)
    size = min(shape) + 20 if shape[0] != 250 else 200
    pixels = whole(image, size)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    assert (center_crop(image, size) == pixels[top : top + size, left : left + size]).all()


def test_ten_crops_are_cut_from_one_square(monkeypatch):
    image, calls = noise(500, 375), []
    window = transforms._window
    monkeypatch.setattr(transforms, "_window", lambda *words: calls.append(words) or window(*words))
    assert ten_crop(image, 256).shape == (10, 256, 256, 3)
    assert len(calls) == 1
