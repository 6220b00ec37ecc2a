"""The report page: every number of the results is on it, nothing is invented, and it stands alone."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from overture.analysis.entropy import conditional_entropy
from overture.analysis.style import COLOURS
from overture.config import to_dict
from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.recipes.quickstart import one_dimensional
from overture.report import svg_figures, write_report
from overture.report.records import read_records
from overture.report.words import distance, other_cliffs, percent
from overture.runs.directory import RunDirectory
from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig, TokenizerConfig

VOID = {"meta", "img", "br", "hr", "link", "input", "col", "wbr"}
UNIFORM = CodebookConfig("uniform", k_max=64)
GROWING = CodebookConfig("linear", k_min=2, k_max=64)


# -- runs as the stages write them ------------------------------------------------------------------------------------


def measurement(name: str, value: float | None, notes: tuple[str, ...] = (), **conditions: Any) -> dict[str, Any]:
    known = {
        "network": "domain",
        "network_hash": "aa11" * 16,
        "reference": "the training images",
        "reference_hash": "bb22" * 16,
        "reference_images": 900,
        "images": 500,
        "image_size": 28,
        "crop": "center",
        "guidance": None,
        "checkpoint": "cc33" * 4,
        "seed": 0,
    }
    better = "lower" if "FD" in name else "higher"
    return {
        "name": name,
        "value": value,
        "unit": "",
        "protocol": known | conditions,
        "notes": list(notes),
        "better": better,
        "meaning": f"what {name} says",
    }


def generated(distance: float, precision: float, **conditions: Any) -> dict[str, Any]:
    """Two of the metrics of one set of images, and one that could not be had."""
    return {
        "measurements": {
            "fid": measurement("FD(domain)", distance, **conditions),
            "precision": measurement("Precision(domain)", precision, **conditions),
        },
        "skipped": {"sfid": "domain has no spatial features"},
    }


def results(layout: Layout, scale: float) -> dict[str, Any]:
    """Results of plausible shape; every number is different for a different ``scale``."""
    positions, rng = layout.length, np.random.default_rng(round(100 * scale))
    ids = np.stack([rng.integers(0, size, 900) for size in layout.sizes], axis=1)
    train, held_out = (np.linspace(2, 1, layout.sequence_length) * scale * gap for gap in (1.0, 1.3))
    likelihood: dict[str, Any] = {"unit": "bits per image", "weights": "raw", "crop": "central"}
    for part, bits in (("train", train), ("held_out", held_out)):
        for loss, extra in (("allowed", 0.0), ("vocabulary", 0.25)):
            values = (bits + extra).tolist()
            likelihood[f"{part}_{loss}"] = {
                "bits_per_position": values,
                "bits_per_image": sum(values),
                "images": 900 if part == "train" else 100,
            }
    segments = {
        segment.name: {
            "used": 0.9,
            "perplexity": 11.0,
            "used_per_position": [0.5 + 0.4 * math.sin(t) ** 2 for t in range(len(segment))],
            "perplexity_per_position": [1.0 + t for t in range(len(segment))],
        }
        for segment in layout.segments
    }
    assert sum(len(s["used_per_position"]) for s in segments.values()) == positions
    return {
        "entropy": conditional_entropy(ids, layout=layout).to_dict(),
        "likelihood": likelihood,
        "reconstruction": {
            "distance": measurement("rFD(domain)", 1.2345 * scale, images=100, reference="the same images"),
            "quality": {
                "images": 100,
                "psnr": 20.123 * scale,
                "psnr_of_mean_error": 19.5,
                "ssim": 0.7654321 / scale,
                "mean_squared_error": 0.01,
                "exact": 0,
            },
            "usage": {"images": 100, "segments": segments},
        },
        "generation": {
            "unguided": generated(5.4321 * scale, 0.4321 / scale, guidance="none"),
            "guided": generated(3.2109 * scale, 0.5432 / scale, guidance="constant 1.5"),
            "held_out": generated(0.31415 * scale, 0.9 / scale, images=100),
        },
    }


def stored(run: RunDirectory) -> dict[str, Any]:
    """The results as they lie on disk."""
    return json.loads(run.results.read_text())


def pictures(run: RunDirectory, originals: int = 0) -> None:
    """10 rows of 8 samples, and 16 originals over 16 reconstructions, with gaps of 2 px."""
    run.samples.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(originals)
    Image.fromarray(rng.integers(0, 255, (10 * 30 + 2, 8 * 30 + 2), dtype=np.uint8)).save(run.samples / "classes.png")
    both = np.full((62, 16 * 30 + 2), originals, np.uint8)
    both[31:] = rng.integers(0, 255, both[31:].shape)
    Image.fromarray(both).save(run.samples / "reconstructions.png")


def make_run(root: Path, name: str, codebook: CodebookConfig = UNIFORM, scale: float = 1.0) -> RunDirectory:
    run = RunDirectory(root)
    root.mkdir(parents=True)
    config = replace(one_dimensional(name, codebook), recipe="quickstart").resolve(10)
    run.config.write_text(json.dumps(to_dict(config)))
    (root / "classes.json").write_text(json.dumps([f"kind {place}" for place in range(10)]))
    run.results.write_text(json.dumps(results(config.tokenizer.layout, scale)))
    lines: list[dict[str, Any]] = [
        {"stage": "tokenizer", "step": step, "l1": scale / step, "perceptual": 1.0, "quantizer": 0.1, "loss": 1.0}
        for step in range(10, 2000, 10)
    ]
    lines += [{"stage": "prior", "step": step, "bits_per_image": 90 * scale} for step in range(10, 100, 10)]
    lines += [{"stage": "prior", "step": 50, "train_bits_per_image": 80.0, "held_out_bits_per_image": 85.0}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pictures(run)
    return run


@pytest.fixture
def two_runs(tmp_path: Path) -> list[RunDirectory]:
    return [make_run(tmp_path / "a", "uniform", scale=1.0), make_run(tmp_path / "b", "vcq", GROWING, scale=1.5)]


def full_page(runs: list[RunDirectory], tmp_path: Path, title: str = "A title") -> str:
    return write_report(runs, tmp_path / "out" / "report.html", title).read_text()


def page(runs: list[RunDirectory], tmp_path: Path, title: str = "A title") -> str:
    """The page without its figures, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svg_figures, "_svg", lambda figure, label: "")
        return full_page(runs, tmp_path, title)


# -- reading the page -------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Checks that elements nest, and collects attributes, ids and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def table_row(html: str, label: str) -> list[str]:
    """The values of the row called ``label`` in the table of numbers."""
    for row in re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL):
        if re.search(rf'<th scope="row">{re.escape(label)}(?=<|\n)', row):
            return [read(cell).text for cell in re.findall(r"<td>(.*?)</td>", row, flags=re.DOTALL)]
    raise AssertionError(f"no row {label}")


# -- tests ------------------------------------------------------------------------------------------------------------


def test_every_number_is_in_its_row_and_column(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    html = page(two_runs, tmp_path)
    assert [cell.split()[0] for cell in table_row(html, "FD(domain), samples without guidance")] == ["5.43", "8.15"]
    guided = table_row(html, "FD(domain), samples, guidance constant 1.5")
    assert [cell.split()[0] for cell in guided] == ["3.21", "4.82"]
    assert [cell.split()[0] for cell in table_row(html, "FD(domain), real held-out images")] == ["0.314", "0.471"]
    assert [cell.split()[0] for cell in table_row(html, "rFD(domain), reconstructions")] == ["1.23", "1.85"]
    precision = [
        table_row(html, f"Precision(domain), {what}") for what in ("samples without guidance", "real held-out images")
    ]
    assert [[cell.split()[0] for cell in row] for row in precision] == [["0.432", "0.288"], ["0.900", "0.600"]]
    assert [cell.split()[0] for cell in table_row(html, "Precision(domain), samples, guidance constant 1.5")] == [
        "0.543",
        "0.362",
    ]
    assert table_row(html, "PSNR") == ["20.12", "30.18"]
    assert table_row(html, "SSIM") == ["0.7654", "0.5103"]
    for run, column in zip(two_runs, range(2), strict=True):
        entropy, likelihood = stored(run)["entropy"], stored(run)["likelihood"]
        assert table_row(html, "Predicted cliff")[column] == f"t* = {entropy['predicted_cliff']}"
        assert table_row(html, "Measured cliff")[column].startswith(f"{entropy['cliff']} of 16")
        bits = [likelihood[f"{part}_allowed"]["bits_per_image"] for part in ("train", "held_out")]
        assert table_row(html, "Training images")[column] == f"{bits[0]:.1f} 900 images"
        assert table_row(html, "Held-out images")[column] == f"{bits[1]:.1f} 100 images"
        assert table_row(html, "Gap, held-out − training")[column] == f"+{bits[1] - bits[0]:.1f}"
    assert table_row(html, "Room in the tokens") == ["96.0", f"{read_records(two_runs)[1].total_bits:.1f}"]


def test_the_summary_states_the_numbers(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    html = page(two_runs, tmp_path)
    text = read(re.search(r"<header>.*?</header>", html, flags=re.DOTALL)[0]).text  # type: ignore[index]
    cliffs = [stored(run)["entropy"]["predicted_cliff"] for run in two_runs]
    assert cliffs[0] < cliffs[1]
    assert f"The first {cliffs[0]} tokens (uniform) and the first {cliffs[1]} tokens (vcq) have room for that" in text
    assert "FD(domain) of samples without guidance: 5.43 (uniform), 8.15 (vcq)" in text
    assert "real held-out images score 0.314 (uniform), 0.471 (vcq)" in text
    assert not re.search(r"improv|better than|outperform|wins", text)


@pytest.mark.parametrize("count", [1, 3])
def test_page_is_well_formed_and_stands_alone(count: int, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(place), f"run {place}", scale=1 + place / 10) for place in range(count)]
    html = full_page(runs, tmp_path)
    reader = read(html)
    loaded = [value for _, name, value in reader.attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
    assert loaded
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in loaded)
    assert "url(http" not in html
    assert "@import" not in html
    assert not any(tag in ("script", "link", "iframe") for tag, _, _ in reader.attributes)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in reader.attributes if name == "href" and value.startswith("#")}
    assert targets <= set(ids)
    assert all(f"run {place}" in reader.text for place in range(count))
    assert len(html) < 2_000_000


def test_names_and_titles_are_escaped(tmp_path: Path) -> None:
    name = '<script>alert(1)</script> $x$ & "quoted"'
    html = full_page([make_run(tmp_path / "r", name)], tmp_path, title="<b>bold</b>")
    assert "<script" not in html
    assert "<b>bold" not in html
    assert name in read(html).text
    assert "<b>bold</b>" in read(html).text


def test_an_empty_run_says_not_measured_yet(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    html = full_page([RunDirectory(tmp_path / "fresh")], tmp_path)
    text = read(html).text
    assert "fresh" in text
    assert (
        "Not measured yet: entropy of the tokens; cross-entropy of the prior; reconstruction; distance of samples."
        in text
    )
    for label in ("PSNR", "Measured cliff", "Held-out images", "Tokens per image", "Training steps, prior"):
        assert table_row(html, label) == ["not measured yet"]
    assert "<img" not in html
    assert 'aria-label="Conditional' not in html


@pytest.mark.parametrize("part", ["entropy", "likelihood", "reconstruction", "generation"])
def test_one_missing_part_of_one_run(part: str, two_runs: list[RunDirectory], tmp_path: Path) -> None:
    kept = stored(two_runs[1])
    del kept[part]
    two_runs[1].results.write_text(json.dumps(kept))
    html = page(two_runs, tmp_path)
    label = {
        "entropy": "Measured cliff",
        "likelihood": "Held-out images",
        "reconstruction": "PSNR",
        "generation": "FD(domain), samples without guidance",
    }[part]
    first, second = table_row(html, label)
    assert re.match(r"\d", first)
    assert second == "not measured yet"
    assert "(vcq)." in read(html).text.split("Not measured yet:")[1]


def test_differing_conditions_are_marked_and_equal_ones_are_not(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    label = "FD(domain), samples without guidance"
    assert table_row(page(two_runs, tmp_path), label) == ["5.43 500 images", "8.15 500 images"]
    changed = stored(two_runs[1])
    changed["generation"]["unguided"]["measurements"]["fid"]["protocol"] |= {
        "images": 5000, "checkpoint": "other", "seed": 7,
    }  # fmt: skip
    two_runs[1].results.write_text(json.dumps(changed))
    html = page(two_runs, tmp_path)
    first, second = table_row(html, label)
    assert first == "5.43 500 images"
    assert second == "8.15 a 5,000 images"
    assert "Not measured as in uniform: number of images (5,000 here, 500 there)." in read(html).text
    assert "measured differently" in read(html).text


def test_notes_of_a_measurement_become_footnotes_and_null_is_no_number(
    two_runs: list[RunDirectory], tmp_path: Path
) -> None:
    changed = stored(two_runs[0])
    nothing = measurement("FD(domain)", None, ("the value is nan",), guidance="none")
    changed["generation"]["unguided"]["measurements"]["fid"] = nothing
    changed["reconstruction"]["quality"] |= {"psnr": None, "exact": 3, "note": "psnr is infinite: 3 of 100"}
    two_runs[0].results.write_text(json.dumps(changed))
    html = page(two_runs, tmp_path)
    assert table_row(html, "FD(domain), samples without guidance")[0].startswith("no finite value a")
    assert table_row(html, "PSNR")[0].startswith("infinite")
    assert "The value is nan." in read(html).text
    assert "Psnr is infinite: 3 of 100." in read(html).text


def test_conditions_and_checkpoints_are_told(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    text = read(page(two_runs, tmp_path)).text
    assert "weights sha256 aa11aa11aa11" in text
    assert "500 images, measured against the training images (900 images, sha256 bb22bb22bb22)" in text
    assert "cc33cc33cc33" in text
    assert text.count("Samples without guidance") == 1  # both runs were measured alike
    assert text.count("sfid: domain has no spatial features.") == 1


def test_results_of_older_runs_are_shown(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    """Version 0.1.0 knew one distance of samples, in a list, and kept that of held-out images elsewhere."""
    for run, scale in zip(two_runs, (1.0, 1.5), strict=True):
        old = stored(run)
        old["generation"] = [
            measurement("gFD(domain)", 5.4321 * scale, guidance="none"),
            measurement("gFD(domain)", 3.2109 * scale, guidance="constant 1.5"),
        ]
        old["reconstruction"]["l1"] = 0.1
        old["reconstruction"]["held_out_images_distance"] = measurement("gFD(domain)", 0.31415 * scale, images=100)
        run.results.write_text(json.dumps(old))
    html = page(two_runs, tmp_path)
    assert [cell.split()[0] for cell in table_row(html, "FD(domain), samples without guidance")] == ["5.43", "8.15"]
    guided = table_row(html, "FD(domain), samples, guidance constant 1.5")
    assert [cell.split()[0] for cell in guided] == ["3.21", "4.82"]
    assert [cell.split()[0] for cell in table_row(html, "FD(domain), real held-out images")] == ["0.314", "0.471"]
    assert "Not measured yet" not in read(html).text


def test_a_floor_of_fewer_images_is_marked(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    note = "Measured with another number of images than the samples"
    assert note in read(page(two_runs, tmp_path)).text
    for run in two_runs:
        changed = stored(run)
        for measured in changed["generation"]["held_out"]["measurements"].values():
            measured["protocol"]["images"] = 500
        run.results.write_text(json.dumps(changed))
    assert note not in read(page(two_runs, tmp_path)).text


def test_figures_are_there_and_name_what_they_show(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    html = full_page(two_runs, tmp_path)
    labels = re.findall(r'<svg role="img" aria-label="(.*?)"', html)
    assert len(labels) == len(set(labels)) == 12
    assert sum("Cross-entropy of the prior of" in label for label in labels) == 2
    entropy = re.search(r'<svg role="img" aria-label="Conditional entropy.*?</svg>', html, flags=re.DOTALL)[0]  # type: ignore[index]
    cliffs = [stored(run)["entropy"] for run in two_runs]
    for cliff in cliffs:
        assert f"predicted {cliff['predicted_cliff']}, measured {cliff['cliff']}" in entropy
    assert "var(--run-0)" in entropy
    assert "var(--run-1)" in entropy
    assert "#0072b2" not in entropy
    assert "not measured yet" not in read(html).text


def test_samples_are_cut_into_named_rows(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    html = page(two_runs, tmp_path)
    section = re.search(r'<section id="samples">.*?</section>', html, flags=re.DOTALL)[0]  # type: ignore[index]
    assert section.count("<img") == 20
    assert section.count('class="pixelated"') == 20
    assert all(f">kind {place}<" in section for place in range(10))
    assert 'width="242" height="32"' in section


def test_a_picture_of_unknown_grid_is_shown_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "one")
    Image.new("RGB", (100, 70)).save(run.samples / "classes.png")
    html = page([run], tmp_path)
    assert 'width="100" height="70"' in html


def test_runs_share_equal_originals_only(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    def originals() -> int:
        html = page(two_runs, tmp_path)
        return re.search(r'<section id="reconstructions">.*?</section>', html, flags=re.DOTALL)[0].count(">originals<")  # type: ignore[index]

    assert originals() == 1
    pictures(two_runs[1], originals=9)
    assert originals() == 2


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "big")
    config = json.loads(run.config.read_text())
    config["data"]["image_size"] = 256
    config["tokenizer"] |= {"image_size": 256, "patch_size": 16}
    run.config.write_text(json.dumps(config))
    y, x = np.mgrid[0 : 10 * 258 + 2, 0 : 8 * 258 + 2]
    waves = np.stack([np.sin(x / 37 + y / 91), np.sin(x / 57), np.cos(y / 33)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)  # photographs are not smooth
    Image.fromarray(np.uint8(128 + 60 * (waves + noise))).save(run.samples / "classes.png")
    html = page([run], tmp_path)
    assert "Shown at 1/3 of their size, as JPEG" in html
    assert html.count("data:image/jpeg;base64,") == 10
    assert len(html) < 1_500_000


def test_differing_settings_stand_out(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    html = page(two_runs, tmp_path)
    different = set(re.findall(r'<tr class="different"><th scope="row"><code>(.*?)</code>', html))
    assert different == {"name", "tokenizer.segments.0.codebook.schedule"}
    assert "overture run quickstart" in html
    assert "<code>tokenizer.segments.0.codebook.k_max</code>" in html


def test_long_curves_are_thinned_and_keep_their_mean(tmp_path: Path) -> None:
    from overture.report.svg_figures import MAX_POINTS, _averaged

    values = np.random.default_rng(0).normal(size=12_000).tolist()
    steps, means = _averaged(list(range(12_000)), values)
    assert len(means) == len(steps) == MAX_POINTS
    assert np.mean(means) == pytest.approx(np.mean(values))
    assert _averaged([1, 2, 3], [4.0, 5.0, 9.0]) == ([1, 2, 3], [4.0, 5.0, 9.0])


@pytest.mark.parametrize(
    "segments",
    [
        (SegmentConfig("visual", "patches", 0, CodebookConfig("power", k_max=512, exponent=3.0)),),
        (
            SegmentConfig("prologue", "queries", 4, CodebookConfig("explicit", explicit=(2, 4, 8, 8)), separator=True),
            SegmentConfig("visual", "patches", 0, CodebookConfig("geometric", k_max=256)),
        ),
    ],
)
def test_layout_from_plain_config_is_the_real_one(segments: tuple[SegmentConfig, ...], tmp_path: Path) -> None:
    base = one_dimensional("r", UNIFORM)
    config = replace(base, tokenizer=replace(base.tokenizer, segments=segments))
    run = RunDirectory(tmp_path / "r")
    run.root.mkdir()
    run.config.write_text(json.dumps(to_dict(config)))
    layout = config.tokenizer.layout
    (record,) = read_records([run])
    assert record.layout == layout
    assert isinstance(config.tokenizer, TokenizerConfig)
    run.results.write_text(json.dumps(results(layout, 1.0)))
    (record,) = read_records([run])
    bits = record.results.likelihood["train_allowed"]["bits_per_position"]
    kept = [b for b, position in zip(bits, layout.positions, strict=True) if not position.is_separator]
    assert record.local_bits("train_allowed") == kept
    assert len(kept) == layout.length
    full_page([run], tmp_path)


def test_a_layout_with_too_few_bits_has_no_predicted_cliff(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "tight", CodebookConfig("explicit", explicit=(2,) * 9 + (1,) * 7))
    html = full_page([run], tmp_path)
    assert table_row(html, "Predicted cliff") == ["none too few bits"]
    assert "The tokens of tight have room for less than that" in read(html).text


def test_images_that_share_tokens_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "one")
    assert "tokens of its own:" not in read(page([run], tmp_path)).text
    changed = stored(run)
    ids = np.arange(900)[:, None] % 8 * np.ones(16, dtype=np.int64)
    changed["entropy"] = conditional_entropy(ids, sizes=64).to_dict()
    run.results.write_text(json.dumps(changed))
    html = page([run], tmp_path)
    assert "Not every training image has tokens of its own: the tokens hold 3.0 of those bits." in read(html).text
    assert table_row(html, "Held by the tokens, measured") == ["3.00 of 9.81"]
    assert table_row(html, "Training images with tokens of their own") == ["0.0 %"]


def test_weights_are_counted_from_the_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "one")
    run.prior.mkdir()
    raw = {"raw.a": np.zeros((1000, 500), np.float32), "raw.b": np.zeros(10_000, np.float32)}
    save_file({**raw, "ema.a": np.zeros((1000, 500), np.float32)}, run.prior_model)
    assert table_row(page([run], tmp_path), "Weights, prior") == ["0.51"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place, "same") for place in ("here", "there")]
    names = [record.name for record in read_records(runs)]
    assert len(set(names)) == 2
    assert all(str(run.root) in name for run, name in zip(runs, names, strict=True))


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no runs"):
        write_report([], tmp_path / "r.html", "t")
    with pytest.raises(UsageError, match="no such run directory"):
        write_report([RunDirectory(tmp_path / "nowhere")], tmp_path / "r.html", "t")
    run = make_run(tmp_path / "r", "one")
    (tmp_path / "file").write_text("")
    with pytest.raises(OvertureError, match=r"r\.html: cannot write it"):
        write_report([run], tmp_path / "file" / "r.html", "t")
    run.metrics.write_text('{"stage": "prior", "step": 1, "bits_per_image": 3}\n{"stage": "pri')
    page([run], tmp_path)  # a line cut off by a crash is no error
    run.results.write_text("{")
    with pytest.raises(OvertureError, match=r"results\.json: not valid JSON") as caught:
        page([run], tmp_path)
    assert "\n" not in str(caught.value)
    run.results.write_text(json.dumps({"generation": {"unguided": {"measurements": {"fid": {"name": "FD"}}}}}))
    with pytest.raises(OvertureError, match=r"results\.json: damaged") as caught:
        page([run], tmp_path)
    assert "\n" not in str(caught.value)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "r", "one")]
    assert full_page(runs, tmp_path) == full_page(runs, tmp_path)


def test_no_two_of_twelve_runs_look_alike() -> None:
    assert len({(place % len(COLOURS), svg_figures.marker(place)) for place in range(12)}) == 12


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (5.3, "5.30"),
        (0.04125, "0.0413"),
        (12.345, "12.3"),
        (123.45, "123"),
        (1234.5, "1,234"),
        (0.99999, "1.00"),
        (0, "0.00"),
    ],
)
def test_distances_have_three_digits(value: float, printed: str) -> None:
    assert distance(value) == printed


def test_percent_never_rounds_up_to_all() -> None:
    assert percent(0.99999) == "99.9 %"
    assert percent(1) == "100 %"
    assert percent(0.9123) == "91.2 %"


def test_no_torch_is_imported(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    code = f"""
import json, sys
from pathlib import Path
from types import SimpleNamespace as Run
from overture.report import write_report
from overture.runs.results import Results
root = Path({str(two_runs[0].root)!r})
names = dict(config="config.json", classes="classes.json", metrics="metrics.jsonl", samples="samples",
             tokenizer_model="tokenizer/model.safetensors", prior_model="prior/model.safetensors")
results = Results.from_dict(json.loads((root / "results.json").read_text()))
paths = {{name: root / file for name, file in names.items()}}
write_report([Run(root=root, read_results=lambda: results, **paths)], root / "r.html", "t")
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cautions_stand_at_the_head_of_the_page(two_runs: list[RunDirectory], tmp_path: Path) -> None:
    page = write_report(two_runs, tmp_path / "page.html", "page").read_text()
    assert 'class="caution"' not in page
    first = two_runs[0]
    config = json.loads(first.config.read_text())
    first.config.write_text(json.dumps({**config, "tiny": True}))
    found = stored(first)
    ids = np.zeros((900, len(found["entropy"]["sizes"])), np.int64)
    collapsed = conditional_entropy(ids, sizes=found["entropy"]["sizes"]).to_dict()
    first.results.write_text(json.dumps({**found, "entropy": collapsed, "failed": {"elbo": "no room <left>"}}))
    page = write_report(two_runs, tmp_path / "page.html", "page").read_text()
    cautions = re.findall(r'class="caution">(.*?)</p>', page, flags=re.S)
    assert len(cautions) == 3
    assert "tiny run" in cautions[0]
    assert "has collapsed: its tokens hold 0" in cautions[1]
    assert "elbo could not be measured: no room &lt;left&gt;." in cautions[2]


def test_the_cliff_at_other_thresholds_is_told() -> None:
    entropy = {"cliff": 9, "cliffs": {"90%": 4, "95%": 5, "99%": 9}}
    assert other_cliffs(entropy) == "90 % in the first 4, 95 % in the first 5"
    assert other_cliffs({"cliff": 9}) == ""
    assert other_cliffs({"cliff": 3, "cliffs": {"90%": 3, "95%": 3, "99%": 3}}) == ""
