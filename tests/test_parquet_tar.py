"""Parquet as the Hugging Face hub keeps images, and webdataset tars."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from overture.data import tar_index
from overture.data.base import CorruptImage
from overture.data.sources import open_source
from overture.errors import OvertureError, UsageError
from test_data_sources import refused

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (5, 4), value).save(buffer, "png")
    return buffer.getvalue()


def read_or_refused(path):
    """Nothing but the two kinds of failure."""
    try:
        source = open_source(str(path))
        for index in range(len(source)):
            source.read(index)
    except OvertureError as error:
        assert "\n" not in str(error)  # noqa: PT017


def greys(source):
    return [source.read(index).getpixel((0, 0)) for index in range(len(source))]


# -- parquet --------------------------------------------------------------------------------------------------------


def write_parquet(path, values, labels, names=None, *, column="image", plain=False, label="label", group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(value) for value in values]
    if not plain:
        images = [{"bytes": image, "path": f"{value}.png"} for image, value in zip(images, values, strict=True)]
    table = pa.table({column: images, "size": [5] * len(images), label: labels})
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_of_the_hub(tmp_path, plain):
    path = write_parquet(tmp_path / "a.parquet", range(7), [1, 0, 2, 1, 0, 2, 1], ["cat", "dog", "eel"], plain=plain)
    source = open_source(str(path))
    assert source.classes == ("cat", "dog", "eel")
    assert source.labels.tolist() == [1, 0, 2, 1, 0, 2, 1]
    assert source.labels.dtype == np.int64
    assert greys(source) == list(range(7))
    assert [source.read(index).getpixel((0, 0)) for index in (6, 0, 3, 5)] == [6, 0, 3, 5]
    assert source.path(5).endswith("a.parquet, row 5")
    again = pickle.loads(pickle.dumps(source))
    assert greys(again) == list(range(7))
    before = source.fingerprint()
    assert again.fingerprint() == before
    write_parquet(path, range(1, 8), source.labels.tolist(), list(source.classes), plain=plain)
    assert open_source(str(path)).fingerprint() != before


def test_splits_of_a_folder_of_parquet(tmp_path):
    """Shards in the order of their numbers, in the folder or in its ``data``, as the hub lays them."""
    for number in range(11):
        write_parquet(
            tmp_path / f"hub/data/train-{number}-of-11.parquet", [2 * number, 2 * number + 1], [0, 1], ["a", "b"]
        )
    write_parquet(tmp_path / "hub/data/validation-00000-of-00001.parquet", [100, 101], [1, 0], ["a", "b"])
    train = open_source(f"{tmp_path}/hub/train")
    assert greys(train) == list(range(22))
    assert train.path(21).endswith("train-10-of-11.parquet, row 1")
    for name in ("val", "validation", "data/val"):
        held_out = open_source(f"{tmp_path}/hub/{name}")
        assert (greys(held_out), held_out.labels.tolist()) == ([100, 101], [1, 0])
        assert held_out.classes == train.classes
    refused(tmp_path / "hub", "holds train, validation; write which", "hub/train", error=UsageError)
    refused(tmp_path / "hub" / "tarin", "no files of a split 'tarin'", "did you mean 'train'", error=UsageError)


def test_labels_by_name_and_classes_of_one_name(tmp_path):
    source = open_source(str(write_parquet(tmp_path / "a.parquet", [1, 2, 3], ["c10", "c2", "c10"])))
    assert (source.classes, source.labels.tolist()) == (("c2", "c10"), [1, 0, 1])
    source = open_source(str(write_parquet(tmp_path / "b.parquet", [1, 2, 3], [0, 1, 2], ["crane", "owl", "crane"])))
    assert source.classes == ("crane (0)", "owl", "crane (2)")
    source = open_source(str(write_parquet(tmp_path / "c.parquet", [1, 2], [3, 5])))
    assert (source.classes, source.labels.tolist()) == (("3", "5"), [0, 1])


def test_wrong_parquet_is_told_in_one_line(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [1, 2], [0, -1])
    refused(path, "a.parquet: label holds -1", "images without labels")
    refused(write_parquet(path, [1, 2], [0, None]), "1 of 2 rows have no label")
    refused(write_parquet(path, [1, 2], [0.5, 1.0]), "label is double, needs integers or names")
    refused(write_parquet(path, [1, 2], [0, 1], label="kind"), "no column of labels", "kind (int64)", error=UsageError)
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), path)
    refused(path, "no column of images", "text (string)", error=UsageError)
    pq.write_table(pa.table({"left": [b"a"], "right": [b"a"], "label": [0]}), path)
    refused(path, "no column of images", "left (binary)", error=UsageError)
    pq.write_table(pa.table({"image": [b"a"], "label": [0]}).slice(1), path)
    refused(path, "holds no images")
    refused(path / "train", "a .parquet file has no parts", error=UsageError)
    path.write_bytes(b"PAR1 nothing PAR1")
    refused(path, "a.parquet: cannot read this parquet file")


def test_shards_of_different_kinds(tmp_path):
    write_parquet(tmp_path / "p/train-0.parquet", [1], [0])
    write_parquet(tmp_path / "p/train-1.parquet", [1], ["cat"])
    refused(tmp_path / "p", "train-1.parquet: label is of another type")
    write_parquet(tmp_path / "p/train-1.parquet", [1], [0], column="img")
    refused(tmp_path / "p", "train-1.parquet: has other columns")
    (tmp_path / "p/train-1.tar").touch()
    refused(tmp_path / "p", "holds .parquet and .tar files", error=UsageError)


def test_a_parquet_image_without_bytes_is_a_corrupt_image(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": b"no image", "path": None}], struct)
    pq.write_table(pa.table({"image": images, "label": [0, 0]}), tmp_path / "a.parquet")
    source = open_source(f"{tmp_path}/a.parquet")
    for index, words in ((0, "row 0: holds no bytes"), (1, "row 1: cannot decode")):
        with pytest.raises(CorruptImage, match=words):
            source.read(index)


def test_damaged_parquet_is_one_line(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", range(8), [0] * 8)
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        read_or_refused(path)
    for length in range(0, len(data), 50):
        path.write_bytes(data[:length])
        refused(path, "cannot read this parquet file")


def test_large_row_groups_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("overture.data.parquet.LARGE_GROUP", 100)
    path = write_parquet(tmp_path / "a.parquet", range(8), [0] * 8, group=8)
    assert "a row group holds 8 images" in open_source(str(path)).notes[-1]


def test_a_missing_pyarrow_is_told_with_its_extra(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [1], [0])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused(path, "needs the package 'pyarrow': pip install 'overture[data]'")


def test_a_forked_process_reads_parquet_by_itself(tmp_path):
    source = open_source(str(write_parquet(tmp_path / "a.parquet", range(8), [0] * 8)))
    source.read(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if source.read(7).getpixel((0, 0)) == 7 and len(source._held) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- tars -----------------------------------------------------------------------------------------------------------


def write_tar(path, members, kind=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as target:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def samples(values, labels, start=0):
    pairs = enumerate(zip(values, labels, strict=True), start)
    return [member for n, (v, c) in pairs for member in ((f"{n:04d}.cls", str(c).encode()), (f"{n:04d}.png", png(v)))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTURE_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes"


def count_makings(monkeypatch):
    made = []
    make = tar_index._make
    monkeypatch.setattr(tar_index, "_make", lambda tar: made.append(tar.name) or make(tar))
    return made


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_are_read_in_any_order(tmp_path, kind):
    long = "folder/" * (12 if kind == tarfile.USTAR_FORMAT else 40)
    members = [
        ("folder", b""), *samples([3, 1, 2], [1, 0, 1]), ("0000.json", b"{}"), (f"{long}x.cls", b"0\n"), ("._x.png", b"?"),
        (f"{long}x.png", png(9)), ("grün.png", png(8)), ("grün.cls", b" 1 "),
    ]  # fmt: skip
    source = open_source(str(write_tar(tmp_path / "a.tar", members, kind)))
    assert greys(source) == [3, 1, 2, 9, 8]
    assert source.labels.tolist() == [1, 0, 1, 0, 1]
    assert source.classes == ("0", "1")
    assert [source.read(index).getpixel((0, 0)) for index in (4, 0, 2)] == [8, 3, 2]
    assert source.path(3).endswith(f"a.tar/{long}x.png")
    assert source.path(4).endswith("a.tar/grün.png")
    again = pickle.loads(pickle.dumps(source))
    assert greys(again) == greys(source)
    assert again.fingerprint() == source.fingerprint()


def test_the_index_is_made_once_and_anew_when_the_tar_changes(tmp_path, monkeypatch):
    made = count_makings(monkeypatch)
    tar = write_tar(tmp_path / "a.tar", samples([1, 2], [0, 1]))
    assert [greys(open_source(str(tar))) for _ in range(3)] == [[1, 2]] * 3
    assert made == ["a.tar"]
    index = tmp_path / "a.tar.index.npz"
    assert index.is_file()

    before = open_source(str(tar)).fingerprint()
    write_tar(tar, samples([1, 2, 3], [0, 1, 1]))
    assert greys(open_source(str(tar))) == [1, 2, 3]
    assert open_source(str(tar)).fingerprint() != before
    assert len(made) == 2

    state = tar.stat()  # other images in a tar of the same size and time
    data = tar.read_bytes()
    write_tar(tar, samples([1, 2, 3], [0, 1, 1], start=7))
    os.utime(tar, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (len(data), state.st_mtime_ns) == (tar.stat().st_size, tar.stat().st_mtime_ns)
    assert open_source(str(tar)).path(0).endswith("0007.png")
    assert len(made) == 3


def test_a_damaged_index_is_made_again(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", samples([1, 2], [0, 1]))
    expected = greys(open_source(str(tar)))
    index = tmp_path / "a.tar.index.npz"
    data = index.read_bytes()
    for place in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        index.write_bytes(damaged)
        source = open_source(str(tar))
        assert (greys(source), source.labels.tolist()) == (expected, [0, 1])
    for length in (0, 10, len(data) // 2):
        index.write_bytes(data[:length])
        assert greys(open_source(str(tar))) == expected


def test_an_index_that_points_outside_of_the_tar_is_made_again(tmp_path):
    tar = write_tar(tmp_path / "a.tar", samples([1, 2], [0, 1]))
    good = tar_index.open_index(tar)
    for sizes, labels in (
        ([2**62, 1], [0, 1]),
        ([-1, 1], [0, 1]),
        ([10**6, 1], [0, 1]),
        ([1, 1], [0, 2]),
        ([1, 1], [0, -1]),
    ):
        wrong = tar_index.TarIndex(good.names, good.offsets, np.array(sizes), np.array(labels), good.words)
        tar_index._save(tmp_path / "a.tar.index.npz", tar, wrong)
        assert tar_index.open_index(tar).sizes.tolist() == good.sizes.tolist()


def test_where_nothing_may_be_written_the_index_lies_in_the_cache(tmp_path, monkeypatch, cache):
    made = count_makings(monkeypatch)
    tar = write_tar(tmp_path / "a.tar", samples([1, 2], [0, 1]))
    (tmp_path / "a.tar.index.npz").mkdir()  # nothing can be put into its place, not even by root
    for _ in range(2):
        assert greys(open_source(str(tar))) == [1, 2]
    assert made == ["a.tar"]
    assert len(list(cache.glob("*.npz"))) == 1


def test_shards_of_a_folder_and_names_of_imagenet(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"w/imagenet-train-{number:04d}.tar", samples([number * 2, number * 2 + 1], [number, 0]))
    write_tar(tmp_path / "w/imagenet-val-0000.tar", samples([100, 101, 102], [0, 2, 1]))
    (tmp_path / "w/LOC_synset_mapping.txt").write_text("n3 crane\nn1 tench, Tinca\nn2 crane\n")
    train, val = open_source(f"{tmp_path}/w/train"), open_source(f"{tmp_path}/w/val")
    assert (greys(train), train.labels.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 2, 0])
    assert train.classes == val.classes == ("tench", "crane (n2)", "crane (n3)")
    assert train.path(5).endswith("imagenet-train-0002.tar/0001.png")
    refused(tmp_path / "w", "holds imagenet-train, imagenet-val; write which", error=UsageError)


def test_labels_of_a_tar_may_be_names(tmp_path):
    source = open_source(str(write_tar(tmp_path / "a.tar", samples([1, 2, 3], ["owl", "cat", "owl"]))))
    assert (source.classes, source.labels.tolist()) == (("cat", "owl"), [1, 0, 1])


def test_class_folders_win_over_a_tar_beside_them(tmp_path):
    write_tar(tmp_path / "photos/backup.tar", samples([1], [0]))
    (tmp_path / "photos/cat").mkdir()
    (tmp_path / "photos/cat/a.png").write_bytes(png(5))
    assert greys(open_source(f"{tmp_path}/photos")) == [5]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*samples([1, 2], [0, 1])[:-1]], "1 samples have no image, the first: 0001"),
        ([*samples([1, 2], [0, 1])[1:]], "1 samples have no label (.cls), the first: 0000"),
        ([("a.png", png(1))], "holds 1 images and no labels; a sample is KEY.jpg"),
        ([("a.cls", b"0")], "holds no images and 1 labels"),
        ([("readme", b"0")], "holds no images and 0 labels"),
        ([("a.png", png(1)), ("a.jpg", png(1)), ("a.cls", b"0")], "two images of one key (a.png, a.jpg)"),
        ([("a.png", png(1)), ("a.cls", b"")], "a.cls is no label, but 0 bytes"),
        ([("a.png", png(1)), ("a.cls", b"0" * 1000)], "a.cls is no label, but 1,000 bytes"),
        ([("a.png", png(1)), ("a.cls", b"\xff")], "a.cls is no label"),
    ],
)
def test_tars_that_lack_a_member_are_told_in_one_line(tmp_path, members, words):
    refused(write_tar(tmp_path / "a.tar", members), "a.tar: ", words)
    assert not (tmp_path / "a.tar.index.npz").exists()


def test_what_is_no_tar(tmp_path):
    tar = write_tar(tmp_path / "a.tar", samples([1], [0]))
    data = tar.read_bytes()
    tar.write_bytes(b"\x1f\x8b" + data[2:])
    refused(tar, "is compressed", "unpack it with gzip -d")
    tar.write_bytes(b"hello" * 1000)
    refused(tar, "no tar file")
    tar.write_bytes(b"")
    refused(tar, "ends early")
    for length in (700, 1024, 1100):
        tar.write_bytes(data[:length])
        refused(tar, "ends early")
    refused(tar / "train", "a .tar file has no parts", error=UsageError)


def test_damaged_tars_are_one_line(tmp_path):
    tar = write_tar(
        tmp_path / "a.tar", [*samples([1, 2], [0, 1]), ("ü" * 120 + ".png", png(1)), ("ü" * 120 + ".cls", b"1")]
    )
    data = tar.read_bytes()[: 18 * 512]
    for place in range(0, len(data), 5):
        damaged = bytearray(data + bytes(1024))
        damaged[place] ^= 0xFF
        tar.write_bytes(damaged)
        read_or_refused(tar)


def test_a_tar_that_shrinks_while_it_is_read(tmp_path):
    tar = write_tar(tmp_path / "a.tar", samples([1, 2], [0, 1]))
    source = open_source(str(tar))
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(CorruptImage, match=r"a\.tar/0001\.png: the tar ends in it"):
        source.read(1)


def test_a_forked_process_reads_a_tar_through_its_own_handle(tmp_path):
    source = open_source(str(write_tar(tmp_path / "a.tar", samples([1, 2], [0, 1]))))
    source.read(0)
    handle = source._handles[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if source.read(1).getpixel((0, 0)) == 2 and source._handles[0] is not handle else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert source._handles[0] is handle
