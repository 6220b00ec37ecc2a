import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from overture.data.transforms import (
    center_crop,
    on_background,
    random_crop,
    ten_crop,
    to_float,
    to_uint8,
    with_channels,
)
from overture.errors import OvertureError


def picture(width, height, mode="RGB", seed=0):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def test_pixel_conventions():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every)[[0, 255]].tolist() == [-1, 1]
    # 127.5 x + 128, truncated: 0.5 of a level is added, so -1 lies in the middle of level 0's reach
    assert to_uint8(torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0, 0.0039])).tolist() == [0, 0, 128, 255, 255, 128]


def test_center_crop_of_an_image_that_fits_is_the_image():
    image = picture(28, 28, "L")
    assert (center_crop(image, 28)[..., 0] == np.asarray(image)).all()
    assert center_crop(picture(28, 28), 28).shape == (28, 28, 3)


def test_large_images_are_halved_with_a_box_filter():
    # Exactly twice as large: one halving, and bicubic at the same size changes nothing. So blocks of 2 x 2 average.
    image = picture(32, 32, "L")
    blocks = np.asarray(image).reshape(16, 2, 16, 2).astype(float).mean(axis=(1, 3))
    # (Pillow rounds after each direction.)
    assert np.abs(center_crop(image, 16)[..., 0] - blocks).max() <= 1
    # Less than twice: bicubic only.
    image = picture(31, 31, "L")
    assert (center_crop(image, 16)[..., 0] == np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))).all()


@pytest.mark.parametrize(("width", "height"), [(40, 28), (28, 41), (100, 61), (20, 17), (300, 31)])
def test_center_crop_is_in_the_middle(width, height):
    """A horizontal and a vertical ramp keep their middle value in the middle."""
    columns = np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))
    rows = np.tile(np.linspace(0, 255, height).round().astype(np.uint8)[:, None], (1, width))
    for ramp in (columns, rows):
        crop = center_crop(Image.fromarray(ramp), 16)
        assert crop.shape == (16, 16, 1)
        assert crop.mean() == pytest.approx(127.5, abs=255 / 16)


@pytest.mark.parametrize("size", [16, 28, 31])
@pytest.mark.parametrize("shape", [(40, 33), (20, 50)])
def test_ten_crop_is_torchvisions(size, shape):
    image = picture(*shape)
    square = Image.fromarray(center_crop(image, int(1.1 * size)))
    expected = np.stack([np.asarray(view) for view in functional.ten_crop(square, [size, size])])
    assert (ten_crop(image, size) == expected).all()


def test_ten_crop_at_256_takes_281():
    assert int(1.1 * 256) == 281
    assert ten_crop(picture(300, 281, "L"), 256).shape == (10, 256, 256, 1)


@pytest.mark.parametrize("size", [5, 8, 28])
def test_random_crop_draws_every_scale_and_position_alike(size):
    """Scales and positions are told from a ramp image by brute force: every possible crop is made beforehand."""
    image = picture(size, size, "L")
    known = {}
    for shorter in range(size, math.ceil(size / 0.8) + 1):
        resized = np.asarray(image.resize((shorter, shorter), Image.Resampling.BICUBIC))
        for top in range(shorter - size + 1):
            for left in range(shorter - size + 1):
                known[resized[top : top + size, left : left + size].tobytes()] = (shorter, top, left)
    rng = np.random.default_rng(0)
    draws = [known[random_crop(image, size, rng).tobytes()] for _ in range(3000)]
    scales, counts = np.unique([draw[0] for draw in draws], return_counts=True)
    assert scales.tolist() == list(range(size, math.ceil(size / 0.8) + 1))
    expected = 3000 / len(scales)
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    largest = scales[-1] - size
    for axis in (1, 2):
        places = {draw[axis] for draw in draws if draw[0] == scales[-1]}
        assert places == set(range(largest + 1))


def test_random_crop_depends_only_on_the_generator():
    image = picture(70, 41)
    crops = [random_crop(image, 28, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert crops[0].shape == (28, 28, 3)
    assert (crops[0] == crops[1]).all()
    assert (crops[0] != crops[2]).any()


def test_channels_are_explicit():
    grey, colour = picture(4, 4, "L"), picture(4, 4)
    assert with_channels(grey, 1) is grey
    assert with_channels(colour, 3) is colour
    assert (np.asarray(with_channels(grey, 3)) == np.asarray(grey)[..., None]).all()
    with pytest.raises(OvertureError, match=r"cat/x\.png: a colour image.*read as grey: set --data\.channels 3"):
        with_channels(colour, 1, "cat/x.png")


def test_what_shows_of_a_transparent_image_on_a_background():
    """Alpha is the share of the colour above it: by hand, to within the rounding of one level."""
    rng = np.random.default_rng(0)
    for mode, background, below in (
        ("RGBA", "white", (255, 255, 255)),
        ("RGBA", "#204060", (32, 64, 96)),
        ("LA", "black", (0,)),
        ("LA", "white", (255,)),
    ):
        pixels = rng.integers(0, 256, (5, 6, len(mode)), np.uint8)
        pixels[0, :, -1], pixels[1, :, -1] = 0, 255
        shown = on_background(Image.fromarray(pixels), background)
        assert shown.mode == mode.removesuffix("A")
        alpha = pixels[..., -1:] / 255
        expected = pixels[..., :-1] * alpha + np.array(below) * (1 - alpha)
        found = np.asarray(shown).reshape(expected.shape)
        assert np.abs(found - expected).max() <= 1
        assert (found[0] == below).all()
        assert (found[1] == pixels[1, :, :-1]).all()
    opaque = picture(4, 4)
    assert on_background(opaque, "black") is opaque
