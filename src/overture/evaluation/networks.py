"""Feature networks: what turns images into the features that distances are measured on.

A network is named by a specification:

* ``inception`` or ``inception:FILE``: the network of the original FID (2015 graph, in torch-fidelity's port), pool3,
  2048 features. Only this one, with the official weights, gives numbers called FID.
* ``domain:FILE``: our classifier, trained on the very data set (``overture.training.train_classifier``).
* ``timm:MODEL@FILE``: a timm model with weights from a local file; ``timm:MODEL``: with timm's own pretrained weights,
  from its cache or the hub.
* ``vgg16``, ``vgg16:SIZE``, ``efficientnet-lite0``: trained on ImageNet, from a package index
  (:mod:`overture.evaluation.pretrained_networks`).
* ``random:DIMS``: a fixed random network, for tests and benchmarks; its numbers mean little.
* ``module:Class`` or ``module:Class?ARGUMENT``: anyone's :class:`FeatureNetwork`.

Shapes: B batch, C channels, H W height and width, D features, K classes.
"""

from __future__ import annotations

import io
import os
import urllib.error
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.data.transforms import to_float
from overture.errors import OvertureError, UsageError, missing_package, near, nearest
from overture.files import file_hash
from overture.model_files import read_tensors, weights_hash
from overture.nn.classifier import load_classifier
from overture.registry import resolve_class, strangers_code

__all__ = [
    "FORMS", "DomainNetwork", "FeatureNetwork", "InceptionNetwork", "Outputs", "RandomNetwork", "TimmNetwork",
    "check_images", "load_network", "to_colour",
]  # fmt: skip

FORMS = {
    "inception": "inception or inception:FILE",
    "domain": "domain:FILE",
    "timm": "timm:MODEL@FILE, or timm:MODEL for its pretrained weights",
    "vgg16": "vgg16, or vgg16:SIZE with at least 16 pixels",
    "efficientnet-lite0": "efficientnet-lite0",
    "random": "random:DIMS",
}

WEAK = 1.5
"""A judge that is right less than so many times as often as chance is said to be weak."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256_PREFIX = "6726825d"
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""Names under which the official weights lie in caches: torch-fidelity's, and pytorch-fid's for the same bytes."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network says of a batch of images, all float32."""

    features: Tensor
    """``[B, D]``."""
    logits: Tensor | None = None
    """``[B, K]`` over the network's classes; the Inception network's are without bias, as its score takes them."""
    spatial: Tensor | None = None
    """``[B, S]``: features that still say where in the image they are, as sFID takes them."""


class FeatureNetwork(ABC):
    """Images in, features out; and what a record must say about it.

    A subclass sets the attributes and defines :meth:`outputs`. One that is named ``module:Class?ARGUMENT`` is made
    with (ARGUMENT, device); without an argument the first is empty.
    """

    name: str
    """Short name, without paths."""
    dims: int
    """D, the number of features."""
    weights_hash: str
    """A hash that tells these weights from any others."""
    preparation: str
    """What is done to the images before the network sees them, in words."""
    notes: tuple[str, ...] = ()
    """What belongs beside every number on these features."""
    offers: frozenset[str] = frozenset()
    """Which parts of :class:`Outputs` there are besides the features: ``logits``, ``spatial``."""

    @property
    def label(self) -> str:
        """What a Fréchet distance on these features is called."""
        return f"FD({self.name})"

    @abstractmethod
    def outputs(self, images: Tensor) -> Outputs:
        """Everything the network says of uint8 ``[B, C, H, W]``, from one pass."""

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``[B, C, H, W]`` -> float32 ``[B, D]``."""
        return self.outputs(images).features


def load_network(specification: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network that ``specification`` names (see the head of this file)."""
    kind, _, rest = specification.partition(":")
    device = torch.device(device)
    if kind == "inception":
        return InceptionNetwork(Path(rest) if rest else None, device)
    if kind == "domain" and rest:
        return DomainNetwork(Path(rest), device)
    if kind == "random" and rest.isdecimal() and int(rest) > 0:
        return RandomNetwork(int(rest), device)
    if kind in ("vgg16", "efficientnet-lite0"):
        from overture.evaluation.pretrained_networks import load_pretrained

        return load_pretrained(specification, device)
    model, at, file = rest.partition("@")
    if kind == "timm" and model and bool(at) == bool(file):
        return TimmNetwork(model, Path(file) if file else None, device)
    if kind in FORMS:
        raise UsageError(f"feature network '{specification}' is incomplete: write {FORMS[kind]}")
    if not rest:
        raise UsageError(f"unknown feature network '{kind}'{nearest(kind, FORMS)}, or write module:Class")
    place, _, argument = specification.partition("?")
    make = resolve_class(place, FeatureNetwork)
    with strangers_code(place):
        network: FeatureNetwork = make(argument, device)
    return network


class DomainNetwork(FeatureNetwork):
    """Our classifier: features of its last block, at the size and with the channels it was trained on."""

    name, offers = "domain", frozenset({"logits"})

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        classifier, self.record = load_classifier(path)
        self.classifier = classifier.to(device)
        self.device = torch.device(device)
        self.dims = self.record.config.dims
        self.weights_hash = self.record.weights_hash
        accuracy, chance = self.record.accuracy, self.record.chance
        if accuracy is not None and chance and accuracy < WEAK * chance:
            self.notes = (
                f"the judge has learned little: {accuracy:.0%} of held-out images right, by chance {chance:.0%}",
            )
        size = self.record.config.image_size
        self.preparation = f"{size}x{size} as they are"
        if self.record.config.channels == 3:
            self.preparation += "; grey images repeated to 3 channels"

    def outputs(self, images: Tensor) -> Outputs:
        """Features, and logits over the classes of the data set."""
        with torch.inference_mode():
            features_BD = self.classifier.features(self._prepare(images))
            return Outputs(features_BD.float(), self.classifier.head(features_BD).float())

    def _prepare(self, images: Tensor) -> Tensor:
        check_images(images)
        config = self.record.config
        if config.channels == 3:
            images = to_colour(images)
        if tuple(images.shape[1:]) != (config.channels, config.image_size, config.image_size):
            wanted = f"{config.channels}x{config.image_size}x{config.image_size}"
            raise OvertureError(
                f"domain network: images are {'x'.join(map(str, images.shape[1:]))}, it was trained on {wanted}; "
                "train one on images like these"
            )
        return to_float(images.to(self.device))


class InceptionNetwork(FeatureNetwork):
    """The Inception network of the original FID: 2048 features after the last pooling (pool3).

    Weights are looked for in ``path``, else in the caches, else they are downloaded from the official place. Any file
    but the official one is used but not trusted with the name: its distances are ``FD(inception)``.
    """

    name, dims, offers = "inception", 2048, frozenset({"logits", "spatial"})
    preparation = "bilinear to 299x299 as TensorFlow 1 does; grey images repeated to 3 channels"
    SPATIAL_CHANNELS = 7

    def __init__(self, path: Path | None = None, device: torch.device | str = "cpu") -> None:
        path = path or _find_inception()
        self.device = torch.device(device)
        self.weights_hash = file_hash(path)
        self.extractor = _build_inception(read_tensors(path, "inception"), path).to(self.device)

    @property
    def label(self) -> str:
        """``FID`` with the official weights alone."""
        return "FID" if self.weights_hash.startswith(INCEPTION_SHA256_PREFIX) else super().label

    def outputs(self, images: Tensor) -> Outputs:
        """``[B, 2048]``, ``[B, 1008]`` and ``[B, 2023]``: the first 7 channels after the block called mixed_6."""
        check_images(images)
        kept: list[Tensor] = []
        hook = self.extractor.Mixed_6d.register_forward_hook(  # type: ignore[union-attr, operator]
            lambda module, inputs, maps_BCHW: kept.append(maps_BCHW[:, : self.SPATIAL_CHANNELS])
        )
        try:
            with torch.inference_mode():
                features_BD, logits_BK = self.extractor(to_colour(images).to(self.device))
        finally:
            hook.remove()
        # Channels last, as in the graph of the original: references of others hold the numbers in this order.
        return Outputs(features_BD, logits_BK, kept[0].permute(0, 2, 3, 1).flatten(1).float())


class TimmNetwork(FeatureNetwork):
    """Any timm model: the features before its last layer. Weights come from a local file, or are timm's pretrained ones."""

    def __init__(self, model: str, path: Path | None, device: torch.device | str = "cpu") -> None:
        try:
            import timm
            from timm.data.config import resolve_model_data_config
        except ImportError as error:
            raise missing_package("timm", "timm", f"the feature network timm:{model}") from error
        if model.partition(".")[0] not in timm.list_models():
            raise UsageError(f"timm has no model '{model}'{_nearest_of_many(model, timm.list_models())}")
        state = _pretrained_state(model) if path is None else read_tensors(path, f"timm:{model}")
        self.device = torch.device(device)
        self.weights_hash = weights_hash(state) if path is None else file_hash(path)
        self.name = f"timm:{model}"
        # The file decides how many classes there are; a file without a last layer gives a model without one.
        head = timm.get_pretrained_cfg_value(model, "classifier") or "head"
        weight = state.get(f"{head}.weight") if isinstance(head, str) else None
        self.num_classes = 0 if weight is None else len(weight)
        self.offers = frozenset({"logits"} if self.num_classes else ())
        network: Any = timm.create_model(model, pretrained=False, num_classes=self.num_classes)
        _load_into(network, state, path or Path(f"pretrained weights of {model}"))
        self.model = network.eval().requires_grad_(False).to(self.device)
        data = resolve_model_data_config(network)
        self.size: tuple[int, int] = tuple(data["input_size"][-2:])
        self.interpolation = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
        self.mean = torch.tensor(data["mean"], device=self.device)[:, None, None]
        self.std = torch.tensor(data["std"], device=self.device)[:, None, None]
        self.dims = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.preparation = (
            f"antialiased {self.interpolation} to {self.size[0]}x{self.size[1]}, the model's mean and std; "
            "grey images repeated to 3 channels"
        )

    def outputs(self, images: Tensor) -> Outputs:
        """Features, and the model's own logits."""
        with torch.inference_mode():
            maps = self.model.forward_features(self._prepare(images))
            features_BD = self.model.forward_head(maps, pre_logits=True).flatten(1).float()
            logits_BK = self.model.forward_head(maps).float() if self.num_classes else None
        return Outputs(features_BD, logits_BK)

    def _prepare(self, images: Tensor) -> Tensor:
        check_images(images)
        x = to_colour(images).to(self.device).float() / 255
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode=self.interpolation, align_corners=False, antialias=True).clamp(0, 1)
        return (x - self.mean) / self.std


class RandomNetwork(FeatureNetwork):
    """A fixed random convolution over 8 x 8 pooled pixels. Cheap and the same everywhere; it knows nothing."""

    preparation = "averaged to 8x8; grey images repeated to 3 channels"

    def __init__(self, dims: int, device: torch.device | str = "cpu", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        # Divided before it is moved: a device may round otherwise, and these weights are known by their hash.
        self.weight = (torch.randn(3 * 8 * 8, dims, generator=generator) / (3 * 8 * 8) ** 0.5).to(device)
        self.dims, self.name = dims, f"random:{dims}"
        self.weights_hash = weights_hash({"weight": self.weight})

    def outputs(self, images: Tensor) -> Outputs:
        """Features alone: a random network has no classes."""
        check_images(images)
        pooled = F.adaptive_avg_pool2d(to_float(to_colour(images).to(self.weight.device)), 8)
        return Outputs(torch.relu(pooled.flatten(1) @ self.weight))


def check_images(images: Tensor) -> None:
    """Refuse anything but uint8 ``[B, 1 or 3, H, W]``."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise OvertureError(
            f"images are {images.dtype} of shape {tuple(images.shape)}, need uint8 [B, 1 or 3, H, W]; see to_uint8"
        )


def to_colour(images: Tensor) -> Tensor:
    """Grey images repeated to 3 channels; colour images as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _nearest_of_many(model: str, models: list[str]) -> str:
    return near(model, models) or " (timm.list_models() shows all)"


def _load_into(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    expected = module.state_dict()
    for name in expected:
        if name not in state:
            raise OvertureError(f"{path}: weight '{name}' is missing; the file belongs to another model")
        if state[name].shape != expected[name].shape:
            shapes = f"{tuple(state[name].shape)}, need {tuple(expected[name].shape)}"
            raise OvertureError(f"{path}: weight '{name}' has shape {shapes}; the file belongs to another model")
    module.load_state_dict({name: state[name] for name in expected})


def _pretrained_state(model: str) -> dict[str, Tensor]:
    """The weights that timm publishes for the model, from its cache or the hub."""
    import timm

    try:
        network = timm.create_model(model, pretrained=True)
    except Exception as error:  # no weights, no network, a damaged cache: each package on the way has its own types
        reason = " ".join(str(error).split())[:200]
        raise OvertureError(
            f"timm:{model}: its pretrained weights cannot be had ({reason}); give a file as timm:{model}@FILE"
        ) from error
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def _inception_caches() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overture"
    return [Path(torch.hub.get_dir()) / "checkpoints", cache]


def _find_inception() -> Path:
    """The official weights in a cache, else freshly downloaded into the first one."""
    folders = _inception_caches()
    for folder in folders:
        for file in INCEPTION_FILES:
            path = folder / file
            if path.is_file():
                if not file_hash(path).startswith(INCEPTION_SHA256_PREFIX):
                    raise OvertureError(f"{path}: these are not the official Inception weights; delete the file")
                return path
    path = folders[0] / INCEPTION_FILES[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_SHA256_PREFIX)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise OvertureError(
            f"no Inception weights ({error}): connect to download {INCEPTION_URL}, or give that file as inception:FILE or put "
            f"it into {folders[1]}; or take another network (--network, of a run --evaluation.network), such as vgg16 or domain:FILE"
        ) from error
    return path


def _build_inception(state: dict[str, Tensor], path: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # Its constructor insists on unpickling a file itself: it gets a buffer of tensors that were already read safely.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
        )
    except RuntimeError as error:
        raise OvertureError(f"{path}: these weights do not fit the Inception network of the FID") from error
