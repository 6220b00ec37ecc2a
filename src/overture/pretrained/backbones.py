"""The convolutions of VGG16 and AlexNet, cut where LPIPS looks, with weights under torchvision's names.

Shapes: C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overture.errors import OvertureError

__all__ = ["ALEXNET", "BACKBONES", "IMAGENET_DEVIATION", "IMAGENET_MEAN", "VGG16", "Backbone", "load_weights"]


IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of images in [0, 1]: what networks trained on ImageNet expect to be taken away and divided by."""


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision, as LPIPS sees it: five stages, the first layers of ``features``."""

    name: str
    """torchvision's, and ours in :mod:`overture.pretrained.catalogue`."""
    heads_file: str
    """The file of its heads in the package lpips."""
    channels: tuple[int, ...]
    """Of every stage."""
    ends: tuple[int, ...]
    """Layers up to the end of every stage: an activation."""
    convolutions: tuple[int, ...]
    """Which layers have weights."""
    smallest: int
    """Pixels of a side: of smaller images the last stage sees nothing."""

    @property
    def heads(self) -> list[str]:
        """The names of the heads' weights, ``[1, C, 1, 1]`` each."""
        return [f"lin{stage}.model.1.weight" for stage in range(len(self.channels))]

    def layers(self) -> nn.Sequential:
        """All layers of all stages, as torchvision makes them."""
        import torchvision.models

        network: nn.Module = getattr(torchvision.models, self.name)(weights=None)
        layers = network.features
        assert isinstance(layers, nn.Sequential)
        return layers[: self.ends[-1]]

    def stages(self, weights: Mapping[str, Tensor], what: str) -> list[nn.Sequential]:
        """The stages with their weights, each to be fed with the result of the one before. ``what`` needs them."""
        with torch.device("meta"):
            layers = self.layers()
        prefix = "features."
        features = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        load_weights(layers, features, what)
        return [layers[start:end] for start, end in itertools.pairwise((0, *self.ends))]

    def head_weights(self, weights: Mapping[str, Tensor], what: str) -> list[Tensor]:
        """Channel weights ``[C]`` of the stages, which are stored as 1x1 convolutions."""
        heads = []
        for name, channels in zip(self.heads, self.channels, strict=True):
            head = weights.get(name)
            if head is None or head.shape != (1, channels, 1, 1):
                raise OvertureError(
                    f"{what}: the heads need {name} of shape (1, {channels}, 1, 1); give lpips' v0.1/{self.heads_file}"
                )
            heads.append(head.flatten())
        return heads


VGG16 = Backbone(
    "vgg16",
    "vgg.pth",
    channels=(64, 128, 256, 512, 512),
    ends=(4, 9, 16, 23, 30),  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    convolutions=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    smallest=16,
)
ALEXNET = Backbone(
    "alexnet",
    "alex.pth",
    channels=(64, 192, 384, 256, 256),
    ends=(2, 5, 8, 10, 12),  # relu1 to relu5
    convolutions=(0, 3, 6, 8, 10),
    smallest=31,
)
BACKBONES = {backbone.name: backbone for backbone in (VGG16, ALEXNET)}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give a network made on the meta device its weights: all of them, in float32."""
    weights = {name: value.float() for name, value in weights.items()}
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        name = type(network).__name__
        raise OvertureError(f"{what}: the weights are not torchvision's for this network, {name}") from error
