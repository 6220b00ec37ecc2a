"""Stage 2: every image as tokens, in a token file (docs/prologue.md, section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from overture.config import no_number
from overture.data.base import Source, subset
from overture.data.order import some_of
from overture.data.stream import DataConfig, crops_per_row, tokenization_batches
from overture.data.token_files import TokenFile, TokenHeader, TokenWriter
from overture.data.transforms import to_float
from overture.errors import UsageError
from overture.processes import Processes
from overture.progress import Progress, heed_stop
from overture.tokenizers.tokenizer import Tokenizer

__all__ = ["TokensConfig", "write_tokens"]


@dataclass(frozen=True)
class TokensConfig:
    """Which views of an image become its row of ids; training draws one of them at random.

    ``center``: the centre crop. ``ten``: resized to 1.1 times the size and ten-cropped, as in the Prologue paper.
    ``random-K``: K random crops.
    """

    crops: str = "ten"
    images: int = 0
    """Training images that become tokens, and that the prior learns from: always the same ones, drawn by chance; 0: all."""
    batch_size: int = no_number(256)
    """Images (crops counted) that the tokenizer encodes at once."""

    def __post_init__(self) -> None:
        crops_per_row(self.crops)
        if self.batch_size < 1:
            raise UsageError(f"tokens: batch_size is {self.batch_size}, needs >= 1")
        if self.images < 0:
            raise UsageError(f"tokens: images is {self.images}, needs >= 1 (or 0: all)")

    def chosen(self, training: Source) -> Source:
        """Those of the ``training`` images that become tokens."""
        if self.images > len(training):
            raise UsageError(f"tokens: images is {self.images}, there are {len(training)} training images")
        return subset(training, some_of(len(training), self.images)) if self.images else training


@torch.inference_mode()
def write_tokens(
    tokenizer: Tokenizer,
    tokenizer_hash: str,
    source: Source,
    data: DataConfig,
    config: TokensConfig,
    path: Path,
    *,
    processes: Processes,
    progress: Progress,
    label: str = "tokens",
) -> TokenFile:
    """Encode every image of ``source`` into the token file ``path``; goes on where an interrupted writing ended."""
    count = crops_per_row(config.crops)
    header = TokenHeader.of(source, tokenizer.layout, tokenizer_hash, config.crops, count)
    block = max(1, config.batch_size // count)
    writer = TokenWriter(path, header, block=block) if processes.is_main else None
    processes.barrier()
    writer = writer or TokenWriter(path, header, block=block, join=True)
    missing = writer.missing(processes.rank, processes.size)
    progress.start(label, header.rows, header.rows - sum(map(len, missing)) * processes.size, "image")
    for rows, batch in zip(missing, tokenization_batches(source, data, config.crops, missing), strict=True):
        images = to_float(batch.images.flatten(0, 1).to(processes.device))
        ids = tokenizer.encode_valid(images).cpu().numpy().reshape(len(rows), count, -1)
        writer.write(rows, ids, batch.labels.numpy())
        progress.advance(len(rows) * processes.size)
        heed_stop(f"stage {label}")
    progress.finish()
    processes.barrier()
    if processes.is_main:
        writer.finish()
    processes.barrier()
    return TokenFile.open(path)
