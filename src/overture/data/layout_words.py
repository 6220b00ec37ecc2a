"""A layout in words, for tokens that come without one: ``1024``, ``prologue: 4 x 64, visual: linear 2..1024``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from overture.data.token_files import MAGIC, TokenHeader
from overture.errors import OvertureError, UsageError
from overture.files import near_path, read_json
from overture.layout import Layout, Segment
from overture.schedules import CodebookConfig

__all__ = ["parse_layout"]

FORM = "[NAME:] [COUNT x] SIZE, SIZES or a growth law, such as '1024', 'linear 2..1024', 'head: 4 x 64, rest: 256'"
_SEGMENT = re.compile(r"(?:(?P<name>\w+)\s*:\s+)?(?:(?P<count>\d+)\s*x\s+)?(?P<sizes>\S.*)")


def parse_layout(text: str, positions: int, name: str = "imported") -> Layout:
    """The layout of rows of ``positions`` tokens that ``text`` describes.

    Segments stand side by side, with commas between them, each ``[NAME:] [COUNT x] SIZES``. SIZES is one codebook size
    for all its positions (``1024``), one for each (``2 4 8 16``), or a growth law (``linear 2..1024``, ``power 2``,
    ``my_laws:late ..512``). One segment may leave out its COUNT: it has the positions that are left. A lone segment
    may leave out its NAME. A separator follows every segment but the last. ``text`` may also be a token file, whose
    layout is taken, or a JSON file of :meth:`Layout.to_dict`, which can say everything.

    Raises :class:`~overture.errors.UsageError` for words that are none of these, or of another length.
    """
    path = Path(text)
    if path.suffix in (".tokens", ".json") or (path.suffix and path.is_file()):
        layout = _from_file(path)
    else:
        layout = _from_words(text, positions, name)
    if layout.length != positions:
        raise UsageError(f"layout '{text}': has {layout.length} positions, the tokens have {positions}")
    return layout


def _from_file(path: Path) -> Layout:
    if not path.is_file():
        raise UsageError(f"layout: no file '{path}'{near_path(path)}")
    with path.open("rb") as file:
        tokens = file.read(len(MAGIC)) == MAGIC
    if tokens:
        return TokenHeader.read(path).layout
    try:
        return Layout.from_dict(read_json(path, dict))
    except (json.JSONDecodeError, OvertureError) as error:
        raise UsageError(f"{path}: holds no layout: neither a token file nor JSON of one ({error})") from error


def _from_words(text: str, positions: int, name: str) -> Layout:
    parts = [_SEGMENT.fullmatch(part.strip()) for part in text.split(",")]
    if None in parts:
        raise UsageError(f"layout '{text}': write {FORM}")
    found = [part.groupdict() for part in parts if part is not None]
    if len(found) > 1 and any(part["name"] is None for part in found):
        raise UsageError(f"layout '{text}': every one of several segments needs a name; write {FORM}")
    counts = [_count(part["count"], part["sizes"]) for part in found]
    if counts.count(None) > 1:
        raise UsageError(f"layout '{text}': only one segment may leave out how many positions it has")
    told = sum(count for count in counts if count is not None)
    left = positions - told
    if left < (1 if None in counts else 0):
        more = " and more" if None in counts else ""
        raise UsageError(f"layout '{text}': has {told:,}{more} positions, the tokens have {positions}")
    segments = []
    for number, (part, count) in enumerate(zip(found, counts, strict=True), start=1):
        sizes = _sizes(part["sizes"], left if count is None else count)
        segments.append(Segment(part["name"] or name, sizes, separator=number < len(found)))
    return Layout(tuple(segments))


def _numbers(sizes: str) -> list[int]:
    """Sizes that are plain numbers; none for a growth law."""
    words = sizes.split()
    return [int(word) for word in words] if all(word.isdecimal() for word in words) else []


def _count(count: str | None, sizes: str) -> int | None:
    """How many positions a segment says it has."""
    listed = len(_numbers(sizes))
    if listed > 1 and count is not None and int(count) != listed:
        raise UsageError(f"layout '{count} x {sizes}': has {listed} sizes for {count} positions")
    return int(count) if count is not None else listed if listed > 1 else None


def _sizes(sizes: str, positions: int) -> tuple[int, ...]:
    numbers = _numbers(sizes)
    if len(numbers) == 1:
        return tuple(numbers * positions)
    return tuple(numbers) or CodebookConfig().grown(sizes).build(positions).sizes
