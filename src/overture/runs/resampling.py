"""What the first segment fixes: rows of samples that share it, next to rows that do not.

Only layouts of several segments have such rows. Within a row the first segment (the prologue) is kept and the rest is
sampled again; the number beside the picture is the mean distance of images within such rows over that between rows of
the same class, in the feature space of the judge: 1 when the first segment fixes nothing, 0 when it fixes everything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overture.data.transforms import to_uint8
from overture.evaluation.networks import FeatureNetwork
from overture.pipeline import Pipeline
from overture.priors.sampler import keep_segments

__all__ = ["row_distances", "shared_rows"]


def shared_rows(pipe: Pipeline, classes: Tensor, columns: int, *, seed: int, **sampling: Any) -> tuple[Tensor, Tensor]:
    """One row of ``columns`` images for each of ``classes``, uint8 ``[rows, columns, C, H, W]``, twice.

    First rows that share their first segment, then rows of as many independent samples.
    """
    layout = pipe.prior.layout
    labels = classes.repeat_interleave(columns)
    independent = pipe(labels, seed=seed, **sampling)
    generator = torch.Generator(pipe.prior.token_embedding.weight.device).manual_seed(seed)
    source = layout.from_sequence(pipe.prior.generate(classes, generator=generator, **sampling))
    fixed = keep_segments(layout, source.repeat_interleave(columns, dim=0), {layout.names[0]: True})
    shared = pipe(labels, seed=seed + 1, fixed=fixed, **sampling)

    def rows(images: Tensor) -> Tensor:
        return to_uint8(images).cpu().unflatten(0, (len(classes), columns))

    return rows(shared), rows(independent)


def row_distances(images_RCxxx: Tensor, classes: Tensor, network: FeatureNetwork) -> dict[str, float]:
    """Mean feature distance of pairs within a row, of pairs from two rows of one class, and the first over the second."""
    rows, columns = images_RCxxx.shape[:2]
    features_RCD = network(images_RCxxx.flatten(0, 1)).double().unflatten(0, (rows, columns))
    distance = torch.cdist(features_RCD.flatten(0, 1), features_RCD.flatten(0, 1))
    distance = distance.unflatten(0, (rows, columns)).unflatten(2, (rows, columns))  # row, column, row, column
    place = torch.arange(rows)
    same_row = (place[:, None] == place)[:, None, :, None].expand(rows, columns, rows, columns)
    same_class = (classes[:, None].cpu() == classes.cpu())[:, None, :, None].expand_as(same_row)
    other_column = ~torch.eye(columns, dtype=torch.bool)[None, :, None, :].expand_as(same_row)
    within = float(distance[same_row & other_column].mean())
    between = float(distance[~same_row & same_class].mean())
    return {"within_rows": within, "between_rows": between, "ratio": within / between}
