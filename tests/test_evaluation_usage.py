"""Codebook usage against counting by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.errors import OvertureError
from overture.evaluation.usage import CodebookUsage, UsageMeter
from overture.layout import Layout, Segment

LAYOUT = Layout((Segment("prologue", (2, 4), separator=True), Segment("visual", (8, 4, 8))))


def codebook_usage(ids: np.ndarray, layout: Layout) -> CodebookUsage:
    meter = UsageMeter(layout)
    meter.update(ids)
    return meter.result()


def test_a_case_by_hand() -> None:
    ids = np.array([[0, 0, 0, 0, 7], [1, 0, 1, 0, 6], [0, 1, 2, 0, 5], [1, 1, 3, 0, 4]])
    usage = codebook_usage(ids, LAYOUT)
    assert usage.used_per_position == (1.0, 0.5, 0.5, 0.25, 0.5)
    assert usage.perplexity_per_position == pytest.approx((2.0, 2.0, 4.0, 1.0, 4.0))
    prologue, visual = usage.segments
    assert (prologue.used, visual.used) == (0.5, 1.0)
    assert prologue.perplexity == pytest.approx(2.0)
    share = np.array([5, 1, 1, 1, 1, 1, 1, 1]) / 12
    assert visual.perplexity == pytest.approx(2 ** -(share * np.log2(share)).sum())


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_streaming_equals_counting_everything(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = np.stack([random.integers(0, k, sum(sizes)) for k in LAYOUT.sizes], axis=1)
    meter = UsageMeter(LAYOUT)
    for batch in torch.from_numpy(ids).split(sizes):
        meter.update(batch)
    usage = meter.result()
    assert usage == codebook_usage(ids, LAYOUT)
    expected = [len(set(ids[:, t])) / k for t, k in enumerate(LAYOUT.sizes)]
    assert list(usage.used_per_position) == expected
    assert json.loads(json.dumps(usage.to_dict()))["images"] == sum(sizes)


def test_wrong_ids_are_refused() -> None:
    with pytest.raises(OvertureError, match=r"outside 0\.\.1"):
        codebook_usage(np.array([[2, 0, 0, 0, 0]]), LAYOUT)
    with pytest.raises(OvertureError, match="this layout has 5"):
        codebook_usage(np.zeros((2, 4), dtype=int), LAYOUT)
    with pytest.raises(OvertureError, match="no ids"):
        codebook_usage(np.zeros((0, 5), dtype=int), LAYOUT)
