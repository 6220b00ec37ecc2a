"""Tokens of other tokenizers: into token files, to a prior, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import overture
from overture.cli import main
from overture.data import foreign_tokens
from overture.data.layout_words import parse_layout
from overture.data.token_files import TokenFile
from overture.errors import UsageError
from overture.layout import Layout, Segment

RNG = np.random.default_rng(0)


def tokens(rows: int, positions: int = 6, size: int = 9) -> np.ndarray:
    """Rows of which later ids follow from the first two."""
    first = RNG.integers(0, size, (rows, 2))
    return np.concatenate([first, (first[:, :1] + np.arange(positions - 2)) % size], axis=1)


def imported(source: Path, out: Path, *words: str) -> int:
    return main(["import", "tokens", str(source), "--out", str(out), *words])


@pytest.mark.parametrize("block", [2**22, 40])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i4", "int64", "uint64"])
@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("suffix", [".npy", ".npz", "packed"])
def test_what_was_imported_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, crops: int, dtype: str, block: int
) -> None:
    monkeypatch.setattr(foreign_tokens, "BLOCK_IDS", block)
    ids = np.stack([tokens(17) for _ in range(crops)], axis=1).astype(dtype)
    ids, labels = (ids[:, 0] if crops == 1 else ids), RNG.integers(0, 4, 17).astype(dtype)
    labels[0] = 3
    source = tmp_path / ("ids.npy" if suffix == ".npy" else "ids.npz")
    if suffix == ".npy":
        np.save(source, ids)
        np.save(tmp_path / "labels.npy", labels)
    else:
        (np.savez if suffix == ".npz" else np.savez_compressed)(source, ids=ids, labels=labels)
    words = ["--labels", str(tmp_path / "labels.npy")] if suffix == ".npy" else []
    assert imported(source, tmp_path / "out.tokens", *words) == 0
    file = TokenFile.open(tmp_path / "out.tokens")
    np.testing.assert_array_equal(file.stored.reshape(ids.shape), ids)
    np.testing.assert_array_equal(file.labels, labels)
    assert (file.crops, file.num_classes, file.central_crop) == (crops, 4, 0)
    assert file.layout == Layout.single((16,) * 6, "imported")


@pytest.mark.parametrize(("largest", "size"), [(0, 1), (1, 2), (1023, 1024), (1024, 2048), (70_000, 2**17)])
def test_without_a_layout_the_codebook_is_the_next_power_of_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], largest: int, size: int
) -> None:
    np.save(tmp_path / "ids.npy", np.array([[0, largest]]))
    assert imported(tmp_path / "ids.npy", tmp_path / "out.tokens") == 0
    told = capsys.readouterr()
    assert f"no --layout, so K = {size:,} at every position: the largest id {largest:,}" in told.err
    assert "no labels: all rows are of one class" in told.out
    assert TokenFile.open(tmp_path / "out.tokens").layout.sizes == (size, size)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("12", [("imported", (12,) * 6)]),
        ("2 4 8 16 32 64", [("imported", (2, 4, 8, 16, 32, 64))]),
        ("linear 2..12", [("imported", (2, 4, 6, 8, 10, 12))]),
        ("uniform ..9", [("imported", (9,) * 6)]),
        ("image: 6 x geometric 2..64", [("image", (2, 4, 8, 16, 32, 64))]),
        ("head: 2 x 16, rest: 9", [("head", (16,) * 2), ("rest", (9,) * 4)]),
        ("head: 9, rest: 4 x power 2 2..11", [("head", (9,) * 2), ("rest", (2, 3, 6, 11))]),
        ("a: 1 x 2, b: 3 4 5, c: 7", [("a", (2,)), ("b", (3, 4, 5)), ("c", (7, 7))]),
    ],
)
def test_a_layout_in_words(text: str, layout: list[tuple[str, tuple[int, ...]]]) -> None:
    names = [name for name, _ in layout]
    expected = Layout(tuple(Segment(name, sizes, name != names[-1]) for name, sizes in layout))
    assert parse_layout(text, 6) == expected


def test_a_layout_from_a_file(tmp_path: Path) -> None:
    layout = Layout((Segment("a", (3, 5)), Segment("b", (7,))))
    (tmp_path / "l.json").write_text(json.dumps(layout.to_dict()))
    assert parse_layout(str(tmp_path / "l.json"), 3) == layout
    np.save(tmp_path / "ids.npy", np.array([[2, 4, 6]]))
    assert imported(tmp_path / "ids.npy", tmp_path / "x.tokens", "--layout", str(tmp_path / "l.json")) == 0
    assert parse_layout(str(tmp_path / "x.tokens"), 3) == layout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write [NAME:]"),
        ("a: 2 x 4, 5", "needs a name"),
        ("a: 4, b: 5", "only one segment may leave out"),
        ("a: 2 x 4, b: 2 x 4", "has 4 positions, the tokens have 6"),
        ("a: 6 x 4, b: 4", "has 6 and more positions, the tokens have 6"),
        ("99999999999999 x 4", "has 99,999,999,999,999 positions"),
        ("3 x 4 5", "has 2 sizes for 3 positions"),
        ("0", "sizes >= 1"),
        ("lineer 2..8", "did you mean 'linear'"),
        ("a: 2 x 4, a: 4", "different names"),
        ("nowhere.tokens", "no file 'nowhere.tokens'"),
        ("power 2 3", "has '2' and '3'"),
    ],
)
def test_words_that_are_no_layout(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_layout(text, 6)
    assert words in str(error.value)


class Pickled:
    """Would leave a trace if anyone unpickled it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.trace,)


def short_file(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": (10**9, 16)})
        file.write(bytes(64))


BAD: dict[str, tuple[Any, str]] = {
    "negative": (np.array([[0, 1], [2, -7]]), "holds -7 at row 1, position 1; ids count from 0"),
    "huge": (np.array([[0, 2**40]]), "holds 1099511627776 at row 0, position 1"),
    "unsigned": (np.array([[0, 2**64 - 1]], np.uint64), "holds 18446744073709551615 at row 0"),
    "floats": (np.array([[0.0, 1.0]]), "holds float64; token ids are integers"),
    "nan": (np.array([[np.nan, 1.0]]), "holds float64"),
    "switches": (np.array([[True, False]]), "holds bool"),
    "flat": (np.arange(5), "has shape (5,), needs [rows, positions]"),
    "deep": (np.zeros((2, 2, 2, 2), int), "has shape (2, 2, 2, 2)"),
    "empty": (np.zeros((0, 4), int), "has shape (0, 4)"),
    "narrow": (np.zeros((4, 0), int), "has shape (4, 0)"),
    "columns": (np.asfortranarray(np.arange(6).reshape(2, 3)), "column by column"),
    "text": (np.array([["a", "b"]]), "token ids are integers"),
}


def one_line(capsys: pytest.CaptureFixture[str], words: str) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("overture")]
    assert len(lines) == 1
    assert words in lines[0], lines[0]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_arrays_that_are_no_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, packed: bool) -> None:
    array, words = BAD[name]
    source = tmp_path / ("x.npz" if packed else "x.npy")
    np.savez(source, ids=array) if packed else np.save(source, array)
    assert imported(source, tmp_path / "x.tokens") == 1
    one_line(capsys, words)
    assert not list(tmp_path.glob("x.tokens*"))


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = np.empty((1, 2), object)
    objects[:] = Pickled(tmp_path / "trace")
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", ids=objects)
    for source in ("x.npy", "x.npz"):
        assert imported(tmp_path / source, tmp_path / "x.tokens") == 1
        one_line(capsys, "Python objects, which are never read")
    assert not (tmp_path / "trace").exists()


def test_files_that_are_damaged_or_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short_file(tmp_path / "short.npy")
    (tmp_path / "nothing.npy").write_bytes(b"")
    (tmp_path / "noise.npz").write_bytes(bytes(range(200)))
    (tmp_path / "words.txt").write_text("1 2 3")
    (tmp_path / "ids.pt").write_bytes(b"PK\x03\x04")
    cases = {
        "short.npy": "holds 64 bytes, not its (1000000000, 16) int32",
        "nothing.npy": "not a readable",
        "noise.npz": "not a readable",
    }
    for name, words in cases.items():
        assert imported(tmp_path / name, tmp_path / "x.tokens") == 1
        one_line(capsys, words)
    for name, words in {
        "words.txt": "read from .npy and .npz",
        "ids.pt": "read from .npy",
        "ids.npy": "no file",
    }.items():
        assert imported(tmp_path / name, tmp_path / "x.tokens") == 2
        one_line(capsys, words)


def test_names_of_arrays_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tokens(5), tokens(5)
    path = tmp_path / "x.npz"
    np.savez(path, one=a, two=b, kinds=np.arange(5), short=np.arange(3), rates=np.ones(5), below=-np.arange(5))
    assert imported(path, tmp_path / "x.tokens") == 2
    one_line(capsys, "several arrays could be ids")
    assert imported(path, tmp_path / "x.tokens", "--array", "three") == 2
    one_line(capsys, "holds no array 'three', only one int64 [5, 6]")
    assert imported(path, tmp_path / "x.tokens", "--array", "two", "--labels", "kinds") == 0
    capsys.readouterr()
    file = TokenFile.open(tmp_path / "x.tokens")
    np.testing.assert_array_equal(file.stored[:, 0], b)
    assert file.labels.tolist() == [0, 1, 2, 3, 4]
    for labels, status, words in (
        ("short", 1, "needs one label for each of 5 rows"),
        ("rates", 1, "labels are integers"),
        ("below", 1, "holds -1 at row 1; labels are 0.."),
        ("nowhere", 2, "neither an array"),
    ):
        assert imported(path, tmp_path / "y.tokens", "--array", "two", "--labels", labels) == status
        one_line(capsys, words)
    np.savez(path, ids=a, labels=np.arange(4))  # those that it calls labels are not passed over in silence
    assert imported(path, tmp_path / "y.tokens") == 1
    one_line(capsys, "has shape (4,), needs one label")


def test_ids_beyond_the_layout_are_told_by_row_crop_and_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_tokens, "BLOCK_IDS", 24)
    ids = np.zeros((30, 6), int)
    ids[23, 4] = 9
    np.save(tmp_path / "x.npy", ids)
    assert imported(tmp_path / "x.npy", tmp_path / "x.tokens", "--layout", "head: 2 x 100, rest: 9") == 1
    one_line(capsys, "id 9 at row 23, position 4 is outside 0..8")
    crops = np.stack([ids * 0, ids], axis=1)
    np.save(tmp_path / "x.npy", crops)
    assert imported(tmp_path / "x.npy", tmp_path / "x.tokens", "--layout", "9") == 1
    one_line(capsys, "id 9 at row 23, crop 1, position 4")
    assert not list(tmp_path.glob("x.tokens*"))


SMALL = [
    "--prior.depth", "1", "--prior.dim", "16", "--prior.heads", "2", "--prior.condition-dim", "8", "--prior.dropout", "0.1",
    "--prior-training.steps", "8", "--prior-training.batch-size", "16", "--prior-training.evaluate-every", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train.tokens`` and ``held.tokens`` of two segments with classes."""
    folder = tmp_path_factory.mktemp("tokens")
    for name, rows in (("train", 120), ("held", 40)):
        ids = tokens(rows)
        np.savez(folder / f"{name}.npz", ids=ids, labels=ids[:, 0] % 3)
        assert (
            imported(folder / f"{name}.npz", folder / f"{name}.tokens", "--layout", "head: 2 x 9, rest: 9 9 10 16") == 0
        )
    return folder


def trained(folder: Path, out: Path, *words: str) -> int:
    files = ["--tokens", str(folder / "train.tokens"), "--held-out", str(folder / "held.tokens")]
    return main(["train", "prior", *files, "--out", str(out), "--device", "cpu", *SMALL, *words])


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert trained(files, out) == 0
    return out


def test_the_bits_are_those_of_the_model(run: Path, files: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    prior = overture.load_prior(run)
    assert prior.config.num_classes == 3
    for part, name in (("train", "train"), ("held_out", "held")):
        data = np.load(files / f"{name}.npz")
        sequence = prior.layout.to_sequence(torch.from_numpy(data["ids"]))
        with torch.no_grad():
            logits = prior(sequence, torch.from_numpy(data["labels"])).double()
        allowed = torch.full_like(logits, -torch.inf)
        for place, position in enumerate(prior.layout.positions):
            allowed[:, place, position.low : position.high] = logits[:, place, position.low : position.high]
        for kind, values in (("vocabulary", logits), ("allowed", allowed)):
            chosen = values.log_softmax(dim=-1).gather(2, sequence[..., None])[..., 0]
            bits = -(chosen.sum(dim=1) / np.log(2)).mean().item()
            assert results["likelihood"][f"{part}_{kind}"]["bits_per_image"] == pytest.approx(bits, rel=1e-5)
    expected = overture.conditional_entropy(np.load(files / "train.npz")["ids"], layout=prior.layout)
    assert results["entropy"] == json.loads(json.dumps(expected.to_dict()))


def test_the_same_command_goes_on_and_ends_in_the_same_prior(
    run: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        calls = iter(range(100))
        patch.setattr("overture.training.loop.stop_requested", lambda: next(calls) == 3)
        assert trained(files, tmp_path / "again") == 130
    assert not (tmp_path / "again" / "prior" / "model.safetensors").exists()
    assert trained(files, tmp_path / "again", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    whole = json.loads((run / "results.json").read_text())
    assert told["models"] == whole["models"]
    assert told["likelihood"] == whole["likelihood"]
    for part in ("train", "held"):  # the run does not need the files any more
        assert TokenFile.open(run / "tokens" / f"{'held_out' if part == 'held' else part}.tokens").rows


def test_samples_are_ids_of_the_peers_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--classes", "0,2", "--count", "5", "--seed", "3", "--device", "cpu"]
    for name, size in (("a", "64"), ("b", "3")):
        assert main(["generate", str(run), "--out", str(tmp_path / f"{name}.npy"), "--batch-size", size, *words]) == 0
    ids, labels = np.load(tmp_path / "a.npy"), np.load(tmp_path / "a.labels.npy")
    np.testing.assert_array_equal(ids, np.load(tmp_path / "b.npy"))
    assert (ids.shape, ids.dtype, labels.tolist()) == ((10, 6), np.int64, [0, 2] * 5)
    assert main(["generate", str(run), "--tokenizer", "nosuch", "--out", str(tmp_path / "c.npy")]) == 2
    one_line(capsys, "token ids need none")
    overture.load_prior(run).layout.check(ids)
    assert len(np.unique(ids, axis=0)) > 1
    assert imported(tmp_path / "a.npy", tmp_path / "a.tokens", "--layout", str(run / "tokens" / "train.tokens")) == 0


def test_instruments_that_need_no_images_work(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(run), "--tokens", "1,6", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {probe["features"] for probe in told["results"]} == {"ids"}
    assert main(["entropy", str(run), "--json"]) == 0
    assert "prior" in json.loads(capsys.readouterr().out)
    assert main(["report", str(run)]) == 0


def test_its_card_speaks_of_tokens(run: Path, tmp_path: Path) -> None:
    assert main(["push", str(run), "ada/words", "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained on imported tokens." in card
    assert "| Data | imported tokens |" in card
    assert "| Recipe | prior settings of quickstart, seed 0 |" in card
    assert "| Held-out images | " in card.split("Prior: cross-entropy")[1]
    for foreign in ("PSNR", "not measured"):
        assert foreign not in card


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "RUN", "--out", "x.png"],
        ["reconstruct", "RUN", "--data", "embedded:fashion-mnist"],
        ["tokenize", "RUN", "--data", "embedded:fashion-mnist", "--out", "x.tokens"],
        ["attention", "RUN"],
        ["prefix", "RUN"],
        ["neighbours", "RUN"],
    ],
)
def test_what_needs_images_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main([str(run) if word == "RUN" else word for word in words]) == 1
    one_line(capsys, "holds a prior and no tokenizer, without which there are no pictures")
    assert main(["search-guidance", str(run)]) == 2
    one_line(capsys, "is a run on tokens of another tokenizer")


def test_what_does_not_go_together_is_one_line(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tokens(8)
    np.save(tmp_path / "other.npy", ids)
    assert imported(tmp_path / "other.npy", tmp_path / "train.tokens") == 0
    assert imported(tmp_path / "other.npy", tmp_path / "held.tokens", "--layout", "12") == 0
    assert imported(tmp_path / "other.npy", tmp_path / "like.tokens", "--layout", str(files / "held.tokens")) == 0
    train, held = str(files / "train.tokens"), str(files / "held.tokens")
    np.savez(tmp_path / "copy.npz", ids=np.load(files / "train.npz")["ids"])  # of no classes
    assert imported(tmp_path / "copy.npz", tmp_path / "copy.tokens", "--layout", train) == 0
    like, out = str(tmp_path / "like.tokens"), ["--device", "cpu", "--out", str(tmp_path / "run")]
    capsys.readouterr()
    cases: list[tuple[list[str], int, str]] = [
        (["prior", "--tokens", train], 2, "give --held-out FILE too"),
        (["prior", "--held-out", held], 2, "--held-out belongs to --tokens"),
        (["tokenizer", "--tokens", train, "--held-out", held], 2, "write overture train prior --tokens"),
        (["prior", "--tokens", train, "--held-out", str(tmp_path / "held.tokens")], 2, "import it with --layout"),
        (["prior", "--tokens", train, "--held-out", str(tmp_path / "x.tokens")], 1, "cannot read"),
        (["prior", "--tokens", train, "--held-out", train], 2, "the same tokens as"),
        (["prior", "--tokens", train, "--held-out", str(tmp_path / "copy.tokens")], 2, "the same tokens as"),
        (["prior", "--tokens", train, "--held-out", held, "--data.source", "x"], 2, "--data.source has no meaning"),
        (
            ["prior", "--tokens", train, "--held-out", held, "--growth", "power 2"],
            2,
            "--growth does not go with --tokens",
        ),
        (["prior", "--tokens", train, "--held-out", held, "--prior.depht", "2"], 2, "did you mean '--prior.depth'"),
        (["prior", "lookup-fre", "--tokens", train, "--held-out", held], 2, "did you mean 'lookup-free'"),
    ]
    for words, status, said in cases:
        assert main(["train", *words, *out]) == status, words
        one_line(capsys, said)
    assert not (tmp_path / "run" / "prior").exists()
    again = ["--device", "cpu", "--out", str(run), *SMALL]
    assert main(["train", "prior", "--tokens", train, "--held-out", held, *again, "--seed", "5"]) == 2
    one_line(capsys, "was begun with another config (seed was 0, now 5)")
    assert main(["train", "prior", "--tokens", like, "--held-out", held, *again]) == 2
    one_line(capsys, "other tokens than this run was begun with")
