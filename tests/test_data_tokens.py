import errno
import itertools
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from overture.data import token_files
from overture.data.base import ArraySource
from overture.data.ids import load_ids
from overture.data.token_files import TokenFile, TokenHeader, TokenStream, TokenWriter
from overture.errors import OvertureError, UsageError
from overture.layout import Layout, Segment

LAYOUT = Layout((Segment("prologue", (4, 8), separator=True), Segment("visual", (16, 32, 64))))


def header(layout=LAYOUT, rows=10, crops=2, **changes):
    return TokenHeader(layout, "hash", f"random-{crops}", crops, rows, 5, "somewhere", "print", **changes)


def content(head, seed=0):
    rng = np.random.default_rng(seed)
    shape = (head.rows, head.crops_per_row, head.layout.length)
    return rng.integers(0, head.layout.sizes, shape), rng.integers(0, head.num_classes, head.rows)


def write(path, head, ids, labels, block=4):
    writer = TokenWriter(path, head, block=block)
    for rows in writer.missing():
        writer.write(rows, ids[rows.start : rows.stop], labels[rows.start : rows.stop])
    return writer.finish()


@pytest.fixture
def file(tmp_path):
    head = header()
    return write(tmp_path / "a.tokens", head, *content(head))


layouts = st.lists(st.sampled_from([1, 2, 7, 256, 65_536, 65_537, 2**20]), min_size=1, max_size=5).map(Layout.single)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_written_is_read(tmp_path, data):
    layout = data.draw(layouts)
    head = header(layout, rows=data.draw(st.integers(1, 9)), crops=data.draw(st.integers(1, 3)))
    shape = (head.rows, head.crops_per_row, layout.length)
    ids = np.minimum(data.draw(arrays(np.int64, shape, elements=st.integers(0, 2**20 - 1))), np.array(layout.sizes) - 1)
    labels = data.draw(arrays(np.int64, head.rows, elements=st.integers(0, head.num_classes - 1)))
    path = tmp_path / "a.tokens"
    block = data.draw(st.integers(1, 10))
    writer = TokenWriter(path, head, block=block)
    world = data.draw(st.integers(1, 3))
    blocks = [rows for rank in range(world) for rows in writer.missing(rank, world)]
    assert sorted(row for rows in blocks for row in rows) == list(range(head.rows))
    for rows in data.draw(st.permutations(blocks)):
        writer.write(rows, ids[rows.start : rows.stop], labels[rows.start : rows.stop])
    file = writer.finish()
    assert file.header == replace(head, block=block)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tokens"]
    assert file.labels.tolist() == labels.tolist()
    for crop in range(file.crops):
        assert (file.ids(crop=crop) == ids[:, crop]).all()
    rows = np.array(data.draw(st.lists(st.integers(0, head.rows - 1), min_size=1, max_size=6)))
    crops = np.array(
        data.draw(st.lists(st.integers(0, head.crops_per_row - 1), min_size=len(rows), max_size=len(rows)))
    )
    assert (file.ids(rows, crops) == ids[rows, crops]).all()
    assert (file.ids(slice(1, None, 2), np.zeros(head.rows // 2, int)) == ids[1::2, 0]).all()
    assert file.ids().dtype == np.int64


def test_storage_is_as_documented(file):
    """Read the bytes without our reader."""
    data = file.path.read_bytes()
    length = int.from_bytes(data[8:16], "little")
    head = json.loads(data[16 : 16 + length])
    assert data[:8] == b"OVTOKENS"
    assert (head["rows"], head["crops"], head["crops_per_row"], head["tokenizer"]) == (10, "random-2", 2, "hash")
    assert Layout.from_dict(head["layout"]) == LAYOUT
    assert (head.pop("format_version"), head["block"]) == (2, 4)
    assert head.pop("checksum") == zlib.crc32(json.dumps(head).encode())
    start = (16 + length + 63) // 64 * 64
    ids = np.frombuffer(data, "<u2", 100, start).reshape(10, 2, 5)
    assert (ids[:, 1] == file.ids(crop=1)).all()
    start = (start + 200 + 63) // 64 * 64
    labels = np.frombuffer(data, "<i4", 10, offset=start)
    assert labels.tolist() == file.labels.tolist()
    blocks = [slice(0, 4), slice(4, 8), slice(8, 10)]
    expected = [zlib.crc32(ids[rows].tobytes() + labels[rows].tobytes()) for rows in blocks]
    assert np.frombuffer(data, "<u4", offset=start + 40).tolist() == expected


def test_files_of_format_1_are_read(file, tmp_path):
    """Without checksums; ids and labels are looked at all the same."""
    head, old = replace(file.header, block=0), tmp_path / "old.tokens"
    text = json.dumps({"format_version": 1, **json.loads(head.to_bytes()[16:])}).encode()
    assert b"checksum" not in text
    assert b"block" not in text
    assert head.to_bytes() == b"OVTOKENS" + len(text).to_bytes(8, "little") + text

    def save(ids, labels):
        with old.open("wb") as out:
            out.write(head.to_bytes())
            out.seek(head.ids_offset)
            out.write(ids.astype("<u2").tobytes())
            out.seek(head.labels_offset)
            out.write(labels.astype("<i4").tobytes())

    ids, labels = content(head)
    save(ids, labels)
    found = TokenFile.open(old)
    assert (found.ids(crop=1) == ids[:, 1]).all()
    assert found.labels.tolist() == labels.tolist()
    ids[7, 1, 2] = 16
    save(ids, labels)
    refused(old, "id 16", "position 2", "outside 0..15")
    ids[7, 1, 2], labels[3] = 15, 5  # 5 would be the class "unconditional"
    save(ids, labels)
    refused(old, "labels run from 0 to 5", "5 classes")


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_large_codebooks_take_four_bytes(size, dtype):
    assert header(Layout.single([2, size])).dtype == dtype


def test_interrupted_writing_goes_on(tmp_path):
    head, path = header(), tmp_path / "sub" / "a.tokens"
    ids, labels = content(head)
    first = TokenWriter(path, head, block=3)
    first.write(range(3, 6), ids[3:6], labels[3:6])
    with pytest.raises(OvertureError, match="3 of 4 blocks of rows are not written yet"):
        first.finish()
    with pytest.raises(OvertureError, match="interrupted"):
        TokenFile.open(path)
    again = TokenWriter(path, head, block=3)
    assert again.missing() == [range(3), range(6, 9), range(9, 10)]
    assert TokenWriter(path, head, block=3, join=True).missing(1, 2) == [range(9, 10)]
    for rows in again.missing():
        again.write(rows, ids[rows.start : rows.stop], labels[rows.start : rows.stop])
    assert (again.finish().ids(crop=1) == ids[:, 1]).all()


@pytest.mark.parametrize("change", ["tokenizer", "block"])
def test_another_writing_starts_over(tmp_path, change):
    head, path = header(), tmp_path / "a.tokens"
    ids, labels = content(head)
    TokenWriter(path, head, block=5).write(range(5), ids[:5], labels[:5])
    other = header() if change == "block" else TokenHeader(LAYOUT, "other", "random-2", 2, 10, 5)
    block = 6 if change == "block" else 5  # as many blocks as before
    with pytest.raises(OvertureError, match="no writing with this header to join"):
        TokenWriter(path, other, block=block, join=True)
    assert len(TokenWriter(path, other, block=block).missing()) == 2


def test_stopped_between_truncating_and_renaming(tmp_path, monkeypatch):
    head, path = header(), tmp_path / "a.tokens"
    ids, labels = content(head)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(path, head, ids, labels)
    writer = TokenWriter(path, head, block=4)
    assert writer.missing() == []
    assert (writer.finish().ids() == ids[:, 0]).all()


def test_full_disk_loses_nothing(tmp_path, monkeypatch):
    head, path = header(), tmp_path / "a.tokens"
    ids, labels = content(head)
    writer = TokenWriter(path, head, block=4)
    writer.write(range(4), ids[:4], labels[:4])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(token_files, "flush_to_disk", full)
        with pytest.raises(OvertureError, match=r"a\.tokens\.partial: cannot write tokens \(No space left") as caught:
            writer.write(range(4, 8), ids[4:8], labels[4:8])
        assert "\n" not in str(caught.value)
        with pytest.raises(OvertureError, match="No space left"):
            TokenWriter(tmp_path / "b.tokens", head)
    writer = TokenWriter(path, head, block=4)
    assert writer.missing() == [range(4, 8), range(8, 10)]
    for rows in writer.missing():
        writer.write(rows, ids[rows.start : rows.stop], labels[rows.start : rows.stop])
    with monkeypatch.context() as patch:
        patch.setattr(token_files, "flush_to_disk", full)
        with pytest.raises(OvertureError, match="No space left"):
            writer.finish()
    file = TokenWriter(path, head, block=4).finish()
    assert (file.ids() == ids[:, 0]).all()
    assert file.labels.tolist() == labels.tolist()


def test_wrong_content_is_refused(tmp_path):
    head = header()
    ids, labels = content(head)
    writer = TokenWriter(tmp_path / "a.tokens", head, block=4)
    with pytest.raises(UsageError, match="not one of the blocks"):
        writer.write(range(1, 5), ids[1:5], labels[1:5])
    with pytest.raises(OvertureError, match="needs"):
        writer.write(range(4), ids[:4, :1], labels[:4])
    ids[2, 1, 3] = 32
    with pytest.raises(OvertureError, match=r"id 32 .*outside 0\.\.31"):
        writer.write(range(4), ids[:4], labels[:4])
    labels[5] = 5
    with pytest.raises(OvertureError, match=r"labels need to be in 0\.\.4"):
        writer.write(range(4, 8), ids[4:8], labels[4:8])
    assert len(writer.missing()) == 3


def test_header_of_a_source():
    source = ArraySource("set", np.zeros((6, 2, 2), np.uint8), np.arange(6) % 2, ["a", "b", "c"])
    head = TokenHeader.of(source, LAYOUT, "hash", "ten", 10)
    assert (head.rows, head.num_classes, head.source, head.fingerprint) == (6, 3, "set", source.fingerprint())


def refused(path, *words):
    with pytest.raises(OvertureError) as caught:
        TokenFile.open(path)
    assert "\n" not in str(caught.value)
    for word in (path.name, *words):
        assert word in str(caught.value)


def test_damaged_files_are_told_in_one_line(file, tmp_path):
    data, path = file.path.read_bytes(), tmp_path / "bad.tokens"
    refused(path, "cannot read")
    for wrong, word in (
        (data[:-1], "truncated"),
        (data[:100], "truncated"),
        (data[:12], "truncated"),
        (b"", "not a token file"),
        (b"PK" + data[2:], "not a token file"),
        (data + b"x", "damaged"),
        (data.replace(b'"format_version": 2', b'"format_version": 7'), "format 7"),
        (data.replace(b'"rows"', b'"rovs"'), "header"),
        (data.replace(b'{"segments"', b'["segments"'), "header"),
        (data.replace(b'"rows": 10', b'"rows": -1'), "header"),
    ):
        assert wrong != data
        path.write_bytes(wrong)
        refused(path, word)


def test_a_flipped_bit_anywhere_is_damage(file, tmp_path):
    data, head = file.path.read_bytes(), file.header
    used = [*range(16 + int.from_bytes(data[8:16], "little"))]
    used += [*range(head.ids_offset, head.ids_offset + 200), *range(head.labels_offset, len(data))]
    for place in used:
        path = tmp_path / f"{place}.tokens"
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        refused(path)


def test_counts_that_are_none_are_refused(file, tmp_path):
    """With a checksum that fits: who wrote it meant them."""
    head = json.loads(file.header.to_bytes()[16:])
    del head["format_version"], head["checksum"]
    changes = (
        {"rows": 2**70},
        {"rows": "10"},
        {"rows": 1.5},
        {"block": -1},
        {"num_classes": None},
        {"crops_per_row": 10**9},
    )
    for number, change in enumerate(changes):
        fields = {**head, **change}
        text = json.dumps({"format_version": 2, **fields, "checksum": zlib.crc32(json.dumps(fields).encode())}).encode()
        path = tmp_path / f"{number}.tokens"
        path.write_bytes(
            b"OVTOKENS" + len(text).to_bytes(8, "little") + text + file.path.read_bytes()[16 + len(text) :]
        )
        refused(path)


def test_other_images_are_refused(file):
    class Images:
        name, length, print = "elsewhere", 10, "print"

        def __len__(self):
            return self.length

        def fingerprint(self):
            return self.print

    same, fewer, others = Images(), Images(), Images()
    file.check_source(same)
    fewer.length, others.print = 9, "other"
    for images, told in ((fewer, r"10 of somewhere, fingerprint print.*\(9, print\)"), (others, r"\(10, other\)")):
        with pytest.raises(OvertureError, match=rf"a\.tokens: tokens of other images.*{told}"):
            file.check_source(images)


def test_other_layouts_and_tokenizers_are_refused(file):
    file.check_layout(LAYOUT)
    file.check_tokenizer("hash")
    with pytest.raises(OvertureError, match=r"a\.tokens: tokens of another layout \(2 prologue .*needs 5 visual"):
        file.check_layout(Layout.single([64] * 5))
    swapped = Layout((Segment("prologue", (8, 4), separator=True), Segment("visual", (16, 32, 64))))
    with pytest.raises(OvertureError, match="codebook sizes differ"):
        file.check_layout(swapped)
    with pytest.raises(OvertureError, match="another tokenizer"):
        file.check_tokenizer("hush")


def take(stream, start, count):
    return list(itertools.islice(stream.batches(start), count))


def test_token_stream_is_a_function_of_seed_and_step(file):
    whole = take(TokenStream(file, 4, seed=1), 0, 12)
    ids = np.stack([file.ids(crop=crop) for crop in range(2)])
    drawn = []
    for epoch in range(2):  # 5 steps are 2 epochs of 10 rows in batches of 4
        rows = torch.cat([batch.indices for batch in whole])[10 * epoch : 10 * epoch + 10]
        assert sorted(rows.tolist()) == list(range(10))
    for batch in whole:
        assert batch.ids.dtype == batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == file.labels[batch.indices].tolist()
        for row, found in zip(batch.indices.tolist(), batch.ids.numpy(), strict=True):
            drawn.append([bool((found == ids[crop, row]).all()) for crop in range(2)])
    assert np.any(drawn, axis=1).all()
    assert (np.array(drawn).sum(axis=0) > 5).all()  # both crops come up
    for start in (2, 7):
        assert torch.equal(take(TokenStream(file, 4, seed=1), start, 1)[0].ids, whole[start].ids)
    parts = [take(TokenStream(file, 4, 1, rank, 2), 0, 12) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].ids for part in parts]), batch.ids)
    assert not torch.equal(take(TokenStream(file, 4, seed=2), 0, 1)[0].indices, whole[0].indices)


def test_tensors_are_the_central_crops_with_their_labels(tmp_path):
    head = TokenHeader(LAYOUT, "hash", "ten", 10, 10, 5)
    ids, labels = content(head)
    file = write(tmp_path / "a.tokens", head, ids, labels)
    for rows in (slice(None), slice(2, 7), np.array([9, 0, 0])):
        found, classes = file.tensors(rows)
        assert found.dtype == classes.dtype == torch.int64
        assert (found.numpy() == ids[rows, 4]).all()
        assert (classes.numpy() == labels[rows]).all()


def test_load_ids_reads_our_files(file):
    loaded = load_ids(file.path, crop=1)
    assert (loaded.ids == file.ids(crop=1)).all()
    assert loaded.labels is not None
    assert loaded.labels.tolist() == file.labels.tolist()
    assert loaded.layout == LAYOUT
    with pytest.raises(UsageError, match="no crop 2"):
        load_ids(file.path, crop=2)


@pytest.mark.parametrize("key", ["ids", "tokens", "arr_0", "something"])
def test_load_ids_reads_anyones_arrays(tmp_path, key):
    ids = np.arange(6, dtype=np.uint16).reshape(3, 2)
    np.save(tmp_path / "a.npy", ids)
    np.savez(tmp_path / "a.npz", aside=np.zeros((3, 2)), **{key: ids}, labels=np.array([1, 0, 2]))
    for name in ("a.npy", "a.npz"):
        loaded = load_ids(tmp_path / name)
        assert loaded.ids.dtype.kind in "iu"
        assert (loaded.ids == ids).all()
        assert loaded.layout is None
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [1, 0, 2]


def test_load_ids_prefers_named_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", other=np.zeros((2, 2), int), ids=np.ones((4, 3), int), labels=np.zeros(9, int))
    loaded = load_ids(tmp_path / "a.npz")
    assert loaded.ids.shape == (4, 3)
    assert loaded.labels is None


def test_load_ids_does_not_guess_between_two_matrices(tmp_path):
    """One-hot labels come first as often as not: they hold the bits of the class, and no more."""
    one_hot, codes = np.eye(3, dtype=int)[[0, 1, 2, 0]], np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "a.npz", one_hot=one_hot, codes=codes)
    with pytest.raises(
        OvertureError, match=r"2 matrices of integers \(one_hot, codes\); call the one of token ids 'ids'"
    ):
        load_ids(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", one_hot=one_hot, tokens=codes, names=np.array(["a", "b"]))
    assert (load_ids(tmp_path / "a.npz").ids == codes).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3)), "integers"),
        (np.zeros((2, 3, 4), int), r"\[images, positions\]"),
        (np.zeros((0, 4), int), r"\[images, positions\]"),
        (np.array([[0, 1], [2, -1]]), "-1 at row 1, position 1"),
        (np.array([[{}]], object), "(cannot read it|not a readable).*[Oo]bject"),
    ],
)
def test_load_ids_errors(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", ids=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(OvertureError, match=rf"{name}.*{words}") as caught:
            load_ids(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_load_ids_of_other_files(tmp_path):
    (tmp_path / "train.tokens").write_bytes(b"hello")
    with pytest.raises(OvertureError, match="neither a token file"):
        load_ids(tmp_path / "train.tokens")
    with pytest.raises(UsageError, match=r"did you mean .*train\.tokens"):
        load_ids(tmp_path / "train.token")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)))
    with pytest.raises(OvertureError, match=r"no 2-D array of integers here, only x float64 \(2, 2\)"):
        load_ids(tmp_path / "a.npz")


@pytest.mark.parametrize(("crops", "count", "central"), [("ten", 10, 4), ("center", 1, 0), ("random-3", 3, 0)])
def test_load_ids_takes_the_central_crop(tmp_path, crops, count, central):
    head = TokenHeader(LAYOUT, "hash", crops, count, 10, 5, "somewhere", "print")
    file = write(tmp_path / "a.tokens", head, *content(head))
    assert file.central_crop == central
    assert (load_ids(file.path).ids == file.ids(crop=central)).all()
    assert (load_ids(file.path, crop=0).ids == file.ids(crop=0)).all()
