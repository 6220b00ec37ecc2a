"""Token files: a whole data set as ids, in one memory-mapped file.

The file is: 8 magic bytes, the length of the header (uint64), the header (JSON), the ids ``[rows, crops, T]`` (uint16, or
uint32 when a codebook is larger than 65,536), the labels ``[rows]`` (int32), and a CRC-32 (uint32) of the ids and labels
of every block of rows. Ids and labels start at multiples of 64 bytes; everything is little-endian. Ids are local (see
:mod:`overture.layout`). Files of format 1 have no checksums.

A file that is being written has ``.partial`` at the end of its name and more bytes at its end: the rows per block
(uint64), and for every block of rows one byte that is 1 once the block is complete. So any number of processes can
write, and an interrupted writing goes on.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from overture.data.base import Source, same_fingerprint
from overture.data.order import ShuffledOrder, generator
from overture.errors import OvertureError, UsageError
from overture.files import check_once, flush_to_disk
from overture.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TokenBatch", "TokenFile", "TokenHeader", "TokenStream", "TokenWriter"]

MAGIC = b"OVTOKENS"
FORMAT_VERSION = 2
ALIGNMENT = 64


@dataclass(frozen=True)
class TokenHeader:
    """What a token file says about itself."""

    layout: Layout
    tokenizer: str
    """The hash of the tokenizer's weights."""
    crops: str
    """``center``, ``ten`` or ``random-K``."""
    crops_per_row: int
    rows: int
    num_classes: int
    source: str = ""
    """The name of the images' source."""
    fingerprint: str = ""
    """The fingerprint of the images' source."""
    block: int = 256
    """Rows that are written, and checked, together; 0 in files of format 1."""

    def __post_init__(self) -> None:
        counts = (self.crops_per_row, self.rows, self.num_classes, self.block)
        if not all(isinstance(count, int) for count in counts) or self.block < 0:
            raise UsageError(f"token file: a count is no whole number or negative: {counts}")
        if self.rows < 1 or self.crops_per_row < 1 or self.num_classes < 1:
            raise UsageError(
                f"a token file needs at least one row, crop and class, got {self.rows} rows,"
                f" {self.crops_per_row} crops, {self.num_classes} classes"
            )

    @classmethod
    def of(cls, source: Source, layout: Layout, tokenizer: str, crops: str, crops_per_row: int) -> TokenHeader:
        """The header of the tokens of every image of ``source``."""
        return cls(
            layout, tokenizer, crops, crops_per_row, len(source), len(source.classes), source.name, source.fingerprint()
        )

    def to_bytes(self) -> bytes:
        """Magic, length and JSON."""
        fields = {**asdict(self), "layout": self.layout.to_dict()}
        if not self.block:
            del fields["block"]
        else:
            fields["checksum"] = zlib.crc32(json.dumps(fields).encode())
        text = json.dumps({"format_version": FORMAT_VERSION if self.block else 1, **fields}).encode()
        return MAGIC + len(text).to_bytes(8, "little") + text

    @classmethod
    def read(cls, path: Path) -> TokenHeader:
        """The header of a token file; an error says why it is none."""
        try:
            with path.open("rb") as file:
                start, length = file.read(8), int.from_bytes(file.read(8), "little")
                text = file.read(length) if start == MAGIC and length < 2**30 else b""
        except OSError as error:
            raise OvertureError(f"{path}: cannot read this token file ({error.strerror})") from error
        if start != MAGIC:
            raise OvertureError(f"{path}: not a token file")
        if not text or len(text) < length:
            raise OvertureError(f"{path}: truncated token file (its header is incomplete)")
        try:
            data: dict[str, Any] = json.loads(text)
            version, checksum = data.pop("format_version"), data.pop("checksum", None)
            if version in (1, FORMAT_VERSION):
                block = {"block": 0} if version == 1 else {}
                header = cls(**{**data, **block, "layout": Layout.from_dict(data["layout"])})
                if header.to_bytes() != start + length.to_bytes(8, "little") + text:
                    raise ValueError(f"its checksum {checksum} is not that of what it says")
                return header
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OvertureError) as error:
            raise OvertureError(f"{path}: the header of this token file is damaged ({error})") from error
        raise OvertureError(f"{path}: token file of format {version}, this version of overture reads {FORMAT_VERSION}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """How an id is stored."""
        return np.dtype("<u2" if max(self.layout.sizes) <= 2**16 else "<u4")

    @property
    def ids_offset(self) -> int:
        """Where the ids start."""
        return _align(len(self.to_bytes()))

    @property
    def row_bytes(self) -> int:
        """The size of one row of ids."""
        return self.crops_per_row * self.layout.length * self.dtype.itemsize

    @property
    def labels_offset(self) -> int:
        """Where the labels start."""
        return _align(self.ids_offset + self.rows * self.row_bytes)

    @property
    def checksums_offset(self) -> int:
        """Where the checksums of the blocks start."""
        return self.labels_offset + 4 * self.rows

    @property
    def blocks(self) -> int:
        """How many blocks of rows have a checksum."""
        return -(-self.rows // self.block) if self.block else 0

    @property
    def file_bytes(self) -> int:
        """The size of the complete file."""
        return self.checksums_offset + 4 * self.blocks


class TokenFile:
    """A complete token file, memory-mapped: only the rows that are asked for are read.

    The first time that a process opens a file, all of it is checked: ids within their codebooks, labels within the
    classes, and the checksums.
    """

    def __init__(self, path: Path, header: TokenHeader) -> None:
        self.path, self.header = path, header
        shape = (header.rows, header.crops_per_row, header.layout.length)
        try:
            self._ids = np.asarray(np.memmap(path, header.dtype, "r", header.ids_offset, shape))
            self.labels: NDArray[np.int64] = np.fromfile(
                path, "<i4", header.rows, offset=header.labels_offset
            ).astype(np.int64)  # fmt: skip
        except OSError as error:
            raise OvertureError(f"{path}: cannot read this token file ({error.strerror})") from error

    @classmethod
    def open(cls, path: Path | str) -> TokenFile:
        """Open a token file; a missing, foreign, truncated or unfinished one is an error."""
        path = Path(path)
        partial = _partial(path)
        if not path.exists() and partial.exists():
            raise OvertureError(f"{path}: its writing was interrupted, run the same command again to go on")
        header = TokenHeader.read(path)
        about = path.stat()
        if about.st_size != header.file_bytes:
            how = "truncated" if about.st_size < header.file_bytes else "damaged"
            raise OvertureError(
                f"{path}: {how} token file, {about.st_size} bytes where its header says {header.file_bytes}"
            )
        file = cls(path, header)
        check_once(path, file._check)
        return file

    def _check(self) -> None:
        """Look at all ids and labels once."""
        header, step = self.header, self.header.block or 4096
        checksums = np.fromfile(self.path, "<u4", header.blocks, offset=header.checksums_offset)
        sizes_T = np.array(header.layout.sizes)
        for number, start in enumerate(range(0, header.rows, step)):
            ids, labels = self._ids[start : start + step], self.labels[start : start + step]
            if header.block and _checksum(ids, labels) != checksums[number]:
                raise OvertureError(
                    f"{self.path}: damaged (rows {start} to {start + len(ids) - 1} do not have the checksum that was "
                    "written); delete it and tokenize again"
                )
            if (ids.max(axis=(0, 1)) >= sizes_T).any():
                header.layout.check(ids.reshape(-1, header.layout.length), f"{self.path}: ids from row {start}")
            if labels.min() < 0 or labels.max() >= header.num_classes:
                raise OvertureError(
                    f"{self.path}: labels run from {labels.min()} to {labels.max()}, it has {header.num_classes} classes"
                )

    @property
    def layout(self) -> Layout:
        """The layout of the ids."""
        return self.header.layout

    @property
    def rows(self) -> int:
        """How many images."""
        return self.header.rows

    @property
    def central_crop(self) -> int:
        """The crop that stands for the image where one is needed: the centre, or the first where there is none."""
        return 4 if self.header.crops == "ten" else 0

    @property
    def crops(self) -> int:
        """How many crops of every image."""
        return self.header.crops_per_row

    @property
    def num_classes(self) -> int:
        """How many classes the labels count."""
        return self.header.num_classes

    @property
    def stored(self) -> NDArray[np.unsignedinteger]:
        """All local ids ``[rows, crops, T]`` as they are stored, memory-mapped."""
        return self._ids

    def __len__(self) -> int:
        return self.rows

    def ids(
        self, rows: slice | NDArray[np.integer] = slice(None), crop: int | NDArray[np.integer] = 0
    ) -> NDArray[np.int64]:
        """Local ids ``[n, T]`` of some rows: of the same ``crop`` for all of them, or of one for each."""
        if isinstance(crop, np.ndarray) and isinstance(rows, slice):
            rows = np.arange(self.rows)[rows]
        return self._ids[rows, crop].astype(np.int64)

    def tensors(self, rows: slice | NDArray[np.integer] = slice(None)) -> tuple[Tensor, Tensor]:
        """Local ids ``[n, T]`` of the central crops of some rows, and their labels ``[n]``, int64."""
        import torch

        return torch.from_numpy(self.ids(rows, self.central_crop)), torch.from_numpy(self.labels[rows])

    def parts(self, rows: int, chosen: NDArray[np.integer] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of all rows (or of those ``chosen``), so many at a time."""
        places = np.arange(self.rows) if chosen is None else chosen
        for start in range(0, len(places), rows):
            yield self.tensors(places[start : start + rows])

    def check_layout(self, layout: Layout) -> None:
        """Refuse to go on with a model of another layout."""
        if layout != self.layout:
            same = str(layout) == str(self.layout)
            detail = "codebook sizes differ" if same else f"{self.layout}, the model needs {layout}"
            raise OvertureError(f"{self.path}: tokens of another layout ({detail}), tokenize again with this tokenizer")

    def check_source(self, source: Source) -> None:
        """Refuse to go on with other images than those that the file holds."""
        if len(source) != self.rows or not same_fingerprint(self.header.fingerprint, source.fingerprint()):
            raise OvertureError(
                f"{self.path}: tokens of other images ({self.rows:,} of {self.header.source}, fingerprint "
                f"{self.header.fingerprint or 'not told'}) than there are now ({len(source):,}, {source.fingerprint()}); "
                "bring the images back, or delete the file and what was trained on it"
            )

    def check_tokenizer(self, tokenizer: str) -> None:
        """Refuse to go on with another tokenizer (given by its hash) than the one that wrote the file."""
        if tokenizer != self.header.tokenizer:
            raise OvertureError(
                f"{self.path}: written by another tokenizer ({self.header.tokenizer[:12]}, not {tokenizer[:12]}),"
                f" delete it and tokenize again"
            )


class TokenWriter:
    """Writes a token file block by block: beside its place, and moved there by :meth:`finish` when complete.

    Several processes may write at once: rank 0 makes a writer first, then the others with ``join=True``. An
    interrupted writing with the same header goes on, one with another header starts over::

        writer = TokenWriter(path, header)
        for rows in writer.missing(rank, world):
            writer.write(rows, ids, labels)
        ...                                  # a barrier, when there are several processes
        writer.finish()                      # rank 0
    """

    def __init__(self, path: Path | str, header: TokenHeader, *, block: int = 256, join: bool = False) -> None:
        if block < 1:
            raise UsageError(f"token file: a block of {block} rows, needs >= 1")
        header = replace(header, block=block)
        self.path, self.header = Path(path), header
        self.partial = _partial(self.path)
        self._flags_offset = header.file_bytes + 8
        if not self._can_go_on():
            if join:
                raise OvertureError(f"{self.partial}: there is no writing with this header to join")
            self._start()

    def missing(self, rank: int = 0, world: int = 1) -> list[range]:
        """The blocks of rows that rank ``rank`` of ``world`` still has to write."""
        done = self._flags()
        return [self._rows(number) for number in range(rank, self.header.blocks, world) if not done[number]]

    def write(self, rows: range, ids: NDArray[np.integer], labels: NDArray[np.integer]) -> None:
        """Write one of the :meth:`missing` blocks: local ids ``[n, crops, T]`` and labels ``[n]``."""
        header, number = self.header, rows.start // self.header.block
        if rows != self._rows(number):
            raise UsageError(f"token file: rows {rows.start}..{rows.stop} are not one of the blocks to write")
        shape = (len(rows), header.crops_per_row, header.layout.length)
        if ids.shape != shape or labels.shape != shape[:1]:
            raise OvertureError(f"token file: ids {ids.shape} and labels {labels.shape}, needs {shape} and {shape[:1]}")
        header.layout.check(ids.reshape(-1, header.layout.length), f"ids of rows {rows.start}..{rows.stop}")
        if labels.min() < 0 or labels.max() >= header.num_classes:
            raise OvertureError(f"token file: labels need to be in 0..{header.num_classes - 1}")
        ids, labels = ids.astype(header.dtype), labels.astype("<i4")
        try:
            with self.partial.open("r+b") as file:
                file.seek(header.ids_offset + rows.start * header.row_bytes)
                file.write(ids.tobytes())
                file.seek(header.labels_offset + 4 * rows.start)
                file.write(labels.tobytes())
                file.seek(header.checksums_offset + 4 * number)
                file.write(_checksum(ids, labels).to_bytes(4, "little"))
                flush_to_disk(file)
                file.seek(self._flags_offset + number)
                file.write(b"\1")
        except OSError as error:
            raise self._cannot_write(error) from error

    def finish(self) -> TokenFile:
        """Move the complete file to its place and open it."""
        open_blocks = int((~self._flags()).sum())
        if open_blocks:
            raise OvertureError(
                f"{self.partial}: {open_blocks} of {self.header.blocks} blocks of rows are not written yet"
            )
        try:
            with self.partial.open("r+b") as file:
                file.truncate(self.header.file_bytes)
                flush_to_disk(file)
            self.partial.replace(self.path)
        except OSError as error:
            raise self._cannot_write(error) from error
        return TokenFile.open(self.path)

    def _rows(self, number: int) -> range:
        block = self.header.block
        return range(number * block, min((number + 1) * block, self.header.rows))

    def _can_go_on(self) -> bool:
        """Whether there is an interrupted writing of the same header in blocks of the same size."""
        wanted, block = self.header.to_bytes(), self.header.block.to_bytes(8, "little")
        try:
            with self.partial.open("r+b") as file:
                same = file.read(len(wanted)) == wanted
                size = file.seek(0, os.SEEK_END)
                if same and size == self.header.file_bytes:  # stopped between truncating and renaming
                    file.write(block + b"\1" * self.header.blocks)
                    return True
                file.seek(self.header.file_bytes)
                return same and size == self._flags_offset + self.header.blocks and file.read(8) == block
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._cannot_write(error) from error

    def _start(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.partial.open("wb") as file:
                file.truncate(self._flags_offset + self.header.blocks)
                file.seek(self.header.file_bytes)
                file.write(self.header.block.to_bytes(8, "little"))
                file.seek(0)
                file.write(self.header.to_bytes())
                flush_to_disk(file)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _flags(self) -> NDArray[np.bool_]:
        try:
            return np.fromfile(self.partial, np.uint8, self.header.blocks, offset=self._flags_offset) == 1
        except OSError as error:
            raise OvertureError(f"{self.partial}: cannot read it ({error.strerror})") from error

    def _cannot_write(self, error: OSError) -> OvertureError:
        return OvertureError(
            f"{self.partial}: cannot write tokens ({error.strerror}); complete rows are kept, run again to go on"
        )


@dataclass(frozen=True)
class TokenBatch:
    """Local ids int64 ``[B, T]``, labels int64 ``[B]``, and the rows they are from, int64 ``[B]``."""

    ids: Tensor
    labels: Tensor
    indices: Tensor


class TokenStream:
    """Shuffled batches of a token file without end; one of each row's crops is drawn at random every epoch.

    The batch of a step is a pure function of (seed, step). ``batch_size`` is the global one; rank r of ``world`` gets
    the r-th slice of every batch.
    """

    def __init__(self, file: TokenFile, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.file = file
        self._order = ShuffledOrder(file.rows, batch_size, seed, rank, world)
        self._crops: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def batches(self, start_step: int = 0) -> Iterator[TokenBatch]:
        """The batches of ``start_step``, ``start_step + 1``, ...: an exact resume at any step."""
        import torch

        step = start_step
        while True:
            epochs, rows = self._order.batch(step)
            crops = np.empty_like(rows)
            for epoch in np.unique(epochs):
                crops[epochs == epoch] = self._epoch_crops(int(epoch))[rows[epochs == epoch]]
            ids, labels = self.file.ids(rows, crops), self.file.labels[rows]
            yield TokenBatch(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(rows))
            step += 1

    def _epoch_crops(self, epoch: int) -> NDArray[np.int64]:
        if self._crops[0] != epoch:
            rng = generator("choice", self._order.seed, epoch)
            self._crops = (epoch, rng.integers(0, self.file.crops, self.file.rows))
        return self._crops[1]


def _checksum(ids: NDArray[np.integer], labels: NDArray[np.integer]) -> int:
    return zlib.crc32(labels.astype("<i4").tobytes(), zlib.crc32(np.ascontiguousarray(ids).view(np.uint8).data))


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
