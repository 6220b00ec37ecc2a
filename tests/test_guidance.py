"""Guidance scales by hand, from text, and for each segment."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.priors import Curve, Guidance

PLAIN = Layout.single((8,) * 5)
PROLOGUE = Layout((Segment("prologue", (7,) * 4, separator=True), Segment("visual", (30,) * 6)))


def test_none_and_constant() -> None:
    assert Guidance.none().scales(PLAIN) == (1.0,) * 5
    assert Guidance.constant(2.5).scales(PLAIN) == (2.5,) * 5
    assert Guidance.none() == Guidance.constant(1.0)


def test_linear_by_hand() -> None:
    assert Guidance.linear(6.0).scales(PLAIN) == pytest.approx((1.0, 2.0, 3.0, 4.0, 5.0))
    assert Guidance.linear(5.0, start=0.0).scales(PLAIN) == pytest.approx((0.0, 1.0, 2.0, 3.0, 4.0))


def test_cosine_by_hand() -> None:
    layout = Layout.single((8,) * 4)
    half = math.sqrt(0.5)
    expected = (1.0, 1 + 3 * (1 - half) / 2, 2.5, 1 + 3 * (1 + half) / 2)
    assert Guidance.cosine(4.0).scales(layout) == pytest.approx(expected)
    # power 2: t^2 = 0, 1/16, 1/4, 9/16
    expected = tuple(0.5 + 3.5 * (1 - math.cos(math.pi * t)) / 2 for t in (0, 1 / 16, 1 / 4, 9 / 16))
    assert Guidance.cosine(4.0, power=2.0, start=0.5).scales(layout) == pytest.approx(expected)


@given(st.floats(0, 20), st.floats(0, 3), st.floats(0.1, 5), st.integers(1, 300))
def test_curves_go_from_start_towards_scale(scale: float, start: float, power: float, length: int) -> None:
    layout = Layout.single((2,) * length)
    for guidance in (Guidance.linear(scale, start), Guidance.cosine(scale, power, start)):
        scales = guidance.scales(layout)
        assert len(scales) == length
        assert scales[0] == pytest.approx(start)
        assert list(scales) == sorted(scales, reverse=scale < start)
        assert all(min(start, scale) - 1e-9 <= value <= max(start, scale) + 1e-9 for value in scales)


def test_whole_sequence_counts_separators() -> None:
    assert Guidance.linear(12.0).scales(PROLOGUE) == pytest.approx(tuple(1 + i for i in range(11)))


def test_split_has_its_own_progress() -> None:
    scales = Guidance.split(prologue=Guidance.linear(4.0, start=0.0), visual=Guidance.linear(8.0)).scales(PROLOGUE)
    assert scales[:4] == pytest.approx((0.0, 1.0, 2.0, 3.0))
    assert scales[4:] == pytest.approx(tuple(1.0 + step for step in range(7)))  # the separator is step 0 of 7


def test_segments_that_are_not_named_are_not_guided() -> None:
    assert Guidance.split(visual=3.0).scales(PROLOGUE) == (1.0,) * 4 + (3.0,) * 7
    assert Guidance.split(prologue=0.7).scales(PROLOGUE) == (0.7,) * 4 + (1.0,) * 7
    assert Guidance.split().scales(PROLOGUE) == (1.0,) * 11


@pytest.mark.parametrize(
    ("text", "guidance"),
    [
        ("none", Guidance.none()),
        ("2.0", Guidance.constant(2.0)),
        (" constant 1.5 ", Guidance.constant(1.5)),
        ("linear 3 start 0.5", Guidance.linear(3.0, start=0.5)),
        ("cosine 4 power 1.5", Guidance.cosine(4.0, power=1.5)),
        ("cosine 4 start 0 power 1.5", Guidance.cosine(4.0, power=1.5, start=0.0)),
        (
            "prologue: constant 0.7, visual: cosine 3.75 power 0.2",
            Guidance.split(prologue=0.7, visual=Guidance.cosine(3.75, power=0.2)),
        ),
        ("visual: 2", Guidance.split(visual=2.0)),
    ],
)
def test_parse(text: str, guidance: Guidance) -> None:
    assert Guidance.parse(text) == guidance


def curves() -> st.SearchStrategy[Curve]:
    values = st.integers(0, 400).map(lambda n: n / 16)
    powers = st.integers(1, 80).map(lambda n: n / 16)
    return st.one_of(
        st.builds(Curve, st.just("constant"), values),
        st.builds(Curve, st.just("linear"), values, start=values),
        st.builds(Curve, st.just("cosine"), values, powers, values),
    )


@given(curves(), curves())
def test_text_round_trip(first: Curve, second: Curve) -> None:
    assert Guidance.parse(str(Guidance(first))) == Guidance(first)
    split = Guidance.split(prologue=first, visual=second)
    assert Guidance.parse(str(split)) == split


@pytest.mark.parametrize(
    "text", ["", "cosine", "sine 3", "2 power", "2 strength 3", "2 power x", "prologue: , visual: 2", "a: 1, 2"]
)
def test_unreadable(text: str) -> None:
    with pytest.raises(UsageError, match="guidance"):
        Guidance.parse(text)


@pytest.mark.parametrize("bad", [{"shape": "sine"}, {"scale": math.nan}, {"start": math.inf}, {"power": 0.0}])
def test_impossible_curves(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Curve(**bad)  # type: ignore[arg-type]


def test_unknown_segment_and_nested_split() -> None:
    with pytest.raises(UsageError, match="prologue"):
        Guidance.split(prolouge=2.0).scales(PROLOGUE)
    with pytest.raises(UsageError, match="cannot itself be split"):
        Guidance.split(visual=Guidance.split(visual=2.0))
