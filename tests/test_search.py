"""The search for a guidance: on landscapes whose lowest point is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.errors import OvertureError, UsageError
from overture.layout import Layout, Segment
from overture.priors.guidance import Guidance
from overture.runs.search import GuidanceSearch, Scored, Setting, SettingLog

LAYOUT = Layout((Segment("prologue", (4, 4), separator=True), Segment("visual", (8, 8, 8))))


def test_the_grid_names_every_setting_once() -> None:
    search = GuidanceSearch(
        scales=(1.0, 2.0), schedules=("constant", "cosine"), powers=(0.5, 1.0), temperatures=(0.9, 1.0)
    )
    grid = search.coarse()
    # At each temperature: no guidance, constant 2, cosine 2 with two powers.
    assert len(grid) == len(set(grid)) == 2 * 4
    means = {(tuple(Guidance.parse(s.guidance(("visual",))).scales(LAYOUT)), s.temperature) for s in grid}
    assert len(means) == len(grid)


@settings(max_examples=40)
@given(best=st.floats(1.0, 3.0), schedule=st.sampled_from(["constant", "linear", "cosine"]))
def test_the_best_finalist_is_near_the_lowest_point(best: float, schedule: str) -> None:
    search = GuidanceSearch(coarse_samples=10, final_samples=50)
    calls: list[Scored] = []

    def measure(setting: Setting, samples: int) -> float:
        return abs(setting.scale - best) + (0.0 if setting.schedule == schedule or setting.scale == 1 else 0.5)

    found = search.run(measure, lambda scored, step: calls.append(scored))
    assert [scored.value for scored in found] == sorted(scored.value for scored in found)
    assert len(found) == 3
    assert all(scored.samples == 50 for scored in found)
    # The refined grid is at most half as wide as the coarse one around the best scale (3 - 2 is its widest gap).
    assert found[0].value <= 0.5
    assert found[0].value <= min(call.value for call in calls)
    assert sum(call.samples for call in calls) <= search.most_images
    assert len({(call.setting, call.samples) for call in calls}) == len(calls)


def test_split_guidance_searches_both_scales() -> None:
    search = GuidanceSearch(
        scales=(1.0, 2.0, 3.0), schedules=("constant",), firsts=(0.5, 1.0, 2.0), segments=LAYOUT.names, finalists=1
    )
    found = search.run(lambda setting, samples: abs(setting.scale - 3) + abs((setting.first or 0) - 0.75))
    assert found[0].setting.scale == 3.0
    assert found[0].setting.first == 0.75
    text = found[0].setting.guidance(LAYOUT.names)
    assert Guidance.parse(text).scales(LAYOUT) == (0.75, 0.75, 3.0, 3.0, 3.0, 3.0)


def test_a_log_goes_on_where_it_ended(tmp_path) -> None:
    path, protocol = tmp_path / "log.jsonl", {"seed": 1}
    asked: list[Setting] = []

    def through(log: SettingLog, stop_after: int) -> list[Scored]:
        def measure(setting: Setting, samples: int) -> float:
            if (setting, samples) not in log:
                if len(asked) == stop_after:
                    raise KeyboardInterrupt
                asked.append(setting)
                log.add(setting, samples, (setting.scale - 1.4) ** 2 + setting.temperature)
            return log[setting, samples]

        return GuidanceSearch(temperatures=(0.9, 1.0)).run(measure)

    with pytest.raises(KeyboardInterrupt):
        through(SettingLog(path, protocol), 7)
    resumed = through(SettingLog(path, protocol), 10_000)
    total = len(asked)
    assert through(SettingLog(path, protocol), total) == resumed  # nothing is measured again
    assert len(asked) == total
    uninterrupted = through(SettingLog(tmp_path / "other.jsonl", protocol), 10_000)
    assert uninterrupted == resumed
    # Another protocol knows nothing of it.
    assert (asked[0], 1000) not in SettingLog(path, {"seed": 2})
    assert len(path.read_text().splitlines()) == total


def test_a_half_written_line_is_measured_again(tmp_path) -> None:
    path, protocol = tmp_path / "log.jsonl", {"seed": 1}
    log = SettingLog(path, protocol)
    for number in range(3):
        log.add(Setting(scale=float(number)), 10, 0.5)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (last, last + 1, len(whole) - 1):  # nothing, a little, and all but the end of the last line
        path.write_bytes(whole[:end])
        again = SettingLog(path, protocol)
        assert (Setting(scale=1.0), 10) in again
        assert (Setting(scale=2.0), 10) not in again
        again.add(Setting(scale=2.0), 10, 0.5)
        assert path.read_bytes() == whole
    path.write_bytes(b"{")  # the very first line
    assert (Setting(scale=0.0), 10) not in SettingLog(path, protocol)


@pytest.mark.parametrize("line", ["{", "", "[]", "3", '{"protocol": {"seed": 1}}'])
def test_damage_within_a_log_is_refused(tmp_path, line: str) -> None:
    path, protocol = tmp_path / "log.jsonl", {"seed": 1}
    log = SettingLog(path, protocol)
    log.add(Setting(), 10, 0.5)
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(OvertureError, match=r"log\.jsonl: damaged") as caught:
        SettingLog(path, protocol)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ['"5"', "NaN", "null", "true"])
def test_a_logged_value_is_a_number(tmp_path, value: str) -> None:
    path, protocol = tmp_path / "log.jsonl", {"seed": 1}
    SettingLog(path, protocol).add(Setting(), 10, 0.5)
    path.write_text(path.read_text().replace('"value": 0.5', f'"value": {value}'))
    with pytest.raises(OvertureError, match="damaged"):
        SettingLog(path, protocol)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": ()},
        {"schedules": ("quadratic",)},
        {"firsts": (1.0,)},
        {"finalists": 0},
        {"coarse_samples": 1},
        {"temperatures": (0.0,)},
        {"temperatures": (float("inf"),)},
        {"temperatures": (float("nan"),)},
    ],
)
def test_searches_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(UsageError):
        GuidanceSearch(**wrong)
