"""Reading arrays piece by piece: every slice equals numpy's, nothing is unpickled, damage is one line."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overture.data.ids import load_ids
from overture.data.npz import array_entries, read_array, write_arrays
from overture.errors import OvertureError

ARRAYS = {
    "arr_0": np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), dtype=np.uint8),
    "mu": np.random.default_rng(1).normal(size=7),
    "name": np.str_("a reference"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("npz")
    np.savez(folder / "stored.npz", **ARRAYS)
    np.savez_compressed(folder / "compressed.npz", **ARRAYS)
    np.save(folder / "plain.npy", ARRAYS["arr_0"])
    return {path.stem: path for path in folder.iterdir()}


@given(kind=st.sampled_from(["stored", "compressed", "plain"]), data=st.data())
def test_rows_are_numpys(files, kind: str, data: st.DataObject) -> None:
    entry = array_entries(files[kind])["arr_0"]
    count = len(ARRAYS["arr_0"])
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    step = data.draw(st.integers(1, count))
    pieces = list(entry.rows(start, stop, step))
    assert all(len(piece) <= step for piece in pieces)
    expected = ARRAYS["arr_0"][start:stop]
    np.testing.assert_array_equal(np.concatenate([expected[:0], *pieces]), expected)


def test_headers_and_small_arrays(files) -> None:
    for kind in ("stored", "compressed"):
        entries = array_entries(files[kind])
        assert list(entries) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert (entries[name].shape, entries[name].dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(read_array(entries[name]), array)
    np.testing.assert_array_equal(read_array(array_entries(files["plain"])["arr_0"]), ARRAYS["arr_0"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_array_is_not_held(tmp_path, save) -> None:
    path, images = tmp_path / "large.npz", np.zeros((2000, 64, 64, 3), np.uint8)
    save(path, arr_0=images)
    tracemalloc.start()
    total = sum(len(rows) for rows in array_entries(path)["arr_0"].rows(0, 2000, 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 2000
    assert peak < images.nbytes / 10


def test_bad_files_are_one_line(files, tmp_path) -> None:
    with pytest.raises(OvertureError, match=r"nowhere\.npz: cannot read"):
        array_entries(tmp_path / "nowhere.npz")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(OvertureError, match=r"broken\.npz: not a readable"):
        array_entries(broken)
    broken.write_bytes(files["compressed"].read_bytes()[:300])
    with pytest.raises(OvertureError, match="not a readable"):
        array_entries(broken)
    columns = tmp_path / "columns.npz"
    np.savez(columns, arr_0=np.asfortranarray(ARRAYS["arr_0"][0, :, :, 0]))
    entry = array_entries(columns)["arr_0"]  # the arrays beside it stay readable
    with pytest.raises(OvertureError, match="column by column"):
        entry.check()
    with pytest.raises(OvertureError, match="column by column"):
        next(entry.rows(0, 1, 1))
    objects = tmp_path / "objects.npz"
    np.savez(objects, arr_0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(OvertureError, match="never read"):
        array_entries(objects)["arr_0"].check()


def test_what_is_written_is_numpys_and_the_same_every_time(tmp_path) -> None:
    for name in ("one", "two"):
        write_arrays(tmp_path / "deep" / f"{name}.npz", ARRAYS)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["one.npz", "two.npz"]
    assert (tmp_path / "deep" / "one.npz").read_bytes() == (tmp_path / "deep" / "two.npz").read_bytes()
    with np.load(tmp_path / "deep" / "one.npz") as file:
        assert list(file) == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file[name], array)
            assert file[name].dtype == array.dtype
    entries = array_entries(tmp_path / "deep" / "one.npz")
    np.testing.assert_array_equal(np.concatenate(list(entries["arr_0"].rows(3, 20, 4))), ARRAYS["arr_0"][3:20])


def test_arrays_that_cannot_be_written_leave_what_was_there(tmp_path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):  # nothing is pickled
        write_arrays(path, {"good": np.zeros(3), "bad": np.array([{}], dtype=object)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_damage(tmp_path, save) -> None:
    path, images = tmp_path / "broken.npz", np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    save(path, arr_0=images)
    data = bytearray(path.read_bytes())
    data[30_000] ^= 1
    path.write_bytes(data)
    entry = array_entries(path)["arr_0"]  # reads the header alone

    def read_all() -> None:
        entry.check()
        list(entry.rows(0, 50, 7))

    with pytest.raises(OvertureError, match=r"broken\.npz: not a readable"):
        read_all()


def test_an_array_shorter_than_its_header_says_is_damage(tmp_path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9, 4, 4, 3)})
    path = tmp_path / "short.npz"
    with zipfile.ZipFile(path, "w") as archive:  # what follows must not pass for images
        archive.writestr("arr_0.npy", header.getvalue() + bytes(8 * 4 * 4 * 3))
        archive.writestr("padding", bytes(1000))
    with pytest.raises(OvertureError, match="384 bytes"):
        array_entries(path)


def npy(header: bytes, data: bytes = b"") -> bytes:
    """A ``.npy`` with this text for a header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


DAMAGED = {
    "no end": b"{'descr': '|u1', 'fortran_order': False, 'shape': (2,",  # tokenize.TokenError within numpy
    "indented": b"  {'descr'\n  :\n",
    "no dictionary": b"[1, 2]\n",
    "a shape of words": b"{'descr': '|u1', 'fortran_order': False, 'shape': ('a',), }\n",
    "a type that is none": b"{'descr': '|q7', 'fortran_order': False, 'shape': (2,), }\n",
    "keys that are missing": b"{'descr': '|u1'}\n",
    "not closed": b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"(" * 5000 + b"\n",
    "no text": bytes(range(128, 200)),
    "a negative shape": b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, 4), }\n",
}


@pytest.mark.parametrize("header", DAMAGED.values(), ids=DAMAGED)
def test_headers_that_are_none_are_one_line(tmp_path, header: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(npy(header, bytes(100)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", npy(header, bytes(100)))
    for name in ("a.npy", "a.npz"):
        for read in (array_entries, load_ids):
            with pytest.raises(OvertureError, match=name) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_a_member_that_is_no_array_is_one_line(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"hello, I am a text")
        archive.writestr("notes.txt", b"these are no array either, and do no harm")
    with pytest.raises(OvertureError, match=r"a\.npz: not a readable"):
        array_entries(tmp_path / "a.npz")


def test_a_header_that_claims_more_than_there_is_is_refused_before_anything_is_read(tmp_path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 12250), }\n"
    (tmp_path / "a.npy").write_bytes(npy(header, bytes(800)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", npy(header, bytes(800)))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(OvertureError, match=rf"{name}.*holds 800 bytes, not its \(1000000, 12250\) float64"):
            array_entries(tmp_path / name)


def test_an_array_that_unpacks_to_far_more_than_it_is_in_the_file_is_a_trap(tmp_path, monkeypatch) -> None:
    """Pictures do not shrink to a hundredth; small files may, being small."""
    traps, pictures = np.zeros((300, 1000), np.int64), np.tile(np.arange(90, dtype=np.uint8).repeat(30), 40)
    for name, array in (("trap", traps), ("pictures", pictures)):
        np.savez_compressed(tmp_path / f"{name}.npz", ids=array)
    assert array_entries(tmp_path / "trap.npz")["ids"].shape == (300, 1000)
    monkeypatch.setattr("overture.data.npz.MAX_UNPACKED", 10_000)
    tracemalloc.start()
    for read in (array_entries, load_ids):
        with pytest.raises(
            OvertureError, match=r"trap\.npz.*'ids\.npy' unpacks [\d,]+ bytes to 2,400,128; save it with numpy"
        ):
            read(tmp_path / "trap.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < traps.nbytes / 4
    stored = tmp_path / "stored.npz"
    np.savez(stored, ids=traps)
    np.testing.assert_array_equal(read_array(array_entries(stored)["ids"]), traps)


def test_what_a_file_is_called_does_not_decide_what_it_is(tmp_path) -> None:
    for name in ("a.npz", "a.ids"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, ARRAYS["arr_0"])
        np.testing.assert_array_equal(read_array(array_entries(tmp_path / name)["arr_0"]), ARRAYS["arr_0"])


def test_objects_are_never_read(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    for name in ("a.npz", "a.npy"):
        with pytest.raises(OvertureError, match=rf"{name}.*Python objects, which are never read"):
            read_array(array_entries(tmp_path / name)["arr_0"])
