"""Wrong use of the instruments' commands: one line, status 2 (or 1 for bad data), nothing written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from overture.cli import main
from overture.cli.common import find_judge, find_networks
from overture.cli.search_guidance import same_statistics
from overture.errors import UsageError
from overture.evaluation.measure import make_reference
from overture.evaluation.networks import DomainNetwork, Outputs, load_network
from overture.recipes.quickstart import quickstart
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute
from overture.training.distributed import World
from overture.training.progress import SilentProgress


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["probe"], "give a RUN, or --train and --test"),
        (["probe", "nowhere", "--features", "pixels"], "give codes, ids or codes,ids"),
        (["probe", "nowhere", "--tokens", "1,two"], "give whole numbers"),
        (["probe", "nowhere"], "no file"),
        (["probe", "nowhere", "--plot", "probe.gif"], ".png, .svg, .pdf"),
        (["prefix", "nowhere"], "holds no judge"),
        (["prefix", "nowhere", "--images", "1"], "at least 2"),
        (["prefix", "nowhere", "--guidance", "2"], "add --conditional"),
        (["neighbours", "nowhere"], "holds no judge"),
        (["neighbours", "nowhere", "--samples", "0"], "at least 1"),
        (["neighbours", "nowhere", "--rows", "0"], "at least 1"),
        (["attention", "nowhere", "--seed", "-1"], "--seed at least 0"),
        (["attention", "nowhere"], "give --out"),
        (["attention", "nowhere", "--tokens", "0"], "at least 1"),
        (["attention", "nowhere", "--out", "map.bmp"], ".png, .svg, .pdf"),
        (["search-guidance", "nowhere"], "not a run directory"),
        (["search-guidance", "nowhere", "--batch-size", "0"], "at least 1"),
        (["reconstruct", "nowhere", "--data", "x", "--vgg-weights", "f"], "go with --lpips"),
        (["compare", "a.json", "a.json"], "named twice"),
    ],
)
def test_wrong_usage(words: list[str], text: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_search_command_is_suggested(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["search-guidence"])
    assert "did you mean 'search-guidance'" in capsys.readouterr().err


def test_entropy_of_a_text_beside_tokens(tmp_path, capsys) -> None:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 4, (50, 7)))
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 20)
    assert main(["entropy", str(tmp_path / "text.txt"), str(tmp_path / "tokens.npy"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["positions"] for result in results] == [7, 7]
    assert results[0]["rows"] == 600 // 7


def test_probing_a_file_without_a_layout(tmp_path, capsys) -> None:
    np.savez(tmp_path / "a.npz", ids=np.zeros((30, 4), np.int64), labels=np.zeros(30, np.int64))
    place = str(tmp_path / "a.npz")
    assert main(["probe", "--train", place, "--test", place, "--features", "ids"]) == 1
    assert "holds no layout" in capsys.readouterr().err


def test_more_rows_than_there_are(tmp_path, capsys) -> None:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 4, (50, 7)))
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 20)
    for name, rows in (("tokens.npy", 50), ("text.txt", 9)):
        assert main(["entropy", str(tmp_path / name), "--rows", "51"]) == 2
        assert f"--rows is 51, the file has {rows}" in capsys.readouterr().err


def test_where_the_judge_of_a_run_lies(tmp_path, monkeypatch) -> None:
    run = tmp_path / "several" / "one"
    run.mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no judge"):
        find_judge(run)
    shared = tmp_path / "several" / "networks" / "judge.safetensors"
    shared.parent.mkdir()
    shared.touch()
    assert find_judge(run) == shared
    monkeypatch.chdir(run)
    assert find_judge(Path()) == shared  # from within the run too
    own = run / "networks"
    own.mkdir()
    assert find_networks(run) == own


# A run of a few steps


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Trained for a moment on 300 squares in squares."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("instruments")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 1, 1), dtype=np.uint8).repeat(28, axis=1).repeat(28, axis=2)
    images[:, 7:21, 7:21] = rng.integers(0, 256, (300, 1, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(300) % 10)
    tiny = quickstart(tiny=True)[1]
    training = replace(tiny.judge.training, steps=2)
    optimizer = replace(tiny.tokenizer_training.optimizer, warmup=1, flat=1)
    config = replace(
        tiny,
        data=replace(tiny.data, source=str(root / "images.npz")),
        judge=replace(tiny.judge, training=training),
        perceptual_network=replace(tiny.perceptual_network, training=training),
        tokenizer_training=replace(
            tiny.tokenizer_training, steps=3, optimizer=optimizer, discriminator_optimizer=optimizer
        ),
        prior_training=replace(tiny.prior_training, steps=8, evaluate_every=8),
    )
    execute(config, RunDirectory(root / "run"), SilentProgress(), World(), until="prior")
    return root / "run"


def answer(capsys, *words: object) -> dict:
    """The one object on stdout."""
    capsys.readouterr()
    assert main([str(word) for word in (*words, "--json")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def refusal(capsys, *words: object) -> str:
    """The last line on stderr, of a command that prints no number."""
    capsys.readouterr()
    assert main([str(word) for word in words]) in (1, 2)
    out, error = capsys.readouterr()
    assert out == ""
    return error.strip().splitlines()[-1]


def hashes(run: Path) -> dict[str, str]:
    from overture.training.checkpoint import read_metadata

    kinds = ("tokenizer", "prior")
    return {f"{kind}_hash": read_metadata(run / kind / "model.safetensors", kind)["weights_hash"] for kind in kinds}


def test_every_number_says_of_which_models_it_is(run, capsys, monkeypatch) -> None:
    def tells_images_apart(judge: DomainNetwork, images: torch.Tensor) -> Outputs:
        """This short a training leaves all reconstructions alike."""
        return Outputs(torch.rand(len(images), 4), torch.rand(len(images), 10))

    monkeypatch.setattr(DomainNetwork, "outputs", tells_images_apart)
    known = hashes(run)
    probe = answer(capsys, "probe", run, "--tokens", "1", "--rows", "50")
    attention = answer(capsys, "attention", run, "--images", "2", "--tokens", "1")
    prefix = answer(capsys, "prefix", run, "--images", "30", "--tokens", "1")
    neighbours = answer(capsys, "neighbours", run, "--samples", "4", "--rows", "20")
    entropy = answer(capsys, "entropy", run, "--prior-rows", "10")
    search = answer(
        capsys, "search-guidance", run, "--scales", "1", "--schedules", "constant", "--samples", "4",
        "--final-samples", "4", "--finalists", "1",
    )  # fmt: skip
    for record in (probe, attention):
        assert record["tokenizer_hash"] == known["tokenizer_hash"]
    for record in (prefix, neighbours, search):
        assert {name: record[name] for name in known} == known
        assert record["batch_size"] >= 1
    assert entropy["prior"]["prior_hash"] == known["prior_hash"]
    assert search["reference_images"] == 30
    assert neighbours["training_images"] == 20
    assert neighbours["held_out_images"] == 30
    assert neighbours["features"]["held_out_share"] == pytest.approx(0.01)


def test_reconstructions_say_how_they_were_made(run, capsys, tmp_path) -> None:
    data = run.parent / "images.npz"
    words = ("reconstruct", run, "--data", data)
    whole = answer(capsys, *words, "--network", f"domain:{find_judge(run)}")
    for protocol in (whole["protocol"], whole["distance"]["protocol"]):
        assert (protocol["images"], protocol["image_size"], protocol["crop"]) == (300, 28, "center")
        assert (protocol["checkpoint"], protocol["weights"]) == (hashes(run)["tokenizer_hash"], "ema")
    assert answer(capsys, *words, "--weights", "raw")["protocol"]["weights"] == "raw"
    assert "--images is 301, but" in refusal(capsys, *words, "--images", 301)
    # A part of a sorted source is drawn from the whole: no image of the first classes alone.
    images = np.repeat(np.array([0, 255], np.uint8), 150)[:, None, None] * np.ones((300, 28, 28), np.uint8)
    np.savez(tmp_path / "halves.npz", images=images, labels=np.repeat([0, 1], 150))
    picture = tmp_path / "pictures.npz"
    part = answer(capsys, "reconstruct", run, "--data", tmp_path / "halves.npz", "--images", 16, "--out", picture)
    assert part["images"] == part["quality"]["images"] == 16
    with np.load(picture) as file:
        assert set(np.unique(file["arr_0"][:16])) == {0, 255}
        assert file["arr_1"].dtype == np.int64


def test_a_corrupt_image_is_not_left_out_of_a_reconstruction(run, capsys, tmp_path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((28, 28), number, np.uint8)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    assert "1.png" in refusal(capsys, "reconstruct", run, "--data", folder.parent)


def test_more_images_than_there_are(run, capsys) -> None:
    assert "there are 270 training images" in refusal(capsys, "neighbours", run, "--samples", 2, "--rows", 271)
    assert "has 30" in refusal(capsys, "attention", run, "--images", 31)
    assert "it has 30" in refusal(capsys, "prefix", run, "--images", 31)


def test_a_search_refuses_before_it_samples(run, capsys, tmp_path) -> None:
    words = ("search-guidance", run, "--scales", "1,2", "--samples", "4", "--dry-run")
    cost = answer(capsys, *words)
    assert cost["settings"] == 4
    assert cost["most_images"] > 0
    assert "needs at least 2 samples" in refusal(capsys, *words, "--final-samples", "0")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    other = refusal(capsys, *words, "--reference", tmp_path / "other.npz")
    assert "other.npz: 3 features, domain has" in other
    # The reference of the results, also as a plain copy of its statistics.
    judge = load_network(f"domain:{find_judge(run)}")
    images = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    reported, copy = run / "networks" / "reference.npz", tmp_path / "copy.npz"
    make_reference("training images", judge, [images]).save(reported)
    with np.load(reported) as file:
        np.savez(copy, mu=file["mu"], sigma=file["sigma"])
    for place in (reported, copy):
        assert "Add --on-test-reference" in refusal(capsys, *words, "--reference", place)
        answer(capsys, *words, "--reference", place, "--on-test-reference")
    unlike = make_reference("others", judge, [255 - images])
    assert not same_statistics(unlike, make_reference("training images", judge, [images]))
    reported.unlink()
