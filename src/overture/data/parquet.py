"""Images in parquet files, as the Hugging Face hub keeps them: a column of images, a column of labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overture.data.arrangement import numbered
from overture.data.arrays import counted_classes
from overture.data.base import CorruptImage, Source, decode_image, digest
from overture.data.class_lists import told_apart
from overture.data.order import some_of
from overture.data.zip_directory import MAX_MEMBER
from overture.errors import OvertureError, UsageError, missing_package

__all__ = ["ParquetSource"]

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "picture", "jpg", "png"), ("label", "labels", "class", "fine_label")
MAX_GROUP, MAX_RATIO = 2**32, 50
"""Bytes of the images of one row group: 4 GB; and how many times its size in the file it may unpack to, beyond 64 MB."""
HELD_BYTES = 2**27
"""Row groups are held in memory up to this size (by every worker), the last one in any case."""
LARGE_GROUP = 2**22
MAX_OPEN = 64
"""Files that a process holds open."""


class ParquetSource(Source):
    """Parquet files with a column of images ``{bytes, path}``, or of bytes, and one of labels: integers or names.

    The names of the classes are those that the hub's ``ClassLabel`` writes into the schema. Parquet gives out whole row
    groups: in order it is fast; to draw images at random reads a group for every image.
    """

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name, self.files = name, tuple(files)
        self._image, self._label = "", ""
        groups, labels = [], []
        names: list[str] = []
        for number, file in enumerate(self.files):
            with _failures(file):
                opened = _open(file)
                self._choose_columns(file, opened.schema_arrow)
                groups += [
                    (number, group, rows) for group, rows in enumerate(self._checked_groups(file, opened.metadata))
                ]
                labels.append(_labels(file, opened, self._label))
                if len({found.dtype.kind for found in labels if len(found)}) > 1:
                    raise OvertureError(f"{file}: {self._label} is of another type than in {self.files[0]}")
                names = names or _class_names(opened.schema_arrow.metadata, self._label)
        self._groups = np.array([group[:2] for group in groups], np.int64).reshape(-1, 2)
        self._ends = np.cumsum([group[2] for group in groups], dtype=np.int64)
        if not self._ends.any():
            raise OvertureError(f"{name}: holds no images")
        values = np.concatenate([found for found in labels if len(found)])
        self.labels, self.classes, self.notes = _arranged(name, values, names)
        size = sum(file.stat().st_size for file in self.files) / len(groups)
        if size > LARGE_GROUP:
            self.notes += (
                f"a row group holds {len(values) / len(groups):.0f} images ({size / 1e6:.0f} MB), which are read for every "
                "image that training draws: write the files with row_group_size=10, or train from a zip, a folder or a tar",
            )
        self._forget()

    def _forget(self) -> None:
        """Start without open files: those inherited over a fork would be shared with the parent."""
        self._held: dict[int, Any] = {}
        self._opened: dict[int, Any] = {}
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}, "_opened": {}, "_owner": 0}

    def read(self, index: int) -> Image.Image:
        where = self.path(index)
        group = int(np.searchsorted(self._ends, index, side="right"))
        data = self._group(group)[index - self._start(group)].as_py()
        if data is None:
            raise CorruptImage(f"{where}: holds no bytes (a path alone, perhaps)")
        if len(data) > MAX_MEMBER:
            raise CorruptImage(f"{where}: is larger than {MAX_MEMBER:,} bytes")
        return decode_image(data, where)

    def path(self, index: int) -> str:
        group = int(np.searchsorted(self._ends, index, side="right"))
        file = self._groups[group, 0]
        first = int(np.searchsorted(self._groups[:, 0], file))
        return f"{self.files[file]}, row {index - self._start(first)}"

    def fingerprint(self) -> str:
        """Of labels and names, and of the ends of all files, which say how large and of what kind their columns are."""
        ends = []
        for place in some_of(len(self.files), 1000).tolist():
            with _failures(self.files[place]), self.files[place].open("rb") as file:
                length = file.seek(0, os.SEEK_END)
                for start in (0, max(length - 2**16, 0)):
                    file.seek(start)
                    ends.append(file.read(2**16))
        return "parquet-" + digest(self.labels.data, repr(self.classes).encode(), self._ends.data, *ends)

    def _start(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def _group(self, group: int) -> Any:
        """The images of a row group, as an array of bytes."""
        if self._owner != os.getpid():
            self._forget()
        if group not in self._held:
            file, inner = self._groups[group].tolist()
            with _failures(self.files[file]):
                if file not in self._opened:
                    self._opened = {} if len(self._opened) >= MAX_OPEN else self._opened
                    self._opened[file] = _open(self.files[file])
                column = self._opened[file].read_row_group(inner, columns=[self._image], use_threads=False)[0]
                array = column.combine_chunks()
                array = array.field("bytes") if array.type.num_fields else array  # of {bytes, path}
            if len(array) != self._ends[group] - self._start(group):
                raise OvertureError(f"{self.files[file]}: damaged (row group {inner} holds {len(array)} rows)")
            while self._held and sum(held.nbytes for held in self._held.values()) + array.nbytes > HELD_BYTES:
                del self._held[next(iter(self._held))]
            self._held[group] = array
        return self._held[group]

    def _choose_columns(self, file: Path, schema: Any) -> None:
        """Which columns hold images and labels; the same ones in every file."""
        images, others = _image_columns(schema), ", ".join(f"{field.name} ({field.type})" for field in schema)[:400]
        image = next((column for column in IMAGE_COLUMNS if column in images), next(iter(images), ""))
        if not image or (image not in IMAGE_COLUMNS and len(images) > 1):
            raise UsageError(f"{file}: no column of images (image: {{bytes, path}} or bytes) among {others or 'none'}")
        label = next((column for column in LABEL_COLUMNS if column in schema.names), "")
        if not label:
            raise UsageError(f"{file}: no column of labels ({', '.join(LABEL_COLUMNS)}) among {others}")
        if self._image not in ("", images[image]) or self._label not in ("", label):
            raise OvertureError(f"{file}: has other columns ({others}) than {self.files[0]}")
        self._image, self._label = images[image], label

    def _checked_groups(self, file: Path, metadata: Any) -> Iterator[int]:
        """The rows of every row group; refuses those that would unpack to more than anyone's images."""
        length = file.stat().st_size
        if metadata.num_rows > length:
            raise OvertureError(f"{file}: {metadata.num_rows:,} rows in {length:,} bytes are no images")
        for group in range(metadata.num_row_groups):
            part = metadata.row_group(group)
            columns = [part.column(column) for column in range(part.num_columns)]
            column = next(column for column in columns if column.path_in_schema == self._image)
            packed, size = column.total_compressed_size, column.total_uncompressed_size
            if not 0 <= packed <= length or size > min(max(2**26, MAX_RATIO * packed), MAX_GROUP):
                raise OvertureError(
                    f"{file}: row group {group} is {size:,} bytes from {packed:,}, which is no images, or too many for one "
                    f"group ({MAX_GROUP:,} bytes at most)"
                )
            yield part.num_rows


def _image_columns(schema: Any) -> dict[str, str]:
    """Columns that may hold images, each with the path of its bytes."""
    from pyarrow import types

    found = {}
    for field in schema:
        if types.is_struct(field.type) and "bytes" in [inner.name for inner in field.type]:
            found[field.name] = f"{field.name}.bytes"
        elif types.is_binary(field.type) or types.is_large_binary(field.type):
            found[field.name] = field.name
    return found


def _labels(file: Path, opened: Any, column: str) -> NDArray[Any]:
    """The labels of a file: int64 or text ``[N]``."""
    values = opened.read(columns=[column], use_threads=False)[0]
    if values.null_count:
        raise OvertureError(f"{file}: {values.null_count} of {len(values)} rows have no {column}")
    array = np.asarray(values.to_pylist())
    if len(array) and array.dtype.kind not in "iuU":
        raise OvertureError(f"{file}: {column} is {values.type}, needs integers or names")
    if array.dtype.kind != "U" and len(array) and int(array.min()) < 0:
        raise OvertureError(f"{file}: {column} holds {array.min()}: images without labels (a test split, perhaps)")
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """What the hub's ``ClassLabel`` calls the classes; empty if the schema does not say."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    return list(told_apart(dict(enumerate(names))).values())


def _arranged(
    name: str, values: NDArray[Any], names: list[str]
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    if values.dtype.kind != "U":
        return counted_classes(name, values, names)
    classes, labels = numbered(values.tolist())
    return labels, tuple(classes), ()


def _open(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise missing_package("pyarrow", "data", f"reading {file.name}") from error
    return parquet.ParquetFile(file, memory_map=False)  # a map of a file that shrinks would end the process


@contextmanager
def _failures(file: Path) -> Iterator[None]:
    """Damage of any kind as one line that names the file."""
    try:
        yield
    except OvertureError:
        raise
    except Exception as error:  # pyarrow has kinds of its own, and raises nearly any on damaged files
        reason = " ".join(str(error).split())
        raise OvertureError(f"{file}: cannot read this parquet file ({reason or type(error).__name__})") from error
