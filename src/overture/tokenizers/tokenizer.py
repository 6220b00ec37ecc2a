"""The tokenizer: encoder, one quantizer per segment, decoder, arranged as the config says (docs/prologue.md, section 2 to 5).

Shapes: B images, L positions, D transformer channels, X values of a patch, T local tokens, Z channels of a code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.config import from_dict, to_dict
from overture.errors import OvertureError
from overture.layout import Layout
from overture.nn.rope import Rotary, concatenate, default_axes, grid_positions, index_positions, rotary
from overture.nn.transformer import OutputHead, TransformerConfig, fresh_queries, initialize
from overture.quantizers import Quantized, Quantizer
from overture.saved_model import SavedModel, Weights
from overture.tokenizers.config import TokenizerConfig
from overture.tokenizers.patches import join_patches, split_patches

__all__ = ["Encoded", "Tokenizer", "TrainedPart"]

TrainedPart = Literal["everything", "decoder", "nothing"]
"""What of a tokenizer is trained, see :meth:`Tokenizer.trained_parameters`."""

_AXES = ("row", "column", "index")


class Encoded(NamedTuple):
    """Images as training sees them: ids ``[B, T]``, each quantizer's answer, and the encoder outputs ``[B, L, D]`` that
    each segment was quantized from."""

    ids: Tensor
    quantized: dict[str, Quantized]
    features: dict[str, Tensor]

    @property
    def quantizer_loss(self) -> Tensor:
        """The quantizers' own losses, added."""
        return torch.stack([quantized.loss for quantized in self.quantized.values()]).sum()


class _WithRotary(nn.Module):
    """A module that owns rotary factors as buffers (so they follow it to a device, but are no weights)."""

    cos: Tensor
    sin: Tensor

    def set_rotary(self, factors: Rotary) -> None:
        self.register_buffer("cos", factors.cos, persistent=False)
        self.register_buffer("sin", factors.sin, persistent=False)

    @property
    def rotary(self) -> Rotary:
        return Rotary(self.cos, self.sin)


class Encoder(_WithRotary):
    """Patches, then learned queries, through one transformer; no norm or projection at the end.

    The post encoder is one too: its patches are the first encoder's outputs of them, its queries those of the segments
    whose ``source`` is "post".
    """

    queries: nn.Parameter | None

    def __init__(self, config: TokenizerConfig, size: TransformerConfig, inputs: int, source: str) -> None:
        super().__init__()
        count = sum(segment.tokens for segment in config.segments if segment.source == source)
        self.patches = nn.Linear(inputs, size.dim)
        self.queries = fresh_queries(count, size) if count else None
        initialize(self, size.init)
        self.transformer = size.build(config.num_classes, bias=True)
        columns = config.encoder_columns if source == "queries" else None
        self.set_rotary(concatenate([_grid_rotary(config, size, columns), _index_rotary(config, size, count)]))

    def forward(self, patches_BLX: Tensor) -> Tensor:
        """Outputs of the patches, then of the queries."""
        x_BLD = self.patches(patches_BLX)
        if self.queries is not None:
            x_BLD = torch.cat([x_BLD, self.queries.to(x_BLD.dtype).expand(len(x_BLD), -1, -1)], dim=1)
        return self.transformer(x_BLD, self.rotary)


class Decoder(_WithRotary):
    """The decoded segments' codes (and learned patch queries, where no segment lies on the grid) to patches."""

    queries: nn.Parameter | None

    def __init__(self, config: TokenizerConfig, z_dims: dict[str, int]) -> None:
        super().__init__()
        size: TransformerConfig = config.decoder
        decoded = [segment for segment in config.segments if segment.decoded]
        self.inputs = nn.ModuleDict({segment.name: nn.Linear(z_dims[segment.name], size.dim) for segment in decoded})
        on_grid = any(segment.source == "patches" for segment in decoded)
        self.queries = None if on_grid else fresh_queries(config.grid**2, size)
        initialize(self, size.init)
        self.transformer = size.build(config.num_classes, bias=True)
        self.head = OutputHead(size, config.patch_size**2 * config.channels, bias=True, weight_scale=1e-5)
        parts, self._grid_start, start = [], 0, 0
        for segment in decoded:
            if segment.source == "patches":
                self._grid_start = start
                parts.append(_grid_rotary(config, size))
            else:
                parts.append(_index_rotary(config, size, segment.tokens))
            start += segment.tokens or config.grid**2
        if self.queries is not None:
            self._grid_start = start
            parts.append(_grid_rotary(config, size))
        self._grid_length = config.grid**2
        self.set_rotary(concatenate(parts))

    def forward(self, codes: dict[str, Tensor]) -> Tensor:
        """Codes ``[B, L, Z]`` by segment name to patches ``[B, L, X]``."""
        parts = [layer(codes[name]) for name, layer in self.inputs.items()]
        if self.queries is not None:
            parts.append(self.queries.to(parts[0].dtype).expand(len(parts[0]), -1, -1))
        condition = self.transformer.condition(len(parts[0]))
        x_BLD = self.transformer(torch.cat(parts, dim=1), self.rotary, condition=condition)
        return self.head(x_BLD[:, self._grid_start : self._grid_start + self._grid_length], condition)


class Tokenizer(SavedModel):
    """Images to ids and back.

    ``encode`` and ``decode`` speak local ids (every segment counts from 0); ``layout`` says what they mean.
    """

    kind: ClassVar[str] = "tokenizer"

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.layout: Layout = config.layout
        self.encoder = Encoder(config, config.encoder, config.patch_size**2 * config.channels, "queries")
        dims = {"post": config.post_encoder.dim} if config.post_encoder else {}
        quantizers: dict[str, Quantizer] = {
            entry.name: entry.quantizer.build(dims.get(entry.source, config.encoder.dim), segment.sizes)
            for entry, segment in zip(config.segments, self.layout.segments, strict=True)
        }
        self.quantizers = nn.ModuleDict(quantizers)
        self.decoder = Decoder(config, {name: quantizer.z_dim for name, quantizer in quantizers.items()})
        self.post_encoder = (
            Encoder(config, config.post_encoder, config.encoder.dim, "post") if config.post_encoder else None
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], where: str) -> Tokenizer:
        """The tokenizer that a file's metadata describe, with fresh weights."""
        return from_dict(TokenizerConfig, metadata.get("config"), where=f"{where}: config").build()

    def own_metadata(self) -> dict[str, Any]:
        """The config."""
        return {"config": to_dict(self.config)}

    @classmethod
    def usual_weights(cls, metadata: Mapping[str, Any]) -> Weights:
        """EMA, if the file does not say otherwise."""
        return metadata.get("use_weights", "ema")

    @property
    def background(self) -> str:
        """What showed where the images that it was trained on are transparent: a colour as CSS writes it."""
        return self.run_config.get("data", {}).get("background", "white")

    def trained_parameters(self, part: TrainedPart = "everything") -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters to train; the rest stays as it was.

        ``everything``: all, or only the post path where there is one. ``decoder``: what makes pixels of codes, so that
        images keep their ids.
        """
        post = [f"quantizers.{segment.name}." for segment in self.config.segments if segment.source == "post"]
        everything = ("",) if self.post_encoder is None else ("post_encoder.", *post)
        trained = {"everything": everything, "decoder": ("decoder.",), "nothing": ()}[part]
        for name, parameter in self.named_parameters():
            if name.startswith(trained):
                yield name, parameter

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Encoder outputs ``[B, L, D]`` that each segment is read from."""
        config = self.config
        expected = (config.channels, config.image_size, config.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise OvertureError(f"tokenizer: images are {list(images.shape)}, it was made for [B, {expected}]")
        patches = config.grid**2
        x_BLD = self.encoder(split_patches(images, config.patch_size))
        unread = {"patches": x_BLD[:, :patches], "queries": x_BLD[:, patches:]}
        if self.post_encoder is not None:  # detached: what it learns must not reach the finished tokenizer
            unread["post"] = self.post_encoder(unread["patches"].detach())[:, patches:]
        outputs = {}
        for segment in config.segments:
            length = segment.tokens or patches
            outputs[segment.name] = unread[segment.source][:, :length]
            unread[segment.source] = unread[segment.source][:, length:]
        return outputs

    def encode_for_training(self, images: Tensor) -> Encoded:
        """Images ``[B, C, H, W]`` in [-1, 1] through encoder and quantizers, with gradients."""
        features = self.features(images)
        quantized = {name: self._quantizer(name)(part) for name, part in features.items()}
        return Encoded(torch.cat([part.ids for part in quantized.values()], dim=1), quantized, features)

    def reconstruct(self, encoded: Encoded) -> Tensor:
        """The reconstruction ``[B, C, H, W]`` of encoded images, not clamped, with gradients."""
        return self._images({name: part.codes for name, part in encoded.quantized.items()})

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] -> local ids ``[B, T]``; anything else is refused."""
        check_pixels(images)
        return self.encode_valid(images.to(self.encoder.patches.weight.dtype))

    @torch.no_grad()
    def encode_valid(self, images: Tensor) -> Tensor:
        """As :meth:`encode`, of images that are known to fit: looking at them would wait for an accelerator."""
        return torch.cat([self._quantizer(name).encode(part) for name, part in self.features(images).items()], dim=1)

    def decode(self, ids: Tensor) -> Tensor:
        """Local ids ``[B, T]`` -> images ``[B, C, H, W]``, not clamped; ids that the layout does not allow are refused."""
        self.layout.check(ids)
        return self.decode_valid(ids)

    def decode_valid(self, ids: Tensor) -> Tensor:
        """As :meth:`decode`, of ids that are known to fit: looking at them would wait for an accelerator."""
        return self._images(self._codes(ids))

    def codes(self, ids: Tensor) -> Tensor:
        """The code vectors ``[B, T, Z]`` of local ids ``[B, T]``; narrower segments are padded with zeros."""
        self.layout.check(ids)
        parts = self._codes(ids)
        width = max(part.shape[-1] for part in parts.values())
        return torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in parts.values()], dim=1)

    def _codes(self, ids: Tensor) -> dict[str, Tensor]:
        return {name: self._quantizer(name).codes(ids[:, self.layout.slice(name)]) for name in self.layout.names}

    def _images(self, codes: dict[str, Tensor]) -> Tensor:
        patches_BLX = self.decoder(codes)
        return join_patches(patches_BLX, self.config.patch_size, self.config.grid, self.config.channels)

    def _quantizer(self, name: str) -> Quantizer:
        return self.quantizers[name]  # type: ignore[return-value]


def _grid_rotary(config: TokenizerConfig, size: TransformerConfig, columns: int | None = None) -> Rotary:
    axes = config.rope_axes or default_axes(size.head_dim)
    patches, columns = config.grid**2, columns or config.grid
    positions = grid_positions(-(-patches // columns), columns, _AXES)[:patches]
    return rotary(positions, axes, config.theta_grid)


def _index_rotary(config: TokenizerConfig, size: TransformerConfig, length: int) -> Rotary:
    axes = config.rope_axes or default_axes(size.head_dim)
    return rotary(index_positions(length, _AXES), axes, config.theta_index)


def check_pixels(images: Tensor) -> None:
    """Refuse what are no pixels in [-1, 1]: whole numbers, 0..255, NaN."""
    if not images.is_floating_point():
        raise OvertureError(
            f"tokenizer: images are {images.dtype}, need floats in [-1, 1] (of 0..255: images / 127.5 - 1)"
        )
    low, high = images.aminmax() if images.numel() else (images.new_zeros(()), images.new_zeros(()))
    if not (low >= -1.01 and high <= 1.01):  # NaN neither
        raise OvertureError(f"tokenizer: pixels run from {low:.4g} to {high:.4g}, need finite values in [-1, 1]")
