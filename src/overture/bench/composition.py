"""A reading of what a prologue fixes: whether samples that share one have light and dark in the same places.

``shared_rows.ratio`` compares features of a judge, which say what is in a picture. This one compares the patterns of
thumbnails: without their mean, so that a prologue that fixes how light a picture is fixes nothing here.
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

__all__ = ["Patterns", "read_composition"]

SIDE = 4


class Patterns(FeatureNetwork):
    """An image averaged to ``SIDE`` x ``SIDE`` pixels, less the mean of each channel, with length 1.

    The square of a distance is 2 less twice the correlation of two thumbnails. An even picture is 0.
    """

    name, weights_hash = f"pattern:{SIDE}", "none"
    preparation = f"averaged to {SIDE}x{SIDE} pixels, less the mean of each channel, scaled to length 1"

    def __init__(self, channels: int) -> None:
        self.dims = channels * SIDE * SIDE

    def outputs(self, images: Tensor) -> Outputs:
        """Patterns of uint8 ``[B, C, H, W]``, ``[B, C * SIDE * SIDE]``."""
        pooled_BCP = F.adaptive_avg_pool2d(images.float(), SIDE).flatten(2)
        pattern_BCP = pooled_BCP - pooled_BCP.mean(dim=2, keepdim=True)
        # Lengths below 1 of 255 are what averaging leaves of an even picture.
        return Outputs(F.normalize(pattern_BCP.flatten(1), eps=1.0))


def read_composition(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``composition.shared``: distance of patterns within samples that share their first segment over that between such
    rows of one class, with the run's guidance; 1: the segment fixes nothing of where light and dark lie.
    ``composition.independent``: the same of samples that share nothing, which is 1 but for chance. Only models of several
    segments have these values."""
    config = run.read_config()
    if len(config.tokenizer.layout.segments) < 2:
        return {}
    pipe = Pipeline.load(run.root, device)
    found = shared_rows.study(pipe, Patterns(config.tokenizer.channels), config.evaluation.guided, seed=config.seed)
    parts = {"shared": found.shared["ratio"], "independent": found.independent["ratio"]}
    about = {name: value for name, value in found.to_dict().items() if name not in (*parts, "seed")}
    return {f"composition.{name}": Value(ratio, "", about) for name, ratio in parts.items() if ratio is not None}
