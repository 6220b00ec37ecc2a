"""The search for a guidance: on landscapes whose lowest point is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overture.analysis.guidance_search import GuidanceSearch, Scored, SearchResult, Setting, SettingLog, study
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import FeatureNetwork, Outputs
from overture.evaluation.statistics import measure_batches
from overture.layout import Layout, Segment
from overture.priors.guidance import Guidance
from overture.priors.sampling import Sampling

LAYOUT = Layout((Segment("prologue", (4, 4), separator=True), Segment("visual", (8, 8, 8))))
SINGLE = Layout.single([8] * 3)
UNIT = 2**-20


class Decoder(FeatureNetwork):
    """Reads one number from the three pixels of an image."""

    name, dims, weights_hash, preparation = "decoder", 1, "3" * 64, "none"

    def outputs(self, images: Tensor) -> Outputs:
        places = torch.tensor([65536.0, 256.0, 1.0])
        return Outputs((images.flatten(1).double() @ places.double()).float()[:, None] * UNIT)


DECODER = Decoder()


def encoded(value: float, count: int) -> Tensor:
    """Images that :class:`Decoder` reads as ``value``, to about a millionth."""
    whole = round(value / UNIT)
    pixels = torch.tensor([whole >> 16, whole >> 8 & 255, whole & 255], dtype=torch.uint8)
    return pixels.view(1, 1, 1, 3).expand(count, -1, -1, -1)


REFERENCE = measure_batches("real images", DECODER, [encoded(0.0, 2)])


class Landscape:
    """A pipeline whose samples lie at a known Fréchet distance to the reference, for every setting."""

    def __init__(self, height: Callable[[Setting], float], layout: Layout = SINGLE) -> None:
        self.height, self.layout = height, layout
        self.prior = SimpleNamespace(config=SimpleNamespace(num_classes=3))
        self.asked: list[tuple[Setting, int]] = []
        self.how: list[dict[str, Any]] = []
        self.stop_after = 10_000

    def sample(self, classes: Tensor, sampling: Sampling, **how: Any) -> Iterator[Tensor]:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        assert torch.equal(classes, torch.arange(len(classes)) % 3)
        setting = self._setting(sampling)
        self.asked.append((setting, len(classes)))
        self.how.append({**how, "top_k": sampling.top_k, "top_p": sampling.top_p})
        for part in classes.split(how["batch_size"]):
            yield encoded(self.height(setting) ** 0.5, len(part))

    def _setting(self, sampling: Sampling) -> Setting:
        assert isinstance(sampling.temperature, float)
        whole, first = sampling.guidance.whole, None
        if whole is None:
            parts = dict(sampling.guidance.parts)
            first, whole = parts[self.layout.names[0]].scale, parts[self.layout.names[-1]]
        power = whole.power if whole.shape == "cosine" else 1.0
        return Setting(whole.scale, whole.shape, power, first, sampling.temperature)


def searched(landscape: Landscape, search: GuidanceSearch, log: Path, **settings: Any) -> SearchResult:
    about = {"prior_hash": "4" * 16}
    return study(landscape, DECODER, REFERENCE, search, log, about=about, **settings)  # type: ignore[arg-type]


def test_the_grid_names_every_setting_once() -> None:
    search = GuidanceSearch(
        scales=(1.0, 2.0), schedules=("constant", "cosine"), powers=(0.5, 1.0), temperatures=(0.9, 1.0)
    )
    grid = search.coarse()
    # At each temperature: no guidance, constant 2, cosine 2 with two powers.
    assert len(grid) == len(set(grid)) == 2 * 4
    means = {(tuple(Guidance.parse(s.guidance(("visual",))).scales(LAYOUT)), s.temperature) for s in grid}
    assert len(means) == len(grid)


@settings(max_examples=40, deadline=None)
@given(best=st.floats(1.0, 3.0), schedule=st.sampled_from(["constant", "linear", "cosine"]))
def test_the_best_finalist_is_near_the_lowest_point(tmp_path_factory, best: float, schedule: str) -> None:
    search = GuidanceSearch(coarse_samples=10, final_samples=50)
    calls: list[Scored] = []

    def height(setting: Setting) -> float:
        return abs(setting.scale - best) + (0.0 if setting.schedule == schedule or setting.scale == 1 else 0.5)

    landscape = Landscape(height)
    log = tmp_path_factory.mktemp("search") / "log.jsonl"
    result = searched(landscape, search, log, seen=lambda step, scored: calls.append(scored))
    found = result.finalists
    assert [scored.value for scored in found] == sorted(scored.value for scored in found)
    assert len(found) == 3
    assert all(scored.samples == 50 for scored in found)
    assert [scored.value for scored in found] == pytest.approx([height(scored.setting) for scored in found], abs=1e-5)
    # The refined grid is at most half as wide as the coarse one around the best scale (3 - 2 is its widest gap).
    assert found[0].value <= 0.5 + 1e-5
    assert found[0].value <= min(call.value for call in calls)
    assert sum(call.samples for call in calls) <= search.most_images
    assert len({(call.setting, call.samples) for call in calls}) == len(calls)
    assert [(call.setting, call.samples) for call in calls] == landscape.asked
    assert calls == [scored for _, scored in result.measured]
    assert result.best_at_edge == (found[0].setting.scale == 3)


def test_split_guidance_searches_both_scales(tmp_path) -> None:
    search = GuidanceSearch(
        scales=(1.0, 2.0, 3.0), schedules=("constant",), firsts=(0.5, 1.0, 2.0), segments=LAYOUT.names, finalists=1
    )
    landscape = Landscape(lambda setting: abs(setting.scale - 3) + abs((setting.first or 0) - 0.75), LAYOUT)
    found = searched(landscape, search, tmp_path / "log.jsonl").finalists
    assert found[0].setting.scale == 3.0
    assert found[0].setting.first == 0.75
    text = found[0].setting.guidance(LAYOUT.names)
    assert Guidance.parse(text).scales(LAYOUT) == (0.75, 0.75, 3.0, 3.0, 3.0, 3.0)


def bowl(setting: Setting) -> float:
    return (setting.scale - 1.4) ** 2 + setting.temperature


def test_all_settings_see_the_same_draws(tmp_path) -> None:
    landscape = Landscape(bowl)
    search = GuidanceSearch(coarse_samples=7, final_samples=11)
    result = searched(landscape, search, tmp_path / "log.jsonl", seed=5, top_k=3, top_p=0.9, batch_size=4)
    assert all(how == {"seed": 5, "top_k": 3, "top_p": 0.9, "batch_size": 4} for how in landscape.how)
    assert {samples for _, samples in landscape.asked} == {7, 11}
    about = {
        "seed": 5,
        "top_k": 3,
        "top_p": 0.9,
        "network": "decoder",
        "reference": "real images",
        "reference_images": 2,
    }
    assert about.items() <= result.protocol.items()
    assert result.protocol["prior_hash"] == "4" * 16


def test_the_result_in_words_and_numbers(tmp_path) -> None:
    search = GuidanceSearch(scales=(1.0, 1.4), coarse_samples=10, final_samples=50, finalists=2)
    result = searched(Landscape(bowl), search, tmp_path / "log.jsonl")
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["name"] == "gFD(decoder)"
    assert values["best"] == values["finalists"][0]
    assert [entry["value"] for entry in values["finalists"]] == [scored.value for scored in result.finalists]
    assert [entry["step"] for entry in values["measured"]].count("finalists") == 2
    assert Guidance.parse(values["best"]["guidance"]).whole.scale == result.finalists[0].setting.scale
    assert result.best_at_edge
    assert f"--guidance '{values['best']['guidance']}' --temperature 1" in result.describe()
    assert "widen --scales" in result.describe()
    (entry,) = result.entries()
    assert entry.data == result.to_dict()
    assert "real images" in entry.caption


def test_a_log_goes_on_where_it_ended(tmp_path) -> None:
    path, search = tmp_path / "log.jsonl", GuidanceSearch(temperatures=(0.9, 1.0), coarse_samples=20, final_samples=30)
    landscape = Landscape(bowl)
    landscape.stop_after = 7
    with pytest.raises(KeyboardInterrupt):
        searched(landscape, search, path)
    landscape.stop_after = 10_000
    resumed = searched(landscape, search, path)
    total = len(landscape.asked)
    assert len(set(landscape.asked)) == total
    assert len(path.read_text().splitlines()) == total
    assert searched(landscape, search, path) == resumed  # nothing is measured again
    assert len(landscape.asked) == total
    assert searched(Landscape(bowl), search, tmp_path / "other.jsonl") == resumed
    # Another protocol knows nothing of it.
    first = landscape.asked[0]
    assert first in SettingLog(path, resumed.protocol)
    assert first not in SettingLog(path, {**resumed.protocol, "seed": 2})
    anew = searched(landscape, search, path, seed=2)
    assert len(landscape.asked) == 2 * total
    assert anew.measured == resumed.measured


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
