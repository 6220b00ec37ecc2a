"""Files of many images each (parquet, tar) that lie in one folder: which of them are meant."""

from __future__ import annotations

import os
import re
from pathlib import Path

from overture.data.arrangement import SUFFIXES, natural
from overture.errors import OvertureError, UsageError, nearest

__all__ = ["find_shards"]

KINDS = (".parquet", ".tar")
_NUMBERED = re.compile(r"^(.*?)[-_.]?(\d+(-of-\d+)?(-[0-9a-f]{8,})?)?$")
_SAME = {"val": "validation", "validation": "val"}


def find_shards(spec: str, path: Path) -> list[Path]:
    """The ``.parquet`` or ``.tar`` files that ``path`` means, in the order of their numbers; empty if it means none.

    ``path`` is a folder of them, or such a folder and a split: ``folder/train`` means ``train-00000-of-00294.parquet``
    and so on, in the folder or in its folder ``data``. A folder in which pictures lie in sub-folders means those.
    """
    if path.is_dir():
        splits = {} if _has_class_folders(path) else _splits(spec, path)
        if len(splits) > 1:
            raise UsageError(f"{spec}: holds {', '.join(splits)}; write which, as in {spec}/{next(iter(splits))}")
        return next(iter(splits.values()), [])
    if path.exists() or not path.parent.is_dir():
        return []
    splits, wanted = _splits(spec, path.parent), path.name
    for split, files in splits.items():
        if any(
            split == name or split.endswith((f"-{name}", f"_{name}")) for name in (wanted, _SAME.get(wanted, wanted))
        ):
            return files
    if splits and not _has_class_folders(path.parent):
        raise UsageError(f"{spec}: no files of a split '{wanted}' in {path.parent}{nearest(wanted, splits)}")
    return []


def _splits(spec: str, folder: Path) -> dict[str, list[Path]]:
    """The shards of a folder, or of its folder ``data``, by what their names begin with."""
    for place in (folder, folder / "data"):
        try:
            entries = sorted(place.iterdir(), key=lambda entry: natural(entry.name)) if place.is_dir() else []
        except OSError as error:
            raise OvertureError(f"{place}: cannot list this folder ({error.strerror})") from error
        shards = [entry for entry in entries if entry.suffix in KINDS and entry.name[0] != "." and entry.is_file()]
        kinds = sorted({shard.suffix for shard in shards})
        if len(kinds) > 1:
            raise UsageError(f"{spec}: holds {' and '.join(kinds)} files; put one kind into a folder of its own")
        if shards:
            splits: dict[str, list[Path]] = {}
            for shard in shards:
                found = _NUMBERED.match(shard.stem)
                splits.setdefault((found and found[1]) or "images", []).append(shard)
            return splits
    return {}


def _has_class_folders(folder: Path) -> bool:
    """Whether pictures lie in a sub-folder; the first one found is enough."""
    try:
        with os.scandir(folder) as entries:
            inner = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        for place in inner:
            with os.scandir(place) as entries:
                if any(entry.name.lower().endswith(SUFFIXES) for entry in entries):
                    return True
    except OSError as error:
        raise OvertureError(f"{error.filename or folder}: cannot list this folder ({error.strerror})") from error
    return False
