"""Changes of safetensors files, model files and token files by their structure."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np
import torch
from mutators import Mutation, Rng, change_value, pick, written
from safetensors.torch import load, save

from overture.model_files import header_texts, weights_hash

ALIGNMENT = 64


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
