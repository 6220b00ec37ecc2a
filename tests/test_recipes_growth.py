"""The growth law in one option."""

from __future__ import annotations

from pathlib import Path

import pytest

from overture.errors import UsageError
from overture.recipes import recipe_configs
from overture.recipes.growth import with_growth
from overture.runs.config import RunConfig
from overture.schedules import CodebookConfig, Schedule


def grown(recipe: str, law: str) -> dict[str, RunConfig]:
    return {config.name: config for config in with_growth(recipe_configs(recipe), law)}


@pytest.mark.parametrize(
    ("law", "schedule"),
    [
        ("power 3", Schedule.power(256, 2, 16384, 3.0)),
        ("geometric 4..4096", Schedule.geometric(256, 4, 4096)),
        ("..1024", Schedule.power(256, 2, 1024, 2.0)),
        ("8.. cosine", Schedule.cosine(256, 8, 16384)),
        ("steps ..1024", Schedule.steps(256, 1024)),
        ("uniform ..64", Schedule.uniform(256, 64)),
        ("visual: linear", Schedule.linear(256, 2, 16384)),
    ],
)
def test_a_law_in_words(law: str, schedule: Schedule) -> None:
    assert grown("imagenet-vcq-xl", law)["imagenet-vcq-xl"].tokenizer.layout.sizes == schedule.sizes


def test_the_uniform_run_of_a_comparison_stays() -> None:
    runs = grown("quickstart", "geometric ..256")
    assert set(runs["uniform"].tokenizer.layout.sizes) == {1024}
    assert runs["vcq"].tokenizer.layout.sizes == Schedule.geometric(16, 2, 256).sizes


def test_segments_by_name_and_anyones_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "growth_law.py").write_text(
        "def late(positions, low, high):\n    return [low] * (positions - 1) + [high]\n"
    )
    monkeypatch.chdir(tmp_path)
    layout = grown("prologue-b-b", "prologue: linear 2..64, visual: growth_law:late 2..512")[
        "prologue-b-b"
    ].tokenizer.layout
    assert layout.segments[0].sizes == Schedule.linear(16, 2, 64).sizes
    assert layout.segments[1].sizes == (2,) * 255 + (512,)
    layout = grown("imagenet-vcq", "growth_law:late ..512")["imagenet-vcq"].tokenizer.layout
    assert layout.sizes == (2,) * 255 + (512,)


@pytest.mark.parametrize(
    ("recipe", "law", "message"),
    [
        ("imagenet-1d", "power 2", "no codebook of this recipe grows; name its segment: 'visual: power 2'"),
        ("imagenet-vcq", "visaul: power 2", "no segment 'visaul' (did you mean 'visual'?)"),
        ("imagenet-vcq", "visual: linear, power", "write LAW, or SEGMENT: LAW"),
        ("imagenet-vcq", "pwer 2", "unknown schedule 'pwer' (did you mean 'power'?)"),
        ("imagenet-vcq", "linear 2", "linear takes no exponent"),
        ("imagenet-vcq", "steps 4..64", "steps takes no smallest size; write ..64"),
        ("imagenet-vcq", "power 2 3", "has '2' and '3'"),
        ("imagenet-vcq", "", "write [LAW]"),
        ("imagenet-vcq", "..", "write [LAW]"),
        ("imagenet-vcq", "explicit", "explicit sizes are a list"),
        ("imagenet-vcq", "power 5..3", "k_max is 3, smaller than k_min = 5"),
        ("imagenet-vcq", "power -1", "exponent is -1"),
    ],
)
def test_laws_that_cannot_be_are_one_line(recipe: str, law: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        grown(recipe, law)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_law_leaves_out_stays() -> None:
    start = CodebookConfig("power", k_min=4, k_max=100, exponent=3.0)
    assert start.grown("power") == start
    assert start.grown("linear ..200") == CodebookConfig("linear", k_min=4, k_max=200, exponent=3.0)
