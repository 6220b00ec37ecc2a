"""Perceptual losses against their formulas, from weight files; and the pixel losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.losses import perceptual as module
from overture.losses.perceptual import (
    ConvNextConfig,
    DomainConfig,
    FeatureDistance,
    FeatureMaps,
    LogitDistance,
    Lpips,
    LpipsConfig,
    NoPerceptual,
    Perceptual,
    PerceptualConfig,
)
from overture.losses.pixel import ReconstructionConfig
from overture.nn.classifier import ClassifierConfig, ClassifierRecord, save_classifier

VGG_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def images(count: int, seed: int, size: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def vgg_weights() -> dict[str, Tensor]:
    """Random weights in torchvision's layout: every convolution, ReLU and pool of the network counts."""
    generator = torch.Generator().manual_seed(0)
    weights, at, before = {"classifier.0.weight": torch.zeros(1)}, 0, 3
    for stage in VGG_CHANNELS:
        for after in stage:
            shape = (after, before, 3, 3)
            weights[f"features.{at}.weight"] = torch.randn(shape, generator=generator) * math.sqrt(2 / 9 / before)
            weights[f"features.{at}.bias"] = torch.randn(after, generator=generator) * 0.1
            before, at = after, at + 2
        at += 1
    return weights


def head_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{stage}.model.1.weight": torch.rand(1, channels[0], 1, 1, generator=generator)
        for stage, channels in enumerate(VGG_CHANNELS)
    }


def reference_lpips(a: Tensor, b: Tensor) -> list[float]:
    """LPIPS of every pair, written from the paper: stages by functional convolutions, normalisation by its definition."""
    weights, heads = vgg_weights(), head_weights()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((x - shift[:, None, None]) / scale[:, None, None] for x in (a, b))
    distances, at = [0.0] * len(a), 0
    for index, stage in enumerate(VGG_CHANNELS):
        if index:
            a, b = (F.max_pool2d(x, 2) for x in (a, b))
        for _ in stage:
            weight, bias = weights[f"features.{at}.weight"], weights[f"features.{at}.bias"]
            a, b = (F.conv2d(x, weight, bias, padding=1).clamp_min(0) for x in (a, b))
            at += 2
        at += 1
        for sample in range(len(a)):
            p, q = (x[sample].double() / (x[sample].double().pow(2).sum(0).sqrt() + 1e-10) for x in (a, b))
            per_place = torch.einsum("chw,c->hw", (p - q) ** 2, heads[f"lin{index}.model.1.weight"].flatten().double())
            distances[sample] += per_place.mean().item()
    return distances


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Files of VGG16 weights and of heads, in the layouts of torchvision and of the package lpips."""
    folder = tmp_path_factory.mktemp("weights")
    vgg, heads = folder / "vgg16.safetensors", folder / "heads.pth"
    save_file(vgg_weights(), vgg)
    torch.save(head_weights(), heads)
    yield vgg, heads
    vgg.unlink()


@pytest.fixture(scope="module")
def lpips(files: tuple[Path, Path]) -> Lpips:
    return LpipsConfig(vgg_weights=str(files[0]), heads=str(files[1])).build()


class Tiny(nn.Module):
    """A network with maps and logits; its dropout and batch norm tell evaluation from training."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, 5, 3, stride=2)
        self.second = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 7, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [first, self.second(first)]

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images)[-1].mean(dim=(2, 3))


LOSSES: dict[str, Callable[[], Perceptual]] = {
    "domain": lambda: DomainConfig().build(Tiny()),
    "logits": lambda: LogitDistance(Tiny()),
}


# -- what all share -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["lpips", *LOSSES])
def loss(request: pytest.FixtureRequest) -> Perceptual:
    if request.param == "lpips":
        return request.getfixturevalue("lpips")
    return LOSSES[request.param]()


def test_zero_for_equal_images_and_positive_otherwise(loss: Perceptual) -> None:
    a, b = images(2, 1), images(2, 2)
    assert loss(a, a).item() == 0
    assert loss(a, b).item() > 1e-4
    assert loss(a, b).item() == pytest.approx(loss(b, a).item(), rel=1e-5)
    assert loss(a, b).shape == ()


def test_gradient_reaches_the_reconstruction_alone(loss: Perceptual) -> None:
    a, b = images(2, 1).requires_grad_(), images(2, 2).requires_grad_()
    loss(a, b).backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert a.grad.abs().sum() > 0
    assert b.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_network_stays_in_evaluation_mode(loss: Perceptual) -> None:
    a, b = images(2, 1), images(2, 2)
    before = loss(a, b)
    outer = nn.Sequential(loss).train()
    assert not any(part.training for part in loss.modules())
    assert outer.training
    assert torch.equal(loss(a, b), before)


def test_mean_over_the_batch(loss: Perceptual) -> None:
    a, b = images(3, 1), images(3, 2)
    singles = [loss(a[i : i + 1], b[i : i + 1]).item() for i in range(3)]
    assert loss(a, b).item() == pytest.approx(sum(singles) / 3, rel=1e-4)


def test_float32_under_autocast(loss: Perceptual) -> None:
    a, b = images(2, 1), images(2, 2)
    exact = loss(a, b).item()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(a.bfloat16(), b.bfloat16())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, rel=0.05)


def test_shapes_have_to_agree(loss: Perceptual) -> None:
    with pytest.raises(OvertureError, match="different shapes"):
        loss(images(2, 1), images(1, 1))


# -- LPIPS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 28, 48])
def test_lpips_against_its_formula(lpips: Lpips, size: int) -> None:
    a, b = images(2, 1, size), images(2, 2, size)
    expected = reference_lpips(a, b)
    assert lpips(a, b).item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_lpips_repeats_grey(lpips: Lpips) -> None:
    a, b = images(2, 1, channels=1), images(2, 2, channels=1)
    assert lpips(a, b).item() == lpips(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)).item()
    with pytest.raises(UsageError, match="1 or 3 channels"):
        lpips(images(1, 1, channels=2), images(1, 1, channels=2))


def test_lpips_refuses_images_that_vanish(lpips: Lpips) -> None:
    with pytest.raises(UsageError, match="at least 16 px"):
        lpips(images(1, 1, 15), images(1, 1, 15))


def test_lpips_where_nothing_is_active(lpips: Lpips) -> None:
    """A place whose channels are all zero has no direction; neither value nor gradient may be NaN."""
    maps = [torch.zeros(1, stage[0], 2, 2, requires_grad=True) for stage in VGG_CHANNELS]
    value = lpips.distance(maps, [torch.rand_like(x) for x in maps])
    value.backward()
    assert value.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in maps)


def test_lpips_heads_of_an_installed_package(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lpips"
    (package / "weights" / "v0.1").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is enough to find it')")
    (package / "weights" / "v0.1" / "vgg.pth").write_bytes(files[1].read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    built = LpipsConfig(vgg_weights=str(files[0])).build()
    a, b = images(1, 1), images(1, 2)
    assert built(a, b).item() == pytest.approx(reference_lpips(a, b)[0], rel=1e-4)


def one_line(error: pytest.ExceptionInfo[OvertureError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_lpips_without_weights(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vgg, heads = map(str, files)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OvertureError) as error:
        LpipsConfig(vgg_weights=vgg).build()
    assert "pip install lpips" in one_line(error)
    assert "heads=FILE" in str(error.value)
    with pytest.raises(OvertureError) as error:
        LpipsConfig(vgg_weights=str(tmp_path / "absent.pth"), heads=heads).build()
    assert "absent.pth" in one_line(error)
    with pytest.raises(OvertureError, match=r"lin0\.model\.1\.weight"):
        LpipsConfig(vgg_weights=vgg, heads=vgg).build()
    with pytest.raises(OvertureError, match="not torchvision's") as error:
        LpipsConfig(vgg_weights=heads, heads=heads).build()
    one_line(error)
    for name in ("noise.pth", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"not a tensor in sight")
        with pytest.raises(OvertureError, match="not a readable weights file") as error:
            LpipsConfig(vgg_weights=vgg, heads=str(tmp_path / name)).build()
        one_line(error)


def test_no_download_no_weights(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import _api

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    for config, option in ((LpipsConfig(heads=str(files[1])), "vgg_weights=FILE"), (ConvNextConfig(), "weights=FILE")):
        with pytest.raises(OvertureError, match=option) as error:
            config.build()
        assert "no route" in one_line(error)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return (Path(tmp_path / "sprung").write_text, ("x",))  # type: ignore[return-value]

    torch.save({"lin0.model.1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(OvertureError, match="not a readable weights file"):
        LpipsConfig(heads=str(tmp_path / "trap.pth")).build()
    assert not (tmp_path / "sprung").exists()


# -- ConvNeXt -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 224])
def test_logit_distance_against_its_formula(size: int) -> None:
    loss, network = LogitDistance(Tiny()), Tiny().eval()
    a, b = images(2, 1, size), images(2, 2, size)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    logits = []
    for x in (a, b):
        x = F.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)  # the identity at 224
        logits.append(network(((x * 0.5 + 0.5) - mean[:, None, None]) / deviation[:, None, None]))
    assert loss(a, b).item() == pytest.approx((logits[0] - logits[1]).square().mean().item(), rel=1e-4)


def test_logit_distance_repeats_grey() -> None:
    loss = LogitDistance(Tiny())
    a, b = images(2, 1, channels=1), images(2, 2, channels=1)
    assert loss(a, b).item() == pytest.approx(loss(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)).item())


def test_convnext_from_a_file(tmp_path: Path, files: tuple[Path, Path]) -> None:
    from torchvision.models import convnext_small

    with torch.device("meta"):
        shapes = convnext_small().state_dict()
    torch.manual_seed(0)
    weights = {name: torch.randn(value.shape) * 0.02 for name, value in shapes.items()}
    path = tmp_path / "convnext.safetensors"
    save_file({name: value.half() for name, value in weights.items()}, path)
    loss = ConvNextConfig(weights=str(path)).build()
    path.unlink()
    loaded = loss.network.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in weights.items())
    assert not any(part.training for part in loss.modules())
    with pytest.raises(OvertureError, match="not torchvision's"):
        ConvNextConfig(weights=str(files[1])).build()


# -- domain -------------------------------------------------------------------------------------------------------------


def test_feature_distance_against_its_formula() -> None:
    loss, network = FeatureDistance(Tiny()), Tiny().eval()
    a, b = images(2, 1), images(2, 2)
    expected = []
    for p, q in zip(network.maps(a), network.maps(b), strict=True):
        expected.append((2 - 2 * F.cosine_similarity(p, q, dim=1)).mean().item())  # |u - v|^2 of unit vectors
    assert loss(a, b).item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_domain_with_the_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(channels=1, image_size=28, width=4)
    network = config.build().eval()
    record = ClassifierRecord(config, 0, 0, None, 0)
    save_classifier(network, record, tmp_path / "classifier.safetensors")
    a, b = images(2, 1, 28, channels=1), images(2, 2, 28, channels=1)
    loaded = DomainConfig(weights=str(tmp_path / "classifier.safetensors")).build()
    assert loaded(a, b).item() == DomainConfig().build(network)(a, b).item() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(UsageError, match="trained classifier"):
        DomainConfig().build()


# -- none, pixels, configs ----------------------------------------------------------------------------------------------


def test_none() -> None:
    assert NoPerceptual().build() is None
    assert NoPerceptual().build(Tiny()) is None


def test_reconstruction() -> None:
    a, b = images(2, 1), images(2, 2)
    terms = ReconstructionConfig(l1=2.0, l2=0.5).build()(a, b)
    absolute = (a - b).double().abs().mean().item()
    squared = (a - b).double().pow(2).mean().item()
    assert terms["l1"].item() == pytest.approx(absolute)
    assert terms["l2"].item() == pytest.approx(squared)
    assert terms["total"].item() == pytest.approx(2 * absolute + squared / 2)
    assert set(ReconstructionConfig().build()(a, b)) == {"l1", "total"}
    assert ReconstructionConfig(0.0, 0.0).build()(a, b)["total"].item() == 0
    assert ReconstructionConfig().build()(a.bfloat16(), b)["total"].dtype == torch.float32
    with pytest.raises(UsageError):
        ReconstructionConfig(l1=-1.0)


KINDS: dict[str, PerceptualConfig] = {
    "none": NoPerceptual(),
    "lpips": LpipsConfig("v", "h"),
    "convnext": ConvNextConfig("w"),
    "domain": DomainConfig("w"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_configs_round_trip(kind: str) -> None:
    config = KINDS[kind]
    assert to_dict(config)["kind"] == kind
    assert Holder(config) == from_dict(Holder, to_dict(Holder(config)))
    assert from_dict(type(config), to_dict(config)) == config
    assert list(KINDS) == list(PerceptualConfig.components)


@dataclass(frozen=True)
class Holder:
    """A config with a perceptual loss among its fields."""

    perceptual: PerceptualConfig


@dataclass(frozen=True)
class BrightnessConfig(PerceptualConfig):
    """A perceptual loss of somebody else: how far apart the mean brightnesses are."""

    power: float = 2.0

    def build(self, domain_network: FeatureMaps | None = None) -> Perceptual:
        return Brightness(self.power)


class Brightness(Perceptual):
    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        return [images_BCHW.mean(dim=(1, 2, 3))]

    def distance(self, reconstruction: list[Tensor], target: list[Tensor]) -> Tensor:
        return (reconstruction[0] - target[0]).abs().pow(self.power).mean()


def test_a_perceptual_loss_of_somebody_else_works_like_ours() -> None:
    data = to_dict(Holder(BrightnessConfig(3.0)))
    assert data == {"perceptual": {"kind": f"{__name__}:BrightnessConfig", "power": 3.0}}
    loss = from_dict(Holder, data).perceptual.build()
    assert loss is not None
    a, b = images(4, 1), images(4, 2).requires_grad_()
    expected = (a.mean(dim=(1, 2, 3)) - b.detach().mean(dim=(1, 2, 3))).abs().pow(3).mean()
    value = loss(b, a)
    assert value.item() == pytest.approx(expected.item())
    value.backward()
    assert b.grad is not None
    assert b.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [("lpisp", "did you mean 'lpips'"), (f"{__name__}:Tiny", "is no perceptual loss"), ("no_such:Loss", "no module")],
)
def test_kinds_that_are_none(kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_dict(Holder, {"perceptual": kind})
