"""Opens data by what the user calls it: a folder, a zip, an npz, parquet, tars, or the name of a known set."""

from __future__ import annotations

import re
from pathlib import Path

from overture.data.archives import FolderSource, ZipSource
from overture.data.arrays import open_npz
from overture.data.base import ArraySource, CorruptImage, Source, split, subset
from overture.data.class_lists import KAGGLE
from overture.data.known_sets import EMBEDDED, KNOWN_SETS, open_embedded, open_known_set
from overture.data.parquet import ParquetSource
from overture.data.shards import find_shards
from overture.data.tars import TarSource
from overture.errors import UsageError, near, nearest
from overture.files import near_path
from overture.registry import resolve_class, strangers_code

__all__ = ["ArraySource", "CorruptImage", "Source", "open_source", "split", "subset"]


def open_source(spec: str) -> Source:
    """The data source called ``spec``.

    - ``path/to/folder``: one sub-folder per class, the images right in it
    - ``file.zip``, ``file.zip/train``: the same in a zip file, or in a folder of it
    - ``imagenet.zip/train``, ``imagenet.zip/val``: Kaggle's ImageNet as it is, or the folder that it was unpacked to
    - ``file.parquet``, ``file.tar``, ``folder``, ``folder/train``: such files, or those of a folder (of one split)
    - ``file.npz``, ``file.npz/test``: arrays, see :func:`overture.data.arrays.open_npz`
    - ``embedded:fashion-mnist``: 10,000 images that come with the package
    - ``cifar10``, ``cifar10/test``, ``fashion-mnist``, ``fashion-mnist/test``: looked for in ``$OVERTURE_DATA`` (or
      ``~/.cache/overture/data``), downloaded there when absent
    - ``module:Class?text``: anyone's :class:`Source`, made with the text

    Known names win over folders of the same name; write ``./cifar10`` for the folder.
    """
    if spec.startswith("embedded:"):
        return open_embedded(spec)
    if spec.split("/")[0] in KNOWN_SETS:
        return open_known_set(spec)
    if re.fullmatch(r"([A-Za-z]:)?[\w ./\\~-]+:\w+(\?.*)?", spec) and not Path(spec).exists():
        return _strangers_source(spec)
    path = Path(spec).expanduser()
    for file in (path, *path.parents):
        if file.suffix in (".zip", ".npz", ".parquet", ".tar") and file.is_file():
            return _file_source(spec, file, path.relative_to(file).as_posix() if path != file else "")
    if spec and (shards := find_shards(spec, path)):
        return ParquetSource(spec, shards) if shards[0].suffix == ".parquet" else TarSource(spec, shards)
    if path.is_dir() and spec:
        return FolderSource(spec, path)
    if (deep := path.parent / KAGGLE / path.name).is_dir() and path.name:
        return FolderSource(spec, deep)
    if path.exists() and spec:
        raise UsageError(f"{spec}: not a folder, a .zip, .npz, .parquet or .tar file")
    raise UsageError(f"no data source '{spec}': no such folder, file or data set{_suggestion(spec, path)}")


def _file_source(spec: str, file: Path, inner: str) -> Source:
    """A file that holds many images, or the part ``inner`` of it."""
    if file.suffix == ".zip":
        return ZipSource(spec, file, inner)
    if file.suffix == ".npz":
        return open_npz(spec, file, inner)
    if inner:
        raise UsageError(f"{spec}: a {file.suffix} file has no parts, write {str(file)!r}")
    return ParquetSource(spec, [file]) if file.suffix == ".parquet" else TarSource(spec, [file])


def _strangers_source(spec: str) -> Source:
    place, _, text = spec.partition("?")
    make = resolve_class(place, Source)
    with strangers_code(place):
        source: Source = make(text)
    return source


def _suggestion(spec: str, path: Path) -> str:
    """The nearest name: a known set, or a sibling of the first part of the path that does not exist."""
    return near(spec, _names()) or near_path(path) or nearest(spec, _names())


def _names() -> list[str]:
    return [*(f"embedded:{name}" for name in EMBEDDED), *KNOWN_SETS]
