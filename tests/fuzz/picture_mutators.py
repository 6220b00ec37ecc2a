"""Changes of pictures and of zips of them by their structure."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from array_mutators import zipped
from mutators import Mutation, Rng, number, pick
from PIL import Image

# -- PNG ------------------------------------------------------------------------------------------------------------

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZES = (
    (1, 65_500),
    (65_500, 1),
    (0, 5),
    (2**31 - 1, 2**31 - 1),
    (2**31, 1),
    (40_000, 40_000),
    (3, 7),
    (1, 1),
    (13_000, 13_000),
)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with the checksums that they need."""
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return SIGNATURE + b"".join(parts)


def png_size(data: bytes, rng: Rng) -> bytes:
    """The header tells another size, depth, colour type, or way of interlacing."""
    chunks = list(_chunks(data))
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    if rng.random() < 0.6:
        width, height = pick(rng, SIZES)
    else:
        rest[int(rng.integers(5))] = int(pick(rng, (0, 1, 2, 3, 4, 6, 8, 16, 255)))
    return png([(b"IHDR", struct.pack(">IIBBBBB", width, height, *rest)), *chunks[1:]])


def png_chunks(data: bytes, rng: Rng) -> bytes:
    """Chunks are missing, twice, in another order, or of another content."""
    chunks = list(_chunks(data))
    place = int(rng.integers(len(chunks)))
    kind, content = chunks[place]
    text = b"comment\0\0" + zlib.compress(bytes(3 * 10**6))
    ways = (
        chunks[:place] + chunks[place + 1 :], [*chunks, chunks[place]], chunks[::-1],
        [*chunks[:place], (kind, rng.bytes(len(content))), *chunks[place + 1 :]],
        [*chunks[:place], (kind, content[: len(content) // 2]), *chunks[place + 1 :]],
        [chunks[0], (b"zTXt", text), *chunks[1:]], [chunks[0], (b"tRNS", rng.bytes(7)), *chunks[1:]],
        [chunks[0], (b"PLTE", rng.bytes(3 * int(rng.integers(1, 300)))), *chunks[1:]],
        [chunks[0], (b"iCCP", b"p\0\0" + zlib.compress(rng.bytes(300))), *chunks[1:]],
        [chunks[0], (b"eXIf", b"MM\0*" + rng.bytes(60)), *chunks[1:]], [chunks[0], (b"acTL", rng.bytes(8)), *chunks[1:]],
        [chunks[0], (b"gAMA", bytes(4)), *chunks[1:]], [chunks[0], (b"pHYs", b"\xff" * 9), *chunks[1:]],
    )  # fmt: skip
    return png(pick(rng, ways))


@functools.cache
def large_png(width: int, height: int) -> bytes:
    """One grey of this size: few bytes."""
    rows, packer = bytes(width + 1), zlib.compressobj(1)
    body = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()
    return png([(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")])


def large_picture(data: bytes, rng: Rng) -> bytes:
    """A good picture that is very narrow, or has very many pixels."""
    return large_png(*pick(rng, ((1, 65_500), (65_500, 1), (9000, 3), (6000, 6000), (14_000, 14_000))))


# -- any picture ----------------------------------------------------------------------------------------------------


def other_picture(data: bytes, rng: Rng) -> bytes:
    """Another good picture: of another mode, size or format."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    mode = str(pick(rng, ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LA", "YCbCr")))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode) if mode not in ("I", "F") else picture.convert("L").convert(mode)
    picture = picture.resize(pick(rng, ((1, 1), (2, 90), (33, 17), (200, 199))), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    for format_ in rng.permutation(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]).tolist():
        try:
            picture.save(stream, format_)
        except (OSError, ValueError):  # not every format holds every mode
            continue
        break
    return stream.getvalue()


def exif(data: bytes, rng: Rng) -> bytes:
    """A JPEG with an odd orientation, or with tags that nobody can read."""
    with Image.open(io.BytesIO(data)) as opened:
        picture, tags = opened.convert("RGB"), Image.Exif()
    tags[274] = int(pick(rng, (0, 1, 3, 6, 8, 9, 65_535)))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", exif=tags.tobytes() if rng.random() < 0.5 else b"Exif\0\0" + rng.bytes(50))
    return stream.getvalue()


PICTURE = (
    Mutation("other_picture", other_picture, resigned=True),
    Mutation("large_picture", large_picture, resigned=True),
    Mutation("exif", exif, resigned=True),
)
PNG = (Mutation("png_size", png_size, resigned=True), Mutation("png_chunks", png_chunks, resigned=True), *PICTURE)


# -- zips of pictures -----------------------------------------------------------------------------------------------

NAMES = (
    "a/x.png", "x.png", "a/b/c/d.png", "../x.png", "/x.png", "a\\x.png", "a/.x.png", "a/x.txt", "a/" + "x" * 5000 + ".png",
    "\x1b[2J/x.png", "a/\n.png", "é/ü.png", "__MACOSX/x.png", "a//x.png", "/.png", "a/", "١/x.png", "²/x.png",
)  # fmt: skip


def change_members(data: bytes, rng: Rng) -> bytes:
    """A good zip of other members: a bad picture, an odd name, an unusual compression, nothing."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name, way = pick(rng, list(members)), rng.random()
    if way < 0.4:
        ways = (png_size, png_chunks, large_picture, other_picture)
        members[name] = pick(rng, ways)(members[name], rng)
    elif way < 0.5:
        members[name] = pick(rng, (b"", b"x", rng.bytes(100)))
    elif way < 0.9:
        members[pick(rng, NAMES)] = members.pop(name) if rng.random() < 0.5 else members[name]
    else:
        members = {}
    return zipped(members, pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))


def change_directory(data: bytes, rng: Rng) -> bytes:
    """A field of the central directory is another: sizes, offsets, flags, counts."""
    entry = data.rfind(b"PK\x01\x02") if rng.random() < 0.5 else data.find(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    fields = ((4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (38, 4), (42, 4))
    ends = ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))
    start, (offset, size) = pick(rng, ((entry, pick(rng, fields)), (end, pick(rng, ends))))
    value = (number(rng) % 2 ** (8 * size)).to_bytes(size, "little")
    return data[: start + offset] + value + data[start + offset + size :]


@functools.cache
def zip_of_zeros() -> bytes:
    """A zip whose one member of 300 KB unpacks to 300 MB."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a/x.png", "w") as member,
    ):
        for _ in range(300):
            member.write(bytes(10**6))
    return stream.getvalue()


def unpacks_to_much(data: bytes, rng: Rng) -> bytes:
    """A small zip of a large member, which may deny its size."""
    made = zip_of_zeros()
    return made if rng.random() < 0.5 else made.replace(struct.pack("<I", 300 * 10**6), struct.pack("<I", 1000))


ZIP = (
    Mutation("change_members", change_members, resigned=True),
    Mutation("change_directory", change_directory),
    Mutation("unpacks_to_much", unpacks_to_much, resigned=True),
)
