"""What a tokenizer is made of: image, transformers, and one entry per segment of its layout.

2D, 1D and Prologue tokenizers are arrangements of the same parts; a segment's entry says which.

=============  =====================  ================  =====================================
               segment                source            decoded
=============  =====================  ================  =====================================
2D             visual                 patches           yes
1D             visual                 queries           yes (learned patch queries are added)
Prologue       prologue, then visual  queries, patches  no, then yes
Prologue-Post  prologue, then visual  post, patches     no, then yes
=============  =====================  ================  =====================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.nn.transformer import TransformerConfig
from overture.quantizers import QuantizerConfig, VectorConfig
from overture.schedules import CodebookConfig

if TYPE_CHECKING:
    from overture.tokenizers.tokenizer import Tokenizer

__all__ = ["CodebookConfig", "SegmentConfig", "TokenizerConfig"]


@dataclass(frozen=True)
class SegmentConfig:
    """One segment: its tokens, where the encoder reads them, how they are quantized, and whether the decoder sees them.

    ``patches`` and ``queries`` are read from the encoder, ``post`` from the queries of the post encoder. ``tokens``
    counts learned queries; a segment read from ``patches`` has one token a patch and leaves it 0.
    """

    name: str = "visual"
    source: Literal["patches", "queries", "post"] = "patches"
    tokens: int = 0
    codebook: CodebookConfig = CodebookConfig()
    quantizer: QuantizerConfig = VectorConfig()
    decoded: bool = True
    separator: bool = False


@dataclass(frozen=True)
class TokenizerConfig:
    """A whole tokenizer.

    ``rope_axes`` are the channels of a head that turn with (row, column, index), for encoder and decoder; without
    them each follows :func:`overture.nn.rope.default_axes`. ``encoder_columns`` is for imported weights whose encoder
    counts its patches in rows of another length than the image's.
    """

    image_size: int = 256
    channels: int = 3
    patch_size: int = 16
    num_classes: int = 1000
    encoder: TransformerConfig = TransformerConfig()
    decoder: TransformerConfig = TransformerConfig()
    rope_axes: tuple[int, int, int] | None = None
    theta_grid: float = 2000.0
    theta_index: float = 10000.0
    segments: tuple[SegmentConfig, ...] = field(default=(SegmentConfig(),))
    post_encoder: TransformerConfig | None = None
    encoder_columns: int | None = None

    def __post_init__(self) -> None:
        check_sizes("tokenizer", image_size=self.image_size, channels=self.channels, num_classes=self.num_classes)
        if self.patch_size < 1 or self.image_size % self.patch_size:
            fitting = [str(size) for size in range(1, self.image_size + 1) if self.image_size % size == 0]
            raise UsageError(
                f"tokenizer: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; set "
                f"--tokenizer.patch-size to one of {', '.join(fitting)}, or another --data.image-size"
            )
        if self.encoder_columns is not None and self.encoder_columns < 1:
            raise UsageError(f"tokenizer: encoder_columns is {self.encoder_columns}, needs at least 1")
        transformers = {"encoder": self.encoder, "decoder": self.decoder, "post encoder": self.post_encoder}
        for name, transformer in transformers.items():
            if self.rope_axes is not None and transformer is not None and sum(self.rope_axes) != transformer.head_dim:
                raise UsageError(
                    f"tokenizer: rope_axes {self.rope_axes} sum to {sum(self.rope_axes)}, "
                    f"the {name}'s heads have {transformer.head_dim} channels"
                )
        if sum(segment.source == "patches" for segment in self.segments) > 1:
            raise UsageError("tokenizer: only one segment can be read from the patches")
        if not any(segment.decoded for segment in self.segments):
            raise UsageError("tokenizer: the decoder sees no segment; set decoded on one")
        for segment in self.segments:
            if (segment.source == "patches") != (segment.tokens == 0) or segment.tokens < 0:
                raise UsageError(
                    f"segment '{segment.name}': read from {segment.source}, tokens is {segment.tokens} "
                    "(queries and post need tokens >= 1, patches need 0)"
                )
        if any(segment.source == "post" for segment in self.segments) != (self.post_encoder is not None):
            raise UsageError("tokenizer: a segment read from 'post' and a post_encoder need each other")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @cached_property
    def layout(self) -> Layout:
        """The layout of this tokenizer's ids."""
        return Layout(
            tuple(Segment(s.name, s.codebook.build(s.tokens or self.grid**2).sizes, s.separator) for s in self.segments)
        )

    def build(self) -> Tokenizer:
        """Make the module, with fresh weights."""
        from overture.tokenizers.tokenizer import Tokenizer

        return Tokenizer(self)


def check_sizes(what: str, **sizes: int) -> None:
    """Refuse sizes below 1, and those that no model has but a damaged file may ask for."""
    limits = {"image_size": 2**14, "channels": 64, "num_classes": 2**24}
    for name, size in sizes.items():
        if not 1 <= size <= limits[name]:
            raise UsageError(f"{what}: {name} is {size}, needs 1 to {limits[name]}")
