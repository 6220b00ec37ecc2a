"""Changes of files: of any bytes, and of JSON by its structure.

A change is a function of the good bytes and a numpy ``Generator``. Those that are ``resigned`` write fitting hashes
again: such a file is not damaged, it is a stranger's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Rng = np.random.Generator
Change = Callable[[bytes, Rng], bytes]

NUMBERS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
"""Counts and sizes that readers stumble over."""


@dataclass(frozen=True)
class Mutation:
    """One way to change a file."""

    name: str
    change: Change
    resigned: bool = False
    """Whether its hashes fit what it now holds."""


def pick(rng: Rng, choices: Any) -> Any:
    """One of some choices."""
    return choices[int(rng.integers(len(choices)))]


def number(rng: Rng) -> int:
    """A number to put where a count or a size stands."""
    return int(pick(rng, NUMBERS)) if rng.random() < 0.8 else int(rng.integers(2**40))


# -- bytes ----------------------------------------------------------------------------------------------------------


def _place(data: bytes, rng: Rng) -> int:
    """Anywhere, but half of the time where headers lie: near the beginning or the end."""
    where, near = rng.random(), min(len(data), 256)
    if where < 0.3:
        return int(rng.integers(near))
    return len(data) - 1 - int(rng.integers(near)) if where < 0.5 else int(rng.integers(len(data)))


def _part(data: bytes, rng: Rng) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + 1 + int(rng.integers(2 ** int(rng.integers(1, 12)))))


def flip_bit(data: bytes, rng: Rng) -> bytes:
    """One bit is another."""
    place = _place(data, rng)
    return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]


def set_byte(data: bytes, rng: Rng) -> bytes:
    """One byte is another."""
    place = _place(data, rng)
    value = int(pick(rng, (0, 1, 0x20, 0x22, 0x7F, 0x80, 0xFF, int(rng.integers(256)))))
    return data[:place] + bytes([value]) + data[place + 1 :]


def truncate(data: bytes, rng: Rng) -> bytes:
    """The end is missing, or all of it."""
    return data[: _place(data, rng)] if rng.random() < 0.95 else b""


def extend(data: bytes, rng: Rng) -> bytes:
    """There is more than there was."""
    length = 1 + int(rng.integers(2 ** int(rng.integers(1, 14))))
    more = pick(rng, (bytes(length), rng.bytes(length), data[:length], data))
    return data + more if rng.random() < 0.7 else more + data


def cut_out(data: bytes, rng: Rng) -> bytes:
    """A part in the middle is missing."""
    start, stop = _part(data, rng)
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: Rng) -> bytes:
    """A part stands there twice, or many times."""
    start, stop = _part(data, rng)
    return data[:stop] + data[start:stop] * int(pick(rng, (1, 1, 2, 30))) + data[stop:]


def overwrite(data: bytes, rng: Rng) -> bytes:
    """A part is zeros, noise, or what stands elsewhere."""
    start, stop = _part(data, rng)
    other = _place(data, rng)
    new = pick(rng, (bytes(stop - start), rng.bytes(stop - start), data[other : other + stop - start]))
    return data[:start] + new + data[stop:]


def write_number(data: bytes, rng: Rng) -> bytes:
    """A number of 2, 4 or 8 bytes stands where another thing stood."""
    place, size = _place(data, rng), int(pick(rng, (2, 4, 8)))
    value = (number(rng) % 2 ** (8 * size)).to_bytes(size, pick(rng, ("little", "big")))
    return data[:place] + value + data[place + size :]


BYTES = tuple(
    Mutation(change.__name__, change)
    for change in (flip_bit, set_byte, truncate, extend, cut_out, repeat, overwrite, write_number)
)


# -- JSON -----------------------------------------------------------------------------------------------------------

DEEP, LONG = "@deep@", "@long@"
"""Stand for what ``json.dumps`` cannot write: lists in lists without end, a number of thousands of digits."""
TEXTS = (
    "", " ", "x", "none", "0", "nan", "a\nb", "\x1b[31m", "\ud800", "é" * 40, "x" * 100_000, "../..", "a:b", "json:dumps",
    "<script>", "{{ x }}", "%s", DEEP, LONG,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 10**6, 2**31, 2**63, 2**70, 10**30,
    10**400, [], {}, [[]], [None], {"a": 1}, {"kind": "nobody"}, [1, "a", None], *TEXTS,
)  # fmt: skip


def change_value(value: Any, rng: Rng) -> Any:
    """A copy of some JSON with one node changed."""
    root = [json.loads(json.dumps(value))]
    places = list(_nodes(root))
    holder, key = pick(rng, places[1:] or places)
    pick(rng, (_replace, _replace, _replace, _drop, _rename, _retype, _grow))(holder, key, rng)
    return root[0] if root else None


def _nodes(holder: Any) -> Any:
    for key, item in list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder)):
        yield holder, key
        if isinstance(item, dict | list):
            yield from _nodes(item)


def _replace(holder: Any, key: Any, rng: Rng) -> None:
    holder[key] = pick(rng, VALUES)


def _drop(holder: Any, key: Any, rng: Rng) -> None:
    del holder[key]


def _rename(holder: Any, key: Any, rng: Rng) -> None:
    if isinstance(holder, dict):
        spellings = (key.upper(), key[:-1], key + "s", key[::-1], key.replace("_", "-"), "", "kind", *TEXTS[:6])
        holder[pick(rng, spellings)] = holder.pop(key)
    else:
        holder.insert(key, holder[key])


def _retype(holder: Any, key: Any, rng: Rng) -> None:
    old = holder[key]
    holder[key] = pick(rng, (str(old), [old], {"a": old}, bool(old), [old] * 300, -1 if old is None else [old, None]))


def _grow(holder: Any, key: Any, rng: Rng) -> None:
    old = holder[key]
    if isinstance(old, bool) or not isinstance(old, int | float):
        holder[key] = old * 2 if isinstance(old, str | list) else number(rng)
    else:
        holder[key] = pick(rng, (-old, old + 1, old * 1000, old / 3, float(old), old * 10**9, number(rng)))


def written(value: Any, **style: Any) -> str:
    """As JSON, with what only a text can say."""
    text = json.dumps(value, **style)
    return text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).replace(f'"{LONG}"', "9" * 5000)


def change_json(data: bytes, rng: Rng) -> bytes:
    """One node is another; a checksum is that of before."""
    return written(change_value(json.loads(data), rng), indent=1).encode()


def sign_json(data: bytes, rng: Rng) -> bytes:
    """One node is another, and the checksum that of the new content."""
    content = json.loads(data)
    content.pop("checksum", None)
    content = change_value(content, rng)
    if isinstance(content, dict):
        told = json.dumps(content, sort_keys=True).encode()
        content["checksum"] = hashlib.sha256(told).hexdigest()[:16]
    return written(content, indent=1).encode()


def other_root(data: bytes, rng: Rng) -> bytes:
    """Something else than an object, or not quite JSON."""
    texts = (
        "null", "1", '"x"', "[]", "{}", "[1]", "{'a': 1}", "NaN", "", "\ufeff{}", "{} {}", '{"a":', "[" * 100_000, '{"a":' * 50_000,
    )  # fmt: skip
    return str(pick(rng, texts)).encode()


def change_line(data: bytes, rng: Rng) -> bytes:
    """One line of JSON lines is another."""
    lines = data.decode().splitlines()
    place = int(rng.integers(len(lines)))
    new = written(change_value(json.loads(lines[place]), rng)), str(other_root(data, rng), "utf-8")
    lines[place] = new[0] if rng.random() < 0.9 else new[1]
    return ("\n".join(lines) + "\n").encode()


JSON = (Mutation("change_json", change_json), Mutation("other_root", other_root))
RECORD = (
    JSON[0],
    Mutation("other_root", other_root, resigned=True),
    Mutation("sign_json", sign_json, resigned=True),
)
LINES = (Mutation("change_line", change_line, resigned=True),)
