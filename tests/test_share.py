"""Saving, sharing and loading: what comes back is what was there, to the bit; what cannot be had is one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http, disable_progress_bars, enable_progress_bars
from PIL import Image

import overture
from hub_stand_in import TOKEN, StandIn, stand_in
from overture.cli import main
from overture.config import from_dict, to_dict
from overture.data.base import plain_image
from overture.data.pil_images import from_pil, to_pil
from overture.data.sources import open_source
from overture.data.stream import DataConfig, evaluation_batches
from overture.elsewhere import MARK, last_parts, names_in
from overture.errors import OvertureError, UsageError
from overture.files import write_json, write_record
from overture.hub import HubFolder, find_place
from overture.model_files import find_model, read_metadata, save_model
from overture.nn.transformer import TransformerConfig
from overture.pipeline import Pipeline
from overture.priors import PriorConfig
from overture.runs.config import RunConfig
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig

NAMES = ["bag", "boot | high", "coat"]
DATA = DataConfig(source="/home/ada/secret/clothes.zip/train", image_size=8, channels=1, background="black")
SIZE = TransformerConfig(dim=16, depth=1, heads=2, condition_dim=4)


def write_run(root: Path, **changes: Any) -> Path:
    """A run of random weights, with what a trained one has written down."""
    torch.manual_seed(0)
    segments = (SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=8)),)
    tokenizer = TokenizerConfig(8, 1, 4, num_classes=3, encoder=SIZE, decoder=SIZE, segments=segments)
    prior = PriorConfig(16, 1, 2, 2.0, 4, num_classes=3, **changes)
    config = RunConfig(name="one", recipe="quickstart", data=DATA, tokenizer=tokenizer, prior=prior)
    run_config = to_dict(config)
    weights = {role: tokenizer.build().state_dict() for role in ("raw", "ema")}
    about: dict[str, Any] = {"config": to_dict(tokenizer), "run_config": run_config}
    digest = save_model(root / "tokenizer/model.safetensors", "tokenizer", weights, about)
    weights = {role: prior.build(tokenizer.layout).state_dict() for role in ("raw", "ema")}
    about = {"config": to_dict(prior), "layout": tokenizer.layout.to_dict(), "run_config": run_config, "classes": NAMES}
    about["trained_with"] = {"device": "Card 9000", "processes": 2, "threads": 4, "torch": "9.1", "overture": "7"}
    save_model(root / "prior/model.safetensors", "prior", weights, {**about, "tokenizer_hash": digest})
    write_record(root / "config.json", run_config)
    write_json(root / "classes.json", NAMES)
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def patch_constant(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of the hub's client have copies of some constants, and sessions that remember them."""
    for module in (constants, file_download):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)
    getattr(_http, "reset_sessions", lambda: None)()


def hub_is_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_constant("ENDPOINT", url, monkeypatch)
    patch_constant("HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}", monkeypatch)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_constant("HF_HUB_OFFLINE", True, monkeypatch)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in in the hub's place, an empty cache, and a token."""
    with stand_in() as server:
        hub_is_at(server.url, monkeypatch)
        patch_constant("HF_HUB_CACHE", str(tmp_path / "cache"), monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        disable_progress_bars()
        yield server
        enable_progress_bars()


def same(one: Pipeline, other: Pipeline) -> None:
    """Ids, images and samples, to the bit."""
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    ids = one.encode(images)
    assert torch.equal(ids, other.encode(images))
    assert torch.equal(one.decode(ids), other.decode(ids))
    sampling = overture.Sampling.parse("1.5", 0.9)
    assert torch.equal(one([0, 1, 2], sampling, seed=4), other([0, 1, 2], sampling, seed=4))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# -- images ---------------------------------------------------------------------------------------------------------


def test_pil_images_are_read_as_the_run_reads_files(run: Path, tmp_path: Path) -> None:
    """Against the data stream of a run: size, crop, alpha on the run's own background, EXIF, palettes."""
    pipe = Pipeline.load(run)
    rng = np.random.default_rng(0)
    pictures = {
        "wide.png": Image.fromarray(rng.integers(0, 256, (20, 47), dtype=np.uint8)),
        "small.png": Image.fromarray(rng.integers(0, 256, (5, 4), dtype=np.uint8)),
        "alpha.png": Image.fromarray(rng.integers(0, 256, (16, 16, 2), dtype=np.uint8)),
        "turned.jpg": Image.fromarray(rng.integers(0, 256, (24, 16), dtype=np.uint8)),
    }
    (tmp_path / "set" / "all").mkdir(parents=True)
    tag = Image.Exif()
    tag[274] = 6  # turned by a quarter
    for name, picture in pictures.items():
        extra = {"exif": tag} if name == "turned.jpg" else {}
        picture.save(tmp_path / "set" / "all" / name, **extra)
    source = open_source(str(tmp_path / "set"))
    read = torch.cat([batch.images for batch in evaluation_batches(source, DATA, 3)])
    opened = [Image.open(path) for path in sorted((tmp_path / "set" / "all").iterdir())]
    before = [image.size for image in opened]
    assert torch.equal(from_pil(opened, 8, 1, "black"), read)
    assert [image.size for image in opened] == before  # they stay as they are
    assert not torch.equal(from_pil(opened, 8, 1, "white"), read)
    ids = pipe.encode(opened)
    assert ids.shape == (4, 4)
    assert torch.equal(ids, pipe.encode(read))
    assert torch.equal(ids[:1], pipe.encode(opened[0]))
    assert torch.equal(ids, pipe.tokenizer.encode(read.float() / 127.5 - 1))
    assert torch.equal(pipe.encode(read[0]), ids[:1])


def test_uint8_of_another_size_is_cut_as_a_picture_is() -> None:
    images = torch.randint(0, 256, (2, 3, 30, 21), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = to_pil(images)
    assert [picture.mode for picture in pictures] == ["RGB", "RGB"]
    assert np.array_equal(np.asarray(pictures[1]), images[1].permute(1, 2, 0).numpy())
    assert torch.equal(from_pil(images, 8, 3), from_pil(pictures, 8, 3))
    assert to_pil(images[0, :1])[0].mode == "L"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no images"),
        ([Image.new("L", (9, 9)), Image.new("RGB", (9, 9))], "image 1: a colour image"),
        (Image.new("F", (9, 9)), "image 0: images of mode F are not supported"),
        (Image.new("L", (1, 200)), "image 0: 1 x 200 pixels, too narrow"),
        (["picture.png"], "image 0: is a str, needs a Pillow image"),
        (torch.zeros(1, 1, 8, 8), r"torch.float32 of shape \[1, 1, 8, 8\], need uint8"),
        (torch.zeros(8, 8, dtype=torch.uint8), "need uint8"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "need uint8"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, told: str) -> None:
    with pytest.raises(OvertureError, match=told):
        from_pil(given, 8, 1)


def test_a_picture_that_cannot_be_decoded_is_one_line(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 7).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(OvertureError, match=r"a\.png: cannot decode"):
        plain_image(Image.open(tmp_path / "a.png"), "a.png")


def test_pictures_out(run: Path) -> None:
    pipe = Pipeline.load(run)
    pictures = pipe.pictures([0, 2], seed=1)
    assert torch.equal(from_pil(pictures, 8, 1), pipe([0, 2], seed=1))
    assert pipe.class_names == tuple(NAMES)
    assert pipe.to("cpu") is pipe


# -- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_is_the_same(tmp_path: Path, tied: bool) -> None:
    pipe = Pipeline.load(write_run(tmp_path / "run", tied=tied))
    pipe.save_pretrained(tmp_path / "saved")
    for kind in ("tokenizer", "prior"):  # unchanged: file for file, hash and all
        name = f"{kind}/model.safetensors"
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    same(pipe, Pipeline.from_pretrained(tmp_path / "saved"))
    alone = overture.Tokenizer.from_pretrained(tmp_path / "saved", subfolder="tokenizer")
    alone.save_pretrained(tmp_path / "alone")
    again = overture.Tokenizer.from_pretrained(tmp_path / "alone")
    prior = overture.Prior.from_pretrained(str(tmp_path / "saved"))
    same(pipe, Pipeline(again, prior))
    assert again.background == "black"


def test_what_was_changed_is_saved_as_it_is_now(run: Path, tmp_path: Path) -> None:
    pipe = Pipeline.load(run)
    with torch.no_grad():
        for model in (pipe.tokenizer, pipe.prior):
            for parameter in model.parameters():
                parameter.mul_(1.1)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = Pipeline.from_pretrained(tmp_path / "saved")
    same(pipe, loaded)
    about = read_metadata(tmp_path / "saved/tokenizer/model.safetensors", "tokenizer")
    old = read_metadata(run / "tokenizer/model.safetensors", "tokenizer")
    assert about["derived_from"] == old["weights_hash"] != about["weights_hash"]
    assert loaded.tokenizer.background == "black"
    assert loaded.class_names == tuple(NAMES)


def test_other_weights_of_a_file_and_new_modules(run: Path, tmp_path: Path) -> None:
    """Raw weights of a tokenizer whose file means the EMA stay raw; what was never in a file can be saved."""
    raw = overture.load_tokenizer(run, "raw")
    raw.save_pretrained(tmp_path / "raw")
    loaded = overture.Tokenizer.from_pretrained(tmp_path / "raw")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids = raw.encode(images)
    assert torch.equal(ids, loaded.encode(images))
    assert torch.equal(raw.decode(ids), loaded.decode(ids))
    assert not torch.equal(raw.decode(ids), overture.load_tokenizer(run).decode(ids))
    new = Pipeline(
        raw.config.build().eval(), overture.PriorConfig(16, 1, 2, 2.0, 4, num_classes=3).build(raw.layout).eval()
    )
    new.save_pretrained(tmp_path / "new")
    same(new, Pipeline.from_pretrained(tmp_path / "new"))
    assert new.class_names == ("0", "1", "2")


def test_a_file_that_another_one_has_replaced_is_not_taken_for_it(run: Path, tmp_path: Path) -> None:
    tokenizer = overture.load_tokenizer(run)
    save_model(run / "tokenizer/model.safetensors", "tokenizer", {"raw": tokenizer.config.build().state_dict()},
               {"config": to_dict(tokenizer.config), "use_weights": "raw"})  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "saved")
    shutil.rmtree(run)
    tokenizer.save_pretrained(tmp_path / "saved 2")
    ids = torch.zeros(1, 4, dtype=torch.long)
    for name in ("saved", "saved 2"):
        assert torch.equal(overture.load_tokenizer(tmp_path / name).decode(ids), tokenizer.decode(ids))


# -- the hub --------------------------------------------------------------------------------------------------------


def test_pushed_and_pulled_is_the_same(
    run: Path, hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(run), "ada/clothes", "--license", "cc-by-4.0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    head = hub.repositories["ada/clothes"].names["main"]
    assert told["pushed"] == f"hf:ada/clothes@{head}"
    there = hub.repositories["ada/clothes"].commits[head]
    assert set(there) == set(told["files"]) == {
        "README.md", "classes.json", "config.json", "prior/model.safetensors", "tokenizer/model.safetensors",
    }  # fmt: skip
    assert not any(b"/home/ada" in content for content in there.values())
    assert b"clothes.zip/train" in there["tokenizer/model.safetensors"]
    hub.push("ada/clothes", {"evil.py": b"raise SystemExit", "training.pkl": b"\x80"})
    head = hub.repositories["ada/clothes"].names["main"]

    assert main(["pull", "ada/clothes", "--out", str(tmp_path / "pulled"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pinned"] == f"hf:ada/clothes@{head}"
    assert files(tmp_path / "pulled") == {*told["files"], MARK}
    assert json.loads((tmp_path / "pulled" / MARK).read_text()) == {"from": f"hf:ada/clothes@{head}"}
    before = Pipeline.load(run)
    same(before, Pipeline.load(tmp_path / "pulled"))
    for kind in ("tokenizer", "prior"):
        path = f"{kind}/model.safetensors"
        assert (
            read_metadata(tmp_path / "pulled" / path, kind)["weights_hash"]
            == read_metadata(run / path, kind)["weights_hash"]
        )

    monkeypatch.chdir(tmp_path)  # where no folder is called ada/clothes
    hub.asked.clear()
    same(before, Pipeline.from_pretrained("ada/clothes"))
    heads = [line for line in hub.asked if not line.startswith("HEAD")]
    assert not heads, "what is in the cache was fetched again"
    words = ["generate", "hf:ada/clothes", "--count", "1", "--out"]
    assert main([*words, "one.npz"]) == 0
    assert main(["generate", "pulled", "--count", "1", "--out", "two.npz"]) == 0
    assert main(["generate", str(run), "--count", "1", "--out", "three.npz"]) == 0
    assert Path("one.npz").read_bytes() == Path("two.npz").read_bytes() == Path("three.npz").read_bytes()

    go_offline(monkeypatch)
    same(before, Pipeline.from_pretrained("ada/clothes"))


def test_revisions(run: Path, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = Pipeline.load(run), Pipeline.load(run)
    with torch.no_grad():
        second.prior.token_embedding.weight.mul_(2)
    place = first.push_to_hub("ada/clothes", private=True, card="---\nlicense: mit\n---\nHello.\n")
    assert hub.repositories["ada/clothes"].private
    second.push_to_hub("ada/clothes", revision="wide")
    second.tokenizer.push_to_hub("ada/clothes", revision="alone")
    same(first, Pipeline.from_pretrained("ada/clothes"))
    same(second, Pipeline.from_pretrained("ada/clothes", revision="wide"))
    alone = overture.Tokenizer.from_pretrained("hf:ada/clothes@alone")
    same(first, Pipeline(alone, first.prior))
    second.push_to_hub("ada/clothes")
    same(second, Pipeline.from_pretrained("ada/clothes"))
    hub.asked.clear()
    same(first, Pipeline.from_pretrained("ada/clothes", revision=place.revision))
    assert hub.asked == []  # a commit does not change: all of it is in the cache
    assert not any(
        b"/home/ada" in data for commit in hub.repositories["ada/clothes"].commits.values() for data in commit.values()
    )


def test_a_model_by_itself_is_in_the_cache_too(
    run: Path, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, that there is no ``tokenizer/model.safetensors`` beside it is known from before."""
    tokenizer = overture.load_tokenizer(run)
    tokenizer.push_to_hub("ada/alone")
    monkeypatch.chdir(tmp_path)
    overture.Tokenizer.from_pretrained("ada/alone")
    go_offline(monkeypatch)
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert torch.equal(overture.Tokenizer.from_pretrained("ada/alone").decode(ids), tokenizer.decode(ids))
    with pytest.raises(OvertureError, match="HF_HUB_OFFLINE is set"):
        overture.Prior.from_pretrained("ada/alone")


def test_both_models_are_of_one_commit(
    run: Path, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where someone pushes between the two."""
    pipe = Pipeline.load(run)
    pipe.push_to_hub("ada/clothes")
    asked = overture.Tokenizer.open

    def then_push(*words: Any, **more: Any) -> Any:
        found = asked(*words, **more)
        hub.push("ada/clothes", {"prior/model.safetensors": b"of another tokenizer"})
        return found

    monkeypatch.setattr(overture.Tokenizer, "open", then_push)
    same(pipe, Pipeline.load("hf:ada/clothes"))


def test_what_cannot_be_had_is_one_line(
    run: Path, hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.push("ada/clothes", {"pytorch_model.bin": b"\x80", "config.json": b"{}"})
    hub.push("ada/theirs", {"model.safetensors": (8).to_bytes(8, "little") + b"{}      "})
    Pipeline.load(run).push_to_hub("ada/private", private=True)
    out = ["--out", str(tmp_path / "out")]
    cases = [
        (["pull", "ada/none", *out], 1, "hf:ada/none: cannot be had from the hub (no such repository"),
        (["pull", "ada/private@v9", *out], 1, "no such revision: it has no branch, tag or commit 'v9'"),
        (["pull", "ada/clothes", *out], 1, "hf:ada/clothes: is no repository of Overture's"),
        (["pull", "ada/theirs", *out], 1, "is a file without our metadata"),
        (["generate", "hf:ada/clothes", "--out", "a.png"], 1, "hf:ada/clothes: holds no tokenizer"),
        (["pull", "ada", *out], 2, "write hf:owner/name"),
        (["push", str(run), "ada/x/y"], 2, "write owner/name"),
        (["push", str(run), "ada/x", "--out", "x", "--revision", "v1"], 2, "--revision does not go with --out"),
        (["push", str(run), "ada/x", "--out", "x", "--private"], 2, "--private does not go with --out"),
        (["push", str(run), "ada/x", "--out", "x", "--message", "hi"], 2, "--message does not go with --out"),
        (["push", str(tmp_path / "none"), "ada/x"], 2, "none: no such run"),
        (["push", str(tmp_path), "ada/x"], 2, "holds neither tokenizer/model.safetensors nor prior"),
        (["pull", "ada/private", "--out", str(run)], 2, "is not empty"),
        (["push", str(run), "ada/x", "--out", str(run)], 2, "is not empty"),
    ]
    for words, status, told in cases:
        assert main(words) == status, words
        said = capsys.readouterr().err.strip()
        assert told in said
        assert "\n" not in said
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "ada/new"]) == 1
    assert "ada/new: cannot be pushed to" in (said := capsys.readouterr().err)
    assert "hf auth login" in said
    assert main(["pull", "ada/private", *out]) == 1
    assert "no such repository, or a private one and no token" in capsys.readouterr().err


def test_no_network(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client tries again, and waits before
    hub_is_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(OvertureError, match="not in the cache, and there is no connection to the hub") as caught:
        Pipeline.from_pretrained("ada/clothes")
    assert "\n" not in str(caught.value)
    with pytest.raises(OvertureError, match=r"cannot be pushed to \(no connection to the hub") as caught:
        Pipeline.load(run).push_to_hub("ada/clothes")
    assert "\n" not in str(caught.value)
    go_offline(monkeypatch)
    with pytest.raises(OvertureError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        Pipeline.from_pretrained("ada/clothes")


def test_where_a_path_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_place("ada/clothes") == HubFolder("ada/clothes")
    assert find_place("ada/clothes", "v1", "a/b/") == HubFolder("ada/clothes", "v1", "a/b")
    assert find_place("hf:ada/clothes@v1/a", None, "b") == HubFolder("ada/clothes", "v1", "a/b")
    for path in ("./ada/clothes", "runs", "runs/a/b", "/ada/clothes", "../ada", tmp_path / "x"):
        assert find_place(path, subfolder="one") == Path(path) / "one"
    with pytest.raises(UsageError, match="and revision goes with one"):
        find_place("./ada/clothes", "v1")
    with pytest.raises(UsageError, match="names the revision v1, and revision is v2"):
        find_place("hf:ada/clothes@v1", "v2")
    (tmp_path / "ada" / "clothes").mkdir(parents=True)
    assert find_place("ada/clothes") == Path("ada/clothes")


# -- the card -------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_run_says(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "samples").mkdir()
    Image.new("L", (4, 4)).save(run / "samples" / "classes.png")
    hashes = {
        f"{kind}_hash": read_metadata(run / kind / "model.safetensors", kind)["weights_hash"]
        for kind in ("tokenizer", "prior")
    }
    protocol = {
        "network": "domain",
        "images": 500,
        "guidance": "none",
        "reference": "/home/ada/secret/clothes.zip, training images",
    }
    number = {"name": "FD(domain)", "value": 1.25, "unit": "", "protocol": protocol, "better": "lower"}
    results = {"models": hashes, "generation": {"unguided": {"measurements": {"fid": number}, "skipped": {}}}}
    write_record(run / "results.json", results)
    assert main(["push", str(run), "ada/clothes", "--out", str(tmp_path / "out"), "--license", "cc-by-4.0"]) == 0
    assert "nothing was pushed" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: overture\nlicense: "cc-by-4.0"\n')
    assert "![Samples](samples/classes.png)" in card
    assert "| Classes | 3: bag, boot \\| high, coat |" in card
    assert "| Data | clothes.zip/train |" in card
    assert "| Trained on | prior: 2 x Card 9000, PyTorch 9.1 |" in card  # of the tokenizer it is not known
    assert "FD(domain), samples without guidance | 1.25 |" in card
    assert "500 images, measured against clothes.zip, training images" in card
    assert 'overture.Pipeline.from_pretrained("ada/clothes")' in card
    assert "/home" not in card
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace('"ada/clothes"', repr(str(tmp_path / "out"))).replace(
        "picture.png", str(run / "samples/classes.png")
    )
    code = code.replace("sample.png", str(tmp_path / "sample.png"))
    exec(code, {})
    with Image.open(tmp_path / "sample.png") as sample:
        assert sample.size == (8, 8)

    results["models"] = {**hashes, "prior_hash": "0" * 16}
    write_record(run / "results.json", results)
    assert main(["push", str(run), "ada/clothes", "--out", str(tmp_path / "out 2")]) == 1
    assert "its numbers are of another prior" in capsys.readouterr().err


def test_without_a_licence_none_is_made_up(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "prior")
    assert main(["push", str(run), "ada/clothes", "--out", str(tmp_path / "out")]) == 0
    assert "no --license was given" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license:" not in card
    assert "Its author has given none." in card
    assert 'overture.Tokenizer.from_pretrained("ada/clothes")' in card
    assert files(tmp_path / "out") == {"README.md", "classes.json", "config.json", "tokenizer/model.safetensors"}


def test_a_model_with_a_strangers_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads where its module is; elsewhere, card and error say which module is needed."""
    code = tmp_path / "home" / "codes_of_ada.py"
    code.parent.mkdir()
    code.write_text(
        "from dataclasses import dataclass\nfrom overture.quantizers import VectorConfig\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(VectorConfig):\n    pass\n"
    )
    kind = f"{code}:Mine"
    monkeypatch.setattr(sys, "path", sys.path[:])
    run = write_run(tmp_path / "run")
    path = run / "tokenizer/model.safetensors"
    config = read_metadata(path, "tokenizer")["config"]
    config["segments"][0]["quantizer"] = {"kind": kind}
    assert names_in(config) == [kind]
    built = from_dict(TokenizerConfig, config)
    save_model(path, "tokenizer", {"ema": built.build().state_dict()}, {"config": to_dict(built)})
    assert overture.load_tokenizer(run).config == built
    shutil.rmtree(run / "prior")
    assert main(["push", str(run), "ada/mine", "--license", "mit"]) == 0
    assert "codes_of_ada.py:Mine" in capsys.readouterr().out
    there = hub.repositories["ada/mine"].commits[hub.repositories["ada/mine"].names["main"]]
    card = there["README.md"].decode()
    assert "**It needs code that is not here**: `codes_of_ada.py:Mine`" in card
    assert str(tmp_path) not in card
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"needs code that no model file holds, codes_of_ada\.py:Mine: get the module"
    ) as caught:
        overture.Tokenizer.from_pretrained("ada/mine")
    assert "\n" not in str(caught.value)
    monkeypatch.chdir(code.parent)
    loaded = overture.Tokenizer.from_pretrained("ada/mine")
    assert type(loaded.config.segments[0].quantizer).__name__ == "Mine"


@pytest.mark.parametrize("kind", ["/tmp/theirs.py:Mine", "~/theirs.py:Mine", "../theirs.py:Mine"])
def test_a_model_of_the_hub_names_no_code_by_its_place(hub: StandIn, run: Path, tmp_path: Path, kind: str) -> None:
    path = run / "tokenizer/model.safetensors"
    config = read_metadata(path, "tokenizer")["config"]
    config["segments"][0]["quantizer"] = {"kind": kind}
    save_model(path, "tokenizer", {"ema": overture.load_tokenizer(run).state_dict()}, {"config": config})
    hub.push("eve/model", {"tokenizer/model.safetensors": path.read_bytes()})
    with pytest.raises(UsageError, match=r"asks for code by its place on a machine \("):
        overture.Tokenizer.from_pretrained("hf:eve/model")
    assert main(["pull", "eve/model", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def rewrite(run: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change a run's configs, in its tokenizer's file and in config.json, as no command of ours would."""
    path = run / "tokenizer/model.safetensors"
    known = read_metadata(path, "tokenizer")
    change(known["config"], known["run_config"])
    about = {"config": known["config"], "run_config": known["run_config"]}
    weights = {"ema": overture.load_tokenizer(run).state_dict()}
    save_model(path, "tokenizer", weights, about)
    write_record(run / "config.json", known["run_config"])


def put(run: Path, hub: StandIn) -> None:
    hub.push("eve/model", {name: (run / name).read_bytes() for name in files(run)})


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A file of code on this machine that nobody may run."""
    place = tmp_path / "trap here" / "theirs+1.py"
    place.parent.mkdir()
    place.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef law(*sizes):\n    return [8] * sizes[0]\n")
    yield place
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("where", ["schedule", "quantizer", "data.source", "held_out", "network"])
@pytest.mark.parametrize("text", ["", "?x"])
def test_no_field_of_a_model_of_the_hub_names_code_by_its_place(
    hub: StandIn, run: Path, tmp_path: Path, trap: Path, where: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever reads the file: a command, ``--start-from``, ``pull``, or what was pulled by other means."""
    code = f"{trap}:law{text}"

    def change(config: dict[str, Any], run_config: dict[str, Any]) -> None:
        if where == "schedule":
            for known in (config, run_config["tokenizer"]):
                known["segments"][0]["codebook"]["schedule"] = code
        elif where == "quantizer":
            for known in (config, run_config["tokenizer"]):
                known["segments"][0]["quantizer"] = {"kind": code}
        elif where == "network":
            run_config["evaluation"]["network"] = code
        else:
            run_config["data"][where.removeprefix("data.")] = code

    rewrite(run, change)
    put(run, hub)
    start = ["train", "tokenizer", "quickstart", "--tiny", "--only", "vcq", "--start-from", "hf:eve/model"]
    for words in (
        ["reconstruct", "hf:eve/model"],
        ["pull", "eve/model", "--out", str(tmp_path / "out")],
        [*start, "--out", str(tmp_path / "mine")],
        ["reconstruct", str(find_model("hf:eve/model", "tokenizer"))],
    ):
        assert main(words) == 2, words
        said = capsys.readouterr().err.strip()
        assert "asks for code by its place on a machine (" in said, words
        assert "\n" not in said
    write_json(run / MARK, {"from": "hf:eve/model"})
    for words in (["reconstruct", str(run)], ["search-guidance", str(run)]):
        assert main(words) == 2, words
        assert "asks for code by its place on a machine (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data", ["os:system?touch sprung", "overture.data.base:Source", "/home/eve/set.zip", "../set.zip"]
)
@pytest.mark.parametrize("field", ["source", "held_out"])
def test_data_that_a_model_of_the_hub_names_are_asked_for(
    hub: StandIn, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    data: str, field: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rewrite(run, lambda config, run_config: run_config["data"].update({"source": "fashion-mnist", field: data}))
    put(run, hub)
    assert main(["pull", "eve/model", "--out", "pulled"]) == 0
    capsys.readouterr()
    for words in (["reconstruct", "hf:eve/model"], ["reconstruct", "pulled"], ["attention", "pulled"]):
        assert main(words) == 2, words
        said = capsys.readouterr().err.strip()
        assert f"its data ({data}) are code or lie elsewhere; give --data" in said
        assert "\n" not in said
    assert not Path("sprung").exists()
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Path("own/all").mkdir(parents=True)
    shutil.move("a.png", "own/all/a.png")
    assert main(["reconstruct", "pulled", "--data", "own"]) == 0


def test_a_source_or_network_that_is_no_class_is_not_called(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the file has lost its mark."""
    monkeypatch.chdir(tmp_path)
    rewrite(run, lambda config, run_config: run_config["data"].update(source="os:system?touch sprung"))
    assert main(["reconstruct", str(run)]) == 2
    assert "os:system: is no overture.data.base.Source" in capsys.readouterr().err
    assert main(["reconstruct", str(run), "--network", "os:system?touch sprung"]) == 2
    assert "os:system: is no overture.evaluation.networks.FeatureNetwork" in capsys.readouterr().err
    assert not Path("sprung").exists()


def test_a_law_of_someone_is_code_that_the_card_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "laws_of_ada.py").write_text("def eight(positions, k_min, k_max):\n    return [8] * positions\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def change(config: dict[str, Any], run_config: dict[str, Any]) -> None:
        config["segments"][0]["codebook"]["schedule"] = "laws_of_ada:eight"

    rewrite(run, change)
    shutil.rmtree(run / "prior")
    assert main(["push", str(run), "ada/laws", "--out", "look"]) == 0
    assert "**It needs code that is not here**: `laws_of_ada:eight`" in Path("look/README.md").read_text()


def test_the_commit_is_read_from_the_end_of_a_path() -> None:
    """A folder above the cache may be called snapshots too."""
    file = Path("/snapshots/x/models--ada--clothes/snapshots/0123/tokenizer/model.safetensors")
    assert HubFolder("ada/clothes").pinned(file) == HubFolder("ada/clothes", "0123")


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/home/ada/set.npz/test", "set.npz/test"),
        ("/data/imagenet", "imagenet"),
        ("~/a/b.zip", "b.zip"),
        ("C:\\data\\set", "set"),
        ("domain:/home/ada/judge.safetensors", "domain:judge.safetensors"),
        ("/home/ada/my_codes.py:Mine", "my_codes.py:Mine"),
        ("embedded:fashion-mnist", "embedded:fashion-mnist"),
        ("cosine 4 power 1.5", "cosine 4 power 1.5"),
        ("runs/a", "runs/a"),
        ("hf:ada/clothes@v1/a", "hf:ada/clothes@v1/a"),
        ("", ""),
        ("my_source:Photos?/home/ada/photos", "my_source:Photos?photos"),
        ("networks: /home/ada/x: cannot read", "networks: x: cannot read"),
        ("no such file: '/home/ada/my x/a.zip'", "no such file: 'a.zip'"),
        ("/home/ada/a.zip, /home/ada/b.zip/val", "a.zip, b.zip/val"),
        ("set=~ada/a,out=C:\\ada\\b", "set=a,out=b"),
        ("../ada/photos.zip", "photos.zip"),
        ("runs/../../ada/photos.zip/train", "photos.zip/train"),
        ("/home/ada.lovelace/photos/", "photos"),
        ("file:///home/ada/x", "file:x"),
        ("FD(my_net:Net?/home/ada/w.pt)", "FD(my_net:Net?w.pt)"),
        ("https://a.example/b/c", "https://a.example/b/c"),
        ("bits/s, PSNR / SSIM, 1/2 of all", "bits/s, PSNR / SSIM, 1/2 of all"),
    ],
)
def test_of_paths_of_this_machine_the_last_part_stays(path: str, left: str) -> None:
    assert last_parts({"a": [path, 1, None]}) == {"a": [left, 1, None]}
