"""Keeping some tokens and resampling the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.priors import Prior, PriorConfig
from overture.priors.sampler import keep_segments

LAYOUT = Layout((Segment("prologue", (6, 6, 6), separator=True), Segment("visual", (4, 8, 8, 8))))


def make_prior() -> Prior:
    torch.manual_seed(0)
    prior = PriorConfig(16, 2, 2, 2.0, 4, num_classes=3, dropout=0.0).build(LAYOUT).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


PRIOR = make_prior()
IDS = torch.tensor([[5, 0, 3, 1, 7, 2, 6], [1, 2, 4, 3, 0, 5, 5]])


@settings(max_examples=25, deadline=None)
@given(prologue=st.sets(st.integers(0, 2)), visual=st.sets(st.integers(0, 3)), seed=st.integers(0, 100))
def test_any_subset_is_kept_and_the_rest_respects_the_layout(prologue: set[int], visual: set[int], seed: int) -> None:
    fixed = keep_segments(LAYOUT, IDS, {"prologue": sorted(prologue), "visual": sorted(visual)})
    assert int((fixed >= 0).sum()) == 2 * (len(prologue) + len(visual))
    generator = torch.Generator().manual_seed(seed)
    sequence = PRIOR.generate([0, 1], fixed=fixed, guidance=1.5, generator=generator)
    assert torch.equal(sequence[fixed >= 0], fixed[fixed >= 0])
    local = LAYOUT.from_sequence(sequence)
    LAYOUT.check(local)
    assert torch.equal(local[:, sorted(prologue)], IDS[:, sorted(prologue)])


def test_keeping_the_prologue_is_continuing_it() -> None:
    fixed = keep_segments(LAYOUT, IDS, {"prologue": True})
    prefix = LAYOUT.to_sequence(IDS)[:, :3]
    samples = [
        PRIOR.generate([0, 1], generator=torch.Generator().manual_seed(1), **kept)
        for kept in ({"fixed": fixed}, {"prefix": prefix})
    ]
    assert torch.equal(*samples)


def test_kept_tokens_are_conditioned_on() -> None:
    """Greedy sampling around kept tokens is the argmax of the full forward on the final sequence."""
    fixed = keep_segments(LAYOUT, IDS, {"prologue": [1], "visual": [2]})
    sequence = PRIOR.generate([0, 2], fixed=fixed, top_k=1)
    logits = PRIOR(sequence, torch.tensor([0, 2]))
    for step, position in enumerate(LAYOUT.positions):
        if (fixed[:, step] < 0).all():
            best = logits[:, step, position.low : position.high].argmax(-1) + position.low
            assert torch.equal(best, sequence[:, step])


def test_rows_may_keep_different_positions() -> None:
    fixed = torch.full((2, LAYOUT.sequence_length), -1)
    fixed[0, 0] = LAYOUT.positions[0].low + 5
    sequence = PRIOR.generate([0, 0], fixed=fixed, top_k=1)
    free = PRIOR.generate([0, 0], top_k=1)
    assert sequence[0, 0] == fixed[0, 0]
    assert torch.equal(sequence[1], free[1])


def test_errors() -> None:
    with pytest.raises(UsageError, match="has no position 3"):
        keep_segments(LAYOUT, IDS, {"prologue": [3]})
    with pytest.raises(UsageError, match="no segment 'prelude'"):
        keep_segments(LAYOUT, IDS, {"prelude": True})
    wrong = torch.full((2, LAYOUT.sequence_length), -1)
    wrong[0, 2] = 0
    with pytest.raises(UsageError, match="fixed: position 2 holds an id outside"):
        PRIOR.generate([0, 1], fixed=wrong)
