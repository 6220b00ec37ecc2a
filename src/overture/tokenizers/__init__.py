"""Images to tokens and back; 2D, 1D, Prologue and Prologue-Post tokenizers as arrangements of the same parts."""

from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig, TokenizerConfig

__all__ = ["CodebookConfig", "SegmentConfig", "TokenizerConfig"]
