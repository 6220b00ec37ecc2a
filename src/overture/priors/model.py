"""The prior: a causal transformer over a layout's sequence (docs/prologue.md, section 8).

Its input is the class embedding, then the tokens; position i of its output predicts ``sequence[:, i]``.
Shapes: B images, L sequence positions, D channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.nn.rope import Rotary, default_axes, index_positions, rotary
from overture.nn.transformer import OutputHead, TiedProjection, TransformerConfig
from overture.saved_model import SavedModel, Weights

__all__ = ["Prior", "PriorConfig"]

_AXES = ("index", "row", "column")


@dataclass(frozen=True)
class PriorConfig:
    """Size of a prior.

    ``rope_axes`` are the channels of a head that turn with (index, row, column); a prior has only an index, so only
    the first of them turn. Without them it is 24 of 64 channels, in that proportion else. With ``tied`` the output
    matrix is the table of token embeddings.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    ratio: float = 11 / 4
    condition_dim: int = 32
    num_classes: int = 1000
    rope_axes: tuple[int, int, int] | None = None
    theta: float = 10000.0
    dropout: float = 0.1
    tied: bool = False

    def __post_init__(self) -> None:
        head_dim = self.transformer.head_dim  # building it checks the sizes
        if not 1 <= self.num_classes <= 2**24:
            raise UsageError(f"prior: num_classes is {self.num_classes}, needs 1 to {2**24}")
        if self.rope_axes is not None and sum(self.rope_axes) != head_dim:
            raise UsageError(
                f"prior: rope_axes {self.rope_axes} sum to {sum(self.rope_axes)}, its heads have {head_dim} channels"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"prior: dropout is {self.dropout}, needs 0 <= dropout < 1")

    @property
    def transformer(self) -> TransformerConfig:
        """The size of its transformer."""
        return TransformerConfig(self.dim, self.depth, self.heads, self.ratio, self.condition_dim)

    def build(self, layout: Layout) -> Prior:
        """Make the module for sequences of ``layout``, with fresh weights."""
        return Prior(self, layout)


class Prior(SavedModel):
    """Next-token model of a layout's sequences, given a class (``num_classes`` stands for "unconditional")."""

    kind: ClassVar[str] = "prior"

    cos: Tensor
    sin: Tensor

    def __init__(self, config: PriorConfig, layout: Layout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.dim)
        self.token_embedding = nn.Embedding(layout.vocabulary_size, config.dim)
        self.transformer = config.transformer.build(config.num_classes, bias=False, causal=True, dropout=config.dropout)
        self.head = OutputHead(config.transformer, layout.vocabulary_size, bias=False)
        if config.tied:
            self.head.projection = TiedProjection(self.token_embedding)
        for embedding in (self.class_embedding, self.token_embedding):
            nn.init.trunc_normal_(embedding.weight, std=0.02)
        axes = config.rope_axes or default_axes(config.transformer.head_dim)[::-1]
        factors = rotary(index_positions(layout.sequence_length, _AXES), axes, config.theta)
        self.register_buffer("cos", factors.cos, persistent=False)
        self.register_buffer("sin", factors.sin, persistent=False)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], where: str) -> Prior:
        """The prior that a file's metadata describe, with fresh weights."""
        config = from_dict(PriorConfig, metadata.get("config"), where=f"{where}: config")
        return config.build(Layout.from_dict(metadata.get("layout")))

    def own_metadata(self) -> dict[str, Any]:
        """The config, the layout, and the names of the classes where they are known."""
        names = {"classes": list(self.class_names)} if self.class_names else {}
        return {"config": to_dict(self.config), "layout": self.layout.to_dict(), **names}

    @classmethod
    def usual_weights(cls, metadata: Mapping[str, Any]) -> Weights:
        """Published numbers use the raw weights."""
        return "raw"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of its classes, in order; empty where its file does not know them."""
        known = self.origin.metadata.get("classes") if self.origin else None
        names = tuple(map(str, known)) if isinstance(known, list) else ()
        return names if len(set(names)) == len(names) == self.config.num_classes else ()

    @property
    def rotary(self) -> Rotary:
        """Rotary factors of all input positions."""
        return Rotary(self.cos, self.sin)

    @property
    def unconditional(self) -> int:
        """The class id that stands for "no class"."""
        return self.config.num_classes

    def forward(self, sequence: Tensor, class_ids: Tensor) -> Tensor:
        """Sequence ids ``[B, L]`` and classes ``[B]`` -> logits ``[B, L, V]`` over the whole vocabulary."""
        if class_ids.device.type == "cpu":  # elsewhere looking at them would wait
            self.check_classes(class_ids)
        if sequence.shape[-1] != self.layout.sequence_length:
            raise OvertureError(
                f"prior: sequences have {sequence.shape[-1]} positions, its layout has {self.layout.sequence_length}"
            )
        return self.predict(self.token_embedding(sequence[:, :-1]), class_ids)

    def predict(self, embeddings_BLD: Tensor, class_ids: Tensor) -> Tensor:
        """Logits ``[B, L, V]`` from the embeddings ``[B, L - 1, D]`` of all tokens but the last."""
        return self.head.project(self.hidden(embeddings_BLD, class_ids))

    def hidden(self, embeddings_BLD: Tensor, class_ids: Tensor) -> Tensor:
        """What the output matrix is applied to, ``[B, L, D]`` float32: for losses that never hold all logits."""
        x_BLD = torch.cat([self.class_embedding(class_ids)[:, None], embeddings_BLD], dim=1)
        x_BLD = F.dropout(x_BLD, self.config.dropout, self.training)
        condition = self.transformer.condition(len(x_BLD))
        return self.head.normalize(self.transformer(x_BLD, self.rotary, condition=condition), condition)

    def check_classes(self, class_ids: Tensor) -> None:
        """Refuse classes out of range (``num_classes`` itself is "unconditional")."""
        if class_ids.numel() and (class_ids.min() < 0 or class_ids.max() > self.config.num_classes):
            raise UsageError(
                f"class {int(class_ids.max() if class_ids.min() >= 0 else class_ids.min())} is out of range: "
                f"this prior knows 0..{self.config.num_classes - 1}, and {self.config.num_classes} for unconditional"
            )
