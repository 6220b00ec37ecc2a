"""What the first segment fixes: rows of samples that share it, next to rows that do not.

Only layouts of several segments have such rows. Within a row the first segment (the prologue) is kept and the rest is
sampled again; the number beside the picture is the mean distance of images within such rows over that between rows of
the same class, in the feature space of the judge: 1 when the first segment fixes nothing, 0 when it fixes everything.

Shapes: R rows, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overture.evaluation.networks import FeatureNetwork
from overture.pipeline import Pipeline
from overture.priors.sampler import keep_segments
from overture.priors.sampling import Sampling
from overture.processes import widest_float

__all__ = ["SharedRows", "row_distances", "study"]


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Distances within and between rows; and the rows."""

    segment: str
    shared: dict[str, float | None]
    independent: dict[str, float | None]
    images: Tensor
    """uint8 ``[R, 2 * C, C, H, W]``: rows that share the segment, beside as many independent samples."""
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows, columns = self.images.shape[:2]
        counts = {"segment": self.segment, "rows": rows, "columns": columns // 2}
        return {**counts, **self.settings, "shared": self.shared, "independent": self.independent}


def study(
    pipe: Pipeline,
    judge: FeatureNetwork,
    sampling: Sampling = Sampling(),
    *,
    kinds: int = 10,
    rows: int = 4,
    columns: int = 8,
    seed: int = 0,
) -> SharedRows:
    """``rows`` rows of ``columns`` images for each of the first ``kinds`` classes, twice: sharing and not."""
    layout = pipe.layout
    classes = torch.arange(min(pipe.prior.config.num_classes, kinds)).repeat_interleave(rows)
    labels = classes.repeat_interleave(columns)
    independent = torch.cat(list(pipe.sample(labels, sampling, seed=seed)))
    source = torch.cat(list(pipe.sample_ids(classes, sampling, seed=seed)))
    fixed = keep_segments(layout, source.repeat_interleave(columns, dim=0), {layout.names[0]: True})
    # Other draws than those that the kept segments came from.
    shared = torch.cat(list(pipe.sample(labels, sampling, seed=seed, first=len(labels), fixed=fixed)))
    parts = [images.unflatten(0, (len(classes), columns)) for images in (shared, independent)]
    return SharedRows(
        segment=layout.names[0],
        shared=row_distances(parts[0], classes, judge),
        independent=row_distances(parts[1], classes, judge),
        images=torch.cat(parts, dim=1),
        settings={"network": judge.name, "network_hash": judge.weights_hash, **sampling.to_dict(), "seed": seed},
    )


def row_distances(images_RCxxx: Tensor, classes: Tensor, network: FeatureNetwork) -> dict[str, float | None]:
    """Mean feature distance of pairs within a row, of pairs from two rows of one class, and the first over the second.

    The ratio is None where images of different rows do not differ, as with greedy samples.
    """
    rows, columns = images_RCxxx.shape[:2]
    rows_ND = network(images_RCxxx.flatten(0, 1))
    rows_ND = rows_ND.to(widest_float(rows_ND.device))
    # The faster way, by a matrix product, finds a distance between copies.
    distance = torch.cdist(rows_ND, rows_ND, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.unflatten(0, (rows, columns)).unflatten(2, (rows, columns))  # row, column, row, column
    place = torch.arange(rows)
    same_row = (place[:, None] == place)[:, None, :, None].expand(rows, columns, rows, columns)
    same_class = (classes[:, None].cpu() == classes.cpu())[:, None, :, None].expand_as(same_row)
    other_column = ~torch.eye(columns, dtype=torch.bool)[None, :, None, :].expand_as(same_row)
    within = float(distance[same_row & other_column].mean())
    between = float(distance[~same_row & same_class].mean())
    return {"within_rows": within, "between_rows": between, "ratio": within / between if between > 0 else None}
