"""Images and tokens: where they come from, how they are cut, and in which order training sees them.

- :func:`open_source` opens a :class:`Source` of labelled images; :func:`split` and :func:`subset` divide it
- :class:`DataConfig` is the data of a run, :class:`TrainingStream`, :func:`evaluation_batches` and
  :func:`tokenization_batches` are the three ways to read it
- :class:`TokenWriter`, :class:`TokenFile` and :class:`TokenStream` write, read and shuffle token files;
  :func:`load_ids` reads anyone's ids
- :func:`to_float`, :func:`to_uint8` and the crops are the conventions for pixels

Names load their module on first use: reading token files does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ArraySource": "base",
    "Batch": "reading",
    "CorruptImage": "base",
    "DataConfig": "stream",
    "ImageData": "stream",
    "LoadedIds": "ids",
    "Source": "base",
    "TokenBatch": "tokens",
    "TokenFile": "tokens",
    "TokenHeader": "tokens",
    "TokenStream": "tokens",
    "TokenWriter": "tokens",
    "TrainingStream": "stream",
    "center_crop": "transforms",
    "crops_per_row": "stream",
    "evaluation_batches": "stream",
    "load_ids": "ids",
    "open_source": "sources",
    "random_crop": "transforms",
    "split": "base",
    "subset": "base",
    "ten_crop": "transforms",
    "to_float": "transforms",
    "to_uint8": "transforms",
    "tokenization_batches": "stream",
    "with_channels": "transforms",
}

__all__ = list(_HOMES)

if TYPE_CHECKING:
    from overture.data.base import ArraySource as ArraySource
    from overture.data.base import CorruptImage as CorruptImage
    from overture.data.base import Source as Source
    from overture.data.base import split as split
    from overture.data.base import subset as subset
    from overture.data.ids import LoadedIds as LoadedIds
    from overture.data.ids import load_ids as load_ids
    from overture.data.reading import Batch as Batch
    from overture.data.sources import open_source as open_source
    from overture.data.stream import DataConfig as DataConfig
    from overture.data.stream import ImageData as ImageData
    from overture.data.stream import TrainingStream as TrainingStream
    from overture.data.stream import crops_per_row as crops_per_row
    from overture.data.stream import evaluation_batches as evaluation_batches
    from overture.data.stream import tokenization_batches as tokenization_batches
    from overture.data.tokens import TokenBatch as TokenBatch
    from overture.data.tokens import TokenFile as TokenFile
    from overture.data.tokens import TokenHeader as TokenHeader
    from overture.data.tokens import TokenStream as TokenStream
    from overture.data.tokens import TokenWriter as TokenWriter
    from overture.data.transforms import center_crop as center_crop
    from overture.data.transforms import random_crop as random_crop
    from overture.data.transforms import ten_crop as ten_crop
    from overture.data.transforms import to_float as to_float
    from overture.data.transforms import to_uint8 as to_uint8
    from overture.data.transforms import with_channels as with_channels


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'overture.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"overture.data.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
