"""Growth laws of the codebook size: formulas, the reference table, budgets."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.errors import OvertureError, UsageError
from overture.schedules import FAMILIES, CodebookConfig, Schedule, predicted_cliff

IMAGENET = 1_281_167


def families(positions: int, k_min: int, k_max: int) -> dict[str, Schedule]:
    return {
        "uniform": Schedule.uniform(positions, k_max),
        "linear": Schedule.linear(positions, k_min, k_max),
        "power(2)": Schedule.power(positions, k_min, k_max, 2.0),
        "power(3)": Schedule.power(positions, k_min, k_max, 3.0),
        "geometric": Schedule.geometric(positions, k_min, k_max),
        "cosine": Schedule.cosine(positions, k_min, k_max),
    }


@pytest.mark.parametrize(
    ("k_max", "cliffs"),
    [(1024, (3, 7, 14, 21, 17)), (4096, (2, 5, 11, 18, 16)), (16384, (2, 4, 9, 15, 16))],
)
def test_cliffs_of_imagenet(k_max: int, cliffs: tuple[int, ...]) -> None:
    named = families(256, 2, k_max)
    names = ("uniform", "linear", "power(2)", "power(3)", "geometric")
    assert tuple(named[name].cliff(IMAGENET) for name in names) == cliffs


def test_total_bits_of_the_reference_table() -> None:
    named = families(256, 2, 16384)
    found = {name: round(named[name].total_bits) for name in ("uniform", "linear", "power(2)", "geometric")}
    assert found == {"uniform": 3584, "linear": 3209, "power(2)": 2854, "geometric": 1920}


def test_small_schedules_by_hand() -> None:
    assert Schedule.linear(5, 2, 10).sizes == (2, 4, 6, 8, 10)
    assert Schedule.power(5, 0 + 1, 17, 2.0).sizes == (1, 2, 5, 10, 17)
    assert Schedule.geometric(4, 2, 16).sizes == (2, 4, 8, 16)
    assert Schedule.cosine(5, 0 + 2, 10).sizes == (2, 3, 6, 9, 10)
    assert Schedule.uniform(3, 9).sizes == (9, 9, 9)
    assert Schedule.steps(6, 8).sizes == (2, 2, 4, 4, 8, 8)
    assert Schedule.linear(3, 1, 4).sizes == (1, 2, 4)  # 2.5 rounds half to even
    assert Schedule.explicit([3, 1, 2]).sizes == (3, 1, 2)


@given(st.integers(2, 300), st.integers(1, 64), st.integers(0, 20_000))
def test_families_grow_from_k_min_to_k_max(positions: int, k_min: int, more: int) -> None:
    for name, schedule in families(positions, k_min, k_min + more).items():
        sizes = schedule.sizes
        assert len(schedule) == len(sizes) == positions
        assert list(sizes) == sorted(sizes)
        assert schedule.k_max == sizes[-1] == k_min + more
        assert sizes[0] == (k_min + more if name == "uniform" else k_min)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 10**12))
def test_cliff_and_bits(sizes: list[int], images: int) -> None:
    schedule = Schedule.explicit(sizes)
    products = [math.prod(sizes[: t + 1]) for t in range(len(sizes))]
    assert schedule.cliff(images) == next((t + 1 for t, p in enumerate(products) if p >= images), None)
    assert schedule.cliff(products[-1] + 1) is None
    assert schedule.cumulative_bits == pytest.approx([math.log2(p) for p in products])
    assert schedule.total_bits == pytest.approx(math.log2(products[-1]))


def test_cliff_is_no_rounding_case() -> None:
    schedule = Schedule.uniform(10, 4)
    assert schedule.cliff(2**20) == 10
    assert schedule.cliff(2**20 + 1) is None
    assert Schedule.uniform(10, 10).cliff(1000) == 3  # log 1000 / log 10 is a little below 3 in floating point
    assert schedule.cliff(1) == 1


@given(st.integers(1, 100), st.integers(0, 5))
def test_shuffled_and_reversed(positions: int, seed: int) -> None:
    schedule = Schedule.linear(positions, 2, 500)
    assert schedule.reversed().sizes == schedule.sizes[::-1]
    assert sorted(schedule.shuffled(seed).sizes) == sorted(schedule.sizes)
    assert schedule.shuffled(seed) == schedule.shuffled(seed)
    assert schedule.shuffled(seed).total_bits == pytest.approx(schedule.total_bits)


def test_shuffles_differ() -> None:
    schedule = Schedule.linear(64, 2, 500)
    assert len({schedule.sizes, schedule.shuffled(0).sizes, schedule.shuffled(1).sizes}) == 3


@pytest.mark.parametrize("k_uniform", [256, 1024, 4096])
def test_budgets_are_met(k_uniform: int) -> None:
    bits = Schedule.uniform(256, k_uniform).total_bits
    power = Schedule.power_for_bits(256, 2, 16384, bits)
    assert power.total_bits == pytest.approx(bits, abs=1.0)
    assert (power.sizes[0], power.k_max) == (2, 16384)
    geometric = Schedule.geometric_for_bits(256, 2, bits)
    assert geometric.total_bits == pytest.approx(bits, abs=1.0)
    assert geometric.sizes[0] == 2


@given(st.integers(4, 60), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_any_reachable_budget_is_nearly_met(positions: int, share: float) -> None:
    least = Schedule.power(positions, 2, 1024, 1e3).total_bits
    bits = least + share * (Schedule.uniform(positions, 1024).total_bits - 9 - least)
    assert Schedule.power_for_bits(positions, 2, 1024, bits).total_bits == pytest.approx(bits, abs=1.5)


@pytest.mark.parametrize("bits", [10.0, 5000.0])
def test_unreachable_budgets(bits: float) -> None:
    with pytest.raises(UsageError, match="out of reach"):
        Schedule.power_for_bits(256, 2, 16384, bits)


@pytest.mark.parametrize("name", FAMILIES)
def test_from_name(name: str) -> None:
    schedule = Schedule.from_name(name, 16, 2, 256)
    assert len(schedule) == 16
    assert schedule.k_max == 256
    assert schedule.name.startswith(name)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Schedule.from_name("geometrc", 4), "geometric"),
        (lambda: Schedule.uniform(0, 4), "positions is 0"),
        (lambda: Schedule.linear(4, 0, 4), "k_min is 0"),
        (lambda: Schedule.linear(4, 8, 4), "smaller than k_min"),
        (lambda: Schedule.power(4, 2, 4, 0.0), "exponent is 0.0"),
        (lambda: Schedule.steps(4, 12), "power of two"),
        (lambda: Schedule.explicit([]), "at least one position"),
        (lambda: Schedule.explicit([2, 0]), "position 1 is 0"),
        (lambda: Schedule.explicit([2.5]), "position 0 is 2.5"),
        (lambda: Schedule.explicit([True]), "position 0 is True"),
        (lambda: Schedule.uniform(4, 4).cliff(0), "images is 0"),
    ],
)
def test_impossible_schedules(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        build()


# -- as a config, and anyone's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_codebook_config_is_its_schedule(name: str) -> None:
    config = CodebookConfig(name, k_min=4, k_max=256, exponent=3.0)
    assert config.build(12) == Schedule.from_name(name, 12, 4, 256, 3.0)


def test_explicit_codebook_sizes() -> None:
    config = CodebookConfig("explicit", explicit=(3, 1, 2))
    assert config.build(3).sizes == (3, 1, 2)
    with pytest.raises(UsageError, match="3 given, the segment has 4"):
        config.build(4)


def test_predicted_cliff_is_that_of_the_schedule() -> None:
    schedule = Schedule.linear(20, 2, 64)
    for images in (1, 2, 3, 1000, 10**9, 10**40):
        assert predicted_cliff(schedule.sizes, images) == schedule.cliff(images)


@pytest.fixture
def law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Somebody's growth laws in the current folder."""
    path = tmp_path / "my_laws.py"
    path.write_text(
        "from overture.schedules import Schedule\n"
        "def saw(positions, k_min, k_max):\n"
        "    return [k_min if place % 2 else k_max for place in range(positions)]\n"
        "def late(positions, k_min, k_max):\n"
        "    return Schedule.linear(positions, k_min, k_max).reversed()\n"
        "def short(positions, k_min, k_max):\n"
        "    return [k_max]\n"
        "def wrong(positions, k_min, k_max):\n"
        "    return [k_max / 0] * positions\n"
        "def empty(positions, k_min, k_max):\n"
        "    return [0] * positions\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop("my_laws", None)


def test_anyones_growth_law(law: Path) -> None:
    for place in ("my_laws", str(law)):
        schedule = Schedule.from_name(f"{place}:saw", 5, 2, 9)
        assert (schedule.sizes, schedule.name) == ((9, 2, 9, 2, 9), f"{place}:saw")
    assert CodebookConfig("my_laws:late", k_min=2, k_max=10).build(5).sizes == (10, 8, 6, 4, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_laws:short", "gave 1 sizes for 4 positions"),
        ("my_laws:wrong", r"my_laws\.py:9: ZeroDivisionError"),
        ("my_laws:empty", "position 0 is 0"),
        ("my_laws:swa", "did you mean 'saw'"),
        ("her_laws:saw", "no module 'her_laws'"),
        ("lineal", "did you mean 'linear'.*or write module:function"),
    ],
)
def test_growth_laws_that_fail_are_one_line(law: Path, name: str, message: str) -> None:
    with pytest.raises(OvertureError, match=message) as error:
        Schedule.from_name(name, 4, 2, 9)
    assert "\n" not in str(error.value)
