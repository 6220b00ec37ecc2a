"""The fifteen directories of the Prologue release (Hugging Face ``Zyriix/prologue``) and their sizes.

Nothing beside the weights says how large they are, so the sizes are here (docs/prologue.md, section 4, 5, 8 and 11).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from overture.nn.transformer import TransformerConfig
from overture.priors.model import PriorConfig
from overture.quantizers import SoftConfig
from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig, TokenizerConfig

__all__ = ["BASE", "LARGE", "RELEASES", "XL", "Release", "prologue_segment"]


@dataclass(frozen=True)
class Release:
    """What a directory holds: the tokenizer (``has_tokenizer``), a ``prior`` for its tokens, or both (OneStage).

    A directory with a prior alone still needs to know the tokenizer, whose layout is that of the prior.
    """

    tokenizer: TokenizerConfig
    prior: PriorConfig | None = None
    has_tokenizer: bool = True


BASE = PriorConfig()
LARGE = PriorConfig(dim=1024, depth=24, heads=16)
XL = PriorConfig(dim=1280, depth=32, heads=20)

_JOINT_BASE = replace(BASE, dropout=0.0)
"""OneStage: of base size, and without dropout like every prior that was trained beside its tokenizer."""

LARGE_DECODER = TransformerConfig(dim=1024, depth=24, heads=16)
POST_ENCODER = TransformerConfig(dim=512, depth=10, heads=8, ratio=11 / 4)


def prologue_segment(
    tokens: int = 16, codebook: int = 1024, source: Literal["queries", "post"] = "queries"
) -> SegmentConfig:
    """Tokens that the decoder does not see, in front of a separator; only a joint prior trains them."""
    sizes = CodebookConfig(k_max=codebook)
    return SegmentConfig("prologue", source, tokens, sizes, SoftConfig(), decoded=False, separator=True)


_2D = TokenizerConfig()
_1D = TokenizerConfig(segments=(SegmentConfig("visual", "queries", 256),))
_PROLOGUE_B = TokenizerConfig(segments=(prologue_segment(), SegmentConfig()))
_PROLOGUE_L = TokenizerConfig(
    decoder=LARGE_DECODER,
    segments=(prologue_segment(), SegmentConfig(codebook=CodebookConfig(k_max=4096))),
)
_POST = TokenizerConfig(segments=(prologue_segment(source="post"), SegmentConfig()), post_encoder=POST_ENCODER)

RELEASES = {
    "1d-tokenizer": Release(_1D),
    "2d-tokenizer": Release(_2D),
    "prologue-b-tokenizer": Release(_PROLOGUE_B),
    "prologue-l-tokenizer": Release(_PROLOGUE_L),
    "prologue-post-tokenizer": Release(_POST),
    "prologue-onestage-joint": Release(_PROLOGUE_B, _JOINT_BASE),
    "ar-1d-base": Release(_1D, BASE, has_tokenizer=False),
    "ar-2d-base": Release(_2D, BASE, has_tokenizer=False),
    "ar-prologue-b-b": Release(_PROLOGUE_B, BASE, has_tokenizer=False),
    "ar-prologue-b-l": Release(_PROLOGUE_B, LARGE, has_tokenizer=False),
    "ar-prologue-b-xl": Release(_PROLOGUE_B, XL, has_tokenizer=False),
    "ar-prologue-l-b": Release(_PROLOGUE_L, BASE, has_tokenizer=False),
    "ar-prologue-l-l": Release(_PROLOGUE_L, LARGE, has_tokenizer=False),
    "ar-prologue-l-xl": Release(_PROLOGUE_L, XL, has_tokenizer=False),
    "ar-prologue-post-b": Release(_POST, BASE, has_tokenizer=False),
}
