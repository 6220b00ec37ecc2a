"""Changes of arrays and tensors by their structure: ``.npy``, ``.npz``, safetensors, token files."""

from __future__ import annotations

import functools
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mutators import Mutation, Rng, change_value, number, pick, written
from safetensors.torch import load, save

from overture.model_files import header_texts, weights_hash

ALIGNMENT = 64


# -- numpy ----------------------------------------------------------------------------------------------------------

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


# -- safetensors ----------------------------------------------------------------------------------------------------


def _raw_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def change_header(data: bytes, rng: Rng) -> bytes:
    """The file says otherwise where its tensors lie, or what it is of; its hashes stay."""
    header, body = _raw_header(data)
    text = written(change_value(header, rng)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def _changed_tensor(tensor: Any, rng: Rng) -> Any:
    ways = (
        lambda: tensor.to(
            pick(rng, (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool))
        ),
        lambda: tensor.reshape(-1),
        lambda: tensor[..., None],
        lambda: tensor[:1] if tensor.ndim else tensor,
        lambda: torch.zeros(0),
        lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
        lambda: torch.full_like(tensor, pick(rng, (0, 1, -1))),
        lambda: torch.full_like(tensor.float(), float(pick(rng, ("nan", "inf", "-inf", "1e38")))),
        lambda: torch.where(torch.rand(tensor.shape) < 0.1, torch.nan, tensor.float()),
    )
    return pick(rng, ways)().contiguous()


def _changed_tensors(tensors: dict[str, Any], rng: Rng) -> dict[str, Any]:
    name, new = pick(rng, sorted(tensors)), dict(tensors)
    way = rng.random()
    if way < 0.7:
        new[name] = _changed_tensor(tensors[name], rng)
    elif way < 0.8:
        new.pop(name)
    elif way < 0.9:
        new[pick(rng, (name + ".x", "raw.", "ema.x", "x", "raw.x"))] = new.pop(name).clone()
    else:
        kept = pick(rng, ("raw.", "ema.", "nothing", name.rpartition(".")[0]))
        new = {key: tensor for key, tensor in tensors.items() if key.startswith(kept)}
    return new


def change_tensors(data: bytes, rng: Rng) -> bytes:
    """One tensor is another; hashes stay what they were."""
    texts = _raw_header(data)[0].get("__metadata__")
    return save(_changed_tensors(load(data), rng), texts)


def sign_model(data: bytes, rng: Rng) -> bytes:
    """A model file with another tensor or other metadata, and hashes that fit."""
    tensors, texts = load(data), _raw_header(data)[0]["__metadata__"]
    told = {
        key: text for key, text in texts.items() if not key.endswith("_hash") and key not in ("format_version", "kind")
    }
    if rng.random() < 0.4:
        tensors = _changed_tensors(tensors, rng)
    else:
        key = pick(rng, sorted(told))
        content: Any = json.loads(told[key]) if told[key][:1] in '{["0123456789' else told[key]
        told[key] = written(change_value(content, rng))
    return save(tensors, header_texts(texts["kind"], weights_hash(tensors), told))


TENSORS = (Mutation("change_header", change_header), Mutation("change_tensors", change_tensors))
MODEL = (*TENSORS, Mutation("sign_model", sign_model, resigned=True))


# -- token files ----------------------------------------------------------------------------------------------------


def _align(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _token_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, and everything from the ids on."""
    length = int.from_bytes(data[8:16], "little")
    return json.loads(data[16 : 16 + length]), data[_align(16 + length) :]


def _token_file(fields: dict[str, Any], body: bytes) -> bytes:
    """A file with a header that fits itself."""
    told = {key: value for key, value in fields.items() if key not in ("checksum", "format_version")}
    told["checksum"] = zlib.crc32(json.dumps(told).encode())
    text = written({"format_version": fields.get("format_version", 2), **told}).encode()
    start = data_start = b"OVTOKENS" + struct.pack("<Q", len(text)) + text
    return start + bytes(_align(len(data_start)) - len(start)) + body


def sign_token_header(data: bytes, rng: Rng) -> bytes:
    """The header says something else, with a checksum that fits."""
    fields, body = _token_parts(data)
    changed = change_value(fields, rng)
    return _token_file(changed if isinstance(changed, dict) else {}, body)


def sign_token_ids(data: bytes, rng: Rng) -> bytes:
    """Other ids or labels, with checksums that fit: ids beyond their codebooks, classes that there are not."""
    fields, body = _token_parts(data)
    rows, block = fields["rows"], fields["block"]
    per_row = fields["crops_per_row"] * sum(len(s["sizes"]) for s in fields["layout"]["segments"])
    ids = np.frombuffer(body, "<u2", rows * per_row).copy()
    labels = np.frombuffer(body, "<i4", rows, offset=_align(ids.nbytes)).copy()
    if rng.random() < 0.6:
        ids[rng.integers(len(ids), size=3)] = pick(rng, (0, 1, 40, 2**15, 2**16 - 1))
    else:
        labels[rng.integers(rows)] = pick(rng, (-1, 0, 10, 2**31 - 1, -(2**31)))
    sums = [
        zlib.crc32(labels[r : r + block].tobytes(), zlib.crc32(ids[r * per_row : (r + block) * per_row].tobytes()))
        for r in range(0, rows, block)
    ]
    filled = ids.tobytes().ljust(_align(ids.nbytes), b"\0")
    return _token_file(fields, filled + labels.tobytes() + np.array(sums, "<u4").tobytes())


TOKENS = (
    Mutation("sign_token_header", sign_token_header, resigned=True),
    Mutation("sign_token_ids", sign_token_ids, resigned=True),
)
