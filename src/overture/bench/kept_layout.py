"""A reading of what a prologue fixes: whether samples that share one have the same things in the same places.

``shared_rows.ratio`` compares features of a judge, which say what is in a picture. This one compares thumbnails, which
say where light and dark lie, and little else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overture.analysis import shared_rows
from overture.bench.readings import Value
from overture.evaluation.networks import FeatureNetwork, Outputs
from overture.pipeline import Pipeline
from overture.runs.directory import RunDirectory

__all__ = ["Thumbnails", "read_layout"]

SIDE = 4


class Thumbnails(FeatureNetwork):
    """The pixels of an image made ``SIDE`` x ``SIDE`` by averaging, from 0 to 1."""

    name, weights_hash = f"thumbnail:{SIDE}", "none"
    preparation = f"averaged to {SIDE}x{SIDE} pixels"

    def __init__(self, channels: int) -> None:
        self.dims = channels * SIDE * SIDE

    def outputs(self, images: Tensor) -> Outputs:
        """Thumbnails of uint8 ``[B, C, H, W]``, ``[B, C * SIDE * SIDE]``."""
        return Outputs(F.adaptive_avg_pool2d(images.float() / 255, SIDE).flatten(1))


def read_layout(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``layout.ratio``: distance of thumbnails within samples of one prologue over that between prologues of one class,
    with the run's guidance; 1: nothing of the layout is kept. Of layouts of several segments; nothing of others."""
    config = run.read_config()
    if len(config.tokenizer.layout.segments) < 2:
        return {}
    pipe = Pipeline.load(run.root, device)
    judge = Thumbnails(config.tokenizer.channels)
    found = shared_rows.study(pipe, judge, config.evaluation.guided, seed=config.seed).to_dict()
    ratio = found["shared"]["ratio"]
    about = {name: found[name] for name in ("segment", "rows", "columns", "network", "guidance")}
    return {} if ratio is None else {"layout.ratio": Value(ratio, "", about)}
