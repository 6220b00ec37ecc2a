"""The adversarial loss: a patch discriminator with the vanilla GAN loss, LeCam and R1 ("Prologue", docs/prologue.md, section 6).

Sources: PatchGAN (arXiv 1611.07004) as VQGAN (arXiv 2012.09841) uses it; LeCam regularisation (arXiv 2104.03310);
R1 gradient penalty (arXiv 1801.04406).

Shapes: B batch of this process, C channels, H W height and width; the discriminator's map is smaller: h w.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import UsageError
from overture.nn.global_batch_norm import GlobalBatchNorm2d
from overture.processes import Processes

__all__ = ["Adversarial", "AdversarialConfig", "PatchDiscriminator"]


@dataclass(frozen=True)
class AdversarialConfig:
    """Discriminator and weights.

    ``weight`` is that of the generator's term; ``start`` the first step at which either side of the game is played,
    see :meth:`active`. The training loop applies both, :class:`Adversarial` applies the rest.
    """

    weight: float = 0.1
    start: int = 0
    channels: int = 64
    """Channels of the first convolution; they double with every layer up to eight times as many."""
    layers: int = 3
    """Convolutions that halve the map. Three of them judge 70 px patches; 28 px images take two."""
    lecam: float = 0.001
    lecam_decay: float = 0.999
    """Share that the moving averages of the logits keep at every discriminator step."""
    r1: float = 0.01
    """Gamma of the penalty ``gamma / 2 * |gradient|^2``. It is not multiplied by ``r1_every``."""
    r1_every: int = 25
    """Discriminator steps 0, ``r1_every``, 2 ``r1_every``, ... carry the penalty."""

    def __post_init__(self) -> None:
        for name in ("channels", "layers", "r1_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"adversarial: {name} is {getattr(self, name)}, needs >= 1")
        for name in ("weight", "start", "lecam", "r1"):
            if getattr(self, name) < 0:
                raise UsageError(f"adversarial: {name} is {getattr(self, name)}, needs >= 0")
        if not 0 <= self.lecam_decay < 1:
            raise UsageError(f"adversarial: lecam_decay is {self.lecam_decay}, needs 0 <= lecam_decay < 1")

    def active(self, step: int) -> bool:
        """Whether the game is on at this step: it has a weight, and has started."""
        return self.weight > 0 and step >= self.start

    def build(
        self, image_channels: int, image_size: int | None = None, processes: Processes = Processes()
    ) -> Adversarial:
        """The discriminator with fresh weights; ``image_size`` (px), when given, is checked right away."""
        if image_size is not None:
            _check_size(self.layers, image_size, image_size)
        return Adversarial(self, image_channels, processes)


class PatchDiscriminator(nn.Sequential):
    """4x4 convolutions: ``layers`` with stride 2, one with stride 1, then one to a single logit per patch.

    Batch norm (over all processes) except on the first and last; leaky ReLU 0.2; weights start as N(0, 0.02), those of
    the norms as N(1, 0.02).
    """

    def __init__(self, image_channels: int, channels: int, layers: int, processes: Processes = Processes()) -> None:
        widths = [channels * min(2**layer, 8) for layer in range(layers + 1)]
        parts: list[nn.Module] = [_convolution(image_channels, widths[0], stride=2), _activation()]
        for layer, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if layer < layers else 1
            parts += [
                _convolution(before, after, stride, bias=False),
                GlobalBatchNorm2d(after, processes),
                _activation(),
            ]
        super().__init__(*parts, _convolution(widths[-1], 1, stride=1))
        self.layers = layers
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> logits ``[B, 1, h, w]``, positive for "real"."""
        _check_size(self.layers, *images_BCHW.shape[-2:])
        return super().forward(images_BCHW)


class Adversarial(nn.Module):
    """Both sides of the game. Parameters are those of ``discriminator``; LeCam's averages are buffers.

    The discriminator stays in training mode on both sides: its batch norms always use the batch they see. The R1 steps
    differentiate twice, which ``torch.compile`` does not support: leave the discriminator uncompiled.
    """

    real_average: Tensor
    fake_average: Tensor

    def __init__(self, config: AdversarialConfig, image_channels: int, processes: Processes = Processes()) -> None:
        super().__init__()
        self.config, self.processes = config, processes
        self.discriminator = PatchDiscriminator(image_channels, config.channels, config.layers, processes)
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))

    def generator_loss(self, reconstruction_BCHW: Tensor) -> Tensor:
        """``adversarial``: ``mean softplus(-D(reconstruction))``, unweighted; gradients reach the images alone."""
        with _frozen(self.discriminator):
            logits = self.discriminator(reconstruction_BCHW)
        return F.softplus(-logits.float()).mean()

    def forward(self, real_BCHW: Tensor, fake_BCHW: Tensor, step: int) -> dict[str, Tensor]:
        """The discriminator's terms at its own ``step`` (from 0); moves the LeCam averages.

        ``discriminator``: ``(mean softplus(-D(real)) + mean softplus(D(fake))) / 2``;
        ``lecam``: ``mean relu(D(real) - fake average)^2 + mean relu(real average - D(fake))^2``, with the averages of
        the steps before; ``r1``: squared norm of ``d sum D(real) / d real`` per image, mean over images, on the steps
        that carry it. These are unweighted; ``total`` is ``discriminator + lecam weight * lecam + r1 / 2 * r1 term``.
        """
        config = self.config
        penalised = config.r1 > 0 and step % config.r1_every == 0
        real_BCHW = real_BCHW.detach().requires_grad_(penalised)
        real_logits = self.discriminator(real_BCHW).float()
        fake_logits = self.discriminator(fake_BCHW.detach()).float()
        total = (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2
        terms = {"discriminator": total}
        if config.lecam:
            terms["lecam"] = (
                F.relu(real_logits - self.fake_average).square().mean()
                + F.relu(self.real_average - fake_logits).square().mean()
            )
            total = total + config.lecam * terms["lecam"]
            self._move_averages(real_logits.detach().mean(), fake_logits.detach().mean())
        if penalised:
            (gradient_BCHW,) = torch.autograd.grad(real_logits.sum(), real_BCHW, create_graph=True)
            terms["r1"] = gradient_BCHW.float().square().sum(dim=(1, 2, 3)).mean()
            total = total + config.r1 / 2 * terms["r1"]
        return {**terms, "total": total}

    @torch.no_grad()
    def _move_averages(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Follow the mean logits of all processes (which hold equal shares of the batch)."""
        means = self.processes.mean(torch.stack((real_mean, fake_mean)))
        self.real_average.lerp_(means[0], 1 - self.config.lecam_decay)
        self.fake_average.lerp_(means[1], 1 - self.config.lecam_decay)


def _convolution(channels_in: int, channels_out: int, stride: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=4, stride=stride, padding=1, bias=bias)


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2, inplace=True)


def _check_size(layers: int, height: int, width: int) -> None:
    """Every stride 2 halves the map (rounding down), and the two last convolutions take one row and column each."""
    side = min(height, width)
    if side >> layers < 3:
        most = max((side // 3).bit_length() - 1, 0)
        advice = f"use at most {most}" if most else "the smallest images it can judge are 6 px"
        raise UsageError(f"adversarial: {layers} layers leave no patch of {height} x {width} px images; {advice}")


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters enter graphs built inside as constants: no gradient is accumulated, or even computed, for them."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
