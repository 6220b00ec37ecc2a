"""Draws the picture of the README from a run of the quickstart: the entropy of its tokens, and unguided samples.

``overture run quickstart``, then ``python docs/figures/quickstart.py runs/quickstart``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from overture.analysis.figures import save_figure
from overture.analysis.style import COLOURS, MUTED, curve_style, dress, new_figure
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import token_entropy

PICTURE = Path(__file__).parents[1] / "images" / "quickstart.png"
MODELS = {"uniform": "one codebook of 1,024", "vcq": "codebook grows 2 .. 1,024 (VCQ)"}
COLUMNS, GAP = 6, 2


def samples(run: RunDirectory) -> np.ndarray[Any, Any]:
    """The first unguided samples of every class, a row each, with white between them; ``[H, W]``."""
    with np.load(run.samples / "unguided.npz") as file:
        images, labels = file["arr_0"][..., 0], file["arr_1"]
    framed = np.pad(images, ((0, 0), (GAP, 0), (GAP, 0)), constant_values=255)
    return np.vstack([np.hstack(framed[labels == label][:COLUMNS]) for label in range(labels.max() + 1)])


def draw_entropy(axes: Axes, runs: list[RunDirectory]) -> None:
    """What each token adds, and where 99 % of the bits are spent."""
    for place, (run, words) in enumerate(zip(runs, MODELS.values(), strict=True)):
        found = token_entropy(run)
        axes.plot(range(1, len(found.bits) + 1), found.bits, **curve_style(place))
        peak = int(np.argmax(found.bits))
        axes.annotate(
            f"{words}\n99 % in the first {found.cliff} tokens",
            (peak + 1, found.bits[peak]),
            xytext=(14, -4 if place == 0 else 4),
            textcoords="offset points",
            color=COLOURS[place],
            fontsize=11,
            fontweight="bold",
        )
    axes.set_ylim(bottom=0)
    dress(axes, "bits that each token adds", "token", "")


def draw(root: Path) -> None:
    """The picture of the run in ``root``."""
    runs = [RunDirectory(root / name) for name in MODELS]
    figure, (left, middle, right) = new_figure(3, width=4.2, height=5.2)
    draw_entropy(left, runs)
    names = json.loads(runs[0].classes.read_text())
    for place, (axes, run, title) in enumerate(zip((middle, right), runs, ("uniform", "VCQ"), strict=True)):
        pixels = samples(run)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(f"samples, {title}", loc="left", color=COLOURS[place], fontsize=13)
        row = pixels.shape[0] / len(names)
        axes.set_yticks([row * (place + 0.5) for place in range(len(names))], names if axes is middle else [])
        axes.set_xticks([])
        axes.tick_params(length=0, labelcolor=MUTED)
        axes.spines[:].set_visible(False)
    save_figure(figure, PICTURE)


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    if lacking := [name for name in MODELS if not (root / name / "samples" / "unguided.npz").is_file()]:
        raise SystemExit(f"{root}: has no finished run {lacking[0]}; overture run quickstart makes it")
    draw(root)
