"""The layout's two views, its vocabulary and its rules."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overture.errors import OvertureError, UsageError
from overture.layout import Layout, Segment

PROLOGUE = Layout((Segment("prologue", (7,) * 2, separator=True), Segment("visual", (30, 20, 30))))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    count = draw(st.integers(1, 4))
    segments = []
    for place in range(count):
        sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=6))
        segments.append(Segment(f"s{place}", tuple(sizes), place < count - 1 and draw(st.booleans())))
    return Layout(tuple(segments))


def random_ids(layout: Layout, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, layout.sizes, (*shape, layout.length))


def test_prologue_by_hand() -> None:
    assert PROLOGUE.names == ("prologue", "visual")
    assert PROLOGUE.sizes == (7, 7, 30, 20, 30)
    assert (PROLOGUE.length, PROLOGUE.sequence_length, PROLOGUE.vocabulary_size) == (5, 6, 38)
    assert PROLOGUE.offsets == (30, 0)
    assert [(p.low, p.high) for p in PROLOGUE.positions] == [(30, 37), (30, 37), (37, 38), (0, 30), (0, 20), (0, 30)]
    assert [(p.segment, p.step) for p in PROLOGUE.positions] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert [p.is_separator for p in PROLOGUE.positions] == [False, False, True, False, False, False]
    assert PROLOGUE.steps_per_segment == (2, 4)
    assert PROLOGUE.slice("prologue") == slice(0, 2)
    assert PROLOGUE.slice("visual") == slice(2, 5)
    assert PROLOGUE.to_sequence(np.array([[0, 6, 29, 19, 0]])).tolist() == [[30, 36, 37, 29, 19, 0]]
    assert PROLOGUE.total_bits == pytest.approx(2 * math.log2(7) + 2 * math.log2(30) + math.log2(20))
    assert PROLOGUE.cliff(49 * 30) == 3
    assert PROLOGUE.cliff(49 * 30 + 1) == 4


def test_released_prologue() -> None:
    """Separator id is K_visual + K_prologue, visual ids are those of the plain tokenizer (docs/prologue.md, section 6)."""
    layout = Layout((Segment("prologue", (1024,) * 16, separator=True), Segment("visual", (16384,) * 256)))
    assert (layout.vocabulary_size, layout.sequence_length, layout.length) == (17_409, 273, 272)
    assert layout.positions[16].low == 17_408
    assert layout.positions[0].low == 16_384
    assert layout.steps_per_segment == (16, 257)


@given(layouts(), st.sampled_from([(), (3,), (2, 2), (0,)]), st.sampled_from([np.uint8, np.int32, np.int64]))
def test_views_are_inverse_for_numpy_and_torch(layout: Layout, shape: tuple[int, ...], dtype: type) -> None:
    ids = random_ids(layout, shape).astype(dtype)
    sequence = layout.to_sequence(ids)
    assert sequence.shape == (*shape, layout.sequence_length)
    assert np.array_equal(layout.from_sequence(sequence), ids)
    as_torch = layout.to_sequence(torch.from_numpy(ids))
    assert as_torch.dtype == torch.long
    assert np.array_equal(as_torch.numpy(), sequence)
    assert np.array_equal(layout.from_sequence(as_torch).numpy(), ids)


@given(layouts())
def test_positions_and_vocabulary(layout: Layout) -> None:
    positions = layout.positions
    assert len(positions) == layout.sequence_length == layout.length + sum(s.separator for s in layout.segments)
    assert [p.high - p.low for p in positions if not p.is_separator] == list(layout.sizes)
    assert all(p.high - p.low == 1 for p in positions if p.is_separator)
    assert max(p.high for p in positions) == layout.vocabulary_size
    owner: dict[int, tuple[int, bool]] = {}
    for p in positions:  # no id belongs to two segments, or to a segment and a separator
        for token in range(p.low, p.high):
            assert owner.setdefault(token, (p.segment, p.is_separator)) == (p.segment, p.is_separator)
    assert sorted(owner) == list(range(layout.vocabulary_size))
    assert layout.offsets[-1] == 0
    for place in range(len(layout.segments)):
        steps = [p.step for p in positions if p.segment == place]
        assert steps == list(range(layout.steps_per_segment[place]))
    sequence = layout.to_sequence(random_ids(layout, (5,)))
    low, high = (np.array([getattr(p, end) for p in positions]) for end in ("low", "high"))
    assert ((sequence >= low) & (sequence < high)).all()


@given(layouts())
def test_slices_cover_the_local_positions(layout: Layout) -> None:
    covered = [position for name in layout.names for position in range(layout.length)[layout.slice(name)]]
    assert covered == list(range(layout.length))
    for segment in layout.segments:
        assert layout.sizes[layout.slice(segment.name)] == segment.sizes


@given(layouts())
def test_round_trip_through_json(layout: Layout) -> None:
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_a_layout_that_was_first_used_for_inference_serves_training_too() -> None:
    layout = Layout(PROLOGUE.segments)
    ids = torch.from_numpy(random_ids(layout, (2,)))
    with torch.inference_mode():
        sequence = layout.to_sequence(ids)
        layout.from_sequence(sequence)
    again = layout.to_sequence(ids)
    assert torch.equal(again, sequence)
    weight = torch.ones(layout.vocabulary_size, 3, requires_grad=True)
    torch.nn.functional.embedding(again, weight).sum().backward()
    torch.nn.functional.embedding(layout.from_sequence(again), weight).sum().backward()
    assert weight.grad is not None


def test_use_leaves_a_layout_as_it_was() -> None:
    layout = Layout(PROLOGUE.segments)
    layout.to_sequence(torch.from_numpy(random_ids(layout, (2,))))
    fresh = Layout(PROLOGUE.segments)
    assert (layout, hash(layout), repr(layout)) == (fresh, hash(fresh), repr(fresh))
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert copy.deepcopy(layout) == layout


@given(layouts(), st.data())
def test_check(layout: Layout, data: st.DataObject) -> None:
    ids = random_ids(layout, (4,))
    layout.check(ids)
    layout.check(torch.from_numpy(ids))
    layout.check(ids[:0])
    row, column = data.draw(st.integers(0, 3)), data.draw(st.integers(0, layout.length - 1))
    for wrong in (-1, layout.sizes[column]):
        ids[row, column] = wrong
        with pytest.raises(OvertureError, match=f"tokens: id {wrong} at row {row}, position {column} is outside"):
            layout.check(ids, "tokens")


@pytest.mark.parametrize("method", ["to_sequence", "from_sequence", "check"])
def test_wrong_width(method: str) -> None:
    with pytest.raises(OvertureError, match=r"have 4 positions, this layout has [56]"):
        getattr(PROLOGUE, method)(np.zeros((1, 4), dtype=int))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Layout(()), "at least one segment"),
        (lambda: Layout((Segment("a", (2,)), Segment("a", (2,)))), "different names"),
        (lambda: Layout((Segment("a", (2,), separator=True),)), "cannot be followed"),
        (lambda: Segment("a", ()), "at least one position"),
        (lambda: Segment("a", (2, 0)), "sizes >= 1"),
        (lambda: Segment("a b", (2,)), "plain word"),
        (lambda: PROLOGUE.index("visaul"), "visual"),
    ],
)
def test_impossible_layouts(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        build()


@pytest.mark.parametrize("data", [{}, {"segments": [{"name": "a"}]}, {"segments": 3}])
def test_not_a_layout(data: dict[str, object]) -> None:
    with pytest.raises(OvertureError, match="not a layout"):
        Layout.from_dict(data)


def test_description() -> None:
    assert str(PROLOGUE) == "2 prologue tokens of K 7 + 3 visual tokens of K 20..30"
