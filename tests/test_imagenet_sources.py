"""ImageNet as Kaggle ships it: the zip, and the folder that it unpacks to."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from overture.data.archives import CHECKED_NAMES
from overture.data.arrangement import Names
from overture.data.base import CorruptImage
from overture.data.sources import open_source
from overture.data.stream import DataConfig
from overture.data.zip_directory import read_directory
from overture.errors import OvertureError, UsageError
from test_data_sources import refused

ROOT = "ILSVRC/Data/CLS-LOC"
TRAIN = {"n01440764": [1, 2], "n02012849": [3], "n03126707": [4, 5, 6]}
VAL = {1: "n03126707", 2: "n01440764", 3: "n02012849", 4: "n01440764"}
MAPPING = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn09999999 nothing\n"
NAMES = ("tench", "crane (n02012849)", "crane (n03126707)")


def jpeg(value):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (value, value, value)).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def solution(labels=VAL):
    rows = [f"ILSVRC2012_val_{number:08d},{folder} 1 2 30 40 {folder} 5 6 7 8 " for number, folder in labels.items()]
    return "\n".join(["ImageId,PredictionString", *rows[::-1], ""])  # Kaggle's is in no order


def tree():
    """Every file of a tiny ImageNet, by its place in Kaggle's zip."""
    files = {}
    for folder, values in TRAIN.items():
        for value in values:
            files[f"{ROOT}/train/{folder}/{folder}_{value}.JPEG"] = jpeg(value * 10)
            files[f"ILSVRC/Annotations/CLS-LOC/train/{folder}/{folder}_{value}.xml"] = b"<annotation/>"
    for number in VAL:
        files[f"{ROOT}/val/ILSVRC2012_val_{number:08d}.JPEG"] = jpeg(100 + number * 10)
    files[f"{ROOT}/test/ILSVRC2012_test_00000001.JPEG"] = jpeg(7)
    return files


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as target:
        for name, data in files.items():
            target.writestr(name, data)


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())


LISTS = {"LOC_val_solution.csv": solution(), "LOC_synset_mapping.txt": MAPPING}


@pytest.fixture(params=["lists inside", "lists beside", "folder", "folder of the images"])
def imagenet(tmp_path, request):
    """The same images, in each of the ways that they lie about."""
    root = tmp_path / "imagenet"
    if request.param == "lists inside":
        write_zip(tmp_path / "imagenet.zip", {**tree(), **LISTS})
        return tmp_path / "imagenet.zip"
    if request.param == "lists beside":
        write_zip(tmp_path / "imagenet.zip", tree())
        write_folder(tmp_path, LISTS)
        return tmp_path / "imagenet.zip"
    if request.param == "folder":
        write_folder(root, {**tree(), **LISTS})
        return root
    parts = {name.removeprefix(f"{ROOT}/"): data for name, data in tree().items() if name.startswith(ROOT)}
    write_folder(root, {**parts, **LISTS})
    return root


def grey(source, index):
    return round(float(np.asarray(source.read(index)).mean()) / 10)


def test_train_and_val_are_the_folders_that_the_recipes_mean(imagenet):
    train, val = open_source(f"{imagenet}/train"), open_source(f"{imagenet}/val")
    assert train.classes == val.classes == NAMES
    assert train.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert [grey(train, index) for index in range(6)] == [1, 2, 3, 4, 5, 6]
    assert val.labels.tolist() == [2, 0, 1, 0]
    assert val.labels.dtype == np.int64
    assert [grey(val, index) for index in range(4)] == [11, 12, 13, 14]
    assert val.path(0).endswith("val/ILSVRC2012_val_00000001.JPEG")
    assert train.path(2).endswith("train/n02012849/n02012849_3.JPEG")
    again = pickle.loads(pickle.dumps(val))
    assert grey(again, 3) == 14
    assert again.fingerprint() == val.fingerprint()
    data = DataConfig(source=f"{imagenet}/train", held_out=f"{imagenet}/val", channels=3).build()
    assert data.num_classes == 3


def test_the_deep_folder_may_be_named(imagenet):
    deep = imagenet / ROOT / "val"
    if imagenet.suffix == ".zip" or deep.is_dir():
        assert open_source(str(deep)).labels.tolist() == [2, 0, 1, 0]
        refused(imagenet, "is Kaggle's" if imagenet.suffix else "holds Kaggle's", "/train", "/val", error=UsageError)


def test_without_names_the_classes_are_called_by_their_folders(tmp_path):
    write_zip(tmp_path / "imagenet.zip", {**tree(), "LOC_val_solution.csv": solution()})
    for part in ("train", "val"):
        assert open_source(f"{tmp_path}/imagenet.zip/{part}").classes == tuple(TRAIN)


def test_labels_are_part_of_the_fingerprint(tmp_path):
    prints = []
    for labels in (VAL, {**VAL, 1: "n02012849"}):
        write_zip(tmp_path / "imagenet.zip", {**tree(), "LOC_val_solution.csv": solution(labels)})
        prints.append(open_source(f"{tmp_path}/imagenet.zip/val").fingerprint())
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (solution({**VAL, 9: "n01440764"}), ("1 images named by", "not in", "the first: ILSVRC2012_val_00000009")),
        (solution({1: "n01440764"}), ("3 images of", "does not name", "the first: ILSVRC2012_val_00000002")),
        ("image,label\na,b\n", ("begins with 'image,label', not ImageId,PredictionString",)),
        ("", ("begins with ''",)),
        (solution() + "ILSVRC2012_val_00000001,n01440764 1\n", ("line 6 names an image twice",)),
        (solution() + "ILSVRC2012_val_00000005\n", ("line 6 is no image and its class",)),
        (b"ImageId,PredictionString\n\xff\xfe", ("is no text in UTF-8",)),
    ],
)
def test_lists_that_do_not_fit_are_told_in_one_line(tmp_path, text, words):
    write_zip(tmp_path / "imagenet.zip", tree())
    write_folder(tmp_path, {"LOC_val_solution.csv": text})
    refused(tmp_path / "imagenet.zip" / "val", "LOC_val_solution.csv", *words)


def test_a_list_of_names_that_lacks_a_class(tmp_path):
    write_zip(tmp_path / "imagenet.zip", {**tree(), "LOC_synset_mapping.txt": "n01440764 tench\n"})
    refused(
        tmp_path / "imagenet.zip" / "train", "LOC_synset_mapping.txt: has no name for class n02012849 (2 of 3 missing)"
    )


def test_flat_images_without_a_list(tmp_path):
    write_zip(tmp_path / "imagenet.zip", tree())
    refused(tmp_path / "imagenet.zip" / "val", "without class folders", "LOC_val_solution.csv")
    refused(tmp_path / "imagenet.zip" / "test", "1 images lie here without class folders")
    refused(tmp_path / "imagenet.zip" / "vla", "no folder 'vla'", error=UsageError)


def test_classes_of_other_data_are_not_looked_up(tmp_path):
    write_folder(tmp_path, {"photos/cat/a.jpg": jpeg(1), "photos/n1/a.jpg": jpeg(1), **LISTS})
    assert open_source(f"{tmp_path}/photos").classes == ("cat", "n1")


def test_very_many_files_beside_the_images_are_not_opened(tmp_path):
    """Half a million drawings of boxes: their names need no reading, and those in the chosen folder still get it."""
    others = {f"ILSVRC/Annotations/{number}.xml": b"" for number in range(CHECKED_NAMES + 1)}
    write_zip(tmp_path / "imagenet.zip", {**tree(), **others})
    data = bytearray((tmp_path / "imagenet.zip").read_bytes())
    place = data.index(b"ILSVRC/Annotations/17.xml")
    data[place : place + 1] = b"X"
    (tmp_path / "imagenet.zip").write_bytes(data)
    assert len(open_source(f"{tmp_path}/imagenet.zip/train")) == 6


# -- the directory of a zip -----------------------------------------------------------------------------------------


def test_the_directory_is_what_zipfile_reads(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.comment = b"a comment"
        target.mkdir("folder")
        for number, name in enumerate(("a.txt", "grün.txt", "folder/日本.txt", "x" * 300)):
            info = zipfile.ZipInfo(name)
            info.comment, info.extra = b"of the entry", struct.pack("<HHH", 0x9999, 2, 7)
            target.writestr(info, bytes([number]) * 100, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    for prefix in (b"", b"#!/bin/sh\n"):
        path.write_bytes(prefix + path.read_bytes())
        names, members = read_directory(path)
        with zipfile.ZipFile(path) as expected:
            infos = expected.infolist()
            assert names == [info.filename for info in infos]
            assert members.offsets.tolist() == [info.header_offset for info in infos]
            assert members.sizes.tolist() == [info.file_size for info in infos]
            assert members.stored.tolist() == [info.compress_size for info in infos]
            assert members.checksums.tolist() == [info.CRC for info in infos]
            assert members.methods.tolist() == [info.compress_type for info in infos]
            with path.open("rb") as handle:
                for place, info in enumerate(infos):
                    assert members.read(handle, place, names[place], "it") == expected.read(info)


def test_a_zip_of_more_than_four_gigabytes(tmp_path):
    """Sparse: the image lies behind 5 GB of nothing."""
    path, image = tmp_path / "large.zip", jpeg(50)
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as target:
        file.seek(5 * 2**30)
        target.start_dir = 5 * 2**30
        target.writestr("cat/a.jpg", image)
    names, members = read_directory(path)
    assert (names, members.offsets.tolist()) == (["cat/a.jpg"], [5 * 2**30])
    assert grey(open_source(str(path)), 0) == 5


@pytest.mark.parametrize("cut", [1, 10, 22, 30, 60, 100])
def test_zips_that_end_early_are_refused(tmp_path, cut):
    write_zip(tmp_path / "a.zip", {"cat/a.jpg": jpeg(1)})
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data[:-cut])
    refused(tmp_path / "a.zip", "cannot read this zip file")


def test_every_damaged_byte_of_a_directory_is_refused_or_harmless(tmp_path):
    """Nothing but the two kinds of failure, whatever a byte becomes."""
    write_zip(tmp_path / "a.zip", {"cat/a.jpg": jpeg(10), "dog/b.jpg": jpeg(20)})
    data = (tmp_path / "a.zip").read_bytes()
    for place in range(data.index(b"PK\x01\x02"), len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        (tmp_path / "a.zip").write_bytes(damaged)
        try:
            source = open_source(str(tmp_path / "a.zip"))
            assert len(source) == 2 or source.notes  # a slash that is gone: an image beside the folders
            for index, label in enumerate(source.labels):
                assert (source.classes[label], grey(source, index)) in (("cat", 1), ("dog", 2))
        except OvertureError as error:
            assert "\n" not in str(error)  # noqa: PT017


# -- names ----------------------------------------------------------------------------------------------------------


def test_names_in_one_buffer():
    texts = ["a", "", "grün/日本.jpg", "b" * 1000, "c"]
    names = Names.of(texts)
    both = Names.joining([names, Names.of(["x", "yy"]), Names.of([])][:2])
    assert [names[index] for index in range(len(names))] == texts
    assert [both[index] for index in range(len(both))] == [*texts, "x", "yy"]
    assert both.lengths.tolist() == [len(text.encode()) for text in [*texts, "x", "yy"]]


def test_one_long_name_costs_only_itself():
    """A table of names of one width would take 60,000 bytes of each."""
    names = Names.of(["a" * 60_000, *map(str, range(10_000))])
    assert len(pickle.dumps(names)) < 250_000


def test_members_of_a_list_that_are_damaged(tmp_path):
    write_zip(tmp_path / "imagenet.zip", {**tree(), **LISTS})
    data = bytearray((tmp_path / "imagenet.zip").read_bytes())
    data[data.index(b"ImageId,Pred")] ^= 1
    (tmp_path / "imagenet.zip").write_bytes(data)
    refused(tmp_path / "imagenet.zip" / "val", "LOC_val_solution.csv: damaged", error=CorruptImage)
