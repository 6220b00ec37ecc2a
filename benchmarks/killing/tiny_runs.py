"""Runs small enough to be killed fifty times: tiny recipes on made-up images, saved and measured at nearly every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["RECIPES", "draw_images", "run_words"]

ONE_STAGE = "prologue-onestage --tokenizer.segments.1.codebook.k-max 64"

RECIPES = {
    "quickstart": ("quickstart --jobs 2", 1),
    "prologue": ("prologue-fashion-mnist --only prologue", 1),
    "onestage": (f"{ONE_STAGE} --data.workers 1", 1),
    "quickstart-2": ("quickstart --only vcq", 2),
    "prologue-2": ("prologue-fashion-mnist --only prologue", 2),
    "onestage-2": (ONE_STAGE, 2),
}
"""Words and number of processes of each, by the name it has here."""

OPTIONS = """--tiny --device cpu --evaluation.samples 40 --evaluation.batch-size 10
--judge.training.steps 3 --judge.training.checkpoint-minutes 0
--perceptual-network.training.steps 3 --perceptual-network.training.checkpoint-minutes 0
--tokenizer-training.steps 8 --tokenizer-training.checkpoint-minutes 0 --tokenizer-training.log-every 2
--prior-training.steps 8 --prior-training.checkpoint-minutes 0 --prior-training.log-every 2
--prior-training.evaluate-every 4 --tokens.batch-size 60
--watch.tokenizer-every 3 --watch.prior-every 3 --watch.images 40 --watch.samples 20 --watch.keep-best gfd"""


def run_words(recipe: str, images: Path, root: Path) -> list[str]:
    """The arguments of ``overture`` for a run at ``root`` on the images of :func:`draw_images`."""
    return ["run", *recipe.split(), *OPTIONS.split(), "--data.source", str(images), "--out", str(root)]


def draw_images(folder: Path) -> None:
    """Ten classes of 40 blurred patterns, as PNG files."""
    noise = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class-{label}").mkdir(parents=True, exist_ok=True)
        pattern = noise.integers(0, 256, (7, 7))
        for number in range(40):
            pixels = (pattern + noise.normal(0, 40, (7, 7))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((28, 28)).save(folder / f"class-{label}" / f"{number:02}.png")
