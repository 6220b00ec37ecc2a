"""Wrong use of the instruments' commands: one line, status 2 (or 1 for bad data), nothing written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from overture.analysis import prefix
from overture.cli import main
from overture.cli.common import open_judge
from overture.cli.entropy import PRIOR_ROWS
from overture.cli.prefix import IMAGES
from overture.cli.search_guidance import same_statistics
from overture.data.token_files import TokenFile
from overture.data.transforms import on_background, to_uint8
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import DomainNetwork, Outputs, load_network
from overture.evaluation.statistics import measure_batches
from overture.model_files import read_metadata, read_weights, save_model
from overture.pipeline import load_tokenizer
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.recipes import recipe_configs
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["probe"], "give a RUN, or --train and --test"),
        (["probe", "nowhere", "--features", "pixels"], "give codes, ids or codes,ids"),
        (["probe", "nowhere", "--tokens", "1,two"], "--tokens 1,two: give numbers such as 1,2,4"),
        (["probe", "nowhere", "--rows", "0"], "--rows is 0, needs >= 1"),
        (["probe", "nowhere"], "no such run directory"),
        (["probe", "nowhere", "--plot", "probe.gif"], ".png, .svg, .pdf"),
        (["prefix", "nowhere"], "no such run directory"),
        (["prefix", "nowhere", "--images", "1"], "--images is 1, needs >= 2"),
        (["prefix", "nowhere", "--guidance", "2"], "add --conditional"),
        (["prefix", "nowhere", "--temperature", "0"], "temperature is 0"),
        (["prefix", "nowhere", "--plot", "prefix.gif"], ".png, .svg, .pdf"),
        (["neighbours", "nowhere"], "no such run directory"),
        (["neighbours", "nowhere", "--samples", "0"], "--samples is 0, needs >= 1"),
        (["neighbours", "nowhere", "--rows", "0"], "--rows is 0, needs >= 1"),
        (["attention", "nowhere", "--seed", "-1"], "--seed is -1, needs >= 0"),
        (["attention", "nowhere"], "give --data, and --plot or --out"),
        (["attention", "nowhere", "--data", "x"], "give --data, and --plot or --out"),
        (["attention", "nowhere", "--tokens", "0"], "--tokens is 0, needs >= 1"),
        (["attention", "nowhere", "--plot", "map.bmp"], ".png, .svg, .pdf"),
        (["search-guidance", "nowhere"], "no such run directory"),
        (["search-guidance", "nowhere", "--batch-size", "0"], "--batch-size is 0, needs >= 1"),
        (["reconstruct", "nowhere", "--data", "x", "--out", "picture.gif"], "--out picture.gif: give a .png"),
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


def test_a_run_without_a_judge(tmp_path) -> None:
    """Where the networks of a run lie is tested in test_runs.py."""
    (tmp_path / "networks").mkdir()
    with pytest.raises(OvertureError, match=r"holds no tokenizer"):
        open_judge(RunDirectory(tmp_path), None, torch.device("cpu"))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/model.safetensors").touch()
    with pytest.raises(UsageError, match=r"holds no judge; give one with --network domain:FILE"):
        open_judge(RunDirectory(tmp_path), None, torch.device("cpu"))
    assert open_judge(RunDirectory(tmp_path), "random:8", torch.device("cpu")).dims == 8


def test_what_is_no_run_is_told_with_what_is(tmp_path, capsys) -> None:
    (tmp_path / "runs/vcq").mkdir(parents=True)
    (tmp_path / "runs/vcq/config.json").touch()
    commands = ("prefix", "neighbours", "probe", "search-guidance", "entropy", "attention")
    for command in commands:
        assert main([command, str(tmp_path / "runs")]) == 2
        assert f"not a run directory (no config.json); give one of its runs: {tmp_path / 'runs/vcq'}" in (
            capsys.readouterr().err
        )
    assert main(["push", str(tmp_path / "runs"), "ada/x", "--out", str(tmp_path / "out")]) == 2
    assert f"give one of its runs: {tmp_path / 'runs/vcq'}" in capsys.readouterr().err
    for command in commands[:4]:
        assert main([command, str(tmp_path / "run")]) == 2
        assert f"run: no such run directory (did you mean '{tmp_path / 'runs'}'?)" in capsys.readouterr().err
        assert main([command, "hf:ada/x"]) == 2
        assert "hf:ada/x: this needs a run on this machine; fetch it with overture pull" in capsys.readouterr().err


def test_a_tokenizer_is_probed_on_tokens_that_are_given(run, capsys, tmp_path) -> None:
    """It needs no run around it."""
    shutil.copytree(run / "tokenizer", tmp_path / "alone")
    tokens = [str(run / "tokens" / f"{part}.tokens") for part in ("train", "held_out")]
    words = ("--train", tokens[0], "--test", tokens[1], "--tokens", "2", "--rows", 50)
    alone = answer(capsys, "probe", tmp_path / "alone", *words)
    assert alone["results"] == answer(capsys, "probe", run, *words)["results"]


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
    tiny = recipe_configs("quickstart", tiny=True)[1]
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
    execute(config, RunDirectory(root / "run"), SilentProgress(), Processes(), until="prior")
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
    from overture.model_files import read_metadata

    kinds = ("tokenizer", "prior")
    return {f"{kind}_hash": read_metadata(run / kind / "model.safetensors", kind)["weights_hash"] for kind in kinds}


def test_every_number_says_of_which_models_it_is(run, capsys, monkeypatch) -> None:
    def tells_images_apart(judge: DomainNetwork, images: torch.Tensor) -> Outputs:
        """This short a training leaves all reconstructions alike."""
        return Outputs(torch.rand(len(images), judge.dims), torch.rand(len(images), 10))

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
        assert record["seed"] >= 0
    assert entropy["prior"]["prior_hash"] == known["prior_hash"]
    assert search["reference_images"] == 30
    assert neighbours["training_images"] == 20
    assert neighbours["held_out_images"] == 30
    assert neighbours["features"]["held_out_share"] == pytest.approx(0.01)
    # Each leaves its figures with words and numbers in the run.
    left = {path.stem: json.loads(path.read_text()) for path in (run / "instruments").glob("*.json")}
    assert left.keys() == {
        "probe", "attention", "prefix", "prefix-resampled", "prefix-swapped", "neighbours", "predictive",
        "guidance-search",
    }  # fmt: skip
    for name, entry in left.items():
        assert entry["title"], name
        assert entry["caption"], name
        assert (run / "instruments" / entry["figure"]).stat().st_size > 100
    for name, record in (("probe", probe), ("attention", attention), ("prefix", prefix), ("neighbours", neighbours)):
        assert left[name]["data"] == record
    assert left["predictive"]["data"] == entropy["prior"]
    assert left["guidance-search"]["data"] == search
    assert left["prefix-swapped"]["data"] == {}


def test_no_sample_depends_on_the_size_of_batches(run, capsys) -> None:
    words = ("neighbours", run, "--samples", "7", "--rows", "20", "--guidance", "1.5", "--seed", "3")
    records = [answer(capsys, *words, "--batch-size", size) for size in (1, 3, 64)]
    assert records[0]["tokens"] == records[1]["tokens"] == records[2]["tokens"]
    assert records[0]["guidance"] == "constant 1.5"
    assert answer(capsys, *words[:-1], "4")["seed"] == 4


def test_a_figure_is_drawn_where_it_is_asked_for(run, capsys, tmp_path) -> None:
    for words in (("attention", run, "--images", 2), ("probe", run, "--tokens", "1", "--features", "ids")):
        path = tmp_path / "deep" / f"{words[0]}.svg"
        answer(capsys, *words, "--plot", path)
        assert path.read_text().startswith("<?xml")
    # From a tokenizer alone: nothing is left beside it.
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(run / "tokenizer", tokenizer)
    before = sorted(tokenizer.rglob("*"))
    answer(capsys, "attention", tokenizer, "--data", run.parent / "images.npz", "--plot", tmp_path / "map.pdf")
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(tokenizer.rglob("*")) == before


def test_few_images_are_all_taken_unless_a_number_was_asked_for(run, capsys, monkeypatch, tmp_path) -> None:
    held_out = RunDirectory(run).token_file("held_out").rows
    assert held_out < IMAGES
    taken: list[int] = []

    def study(pipe: object, ids: torch.Tensor, *_: object, **__: object) -> None:
        taken.append(len(ids))
        raise OvertureError("seen enough")

    monkeypatch.setattr(prefix, "study", study)
    for words in ((), ("--images", 7)):
        refusal(capsys, "prefix", run, *words)
    assert taken == [held_out, 7]
    monkeypatch.undo()
    np.savez(tmp_path / "four.npz", images=np.zeros((4, 28, 28), np.uint8), labels=np.zeros(4, np.int64))
    words = ("attention", run, "--data", tmp_path / "four.npz", "--tokens", 2)
    assert answer(capsys, *words, "--plot", tmp_path / "map.png")["images"] == 4
    assert "--images is 5, but" in refusal(capsys, *words, "--images", 5)
    assert answer(capsys, "entropy", run)["prior"]["held_out"]["rows"] == held_out < PRIOR_ROWS
    assert f"--prior-rows is {held_out + 1}, but" in refusal(capsys, "entropy", run, "--prior-rows", held_out + 1)
    assert f"--images is {held_out + 1}, but" in refusal(capsys, "prefix", run, "--images", held_out + 1)
    assert f"--images is {held_out + 1}, but" in refusal(capsys, "attention", run, "--images", held_out + 1)


def test_reconstructions_say_how_they_were_made(run, capsys, tmp_path) -> None:
    data = run.parent / "images.npz"
    words = ("reconstruct", run, "--data", data, "--part", "all")
    whole = answer(capsys, *words, "--network", f"domain:{RunDirectory(run).judge}")
    for protocol in (whole["protocol"], whole["distance"]["protocol"]):
        assert (protocol["images"], protocol["image_size"], protocol["crop"]) == (300, 28, "center")
        assert (protocol["checkpoint"], protocol["weights"]) == (hashes(run)["tokenizer_hash"], "ema")
    assert answer(capsys, *words, "--weights", "raw")["protocol"]["weights"] == "raw"
    assert "--images is 301, but there are 300" in refusal(capsys, *words, "--images", 301)
    # A part of a sorted source is drawn from the whole: no image of the first classes alone.
    images = np.repeat(np.array([0, 255], np.uint8), 150)[:, None, None] * np.ones((300, 28, 28), np.uint8)
    np.savez(tmp_path / "halves.npz", images=images, labels=np.repeat([0, 1], 150))
    picture = tmp_path / "pictures.png"
    part = answer(capsys, "reconstruct", run, "--data", tmp_path / "halves.npz", "--images", 16, "--out", picture)
    assert part["images"] == part["quality"]["images"] == 16
    with Image.open(picture) as drawn:
        originals = np.asarray(drawn)[2:30, 2:].reshape(28, 16, 30)[:, :, :28]  # the first row, with gaps of 2 px
    assert set(originals[0, :, 0]) == {0, 255}
    assert (originals == originals[:1, :, :1]).all()


def test_of_its_own_data_a_tokenizer_sees_what_was_held_out(run, capsys) -> None:
    data = run.parent / "images.npz"
    counts = {}
    for words in ((), ("--data", data), ("--part", "train"), ("--part", "all"), ("--data", data, "--part", "all")):
        found = answer(capsys, "reconstruct", run, *words)
        counts[words] = (found["quality"]["images"], found["source"])
    assert [count for count, _ in counts.values()] == [30, 30, 270, 300, 300]
    assert "kept from the training" in counts[()][1]
    results = RunDirectory(run).read_results().reconstruction
    found = answer(capsys, "reconstruct", run)
    assert results is None or found["quality"]["psnr"] == pytest.approx(results["quality"]["psnr"], rel=1e-9)


def test_a_corrupt_image_is_not_left_out_of_a_reconstruction(run, capsys, tmp_path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((28, 28), number, np.uint8)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    told = refusal(capsys, "reconstruct", run, "--data", folder.parent)
    assert "1.png" in told
    assert "--corrupt-limit" in told
    found = answer(capsys, "reconstruct", run, "--data", folder.parent, "--corrupt-limit", "0.5")
    assert found["quality"]["images"] == 2  # the others, and it says so
    file = tmp_path / "a.tokens"
    assert "--corrupt-limit" in refusal(capsys, "tokenize", run, "--data", folder.parent, "--out", file)
    answer(capsys, "tokenize", run, "--data", folder.parent, "--out", file, "--corrupt-limit", "0.5")


@pytest.mark.parametrize("background", ["black", "#808080", None])
def test_transparent_images_are_read_on_the_background_of_the_training(
    run, tmp_path, capsys, background: str | None
) -> None:
    """Of a tokenizer that does not say, on white."""
    model = load_tokenizer(run)
    about = read_metadata(run / "tokenizer/model.safetensors", "tokenizer")
    known = about.pop("run_config")
    told = {} if background is None else {"run_config": {**known, "data": {**known["data"], "background": background}}}
    weights = {role: read_weights(run / "tokenizer/model.safetensors", role) for role in ("raw", "ema")}
    save_model(tmp_path / "tokenizer/model.safetensors", "tokenizer", weights, {**about, **told})
    rng = np.random.default_rng(0)
    grey, alpha = rng.integers(0, 256, (2, 6, 28, 28), dtype=np.uint8)
    (tmp_path / "emoji" / "a").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(np.stack([grey[number], alpha[number]], axis=-1)).save(
            tmp_path / "emoji" / "a" / f"{number}.png"
        )
    words = ("--data", tmp_path / "emoji", "--batch-size", "4")
    answer(capsys, "tokenize", tmp_path, *words, "--out", tmp_path / "a.tokens")
    level = {"black": 0, "#808080": 128, None: 255}[background]
    shown = [
        on_background(Image.fromarray(np.stack(pair, axis=-1)), background or "white")
        for pair in zip(grey, alpha, strict=True)
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in shown]))[:, None]
    assert (pixels[:, 0][torch.from_numpy(alpha == 0)] == level).all()
    expected = model.encode(pixels / 127.5 - 1)
    assert (TokenFile.open(tmp_path / "a.tokens").ids() == expected.numpy()).all()
    decoded = to_uint8(model.decode(expected))
    error = (decoded.double() - pixels.double()).square().mean() / 255**2
    quality = answer(capsys, "reconstruct", tmp_path, *words)["quality"]
    assert quality["mean_squared_error"] == pytest.approx(float(error), rel=1e-3)


def test_more_images_than_there_are(run, capsys) -> None:
    assert "--rows is 271, but" in refusal(capsys, "neighbours", run, "--samples", 2, "--rows", 271)
    assert "has 30" in refusal(capsys, "attention", run, "--images", 31)
    assert "held_out.tokens has 30" in refusal(capsys, "prefix", run, "--images", 31)
    assert "--rows is 271, but" in refusal(capsys, "probe", run, "--rows", 271)


def test_a_search_refuses_before_it_samples(run, capsys, tmp_path) -> None:
    words = ("search-guidance", run, "--scales", "1,2", "--samples", "4", "--dry-run")
    cost = answer(capsys, *words)
    assert cost["settings"] == 4
    assert cost["most_images"] > 0
    assert "--final-samples is 0, needs >= 2" in refusal(capsys, *words, "--final-samples", "0")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    other = refusal(capsys, *words, "--reference", tmp_path / "other.npz")
    assert "other.npz: 3 features, domain has" in other
    # The reference of the results, also as a plain copy of its statistics.
    judge = load_network(f"domain:{RunDirectory(run).judge}")
    images = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    reported, copy = run / "networks" / "reference.npz", tmp_path / "copy.npz"
    measure_batches("training images", judge, [images]).save(reported)
    with np.load(reported) as file:
        np.savez(copy, mu=file["mu"], sigma=file["sigma"])
    for place in (reported, copy):
        assert "Add --on-test-reference" in refusal(capsys, *words, "--reference", place)
        answer(capsys, *words, "--reference", place, "--on-test-reference")
    unlike = measure_batches("others", judge, [255 - images])
    assert not same_statistics(unlike, measure_batches("training images", judge, [images]))
    reported.unlink()
