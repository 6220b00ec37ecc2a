"""A text as rows of tokens, to compare its entropy curve with that of images.

Shapes: N rows, T tokens of a row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from overture.errors import OvertureError, UsageError, missing_package

__all__ = ["text_rows"]


def text_rows(path: Path, positions: int, tokenizer: Path | None = None) -> tuple[NDArray[np.int64], int]:
    """``[N, positions]`` ids, pieces of the text one after the other (the rest is dropped), and the vocabulary's size.

    Tokens are the UTF-8 bytes, or those of a Hugging Face ``tokenizer.json``.
    """
    if positions < 1:
        raise UsageError(f"{path}: rows of {positions} tokens, needs at least 1")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OvertureError(f"{path}: cannot read this text ({error.strerror})") from error
    if tokenizer is None:
        ids, size = np.frombuffer(data, np.uint8).astype(np.int64), 256
    else:
        ids, size = _encode(path, data, tokenizer)
    rows = len(ids) // positions
    if rows < 2:
        raise OvertureError(f"{path}: {len(ids)} tokens give {rows} rows of {positions}, needs at least 2")
    return ids[: rows * positions].reshape(rows, positions), size


def _encode(path: Path, data: bytes, tokenizer: Path) -> tuple[NDArray[np.int64], int]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_package("tokenizers", "text", f"the tokenizer {tokenizer}") from error
    try:
        loaded = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the package raises plain Exception
        raise OvertureError(f"{tokenizer}: not a tokenizer.json ({error})") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OvertureError(f"{path}: not UTF-8 text ({error})") from error
    return np.array(loaded.encode(text, add_special_tokens=False).ids, np.int64), loaded.get_vocab_size()
