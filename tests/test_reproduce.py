"""``overture reproduce``: the golden weights under a row of their own, in small."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import overture.evaluation.networks as networks
import overture.evaluation.sample_file as sample_file
import overture.recipes.reproduction_folder as reproduction_folder
from golden_names import GOLDEN
from overture.cli import main
from overture.errors import OvertureError
from overture.evaluation.judge import Judge
from overture.evaluation.networks import load_network
from overture.evaluation.references import ADM_IMAGENET_256, PublishedReference
from overture.files import file_hash
from overture.interop import RELEASES
from overture.pipeline import Pipeline, balanced_classes
from overture.priors import Sampling
from overture.processes import Processes
from overture.progress import Interrupted
from overture.recipes import RECIPES, load_recipe
from overture.recipes.published import PUBLISHED, PublishedResult, PublishedRow, load_row
from overture.recipes.reproduction import find_reference, reproduce
from overture.training.hardware import processor_name
from test_interop import hub  # noqa: F401 (a fixture)
from together import together

CONFIG = GOLDEN / "prologue" / "config_resolved.json"
GUIDED = Sampling.parse("prologue: 0.7, visual: cosine 3.75 power 0.2")
UNGUIDED = Sampling.parse(temperature="prologue: 0.7, visual: 0.9")
TINY = PublishedRow(
    "Tiny",
    "no paper",
    "tokenizer",
    "ar",
    {
        "guided": PublishedResult(GUIDED, {"fid": 4.5, "precision": 0.25, "recall": 0.5}),
        "unguided": PublishedResult(UNGUIDED, {"fid": 9.0}),
    },
    weights=str(GOLDEN / "prologue"),
    config=CONFIG,
    reference=None,
    samples=12,
    rfid=2.0,
    notes=("made up",),
)
NAME = "test_reproduce:TINY"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise, in the form of ADM's file: statistics, and the images themselves."""
    folder = tmp_path_factory.mktemp("reference")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=pixels)
    made = folder / "reference.npz"
    words = ["--make-reference", str(made), "--keep-images", "20", "--network", "random:16"]
    assert main(["evaluate", str(folder / "images.npz"), *words]) == 0
    return made


@pytest.fixture
def command(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["reproduce", NAME, "--reference", str(reference), "--network", "random:16", "--batch-size", "4"]


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# -- the rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_releases_and_their_numbers_those_of_the_recipes() -> None:
    """The recipes tell the same numbers in words."""
    used = {directory for name in PUBLISHED for directory in load_row(name).directories}
    assert used == set(RELEASES)
    assert set(PUBLISHED) <= set(RECIPES)
    for name in PUBLISHED:
        row, about = load_row(name), " ".join((inspect.getdoc(load_recipe(name)) or "").split())
        release = row.release
        assert release.prior is not None
        assert RELEASES[row.tokenizer].tokenizer == release.tokenizer
        row.results["guided"].sampling.check(release.tokenizer.layout)
        guided, unguided = (row.results[kind].numbers for kind in ("guided", "unguided"))
        numbers = [f"rFID {row.rfid:.2f}", f"{guided['fid']:.2f}", f"{unguided['fid']:.2f}"]
        if "is" in guided:
            numbers += [
                f"IS {guided['is']:.1f}", f"precision {guided['precision']:.2f}", f"recall {guided['recall']:.2f}",
            ]  # fmt: skip
        assert all(number in about for number in numbers), (name, numbers)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert len([line for line in lines if line.split(" ")[0] in set(PUBLISHED)]) == 10
    row = next(line for line in lines if line.startswith("prologue-b-xl"))
    assert re.split(r"  +", row)[1:] == [
        "174+694 M", "2.24", "2.43", "5.22", "252.6", "0.80", "0.59", "prologue-b-tokenizer ar-prologue-b-xl"
    ]  # fmt: skip
    assert main(["reproduce", "--json"]) == 0
    rows = told(capsys)["rows"]
    assert set(rows) == set(PUBLISHED)
    assert rows["prologue-onestage"]["directories"] == ["prologue-onestage-joint"]
    assert rows["imagenet-1d"]["published"]["guided"]["fid"] == 6.1
    assert rows["imagenet-1d"]["published"]["guided"]["guidance"] == "cosine 19 power 1.75 start 1"


# -- a row --------------------------------------------------------------------------------------------------------------


def test_it_measures_what_evaluate_measures_of_what_the_models_sample(
    command: list[str], reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--out", "out", "--json"]) == 0
    found = told(capsys)
    classes = balanced_classes(12, 10)
    pipe = Pipeline.load("out")
    for kind, sampling in (("guided", GUIDED), ("unguided", UNGUIDED)):
        with np.load(f"out/samples/{kind}.npz") as file:
            assert file["arr_1"].tolist() == classes.tolist()
            expected = pipe(classes, sampling, seed=0).permute(0, 2, 3, 1).numpy()
            assert (file["arr_0"] == expected).all()
        words = ["--reference", str(reference), "--network", "random:16", "--metrics", "fid,precision,recall", "--json"]
        assert main(["evaluate", f"out/samples/{kind}.npz", *words]) == 0
        other = told(capsys)["measurements"]
        measured = found["settings"][kind]["measured"]
        assert set(measured) == set(TINY.results[kind].numbers)
        assert {metric: entry["value"] for metric, entry in measured.items()} == {
            metric: other[metric]["value"] for metric in measured
        }
        assert measured["fid"]["protocol"]["guidance"] == str(sampling.guidance)
    # The folder is used like a run.
    assert main(["compare", "out", "--json"]) == 0
    assert len(told(capsys)["rows"]) == 2


def test_the_table_and_the_json_say_what_was_done(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--out", "out", "--samples", "8", "--only", "guided"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = text.splitlines()
    fid = next(line.split() for line in lines if "FD(random:16)" in line)
    assert fid[0] == "guided"
    assert fid[2] == "4.5"
    assert fid[4] == "-"  # unlike numbers have no difference
    assert "unguided" not in text
    assert lines[lines.index("NOT comparable with the published numbers:") + 1].split(";") == [
        "  8 samples", " the published numbers are of 12"
    ]  # fmt: skip
    for words in (
        "prologue: constant 0.7, visual: cosine 3.75 power 0.2 start 1",
        "tokenizer (model_2.safetensors, model_3.safetensors) [", "ar (model.safetensors) [", "classes balanced, seed 0",
        "precision    float32\n", processor_name(), "20 images [", "random:16 [", "made up", "a rough number",
    ):  # fmt: skip
        assert words in text, words
    # Nothing is left to do, whatever is asked of it.
    assert main([*command, "--out", "out", "--samples", "8", "--only", "guided", "--json"]) == 0
    again = told(capsys)
    assert again["comparable"] is False
    assert again["settings"]["guided"]["published"] == {"fid": 4.5, "precision": 0.25, "recall": 0.5}
    assert f"{again['settings']['guided']['measured']['fid']['value']:.5g}" == fid[3]
    assert again["protocol"]["device"] == processor_name()


def test_official_weights_the_published_reference_and_all_samples_are_comparable(
    command: list[str], reference: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference with the published hash; which network it is, its label tells."""
    monkeypatch.setattr(networks.RandomNetwork, "label", "FID")
    stored = np.load(reference)
    np.savez("plain.npz", mu=stored["mu"], sigma=stored["sigma"], arr_0=stored["arr_0"])
    published = PublishedReference("https://nowhere/plain.npz", file_hash(Path("plain.npz")), 0)
    monkeypatch.setattr(sys.modules[__name__], "TINY", replace(TINY, reference=published))
    assert main([*command, "--reference", "plain.npz", "--out", "out"]) == 0
    text = capsys.readouterr().out
    assert "NOT comparable" not in text
    cells = next(line.split() for line in text.splitlines() if re.match(r"guided +FID", line))
    assert float(cells[4]) == pytest.approx(float(cells[3]) - 4.5, abs=0.02)
    assert main([*command, "--out", "out", "--json"]) == 0  # the same samples against another file
    assert told(capsys)["unlike"] == ["the reference images.npz is not the published file plain.npz"]


def test_going_on_gives_what_never_stopping_gives(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*command, "--out", "whole", "--json"]) == 0
    whole = told(capsys)
    checks = []

    def stop(where: str, asked: bool | None = None) -> None:
        checks.append(where)
        if len(checks) in (2, 3, 5):  # in the middle and at the end of a file, and in the middle of the next one
            raise Interrupted("stopped")

    failed = []

    def import_half(source: str, *rest: Any) -> Any:
        if source.endswith("ar") and not failed:
            failed.append(source)
            raise OvertureError("the hub is gone")
        return imports(source, *rest)

    imports = reproduction_folder.import_release
    monkeypatch.setattr(reproduction_folder, "import_release", import_half)
    monkeypatch.setattr(sample_file, "heed_stop", stop)
    again = [*command, "--out", "parts", "--json"]
    assert [main(again) for _ in range(5)] == [1, 130, 130, 130, 0]
    assert failed
    assert len(checks) == 6
    assert told(capsys) == whole
    for name in ("samples/guided.npz", "samples/unguided.npz", "results.json", "prior/model.safetensors"):
        assert (Path("parts") / name).read_bytes() == (Path("whole") / name).read_bytes(), name
    assert not list(Path("parts").rglob("*.partial"))


def test_the_network_of_the_fid_with_random_weights(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as port

    torch.manual_seed(0)
    with monkeypatch.context() as patched:
        patched.setattr(port, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(port.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        weights = port.FeatureExtractorInceptionV3("port", ["2048", "logits_unbiased"]).state_dict()
    torch.save(weights, "weights.pth")
    np.savez("few.npz", arr_0=np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    words = ["--network", "inception:weights.pth", "--reference", "few.npz", "--samples", "2", "--only", "guided"]
    assert main([*command, *words, "--metrics", "fid,is", "--out", "out", "--json"]) == 0
    found = told(capsys)
    names = {metric: entry["name"] for metric, entry in found["settings"]["guided"]["measured"].items()}
    assert names == {"fid": "FD(inception)", "is": "IS(inception)"}
    assert found["unlike"] == [
        "2 samples; the published numbers are of 12", "the network inception does not have the official Inception weights"
    ]  # fmt: skip


# -- from elsewhere -----------------------------------------------------------------------------------------------------


def _one_of_two(processes: Processes, server: str, digest: str, folder: Path) -> None:
    """Everything from the server; once more when it has nothing left."""
    address = f"{server}/Zyriix/prologue/resolve/main/reference.npz"
    row = replace(TINY, weights="hf:Zyriix/prologue", reference=PublishedReference(address, digest, 0))
    globals()["TINY"] = row
    for name in ("first", "again"):
        judge = Judge(load_network("random:16"), find_reference(row, processes), processes)
        found = reproduce(NAME, folder / "two", judge, batch_size=4)
        if processes.is_main:
            (folder / f"{name}.json").write_text(json.dumps(found.to_dict()))
            shutil.rmtree(folder / "hub", ignore_errors=True)
        processes.barrier()


def test_two_processes_from_the_hub_give_what_one_gives_from_a_folder(
    hub: str,  # noqa: F811
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights and reference come from a server on this machine, and are asked for once."""
    served = tmp_path / "hub/Zyriix/prologue"
    for part in ("tokenizer", "ar"):
        shutil.copytree(GOLDEN / "prologue" / part, served / part)
    shutil.copy(reference, served / "reference.npz")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in (
        ("HF_ENDPOINT", hub),
        ("HF_HOME", "cache"),
        ("HF_HUB_DISABLE_XET", "1"),
        ("OVERTURE_DATA", "data"),
    ):
        monkeypatch.setenv(name, value if name in ("HF_ENDPOINT", "HF_HUB_DISABLE_XET") else str(tmp_path / value))
    together(_one_of_two, 2, tmp_path, hub, file_hash(reference), tmp_path)
    two, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "again"))
    assert two == again
    assert (tmp_path / "data/reference.npz").read_bytes() == reference.read_bytes()
    one = reproduce(NAME, tmp_path / "one", Judge(load_network("random:16"), str(reference)), batch_size=4).to_dict()
    for kind in TINY.results:
        files = [(tmp_path / run / f"samples/{kind}.npz").read_bytes() for run in ("one", "two")]
        assert files[0] == files[1]
        for metric, entry in one["settings"][kind]["measured"].items():
            assert two["settings"][kind]["measured"][metric]["value"] == pytest.approx(entry["value"], rel=1e-6)
    mine, theirs = one["protocol"], two["protocol"]
    assert (mine["device"], theirs["device"]) == (processor_name(), f"2 x {processor_name()}")
    for kind, words in (("tokenizer", "tokenizer (model_2.safetensors, "), ("prior", "ar (model.safetensors) [")):
        assert mine[kind].startswith(words)
        assert theirs[kind] == f"hf:Zyriix/prologue@{'0' * 40}/{mine[kind]}"
    assert {name: mine[name] for name in mine.keys() - {"device", "tokenizer", "prior"}}.items() <= theirs.items()
    # The file is the published one, though it tells another hash of itself.
    assert one["unlike"] == two["unlike"] == ["the network random:16 does not have the official Inception weights"]


def test_a_reference_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERTURE_DATA", str(tmp_path / "data"))
    source = tmp_path / "there.npz"
    source.write_bytes(b"a reference")
    good = PublishedReference(source.as_uri(), file_hash(source), 11)
    for wrong, why in (
        (replace(good, url="http://127.0.0.1:1/there.npz"), r"no reference there\.npz \("),
        (replace(good, sha256="0" * 64), "invalid hash value"),
    ):
        with pytest.raises(OvertureError, match=why) as caught:
            wrong.fetch()
        assert "give a file with --reference FILE, or put it into" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not wrong.place.exists()
    assert good.fetch() == tmp_path / "data/there.npz"
    good.place.write_bytes(b"another one")
    with pytest.raises(OvertureError, match=r"is not the published file .* delete it"):
        good.fetch()
    assert re.fullmatch("[0-9a-f]{64}", ADM_IMAGENET_256.sha256)


# -- bad input ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_before_the_work(
    command: list[str], reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = np.load(reference)
    np.savez("bare.npz", mu=stored["mu"], sigma=stored["sigma"])
    np.savez("large.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    np.savez("other.npz", x=np.zeros(3))
    other = tmp_path / "rows"  # those of another row, and a prior of another one under this row's name
    for part in ("prologue-l-tokenizer", "ar-prologue-l-b"):
        (other / part).mkdir(parents=True)
    shutil.copytree(GOLDEN / "prologue/tokenizer", tmp_path / "mixed/tokenizer")
    shutil.copytree(GOLDEN / "2d/ar", tmp_path / "mixed/ar")
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    out = ["--out", "out"]
    b_b = [word if word != NAME else "prologue-b-b" for word in command]
    cases = [
        (["reproduce", "prologue-b-bb"], 2, "unknown published row 'prologue-b-bb' (did you mean 'prologue-b-b'"),
        ([*command, *out, "--only", "guide"], 2, "no such setting (did you mean 'guided'"),
        ([*command, *out, "--samples", "1"], 2, "--samples is 1, needs >= 2"),
        ([*command, *out, "--samples", "3"], 2, "3 samples: Precision needs at least 4"),
        ([*command, *out, "--metrics", "fids"], 2, "unknown metric 'fids' (did you mean"),
        ([*command, *out, "--metrics", "is"], 1, "IS: random:16 has no classes; leave it out with --metrics"),
        ([*command, *out, "--reference", "bare.npz"], 1, "Precision: bare.npz holds statistics and no images (arr_0);"),
        ([*command, *out, "--reference", "large.npz"], 1, "of images of 8x8, the samples are 32x32"),
        ([*command, *out, "--reference", "other.npz"], 2, "other.npz: no arrays"),
        ([*command, *out, "--reference", "none.npz"], 2, "none.npz"),
        ([*command, "--out", "mine"], 2, "--out mine: holds other things than a reproduction; give a new folder"),
        ([*command, "--out", "bare.npz"], 2, "--out bare.npz: is a file; name a folder"),
        ([*command, *out, "--weights", str(tmp_path / "mixed")], 1, "mixed/ar/model.safetensors: ar_model."),
        ([*b_b, *out, "--metrics", "fid", "--weights", str(other)], 1, "images of 32x32, the samples are 256x256"),
        (["reproduce", NAME, *out, "--network", "random:16"], 2, "row Tiny: its reference is not published; give one"),
    ]
    for words, status, line in cases:
        shutil.rmtree("out", ignore_errors=True)
        assert main(words) == status, words
        said = capsys.readouterr().err.splitlines()
        assert line in said[-1], said
        assert [entry for entry in said if not entry.startswith("importing ")] == said[-1:]
        assert not list(tmp_path.rglob("*.partial"))
    np.savez("bare.npz", mu=stored["mu"], sigma=stored["sigma"])  # of any size
    words = [*b_b, "--out", "b-b", "--metrics", "fid", "--reference", "bare.npz", "--weights", str(other)]
    assert main(words) == 2
    assert (
        "row prologue-b-b needs the folders prologue-b-tokenizer and ar-prologue-b-b in it; it holds those of prologue-l-b"
        in capsys.readouterr().err
    )


def test_a_folder_of_another_request_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*command, "--out", "out", "--samples", "4", "--only", "unguided"]
    assert main(words) == 0
    for more, line in ((["--samples", "5"], "samples was 4, now 5"), (["--seed", "1"], "seed was 0, now 1")):
        assert main([*words, *more]) == 2
        assert line in capsys.readouterr().err
    assert main([*words, "--bf16"]) == 2
    assert "precision was 'float32', now 'bfloat16'" in capsys.readouterr().err
    shutil.copy("out/tokenizer/model.safetensors", "kept.safetensors")
    source = GOLDEN / "2d"
    import_words = ["import", "prologue-release", str(source / "tokenizer"), "--out", "other"]
    assert main([*import_words, "--config", str(source / CONFIG.name)]) == 0
    shutil.copy("other/tokenizer/model.safetensors", "out/tokenizer/model.safetensors")
    capsys.readouterr()
    assert main(words) == 1
    assert "out: its models were changed since they were imported" in capsys.readouterr().err
