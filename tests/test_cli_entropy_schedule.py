"""``overture entropy`` and ``overture schedule``: what they print, what they refuse, and their figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from overture import Layout, Schedule, UsageError, conditional_entropy
from overture.analysis.figures import entropy_figure, save_figure, schedule_figure
from overture.cli import main
from overture.cli.schedule import PLAIN_BLOCKS, picture
from overture.data.ids import LoadedIds
from overture.data.order import some_of

ENTROPY_KEYS = {
    "conditional_entropy_bits", "prefixes", "unique_share", "cumulative_bits", "total_bits", "cliff", "cliffs", "predicted_cliff",
    "log2_n", "rows", "positions", "sizes", "images", "file",
}  # fmt: skip
SCHEDULE_KEYS = {
    "name", "sizes", "bits", "total_bits", "cumulative_bits", "cliff", "log2_n", "images", "positions"
}  # fmt: skip


def strict(text: str) -> dict:
    """The one JSON object of a command; NaN and Infinity are not JSON."""

    def refuse(constant: str):
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def tokens(tmp_path):
    """1,000 rows of 12 tokens below 16, with labels."""
    random = np.random.default_rng(0)
    path = tmp_path / "tokens.npz"
    np.savez(path, ids=random.integers(0, 16, (1000, 12)).astype(np.uint16), labels=random.integers(0, 3, 1000))
    return path


# -- schedule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "cliff"),
    [
        (["uniform"], 2),
        (["linear"], 4),
        (["power"], 9),
        (["power", "--exponent", "3"], 15),
        (["geometric"], 16),
        (["geometric", "--k-max", "4096"], 16),
        (["linear", "--k-max", "1024", "--k-min", "2"], 7),
    ],
)
def test_schedule_check_values(words, cliff, capsys) -> None:
    options = ["--positions", "256", "--images", "1281167", "--json"]
    assert main(["schedule", *words, *options]) == 0
    data = strict(capsys.readouterr().out)
    assert set(data) == SCHEDULE_KEYS
    assert data["cliff"] == cliff
    assert len(data["sizes"]) == len(data["bits"]) == data["positions"] == 256
    assert data["total_bits"] == pytest.approx(sum(math.log2(size) for size in data["sizes"]))
    assert data["cumulative_bits"][-1] == pytest.approx(data["total_bits"])
    assert data["log2_n"] == pytest.approx(20.289, abs=1e-3)


def test_schedule_at_equal_bits(capsys) -> None:
    for name in ("power", "geometric"):
        assert main(["schedule", name, "--positions", "64", "--bits", "500", "--json"]) == 0
        data = strict(capsys.readouterr().out)
        assert data["total_bits"] == pytest.approx(500, abs=1)
        assert data["sizes"] == sorted(data["sizes"])


def test_schedule_modifiers(capsys) -> None:
    plain, back, mixed = [], [], []
    for words, sizes in (([], plain), (["--reversed"], back), (["--shuffled", "3"], mixed)):
        assert main(["schedule", "steps", "--positions", "20", "--k-max", "256", *words, "--json"]) == 0
        sizes += strict(capsys.readouterr().out)["sizes"]
    assert back == plain[::-1]
    assert mixed != plain
    assert sorted(mixed) == plain


def test_schedule_without_cliff_is_null(capsys) -> None:
    words = ["schedule", "geometric", "--positions", "4", "--k-max", "3"]
    assert main([*words, "--json"]) == 0
    assert strict(capsys.readouterr().out)["cliff"] is None
    assert main(words) == 0
    assert "no cliff: 5.17 bits cannot name 1,281,167 images" in capsys.readouterr().out


def test_schedule_for_people(capsys) -> None:
    assert main(["schedule", "geometric"]) == 0
    out = capsys.readouterr().out
    assert "256 positions, K 2 .. 16,384, 1919.6 bits in all" in out
    assert "t* = 16: the first 16 tokens can hold 21.26 bits" in out


def test_picture_grows_with_the_schedule() -> None:
    rows = picture(Schedule.geometric(14, 2, 16384), cliff=None)
    columns = ["".join(row.ljust(80)[10:24]) for row in rows[:6]]
    full = [sum(row[column] == "█" for row in columns) for column in range(14)]
    assert full == sorted(full)
    assert full[-1] == 6
    assert full[0] == 0
    plain = picture(Schedule.geometric(14, 2, 16384), cliff=5, blocks=PLAIN_BLOCKS)
    assert all(row.isascii() for row in plain)
    assert plain[-1].index("^") == 10 + 4  # the fifth column


@pytest.mark.parametrize("positions", [1, 2, 5, 64, 65, 256, 1000])
def test_picture_marks_the_cliff_within_its_columns(positions) -> None:
    schedule = Schedule.uniform(positions, 8)
    for cliff in {1, positions}:
        rows = picture(schedule, cliff)
        margin = len("K 8 ") + 1
        assert 0 <= rows[-1].index("^") - margin < min(64, positions)
        assert max(len(row) for row in rows[:6]) == margin + min(64, positions)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["geometrc"], "did you mean 'geometric'?"),
        (["geometrc", "--bits", "9"], "did you mean 'geometric'?"),
        (["linear", "--exponent", "2"], "--exponent belongs to 'power'"),
        (["power", "--exponent", "2", "--bits", "100"], "leave out --exponent"),
        (["geometric", "--k-max", "9", "--bits", "100"], "leave out --k-max"),
        (["cosine", "--bits", "100"], "'power' and 'geometric' only"),
        (["power", "--bits", "nan"], "needs a number of bits"),
        (["power", "--bits", "1e9"], "out of reach"),
        (["linear", "--k-max", "0"], "k_max is 0"),
        (["linear", "--images", "0"], "number of images is 0"),
        (["linear", "--positions", "0"], "positions is 0"),
        (["linear", "--plot", "curve.gif"], "must be one of .png, .svg, .pdf"),
    ],
)
def test_schedule_refuses_in_one_line(words, says, capsys) -> None:
    assert main(["schedule", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.count("\n") == 1


def test_schedule_starts_without_heavy_imports() -> None:
    code = (
        "import sys; from overture.cli import main; main(['schedule', 'linear', '--json']);"
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert strict(done.stdout)["name"] == "linear"


# -- entropy --------------------------------------------------------------------------------------------------------


def test_entropy_json_equals_the_library(tokens, capsys) -> None:
    assert main(["entropy", str(tokens), "--json"]) == 0
    data = strict(capsys.readouterr().out)
    assert set(data) == ENTROPY_KEYS
    expected = conditional_entropy(np.load(tokens)["ids"]).to_dict()
    assert {key: data[key] for key in expected} == expected
    assert data["images"] == data["rows"] == 1000
    assert data["predicted_cliff"] == 3
    assert data["sizes"] == [16] * 12


def test_entropy_options(tokens, capsys) -> None:
    options = ["--rows", "100", "--images", "1000000", "--codebook-size", "1000", "--per-class", "--json"]
    assert main(["entropy", str(tokens), *options]) == 0
    data = strict(capsys.readouterr().out)
    assert (data["rows"], data["images"], data["predicted_cliff"]) == (100, 1_000_000, 2)
    assert data["sizes"] == [1000] * 12
    assert sum(each["rows"] for each in data["per_class"].values()) == 100
    labels = np.load(tokens)["labels"][some_of(1000, 100)]  # drawn from all rows, never cut off
    assert {name: each["rows"] for name, each in data["per_class"].items()} == {
        str(label): int((labels == label).sum()) for label in range(3)
    }


def test_some_rows_are_drawn_from_all_of_a_file(tmp_path, capsys) -> None:
    np.save(tmp_path / "sorted.npy", np.repeat(np.arange(10), 100)[:, None])
    assert main(["entropy", str(tmp_path / "sorted.npy"), "--rows", "100", "--json"]) == 0
    data = strict(capsys.readouterr().out)
    assert data["prefixes"] == [10]
    assert data["total_bits"] > 3
    assert main(["entropy", str(tmp_path / "sorted.npy"), "--rows", "1000", "--json"]) == 0
    assert strict(capsys.readouterr().out)["total_bits"] == pytest.approx(math.log2(10))


def test_entropy_of_several_files(tokens, tmp_path, capsys) -> None:
    np.save(tmp_path / "same.npy", np.ones((8, 3), dtype=np.uint8))
    assert main(["entropy", str(tokens), str(tmp_path / "same.npy"), "--json"]) == 0
    results = strict(capsys.readouterr().out)["results"]
    assert [each["rows"] for each in results] == [1000, 8]
    assert results[1]["total_bits"] == 0


def test_entropy_uses_the_layout_of_a_token_file(tmp_path, monkeypatch, capsys) -> None:
    ids = np.random.default_rng(0).integers(0, 2, (500, 10))
    loaded = LoadedIds(ids=ids, labels=None, layout=Layout.single([2] * 5 + [64] * 5))
    monkeypatch.setattr("overture.data.ids.load_ids", lambda path: loaded)
    assert main(["entropy", "some.tokens", "--json"]) == 0
    out = strict(capsys.readouterr().out)
    assert out["sizes"] == [2] * 5 + [64] * 5
    assert out["predicted_cliff"] == 6
    assert main(["entropy", "some.tokens", "--codebook-size", "2"]) == 2
    assert "leave out --codebook-size" in capsys.readouterr().err


def test_entropy_for_people(tokens, capsys) -> None:
    assert main(["entropy", str(tokens), "--per-class"]) == 0
    said = capsys.readouterr()
    assert "1,000 images x 12 tokens, K 16" in said.out
    assert "log2 N 9.97 bits; predicted cliff t* = 3; measured cliff 4" in said.out
    assert "The first 4 tokens hold 99 %" in said.out
    assert "3 classes; given the class" in said.out
    assert "no layout in this file, so K = 16" in said.err


@pytest.mark.parametrize("words", [["--per-class"], ["--codebook-size", "256"]])
def test_options_that_a_text_has_no_use_for_are_refused(words: list[str], tmp_path, capsys) -> None:
    (tmp_path / "a.txt").write_text("All happy families are alike. " * 9)
    assert main(["entropy", str(tmp_path / "a.txt"), *words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "a.txt: a text has no classes, and knows its codes: no --per-class or --codebook-size for it" in err


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.ones((4, 3), dtype=int), "All rows are equal"),
        (np.arange(2**12)[:, None] >> np.arange(12) & 1, "There is no cliff"),
        (np.random.default_rng(0).integers(0, 2, (300, 80)) * (np.arange(80) > 40), "..."),
    ],
)
def test_entropy_says_what_it_means(ids, says, tmp_path, capsys) -> None:
    np.save(tmp_path / "ids.npy", ids)
    assert main(["entropy", str(tmp_path / "ids.npy")]) == 0
    out = capsys.readouterr().out
    assert says in out
    assert len(out.splitlines()) < 32


def test_entropy_refuses_in_one_line(tokens, tmp_path, capsys) -> None:
    np.save(tmp_path / "float.npy", np.zeros((3, 3)))
    np.save(tmp_path / "plain.npy", np.zeros((3, 3), dtype=int))
    plain = str(tmp_path / "plain.npy")
    for words, status, says in [
        ([str(tmp_path / "float.npy")], 1, "float64"),
        ([str(tmp_path / "absent.npy")], 2, "no file"),
        ([plain, "--per-class"], 2, "needs labels"),
        ([plain, "--rows", "0"], 2, "--rows is 0"),
        ([plain, "--images", "-1"], 2, "--images is -1"),
        ([plain, "--plot", "a.jpg"], 2, ".png, .svg, .pdf"),
        ([str(tokens), "--codebook-size", "4"], 1, "outside 0..3"),
    ]:
        assert main(["entropy", *words]) == status
        said = capsys.readouterr()
        assert said.out == ""
        told = said.err.splitlines()[-1]
        assert told.startswith("overture: ")
        assert says in told


# -- figures --------------------------------------------------------------------------------------------------------


def test_plots_are_written_and_json_stays_alone(tokens, tmp_path, capsys) -> None:
    for words in (["entropy", str(tokens)], ["schedule", "power"]):
        path = tmp_path / "deep" / f"{words[0]}.png"
        assert main([*words, "--plot", str(path), "--json"]) == 0
        strict(capsys.readouterr().out)
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_figures_in_every_format_are_reproducible(tmp_path) -> None:
    for suffix, starts in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        for name in ("one", "two"):
            save_figure(schedule_figure(Schedule.geometric(20, 2, 64), 1000), tmp_path / f"{name}{suffix}")
        one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert one.startswith(starts)
        assert one == two
    ElementTree.parse(tmp_path / "one.svg")
    with pytest.raises(UsageError, match="suffix"):
        save_figure(schedule_figure(Schedule.uniform(4, 4), 10), tmp_path / "one.gif")


@pytest.mark.parametrize(
    "schedule",
    [Schedule.uniform(1, 1), Schedule.uniform(3, 2), Schedule.geometric(300, 2, 2**20), Schedule.steps(5, 4)],
)
@pytest.mark.parametrize("images", [1, 5, 10**9])
def test_schedule_figure_marks_the_cliff(schedule, images) -> None:
    figure = schedule_figure(schedule, images)
    left, right = figure.axes[0], figure.axes[1]
    curve = left.lines[0]
    assert list(curve.get_ydata()) == list(schedule.sizes)
    texts = [text.get_text() for text in right.texts]
    cliff = schedule.cliff(images)
    assert any(f"= {cliff}" in text for text in texts if "t^*" in text) == (cliff is not None)
    figure.canvas.draw()


def test_entropy_figure_shows_what_was_measured() -> None:
    random = np.random.default_rng(0)
    results = {
        "sharp": conditional_entropy(random.integers(0, 16, (500, 60))),
        "late": conditional_entropy(random.integers(0, 2, (500, 60))),
        "equal rows": conditional_entropy(np.zeros((500, 2), dtype=int)),
        "one row": conditional_entropy(np.zeros((1, 5), dtype=int)),
    }
    figure = entropy_figure(results)
    figure.canvas.draw()
    left, right = figure.axes
    for name, result in results.items():
        (curve,) = (line for line in left.lines if line.get_label() == name)
        shown = curve.get_ydata()
        np.testing.assert_array_equal(shown, result.bits[: len(shown)])
        assert len(shown) >= result.cliff
        assert any(np.array_equal(line.get_ydata(), result.cumulative_bits[: len(shown)]) for line in right.lines)
    dashed = {line.get_xdata()[0] for line in left.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "--"}
    assert {results["sharp"].predicted_cliff, results["late"].predicted_cliff} <= dashed
    with pytest.raises(UsageError):
        entropy_figure({})


def test_figures_leave_no_global_state() -> None:
    code = (
        "import sys; from overture import Schedule; from overture.analysis.figures import schedule_figure;"
        "schedule_figure(Schedule.uniform(4, 4), 10); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
