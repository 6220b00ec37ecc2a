"""Stage 2: every image as tokens, in a token file (spec section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from overture.data.sources import Source
from overture.data.stream import DataConfig
from overture.data.tokens import TokenFile, TokenWriter
from overture.data.transforms import to_float
from overture.errors import UsageError
from overture.tokenizers.tokenizer import Tokenizer
from overture.training.distributed import World
from overture.training.progress import Interrupted, Progress, stop_requested

__all__ = ["TokensConfig", "write_tokens"]


@dataclass(frozen=True)
class TokensConfig:
    """Which views of an image become a row of ids.

    ``center``: one centre crop. ``ten``: resized to 1.1 times the size and ten-cropped; training draws one at random.
    """

    crops: Literal["center", "ten"] = "ten"
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"tokens: batch_size is {self.batch_size}, needs >= 1")


@torch.inference_mode()
def write_tokens(
    tokenizer: Tokenizer,
    tokenizer_hash: str,
    source: Source,
    data: DataConfig,
    config: TokensConfig,
    path: Path,
    *,
    world: World,
    progress: Progress,
    label: str,
) -> TokenFile:
    """Encode every image of ``source`` into the token file ``path``; goes on where an interrupted writing ended."""
    raise NotImplementedError
