"""Where tokens look: attention of the encoder's last layers from each token to the patches of the image.

For a prologue (or any segment of learned queries) the maps show what of the image each of its tokens reads; for patch
tokens, what else a patch reads.

Shapes: B images, T tokens of a segment, G patches along a side, H heads, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from overture.analysis.entries import ReportEntry
from overture.data.transforms import to_float
from overture.errors import UsageError
from overture.nn.attention import Attention
from overture.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AttentionMaps", "attention_maps", "study"]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """What the tokens of one segment read."""

    segment: str
    layer: int
    images: Tensor
    """uint8 ``[B, C, H, W]``."""
    maps_BTGG: Tensor
    """Attention to every patch, mean over heads; each map sums to ``share``."""
    share_T: Tensor
    """How much of a token's attention goes to patches (the rest goes to learned queries), mean over images."""
    spread_T: Tensor
    """Entropy of the map in bits, mean over images; 0 looks at one patch, log2 G*G at all alike."""
    drawn: int
    """How many tokens are drawn and told."""

    @property
    def largest_spread(self) -> float:
        """Bits of a map that looks at all patches alike."""
        return float(torch.tensor(self.maps_BTGG[0, 0].numel()).log2())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "segment": self.segment,
            "layer": self.layer,
            "images": len(self.images),
            "share_on_patches": self.share_T.tolist(),
            "spread_bits": self.spread_T.tolist(),
            "largest_spread_bits": self.largest_spread,
        }

    def describe(self) -> str:
        """A table of the tokens that are drawn."""
        head = f"{'token':>5}  {'on patches':>10}  {'spread, bits':>12} (at most {self.largest_spread:.2f})"
        rows = [
            f"{token + 1:>5}  {self.share_T[token]:>10.1%}  {self.spread_T[token]:>12.2f}"
            for token in range(min(self.drawn, len(self.share_T)))
        ]
        return "\n".join([f"{self.segment}: {head}", *(f"{'':>{len(self.segment)}}  {row}" for row in rows)])

    def entries(self) -> list[ReportEntry]:
        """The maps over the images."""
        caption = (
            f"Attention from the first tokens of the {self.segment} to the patches, layer {self.layer} of the encoder, "
            "mean over heads; each map on its own scale."
        )
        return [ReportEntry("attention", "Where the first tokens look", caption, _figure(self), self.to_dict())]


def study(
    tokenizer: Tokenizer, images: Tensor, segment: str | None = None, layer: int = -1, tokens: int = 8
) -> AttentionMaps:
    """Maps of a segment (the first one by default) from images uint8 ``[B, C, H, W]``; ``tokens`` of them are drawn.

    ``layer`` counts from 0, or from the last one as -1.
    """
    if tokens < 1 or len(images) < 1:
        raise UsageError("attention: needs at least one token and one image")
    name = segment or tokenizer.layout.names[0]
    maps_BTGG = attention_maps(tokenizer, images, name, layer)
    shares_BT = maps_BTGG.sum(dim=(-2, -1))
    relative = maps_BTGG / shares_BT[..., None, None].clamp(min=1e-12)
    spread_BT = torch.special.entr(relative).sum(dim=(-2, -1)) / torch.log(torch.tensor(2.0))
    return AttentionMaps(name, layer, images.cpu(), maps_BTGG, shares_BT.mean(dim=0), spread_BT.mean(dim=0), tokens)


@torch.inference_mode()
def attention_maps(tokenizer: Tokenizer, images: Tensor, segment: str, layer: int = -1) -> Tensor:
    """Attention ``[B, T, G, G]`` of all tokens of a segment to the patches, mean over heads."""
    config = tokenizer.config
    tokenizer.layout.index(segment)
    chosen = next(part for part in config.segments if part.name == segment)
    encoder = tokenizer.post_encoder if chosen.source == "post" else tokenizer.encoder
    assert encoder is not None
    layers = [module for module in encoder.modules() if isinstance(module, Attention)]
    if not -len(layers) <= layer < len(layers):
        raise UsageError(f"attention: no layer {layer}, the encoder has {len(layers)} (0 to {len(layers) - 1})")
    seen: list[tuple[Any, ...]] = []
    hook = layers[layer].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    try:
        tokenizer.encode(to_float(images.to(next(tokenizer.parameters()).device)))
    finally:
        hook.remove()
    weights_BLL = layers[layer].weights(*seen[0]).float().mean(dim=1)
    patches = config.grid**2
    start = 0
    if chosen.source != "patches":
        start = patches
        for other in config.segments:
            if other.name == segment:
                break
            start += other.tokens if other.source == chosen.source else 0
    count = patches if chosen.source == "patches" else chosen.tokens
    maps_BTP = weights_BLL[:, start : start + count, :patches].cpu()
    return maps_BTP.unflatten(-1, (config.grid, config.grid))


def _figure(result: AttentionMaps) -> Figure:
    """One row an image: the image, then the maps of its first tokens laid over it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from overture.analysis.style import MUTED, SMALL_SIZE

    images, count = result.images, min(result.drawn, result.maps_BTGG.shape[1])
    rows, height, width = len(images), images.shape[2], images.shape[3]
    figure = Figure(figsize=(1.1 * (count + 1), 1.1 * rows + 0.3), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, count + 1, squeeze=False)
    for row in range(rows):
        pixels = images[row].permute(1, 2, 0).numpy()
        grey = pixels.mean(axis=2)
        grid[row][0].imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
        for token in range(count):
            axes = grid[row][token + 1]
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(result.maps_BTGG[row, token].numpy(), cmap="inferno", alpha=0.65, extent=extent)
    for row in grid:
        for axes in row:
            axes.set_axis_off()
    names = ["image", *(f"{result.segment} {token + 1}" for token in range(count))]
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=SMALL_SIZE, color=MUTED)
    return figure
