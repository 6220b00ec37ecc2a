"""Images to tokens and back; 2D, 1D and Prologue tokenizers as arrangements of the same parts."""

from overture.tokenizers.config import CodebookConfig, SegmentConfig, TokenizerConfig

__all__ = ["CodebookConfig", "SegmentConfig", "TokenizerConfig"]
