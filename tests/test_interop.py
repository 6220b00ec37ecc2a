"""The importer of the Prologue release: what it writes, what it needs in memory, and what it refuses.

That the imported models compute what the release computes is shown in ``test_golden.py``.
"""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from golden_names import GOLDEN, imported, rename
from overture.cli import main
from overture.errors import OvertureError, UsageError
from overture.interop import RELEASES, import_release
from overture.interop.names import release_name
from overture.interop.release_config import read_config
from overture.model_files import read_metadata, read_weights, weights_hash
from overture.nn.rope import default_axes
from overture.nn.transformer import TransformerConfig
from overture.pipeline import Pipeline, load_prior, load_tokenizer
from overture.priors import Sampling
from overture.priors.sampler import generate
from overture.quantizers import SoftConfig, VectorConfig
from overture.schedules import CodebookConfig
from overture.tokenizers import SegmentConfig
from tiny_release import TinyRelease, full_size, joint_training, resolved

CONFIG = "config_resolved.json"


def millions(*modules: nn.Module | None) -> float:
    return round(sum(p.numel() for module in modules if module for p in module.parameters()) / 1e6, 2)


# -- sizes --------------------------------------------------------------------------------------------------------------


def test_parameter_counts_are_those_of_the_release() -> None:
    release = RELEASES["prologue-onestage-joint"]
    assert release.prior is not None
    with torch.device("meta"):
        tokenizer, prior = release.tokenizer.build(), release.prior.build(release.tokenizer.layout)
    assert millions(tokenizer.encoder, tokenizer.quantizers) == 87.12  # with prologue queries and both quantizers
    assert millions(tokenizer.decoder) == 86.88
    assert prior.layout.vocabulary_size == 17_409
    assert millions(prior) == 115.47


def test_known_directories() -> None:
    assert len(RELEASES) == 15
    assert sum(release.has_tokenizer for release in RELEASES.values()) == 6
    assert sum(release.prior is not None for release in RELEASES.values()) == 10
    lengths = {name: release.tokenizer.layout.sequence_length for name, release in RELEASES.items()}
    assert {name for name, length in lengths.items() if length == 273} == {n for n in RELEASES if "prologue" in n}
    large = RELEASES["ar-prologue-l-xl"]
    assert large.tokenizer.layout.vocabulary_size == 4096 + 1024 + 1
    assert (large.tokenizer.decoder.depth, large.tokenizer.decoder.dim, large.tokenizer.decoder.heads) == (24, 1024, 16)
    assert large.prior is not None
    assert (large.prior.depth, large.prior.dim, large.prior.heads) == (32, 1280, 20)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("1d-tokenizer", full_size("1d")),
        ("2d-tokenizer", full_size("2d")),
        ("prologue-b-tokenizer", full_size("prologue")),
        ("prologue-l-tokenizer", full_size("prologue", large=True)),
        ("prologue-post-tokenizer", full_size("post")),
        ("prologue-onestage-joint", full_size("onestage")),
        ("ar-1d-base", full_size("1d")),
        ("ar-2d-base", full_size("2d")),
        ("ar-prologue-b-b", full_size("prologue")),
        ("ar-prologue-b-l", full_size("prologue", (1024, 24, 16))),
        ("ar-prologue-b-xl", full_size("prologue", (1280, 32, 20))),
        ("ar-prologue-l-b", full_size("prologue", large=True)),
        ("ar-prologue-l-l", full_size("prologue", (1024, 24, 16), large=True)),
        ("ar-prologue-l-xl", full_size("prologue", (1280, 32, 20), large=True)),
        ("ar-prologue-post-b", full_size("post")),
    ],
)
def test_sizes_by_name_are_those_of_the_configs(tmp_path: Path, name: str, data: dict[str, Any]) -> None:
    release, one_stage = read_config(write_json(tmp_path / CONFIG, data))
    assert one_stage == (name == "prologue-onestage-joint")
    assert release.tokenizer.rope_axes == default_axes(64)
    assert replace(release.tokenizer, rope_axes=None) == RELEASES[name].tokenizer
    if (prior := RELEASES[name].prior) is not None:
        assert release.prior is not None
        assert release.prior.rope_axes == default_axes(64)[::-1]
        assert replace(release.prior, rope_axes=None) == prior


@pytest.mark.parametrize("name", RELEASES)
def test_names_do_not_collide(name: str) -> None:
    release = RELEASES[name]
    with torch.device("meta"):
        modules = [
            release.tokenizer.build(),
            *([release.prior.build(release.tokenizer.layout)] if release.prior else []),
        ]
    for module in modules:
        ours = list(module.state_dict())
        assert len({release_name(parameter) for parameter in ours}) == len(ours)


# -- what is written ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2d", "prologue"])
def test_both_roles_and_the_hash(name: str) -> None:
    sources = {
        "tokenizer": {"raw": ("model", "model_1"), "ema": ("model_2", "model_3")},
        "prior": {"raw": ("model",), "ema": ("model_1",)},
    }
    for kind, roles in sources.items():
        path = imported(name) / kind / "model.safetensors"
        everything = {}
        for role, files in roles.items():
            directory = GOLDEN / name / ("ar" if kind == "prior" else kind)
            expected: dict[str, Tensor] = {}
            for file in files:
                expected |= rename(load_file(directory / f"{file}.safetensors"))
            found = read_weights(path, role)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in found)
            everything |= {f"{role}.{key}": tensor for key, tensor in found.items()}
        assert read_metadata(path, kind)["weights_hash"] == weights_hash(everything)
        assert not list(path.parent.glob(".*"))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", "prologue-release", str(GOLDEN / "2d" / "ar"), "--config", str(GOLDEN / "2d" / CONFIG)]
    assert main([*words, "--out", str(tmp_path), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["kind"] == "prior"
    assert model["files"] == {"raw": ["model.safetensors"], "ema": ["model_1.safetensors"]}
    assert load_prior(tmp_path).layout.vocabulary_size == 64
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "prior, 0.03 M parameters" in capsys.readouterr().out
    assert main(["import", "prologue-release", "/nowhere/2d-tokenizer", "--out", str(tmp_path)]) == 1
    assert main(["import", "prologue-release", str(tmp_path), "--out", str(tmp_path)]) == 2  # an unknown name


def test_weights_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    source = copy("2d", "tokenizer", tmp_path)
    (source / "model.safetensors").unlink()
    (source / "model_1.safetensors").unlink()
    (done,) = import_release(source, tmp_path / "out", GOLDEN / "2d" / CONFIG)
    assert list(done.files) == ["ema"]
    with pytest.raises(OvertureError, match="no 'raw' weights"):
        load_tokenizer(tmp_path / "out", weights="raw")
    load_tokenizer(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "encoder_length"),
    [("1d", 16), ("post", 16), ("post", 256)],  # 256: as Post's config writes it, whatever the image
)
def test_other_arrangements(tmp_path: Path, name: str, encoder_length: int) -> None:
    """1D and Post: a release that was written and computed without the package gives the same ids, images and logits."""
    theirs = TinyRelease(name, encoder_columns=4 if encoder_length == 16 else 16)
    theirs.write(tmp_path)
    data = resolved(name, encoder_length)
    trained_with = write_json(tmp_path / "training.json", joint_training(data))
    out = tmp_path / "out"
    (tokenizer,) = import_release(tmp_path / "tokenizer", out, trained_with)
    (prior,) = import_release(tmp_path / "ar", out, write_json(tmp_path / CONFIG, data))
    assert (tokenizer.kind, prior.kind) == ("tokenizer", "prior")
    assert tokenizer.layout == prior.layout
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for role, files in (("ema", ("model_2", "model_3")), ("raw", ("model", "model_1"))):
        ours = load_tokenizer(out, weights=role)
        ids = theirs.encode(images, files[0])
        assert len(ids.unique()) > 8
        assert torch.equal(ours.encode(images), ids)
        torch.testing.assert_close(ours.decode(ids), theirs.decode(ids, files), rtol=1e-4, atol=1e-4)
        shown = ours.reconstruct(ours.encode_for_training(images))
        torch.testing.assert_close(shown, theirs.decode(ids, files), rtol=1e-4, atol=1e-4)
    sequence = theirs.sequence(theirs.encode(images))
    classes = torch.tensor([0, 9, 10])
    assert torch.equal(prior.layout.to_sequence(theirs.encode(images)), sequence)
    for role, file in (("raw", "ar/model"), ("ema", "ar/model_1")):
        logits = load_prior(out, weights=role)(sequence, classes)
        torch.testing.assert_close(logits, theirs.logits(sequence, classes, file), rtol=1e-4, atol=1e-4)
    assert torch.equal(generate(Pipeline.load(out).prior, classes, Sampling(top_k=1)), theirs.greedy(classes))


@pytest.mark.parametrize("kept", [("out",), ("table",), ("out", "table")])
def test_a_prior_with_tied_embeddings(tmp_path: Path, kept: tuple[str, ...]) -> None:
    """Its one matrix lies under either name, or under both."""
    names = {"out": "ar_model.out.weight", "table": "semantic_emb.weight"}
    theirs = TinyRelease("1d")
    theirs.write(tmp_path)
    for file in ("ar/model", "ar/model_1"):
        tensors = theirs.files[file]
        tensors[names["out"]] = tensors[names["table"]].clone()  # what the reference below computes with
        left = {name: tensor for name, tensor in tensors.items() if name not in names.values()}
        left |= {names[word]: tensors[names[word]] for word in kept}
        save_file(left, (tmp_path / file).with_suffix(".safetensors"))
    data = resolved("1d")
    config = write_json(tmp_path / CONFIG, {**data, "ARModel": {**data["ARModel"], "tied_embedding": True}})
    out = tmp_path / "out"
    import_release(tmp_path / "tokenizer", out, config)
    import_release(tmp_path / "ar", out, config)
    prior, classes = load_prior(out), torch.tensor([0, 9, 10])
    assert prior.head.projection.weight is prior.token_embedding.weight
    sequence = torch.randint(0, 64, (3, 7), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior(sequence, classes), theirs.logits(sequence, classes), rtol=1e-4, atol=1e-4)
    assert torch.equal(generate(prior, classes, Sampling(top_k=1)), theirs.greedy(classes))


def test_two_matrices_where_one_is_told(tmp_path: Path) -> None:
    TinyRelease("1d").write(tmp_path)
    data = resolved("1d")
    config = write_json(tmp_path / CONFIG, {**data, "ARModel": {**data["ARModel"], "tied_embedding": True}})
    with pytest.raises(OvertureError, match=r"ar_model\.out\.weight differs from semantic_emb\.weight"):
        import_release(tmp_path / "ar", tmp_path / "out", config)


def test_configs_of_other_arrangements(tmp_path: Path) -> None:
    one, _ = read_config(write_json(tmp_path / "1d.json", resolved("1d")))
    assert one.tokenizer.segments == (
        SegmentConfig("visual", "queries", 7, CodebookConfig(k_max=64), VectorConfig(z_dim=6)),
    )
    post, _ = read_config(write_json(tmp_path / "post.json", resolved("post")))
    assert post.tokenizer.post_encoder == TransformerConfig(48, 3, 3, 11 / 4, 16)
    assert post.tokenizer.segments[0] == SegmentConfig(
        "prologue", "post", 5, CodebookConfig(k_max=24), SoftConfig(z_dim=6), decoded=False, separator=True
    )
    assert post.tokenizer.layout.sequence_length == 22
    assert post.tokenizer.encoder_columns is None
    wide, _ = read_config(write_json(tmp_path / "post.json", resolved("post", 256)))
    assert wide.tokenizer == replace(post.tokenizer, encoder_columns=16)


@pytest.mark.parametrize("known_by", ["name", "config"])
def test_one_stage(tmp_path: Path, known_by: str) -> None:
    """Its raw weights were published, and its prior lies beside the tokenizer."""
    config = GOLDEN / "prologue" / CONFIG
    if known_by == "config":
        config = write_json(tmp_path / CONFIG, resolved("onestage"))
    source = copy("prologue", "tokenizer", tmp_path, "prologue-onestage-joint" if known_by == "name" else "mine")
    for number in (5, 6):
        shutil.copy(GOLDEN / "prologue/ar" / ("model.safetensors" if number == 5 else "model_1.safetensors"), source)
        (source / ("model.safetensors" if number == 5 else "model_1.safetensors")).rename(
            source / f"model_{number}.safetensors"
        )
    for name in ("model", "model_1"):
        shutil.copy(GOLDEN / "prologue/tokenizer" / f"{name}.safetensors", source)
    tokenizer, prior = import_release(source, tmp_path / "out", config)
    assert (tokenizer.kind, prior.kind) == ("tokenizer", "prior")
    pipe = Pipeline.load(tmp_path / "out")
    expected = load_tokenizer(imported("prologue"), weights="raw").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pipe.tokenizer.state_dict().items())
    expected = load_prior(imported("prologue"), weights="raw").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pipe.prior.state_dict().items())
    assert "raw" in read_metadata(tokenizer.path, "tokenizer")["note"]


def test_position_masks_become_sizes(tmp_path: Path) -> None:
    """A VCQ mask sets the sizes of the tokenizer, and of a prior that is imported beside it."""
    config = GOLDEN / "2d" / CONFIG
    sizes = torch.linspace(2, 64, 16).long()
    mask = torch.where(torch.arange(64) < sizes[:, None], 0.0, -torch.inf)
    source = copy("2d", "tokenizer", tmp_path)
    for file in ("model", "model_2"):
        edit(source / f"{file}.safetensors", lambda t: t.update({"quantizer.pos_select_mask": mask}))
    (done,) = import_release(source, tmp_path / "out", config)
    assert done.layout.sizes == tuple(sizes.tolist())
    assert load_tokenizer(tmp_path / "out").layout == done.layout
    import_release(GOLDEN / "2d/ar", tmp_path / "out", config)
    assert Pipeline.load(tmp_path / "out").prior.layout == done.layout

    edit(source / "model_2.safetensors", lambda t: t.update({"quantizer.pos_select_mask": mask.flip(1)}))
    with pytest.raises(OvertureError, match=r"model_2\.safetensors: quantizer\.pos_select_mask does not allow"):
        import_release(source, tmp_path / "other", config)
    edit(source / "model_2.safetensors", lambda t: t.update({"quantizer.pos_select_mask": torch.zeros(16, 64)}))
    with pytest.raises(OvertureError, match="differ"):
        import_release(source, tmp_path / "other", config)
    edit(source / "model_2.safetensors", lambda t: t.update({"quantizer.pos_select_mask": torch.zeros(15, 64)}))
    with pytest.raises(OvertureError, match=r"pos_select_mask is \[15, 64\], expected \[16, 64\]"):
        import_release(source, tmp_path / "other", config)


def test_old_buffers_are_dropped(tmp_path: Path) -> None:
    source = copy("2d", "ar", tmp_path)
    edit(source / "model.safetensors", lambda t: t.update({"logit_mask": torch.zeros(16, 64)}))
    import_release(source, tmp_path / "out", GOLDEN / "2d" / CONFIG)
    load_prior(tmp_path / "out")
    source = copy("2d", "tokenizer", tmp_path)
    for file in ("model", "model_2"):
        sizes = {"quantizer.codebook_size_per_pos": torch.full((16,), 64)}
        edit(source / f"{file}.safetensors", lambda t, sizes=sizes: t.update(sizes))
    import_release(source, tmp_path / "out", GOLDEN / "2d" / CONFIG)
    load_tokenizer(tmp_path / "out")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A 140 MB file of zeros (sparse on disk): the high-water mark of the process grows by far less."""
    code = """
import json, re, sys
from pathlib import Path
from overture.interop.names import release_name
from overture.interop import import_release
from overture.interop.release_config import read_config
import torch
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
config, source = Path(sys.argv[1]), Path(sys.argv[2])
release, _ = read_config(config)
with torch.device("meta"): prior = release.prior.build(release.tokenizer.layout)
header, end = {}, 0
for name, tensor in prior.state_dict().items():
    start, end = end, end + 4 * tensor.numel()
    header[release_name(name)] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
text = json.dumps(header).encode()
with (source / "model.safetensors").open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
before = peak()
import_release(source, source / "out", config)
print(json.dumps([end / 2**20, peak() - before]))
"""
    data = json.loads((GOLDEN / "2d" / CONFIG).read_text())
    data["ARModel"] |= {"dim": 768, "layer_num": 5, "heads": 48}
    config = write_json(tmp_path / CONFIG, data)
    done = subprocess.run(
        [sys.executable, "-c", code, str(config), str(tmp_path)], check=True, capture_output=True, text=True
    )
    size, growth = json.loads(done.stdout)
    (tmp_path / "out/prior/model.safetensors").unlink()
    assert size > 130
    assert growth < 65


# -- from the hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A local stand-in for the hub: serves ``tmp_path/hub/REPOSITORY/...`` the way ``hf_hub_download`` asks for it.

    Every repository has the branch ``main`` and the tag ``v1``, both at one commit of zeros.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            file = tmp_path / "hub" / repository / name
            if revision not in ("main", "v1") or not file.is_file():
                lacking = "EntryNotFound" if file.parents[1].is_dir() else "RepoNotFound"
                self.send_response(404)
                self.send_header("X-Error-Code", lacking if revision in ("main", "v1") else "RevisionNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{file.stem}-{len(content)}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_id(hub: str, tmp_path: Path) -> None:
    """Only the files that are needed are fetched; optional ones may be missing."""
    whole = copy("2d", "tokenizer", tmp_path / "hub/Zyriix/prologue", "2d-tiny")
    (whole / "model.safetensors").unlink()
    (whole / "model_1.safetensors").unlink()
    (whole / "optimizer.bin").write_bytes(b"never fetched")
    broken = copy("2d", "tokenizer", tmp_path / "hub/Zyriix/prologue", "2d-broken")
    (broken / "model_3.safetensors").unlink()
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    sources = {
        "hf:Zyriix/prologue/2d-tiny": 0, "hf:Zyriix/prologue@v1/2d-tiny": 0, "hf:Zyriix/prologue/2d-broken": 1,
        "hf:Zyriix/prologue@v2/2d-tiny": 1, "hf:nobody/nothing/2d-tokenizer": 1, "Zyriix/prologue/2d-tiny": 1,
    }  # fmt: skip
    code = """
import json, sys
from overture.cli import main
config, out, sources = sys.argv[1:]
for number, (source, status) in enumerate(json.loads(sources).items()):
    assert main(["import", "prologue-release", source, "--config", config, "--out", f"{out}/{number}"]) == status
"""
    words = [sys.executable, "-c", code, str(GOLDEN / "2d" / CONFIG), str(tmp_path / "out"), json.dumps(sources)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = load_tokenizer(imported("2d")).state_dict()
    for number in ("0", "1"):
        out = tmp_path / "out" / number
        assert all(torch.equal(t, expected[n]) for n, t in load_tokenizer(out).state_dict().items())
        # What was fetched, whatever "main" and "v1" mean later.
        told = read_metadata(out / "tokenizer/model.safetensors", "tokenizer")["source"]["release"]
        assert told == f"hf:Zyriix/prologue@{'0' * 40}/2d-tiny"
    assert list((tmp_path / "cache").rglob("model_3.safetensors"))
    assert not list((tmp_path / "cache").rglob("optimizer.bin"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("overture: ")]
    assert len(errors) == 4
    assert "hf:Zyriix/prologue/2d-broken: no model_3.safetensors on the hub" in errors[0]
    assert "hf:Zyriix/prologue@v2/2d-tiny: cannot be had from the hub" in errors[1]
    assert "hf:nobody/nothing/2d-tokenizer: cannot be had from the hub" in errors[2]
    assert "Zyriix/prologue/2d-tiny: no such directory (of the hub, write hf:owner/repository/directory)" in errors[3]


# -- bad input ----------------------------------------------------------------------------------------------------------


class Trap:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_3", lambda t: t.pop("dec.out.bias"), r"model_3\.safetensors: dec\.out\.bias is missing"),
        ("model_2", lambda t: t.pop("enc.learnable_query"), r"model_2\.safetensors: enc\.learnable_query is missing"),
        ("model", lambda t: t.update(extra=torch.zeros(2)), r"model\.safetensors: extra is unexpected"),
        (
            "model_2",
            lambda t: t.update({"enc.layers.1.gate1.bias": torch.zeros(31)}),
            r"enc\.layers\.1\.gate1\.bias is \[31\], expected \[32\]",
        ),
        (
            "model_2",
            lambda t: t.update({"enc.learnable_query": torch.zeros(5, 32)}),
            r"enc\.learnable_query is \[5, 32\], expected \[1, 5, 32\]",
        ),
        ("model_2", lambda t: t.update({"quantizer.proj_in.bias": torch.zeros(6).int()}), r"proj_in\.bias is I32"),
        (
            "model_3",
            lambda t: [t.pop(name) for name in list(t) if "layers.0" in name],
            r"(dec\.layers\.0\S+ is missing(; )?){3} and 15 more$",
        ),
    ],
)
def test_wrong_tensors(tmp_path: Path, file: str, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    source = copy("prologue", "tokenizer", tmp_path)
    edit(source / f"{file}.safetensors", change)
    with pytest.raises(OvertureError, match=message) as caught:
        import_release(source, tmp_path / "out", GOLDEN / "prologue" / CONFIG)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["model_1", "model_2", "model_3"])
def test_missing_and_damaged_files(tmp_path: Path, file: str) -> None:
    source = copy("2d", "tokenizer", tmp_path)
    path = source / f"{file}.safetensors"
    whole = path.read_bytes()
    for content, message in ((whole[:-100], "truncated"), (whole[:50], "truncated"), (b"", "truncated")):
        path.write_bytes(content)
        with pytest.raises(OvertureError, match=rf"{file}\.safetensors: {message}") as caught:
            import_release(source, tmp_path / "out", GOLDEN / "2d" / CONFIG)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(OvertureError, match=rf"{file}\.safetensors: no such file"):
        import_release(source, tmp_path / "out", GOLDEN / "2d" / CONFIG)


@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_pickles_are_never_opened(tmp_path: Path, save: str) -> None:
    source = copy("2d", "ar", tmp_path)
    content = pickle.dumps(Trap(tmp_path / "opened"))
    for beside in ("optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"):
        (source / beside).write_bytes(content)
    import_release(source, tmp_path / "out", GOLDEN / "2d" / CONFIG)
    path = source / "model.safetensors"
    if save == "torch":
        torch.save(Trap(tmp_path / "opened"), path)
    else:
        path.write_bytes(content)
    with pytest.raises(OvertureError, match=r"model\.safetensors: is a pickle named \.safetensors"):
        import_release(source, tmp_path / "out", GOLDEN / "2d" / CONFIG)
    assert not (tmp_path / "opened").exists()


def test_another_size_than_the_name_says(tmp_path: Path) -> None:
    source = copy("2d", "tokenizer", tmp_path, "2d-tokenizer")
    with pytest.raises(OvertureError, match=r"model\.safetensors: .* is missing; .* and \d+ more"):
        import_release(source, tmp_path / "out")
    with pytest.raises(UsageError, match="did you mean '2d-tokenizer'"):
        import_release(copy("2d", "tokenizer", tmp_path, "2d-tokeniser"), tmp_path / "out")


def test_a_prior_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(OvertureError, match=r"ar_model\.out\.weight is \[64, 32\], expected \[89, 32\]"):
        import_release(GOLDEN / "2d/ar", tmp_path / "out", GOLDEN / "prologue" / CONFIG)
    import_release(GOLDEN / "2d/tokenizer", tmp_path / "out", GOLDEN / "2d" / CONFIG)
    with pytest.raises(OvertureError, match=r"tokenizer/model\.safetensors: this tokenizer has 16 visual tokens"):
        import_release(GOLDEN / "prologue/ar", tmp_path / "out", GOLDEN / "prologue" / CONFIG)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("Encoder", "dim", None, r"Encoder\.dim is missing"),
        ("Encoder", "mlp_ratio", "8/x", r"Encoder\.mlp_ratio is '8/x'"),
        ("Encoder", "layer_num", 1.5, r"Encoder\.layer_num is 1\.5, expected a whole number"),
        ("Encoder", "abs_pos", True, r"Encoder\.abs_pos is True; only False"),
        ("Encoder", "rope_ctx_type", "l", r"Encoder\.rope_ctx_type is 'l'; only 'hw'"),
        ("Encoder", "rope_axes_dim", [4, 4], r"Encoder\.rope_axes_dim is \[4, 4\]|Decoder\.rope_axes_dim"),
        ("Decoder", "context_type", "concat", r"Decoder\.context_type is 'concat'; only 'none'"),
        ("Decoder", "rope_theta", 100, r"several rope thetas for 'hw' positions"),
        ("Quantizer", "ste", "LFQ", r"Quantizer\.ste is 'LFQ'"),
        ("SemanticQuantizer", "z_norm_type", "none", r"SemanticQuantizer\.z_norm_type is 'none'; only 'l2'"),
        ("ARModel", "tied_embedding", "yes", r"ARModel\.tied_embedding is 'yes'"),
        ("ARModel", "temperature", 0.5, r"ARModel\.temperature is 0\.5"),
        ("Encoder", "causal", True, r"Encoder\.causal is True; only False"),
        ("Decoder", "out_act", True, r"Decoder\.out_act is True; only False"),
        ("Decoder", "max_seq_len", 25, r"Decoder\.max_seq_len is 25; only 16"),
        ("", "ae_no_label", False, r"ae_no_label is False; only True"),
        ("", "share_semantic_codebook", True, r"share_semantic_codebook is True"),
        ("", "Quantizer", None, r"Quantizer is missing"),
    ],
)
def test_configs_that_cannot_be_imported(tmp_path: Path, section: str, key: str, value: Any, message: str) -> None:
    data = json.loads((GOLDEN / "prologue" / CONFIG).read_text())
    (data[section] if section else data)[key] = value
    with pytest.raises(OvertureError, match=message):
        read_config(write_json(tmp_path / CONFIG, data))


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_broken_config_files(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(OvertureError, match=CONFIG):
        read_config(tmp_path / CONFIG)
    with pytest.raises(OvertureError, match="cannot read"):
        read_config(tmp_path / "none.json")


# -- helpers ------------------------------------------------------------------------------------------------------------


def copy(name: str, part: str, parent: Path, called: str | None = None) -> Path:
    target = parent / (called or part)
    shutil.copytree(GOLDEN / name / part, target)
    return target


def edit(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(data))
    return path
