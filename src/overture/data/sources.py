"""Opens data by what the user calls it: a folder, a zip, an npz, or the name of a known set."""

from __future__ import annotations

import re
from pathlib import Path

from overture.data.archives import FolderSource, ZipSource
from overture.data.arrays import open_npz
from overture.data.base import ArraySource, CorruptImage, Source, split, subset
from overture.data.known_sets import EMBEDDED, KNOWN_SETS, open_embedded, open_known_set
from overture.errors import UsageError, near, nearest
from overture.files import near_path
from overture.registry import resolve, strangers_code

__all__ = ["ArraySource", "CorruptImage", "Source", "open_source", "split", "subset"]


def open_source(spec: str) -> Source:
    """The data source called ``spec``.

    - ``path/to/folder``: one sub-folder per class, the images right in it
    - ``file.zip``, ``file.zip/train``: the same in a zip file, or in a folder of it
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
    if re.fullmatch(r"[\w ./\\~-]+:\w+(\?.*)?", spec) and not Path(spec).exists():
        return _strangers_source(spec)
    path = Path(spec).expanduser()
    for file in (path, *path.parents):
        if file.suffix in (".zip", ".npz") and file.is_file():
            inner = path.relative_to(file).as_posix() if path != file else ""
            return ZipSource(spec, file, inner) if file.suffix == ".zip" else open_npz(spec, file, inner)
    if path.is_dir() and spec:
        return FolderSource(spec, path)
    if path.exists() and spec:
        raise UsageError(f"{spec}: not a folder, a .zip or a .npz file")
    raise UsageError(f"no data source '{spec}'{_suggestion(spec, path)}")


def _strangers_source(spec: str) -> Source:
    place, _, text = spec.partition("?")
    make = resolve(place)
    with strangers_code(place):
        source = make(text)
    if not isinstance(source, Source):
        raise UsageError(f"{place}: is no overture.data.base.Source")
    return source


def _suggestion(spec: str, path: Path) -> str:
    """The nearest name: a known set, or a sibling of the first part of the path that does not exist."""
    return near(spec, _names()) or near_path(path) or nearest(spec, _names())


def _names() -> list[str]:
    return [*(f"embedded:{name}" for name in EMBEDDED), *KNOWN_SETS]
