"""Rows that share a prologue: the number against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from overture.analysis.shared_rows import row_distances


class Flat:
    """Pixels as features."""

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()


def test_row_distances_by_hand() -> None:
    images = torch.randint(0, 256, (4, 3, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    classes = torch.tensor([0, 0, 1, 1])
    result = row_distances(images, classes, Flat())  # type: ignore[arg-type]
    within, between = [], []
    for (r, c), (s, d) in itertools.product(itertools.product(range(4), range(3)), repeat=2):
        distance = (images[r, c].float() - images[s, d].float()).norm().item()
        if r == s and c != d:
            within.append(distance)
        if r != s and classes[r] == classes[s]:
            between.append(distance)
    assert result["within_rows"] == pytest.approx(sum(within) / len(within), rel=1e-6)
    assert result["between_rows"] == pytest.approx(sum(between) / len(between), rel=1e-6)
    assert result["ratio"] == pytest.approx(result["within_rows"] / result["between_rows"])


def test_identical_rows_have_ratio_zero() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1, 1).expand(4, 3, 1, 2, 2)
    assert row_distances(images, torch.zeros(4), Flat())["ratio"] == 0  # type: ignore[arg-type]


def test_rows_that_do_not_differ_have_no_ratio() -> None:
    images = torch.full((4, 3, 1, 2, 2), 7, dtype=torch.uint8)
    found = row_distances(images, torch.zeros(4), Flat())  # type: ignore[arg-type]
    assert found == {"within_rows": 0.0, "between_rows": 0.0, "ratio": None}
