"""Changes of ``.npy`` and ``.npz`` files by their structure."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from mutators import Mutation, Rng, number, pick

DTYPES = (
    "<u1",
    "<u2",
    "<i2",
    "<i4",
    "<i8",
    "<u8",
    ">i4",
    "<f2",
    "<f4",
    "<f8",
    "<c8",
    "|b1",
    "<U3",
    "|S5",
    "<M8[s]",
    "|V3",
)
SHAPES = (
    (),
    (0,),
    (-1,),
    (2**40,),
    (2**20, 2**20),
    (0, 2**40),
    (3, 0),
    (1, 2, 3),
    (1,) * 32,
    (2**63,),
    (10**30,),
    (2**31, 2),
)


def change_array(array: Any, rng: Rng) -> Any:
    """Another array that numpy can write: other numbers, another type, another shape, other rows."""
    array = np.asarray(array)
    way = int(rng.integers(8))
    with np.errstate(all="ignore"):
        if way == 0 and array.dtype.kind != "U":
            return array.astype(pick(rng, DTYPES[:-2]))
        if way == 1:
            return pick(rng, (array.reshape(-1), array[..., None], array[None], array.T, np.asfortranarray(array)))
        if way == 2 and array.size and array.ndim:
            return pick(
                rng, (array[:0], array[:1], array[:-1], np.concatenate([array, array]), array[..., :0], array[..., :1])
            )
        if way == 3 and array.size and array.dtype.kind in "iuf":
            return _with_odd_numbers(array, rng)
        if way == 4:
            return pick(rng, (np.zeros_like(array), np.ones_like(array), np.str_("x"), np.int64(-3), np.float64("nan")))
        if way == 5:
            return np.zeros(array.shape, [("a", "<i4"), ("b", "<f4")])
        if way == 6 and array.ndim == 2:
            return np.eye(max(array.shape), dtype=array.dtype)[: array.shape[0]]
    return np.asarray(pick(rng, ("", "x" * 1000, "3x", "axb", "-1x5", "9" * 30 + "x1", "\x1b", "none")))


def _with_odd_numbers(array: Any, rng: Rng) -> Any:
    new = array.copy()
    odd = (np.nan, np.inf, -np.inf, 1e300, -1.0, 0.0) if array.dtype.kind == "f" else ()
    limits = (0, 1) if array.dtype.kind == "f" else (np.iinfo(array.dtype).min, np.iinfo(array.dtype).max, 40)
    places = rng.integers(0, array.size, int(pick(rng, (1, 1, 5, array.size))))
    new.reshape(-1)[places] = pick(rng, (*odd, *limits))
    return new


def npy(array: Any) -> bytes:
    """The file of an array."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=True)
    return stream.getvalue()


def _header(rng: Rng, body: bytes) -> bytes:
    """A header that says something else than what follows, or nothing that can be read."""
    shape, dtype = pick(rng, SHAPES), pick(rng, (*DTYPES, "|O", "<f999", "x", "<i4,<i4"))
    texts = (
        f"{{'descr': '{dtype}', 'fortran_order': {pick(rng, (False, True))}, 'shape': {shape}, }}",
        f"{{'descr': '<u1', 'fortran_order': False, 'shape': ({number(rng)}, {number(rng)}), }}",
        "{'descr': [('a', '<i4'), ('b', [('c', '<f8')])], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<u1', 'fortran_order': False}", "{'descr': '<u1', ", "(" * 3000, "__import__('os')", "\0" * 40, "[1]",
    )  # fmt: skip
    text = pick(rng, texts).encode("latin1")
    version = pick(rng, (b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    length = len(text) + 1 if rng.random() < 0.8 else number(rng) % 2**16
    size = length.to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text + b"\n" + body


def change_npy(data: bytes, rng: Rng) -> bytes:
    """Another array, or another header."""
    if rng.random() < 0.5:
        return npy(change_array(np.load(io.BytesIO(data)), rng))
    return _header(rng, data[128 : 128 + int(rng.integers(1, 400))])


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@functools.cache
def _many_zeros() -> bytes:
    """A zip of one array of 300 MB that takes 300 KB."""
    stream, header = io.BytesIO(), npy(np.zeros((0, 64, 64, 3), np.uint8)).replace(b"(0, 64", b"(24415, 64")
    header = header.replace(b"    \n", b"\n").ljust(128)[:127] + b"\n"
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("arr_0.npy", "w") as member,
    ):
        member.write(header)
        for _ in range(24415):
            member.write(bytes(64 * 64 * 3))
    return stream.getvalue()


def change_npz(data: bytes, rng: Rng) -> bytes:
    """A valid zip: one member is another array, has another header, is no array, is missing, or is called otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = pick(rng, list(members))
    way = rng.random()
    if way < 0.5:
        members[name] = npy(change_array(np.load(io.BytesIO(members[name])), rng))
    elif way < 0.65:
        members[name] = _header(rng, members[name][128:])
    elif way < 0.75:
        members[name] = npy(np.array([{"a": 1}, None], dtype=object))
    elif way < 0.8:
        members[name] = pick(rng, (b"", b"no array", rng.bytes(200)))
    elif way < 0.9:
        moved = members.pop(name)
        others = (
            None,
            "images.npy",
            "arr_0.npy",
            "labels.npy",
            "mu.npy",
            ".npy",
            "a/b.npy",
            "\x1b.npy",
            "x" * 3000 + ".npy",
        )
        if (new := pick(rng, others)) is not None:
            members[new] = moved
    elif way < 0.92:
        return _many_zeros()
    return zipped(members, pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))


NPY = (Mutation("change_npy", change_npy, resigned=True),)
NPZ = (Mutation("change_npz", change_npz, resigned=True),)
