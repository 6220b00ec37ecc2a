import io
import os
import pickle
import shutil
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from overture.data import known_sets
from overture.data.base import CorruptImage, decode_image, plain_image, same_fingerprint
from overture.data.reading import ImageReader
from overture.data.sources import ArraySource, open_source, split, subset
from overture.data.stream import DataConfig, evaluation_batches
from overture.errors import OvertureError, UsageError


def png(value=0, size=(4, 5), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "png")
    return buffer.getvalue()


FILES = {
    "dog/b.png": png(1),
    "dog/a.PNG": png(2),
    "cat/x.png": png((9, 8, 7), mode="RGB"),
    "cat/notes.txt": b"not an image",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "pets" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "pets" / "train"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.mkdir("deep")
        for number, (name, data) in enumerate(FILES.items()):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            target.writestr(f"deep/train/{name}", data, method)
        target.writestr("deep/empty/readme.txt", "nothing")
        target.writestr("__MACOSX/deep/train/dog/._b.png", b"x")
    return path


def refused(spec, *words, error=OvertureError):
    with pytest.raises(error) as caught:
        open_source(str(spec))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("where", ["folder", "zip"])
def test_folders_and_zips_hold_the_same(where, folder, archive):
    source = open_source(str(folder if where == "folder" else archive / "deep" / "train"))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 1]
    assert source.labels.dtype == np.int64
    assert source.read(0).getpixel((0, 0)) == (9, 8, 7)
    assert source.read(0).mode == "RGB"
    assert [source.read(i).getpixel((3, 4)) for i in (1, 2)] == [2, 1]
    assert source.path(1).endswith("train/dog/a.PNG")
    again = pickle.loads(pickle.dumps(source))
    assert again.read(2).tobytes() == source.read(2).tobytes()
    assert again.fingerprint() == source.fingerprint()


def test_fingerprint_follows_the_data_not_the_place(folder, tmp_path):
    before = open_source(str(folder)).fingerprint()
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_source(str(moved)).fingerprint() == before
    (moved / "dog" / "b.png").write_bytes(png(1, size=(40, 40)))
    assert open_source(str(moved)).fingerprint() != before


def test_zip_entries_with_extra_fields(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target, target.open("cat/x.png", "w", force_zip64=True) as entry:
        entry.write(png(7))
    assert (tmp_path / "a.zip").read_bytes()[28] > 0  # the length of the extra field
    assert open_source(str(tmp_path / "a.zip")).read(0).getpixel((0, 0)) == 7


def test_a_forked_process_reads_a_zip_through_its_own_handle(archive):
    source = open_source(f"{archive}/deep/train")
    source.read(0)
    parent = source._open()
    child = os.fork()
    if child == 0:
        os._exit(0 if source._open() is not parent and source.read(1).getpixel((0, 0)) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert source._open() is parent


def test_damaged_zip_entries_are_corrupt_images(archive):
    source = open_source(f"{archive}/deep/train")
    data = bytearray(archive.read_bytes())
    for member in ("cat/x.png", "dog/a.PNG", "dog/b.png"):
        data[data.index(member.encode()) + len(member) + 30] ^= 0xFF
    archive.write_bytes(data)
    for index in range(3):
        with pytest.raises(CorruptImage, match=r"pets\.zip/deep/train/(cat|dog)/.*damaged"):
            source.read(index)
    archive.write_bytes(bytes(100))
    with pytest.raises(CorruptImage, match="no header"):
        open_fresh(source).read(0)


def open_fresh(source):
    return pickle.loads(pickle.dumps(source))


def test_corrupt_files_are_named(folder):
    (folder / "dog" / "a.PNG").write_bytes(b"")
    (folder / "dog" / "b.png").write_bytes(png(0, size=(64, 64))[:-30])
    (folder / "cat" / "x.png").write_bytes(b"hello")
    source = open_source(str(folder))
    for index, word in ((0, "x.png: cannot decode"), (1, "a.PNG: the file is empty"), (2, "b.png: cannot decode")):
        with pytest.raises(CorruptImage, match=word) as caught:
            source.read(index)
        assert "\n" not in str(caught.value)
    (folder / "dog" / "b.png").unlink()
    with pytest.raises(OvertureError, match=r"b\.png: cannot read") as gone:
        source.read(2)
    assert not isinstance(gone.value, CorruptImage)


def test_modes():
    def through(image):
        buffer = io.BytesIO()
        image.save(buffer, "png")
        return decode_image(buffer.getvalue(), "it.png")

    assert through(Image.new("RGBA", (2, 2), (10, 20, 30, 0))).getpixel((0, 0)) == (10, 20, 30, 0)  # kept
    assert through(Image.new("LA", (2, 2), (10, 0))).getpixel((0, 0)) == (10, 0)
    assert through(Image.new("RGBA", (2, 2), (10, 20, 30, 255))).getpixel((0, 0)) == (
        10,
        20,
        30,
    )  # nothing shows through
    assert through(Image.new("LA", (2, 2), (10, 255))).getpixel((0, 0)) == 10
    assert through(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == 255
    palette = Image.new("RGB", (2, 2), (200, 100, 50)).quantize(4)
    assert palette.mode == "P"
    assert through(palette).getpixel((0, 0)) == (200, 100, 50)
    sixteen = Image.fromarray(np.array([[0, 255], [256, 65_535]], np.uint16))
    assert sixteen.mode == "I;16"
    assert np.asarray(through(sixteen)).tolist() == [[0, 0], [1, 255]]
    with pytest.raises(OvertureError, match=r"it: images of mode F are not supported") as caught:
        plain_image(Image.new("F", (9, 9)), "it")
    assert not isinstance(caught.value, CorruptImage)


def transparent_palette():
    """Two pixels of three colours; the first one is transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 1, 2, 3])
    image.putdata([0, 1])
    return image, {"transparency": 0}


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.frombytes("RGBA", (2, 1), bytes([200, 100, 50, 0, 1, 2, 3, 255])), {}),
        (Image.frombytes("LA", (2, 1), bytes([200, 0, 3, 255])), {}),
        transparent_palette(),
        (Image.frombytes("RGB", (2, 1), bytes([200, 100, 50, 1, 2, 3])), {"transparency": (200, 100, 50)}),
        (Image.frombytes("L", (2, 1), bytes([200, 3])), {"transparency": 200}),
    ],
    ids=["RGBA", "LA", "palette", "a colour", "a grey"],
)
@pytest.mark.parametrize(("background", "shown"), [("white", 255), ("black", 0)])
def test_what_is_transparent_shows_the_background(tmp_path, image, options, background, shown):
    """Not the colours that editors leave below it. Of what is read for training and for evaluation alike."""
    (tmp_path / "emoji").mkdir()
    for name in ("a", "b"):
        image.save(tmp_path / "emoji" / f"{name}.png", **options)
    Image.new("RGB", (2, 1), (9, 9, 9)).save(tmp_path / "emoji" / "c.png")
    reader = ImageReader(open_source(str(tmp_path)), 3, background)
    for _ in range(2):
        first = [reader.read(0).getpixel((place, 0)) for place in (0, 1)]
        assert first[0] == (shown, shown, shown)
        assert first[1] in ((1, 2, 3), (3, 3, 3))
        assert reader.read(2).getpixel((0, 0)) == (9, 9, 9)
    assert reader.transparent == {0}
    config = DataConfig(image_size=1, channels=3, background=background)
    (batch,) = evaluation_batches(open_source(str(tmp_path)), config, 3)
    assert batch.images[2].flatten().tolist() == [9, 9, 9]


def test_images_are_turned_upright(tmp_path):
    """As the camera was held: by each of the eight orientations that a file can tell."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }  # fmt: skip
    (tmp_path / "photos").mkdir()
    for tag, pixels in stored.items():
        exif = Image.Exif()
        exif[274] = tag
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "photos" / f"{tag}.png", exif=exif)
    source = open_source(str(tmp_path))
    for index in range(8):
        assert (np.asarray(source.read(index)) == upright).all(), source.path(index)


def test_tags_that_cannot_be_read_turn_nothing():
    buffer = io.BytesIO()
    Image.new("L", (2, 3), 7).save(buffer, "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(buffer.getvalue(), "it.jpg").size == (2, 3)


@pytest.mark.parametrize(
    ("size", "ends"), [((1, 65_500), True), ((65_500, 1), True), ((1, 128), False), ((1, 129), True)]
)
def test_images_too_narrow_to_cut_a_square_from_are_refused(size, ends):
    """A hundred bytes may ask for gigabytes: the shorter side becomes the size of the images."""
    data = png(7, size=size)
    if not ends:
        assert decode_image(data, "it.png").size == size
        return
    with pytest.raises(CorruptImage, match=rf"it\.png: {size[0]} x {size[1]} pixels, too narrow"):
        decode_image(data, "it.png")


def test_images_of_more_pixels_than_anyone_has_are_refused_by_their_header():
    for side, told in ((12_000, "12000 x 12000 pixels, at most 134,217,728"), (40_000, "1600000000 pixels")):
        data = bytearray(png(7, size=(2, 2)))
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with pytest.raises(CorruptImage, match=told):
            decode_image(bytes(data), "it.png")


def test_warnings_of_pillow_are_not_the_users(recwarn, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(png(7, size=(12, 12)), "it.png").size == (12, 12)
    assert not recwarn


def test_folders_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "2", "1", "0", "11", "img9", "img10", "002", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(1))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as target:
        for path in tmp_path.glob("*/a.png"):
            target.write(path, path.relative_to(tmp_path))
    expected = ("0", "1", "002", "2", "10", "11", "img9", "img10", "x")
    for place in (tmp_path, tmp_path / "all.zip"):
        source = open_source(str(place))
        assert source.classes == expected
        assert [source.path(i).split("/")[-2] for i in source.labels.argsort()] == list(expected)


def test_folders_that_are_left_out_are_named(folder):
    for name, files in (("bird", ["a.heic", "b.heic", "c.mov"]), ("fish", ["README"]), ("empty", [])):
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).touch()
    (folder / "loose.png").write_bytes(png(1))
    shutil.make_archive(str(folder.parent / "train"), "zip", folder)
    for place in (folder, folder.parent / "train.zip"):
        source = open_source(str(place))
        assert source.classes == ("cat", "dog")
        assert sorted(source.notes) == [
            "1 images beside the class folders are left out",
            "folder bird holds no images (.heic, .mov) and is left out",
            "folder empty holds no images (it is empty) and is left out",
            "folder fish holds no images (no suffix) and is left out",
        ]
        assert split(source, 0.4)[0].notes == source.notes


def test_photographs_of_every_common_suffix_are_read(tmp_path):
    (tmp_path / "cat").mkdir()
    for suffix in ("jfif", "JPE", "jpeg", "avif", "webp", "tif"):
        (tmp_path / "cat" / f"a.{suffix}").touch()
    assert len(open_source(str(tmp_path))) == 6


def test_a_pipe_among_the_images_is_passed_over(folder):
    """Opening one waits until somebody writes."""
    os.mkfifo(folder / "dog" / "c.png")
    os.mkfifo(folder / "d.png")
    os.symlink(folder / "dog" / "c.png", folder / "dog" / "e.png")
    source = open_source(str(folder))
    assert [os.path.basename(source.path(i)) for i in range(len(source))] == ["x.png", "a.PNG", "b.png"]


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).mkdir()
    (tmp_path / name / (name + ".png")).write_bytes(png(5))
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))
    assert source.read(0).getpixel((0, 0)) == 5
    assert source.path(0).endswith(f"{name}/{name}.png")
    source.fingerprint()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_members_of_a_zip_that_claim_gigabytes_are_refused(tmp_path, method):
    """By what the directory says of them, before anything is unpacked."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("cat/x.png", png(1, size=(64, 64)), method)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (2**29 + 1).to_bytes(4, "little")  # the size when unpacked
    path.write_bytes(data)
    refused(path, "bomb.zip/cat/x.png: 536,870,913 bytes", "zip the images again")
    data[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    data[entry + 20 : entry + 24] = (len(data) + 1).to_bytes(4, "little")  # the size in the file
    path.write_bytes(data)
    refused(path, f"bomb.zip/cat/x.png: 100 bytes from {len(data) + 1:,}", "zip the images again")


def test_members_of_a_zip_unpack_to_no_more_than_they_say(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("cat/x.png", bytes(10_000_000))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    source = open_source(str(path))
    tracemalloc.start()
    with pytest.raises(CorruptImage, match="wrong checksum"):
        source.read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_folders_that_change_places_have_another_fingerprint(tmp_path):
    for name, value in (("cat", 1), ("dog", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(value))
    before = open_source(str(tmp_path)).fingerprint()
    (tmp_path / "cat").rename(tmp_path / "aside")
    (tmp_path / "dog").rename(tmp_path / "cat")
    (tmp_path / "aside").rename(tmp_path / "dog")
    after = open_source(str(tmp_path)).fingerprint()
    assert before != after
    assert not same_fingerprint(before, after)
    assert same_fingerprint(before, before)
    assert same_fingerprint(before, before.removeprefix("files-"))  # taken in another way: they cannot be told apart
    assert same_fingerprint("", after)
    parts = [subset(open_source(str(tmp_path)), [place]).fingerprint() for place in (0, 1)]
    assert not same_fingerprint(*parts)


def test_wrong_places_are_told_in_one_line(folder, archive, tmp_path):
    refused(tmp_path / "pest", "no data source", "did you mean", "pets", error=UsageError)
    refused(folder.parent / "trian" / "deeper", "no data source", "pets/train'", error=UsageError)
    refused(folder.parent, "deeper than CLASS/IMAGE", "pets/train)")
    refused(folder / "dog", "without class folders")
    (tmp_path / "void").mkdir()
    refused(tmp_path / "void", "no images here")
    refused(archive, "deeper than CLASS/IMAGE", "pets.zip/deep")
    refused(archive / "deep" / "trian", "no folder 'deep/trian'", "did you mean 'deep/train'", error=UsageError)
    refused(archive / "zzz", "no folder 'zzz'", "valid:", "deep", error=UsageError)
    refused(archive / "deep" / "empty", "no images here")
    refused("fashion-mnits", "did you mean 'fashion-mnist'", error=UsageError)
    refused("cifar10/tset", "did you mean 'test'", error=UsageError)
    refused("embedded:fashion-mnits", "did you mean 'fashion-mnist'", error=UsageError)
    refused("", "no data source", error=UsageError)
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    refused(tmp_path / "broken.zip", "cannot read this zip")
    refused(folder / "dog" / "a.PNG", "not a folder, a .zip", error=UsageError)


def images(count, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("", ("images", "labels")),
        ("/train", ("images", "labels")),
        ("", ("arr_0", "arr_1")),
        ("", ("x_train", "y_train")),
        ("/train", ("train_images", "train_labels")),
        ("/test", ("test_images", "test_labels")),
        ("/test", ("x_test", "y_test")),
        ("/val", ("val_images", "val_labels")),
    ],
)
def test_npz_names(tmp_path, part, keys):
    grey = images(5, 6, 7, 1)
    path = tmp_path / "data.npz"
    np.savez(path, **{keys[0]: grey, keys[1]: np.array([[2], [0], [1], [1], [0]])})
    source = open_source(f"{path}{part}")
    assert source.labels.tolist() == [2, 0, 1, 1, 0]
    assert source.classes == ("0", "1", "2")
    assert (np.asarray(source.read(3)) == grey[3, :, :, 0]).all()


def test_npz_class_names_and_colour(tmp_path):
    colour = images(3, 4, 4, 3)
    np.savez(tmp_path / "c.npz", images=colour, labels=np.array([0, 1, 0]), class_names=np.array(["a", "b"]))
    source = open_source(str(tmp_path / "c.npz"))
    assert (source.classes, source.notes) == (("a", "b"), ())
    assert source.read(1).mode == "RGB"
    assert (np.asarray(source.read(1)) == colour[1]).all()


@pytest.mark.parametrize(
    ("labels", "names", "classes", "counted", "note"),
    [
        (
            [1, 3, 2, 1],
            None,
            ["1", "2", "3"],
            [0, 2, 1, 0],
            "the labels are 1, 2, 3: 3 classes, called by these numbers",
        ),
        ([0, 5000], None, ["0", "5000"], [0, 1], "the labels are 0, 5000: 2 classes, called by these numbers"),
        ([2**40, 7], None, ["7", str(2**40)], [1, 0], f"the labels are 7, {2**40}: 2 classes, called by these numbers"),
        (
            [0, 2, 0],
            ["a", "b", "c", "d"],
            ["a", "c"],
            [0, 1, 0],
            "2 of 4 classes have no images and are left out: b, d",
        ),
        ([0, 1, 2], None, ["0", "1", "2"], [0, 1, 2], None),
    ],
)
def test_classes_of_an_npz_are_those_with_images(tmp_path, labels, names, classes, counted, note):
    """A class without an image is never trained, and yet would be sampled and measured."""
    named = {} if names is None else {"class_names": np.array(names)}
    np.savez(tmp_path / "a.npz", images=images(len(labels), 4, 4), labels=np.array(labels), **named)
    source = open_source(str(tmp_path / "a.npz"))
    assert list(source.classes) == classes
    assert source.labels.tolist() == counted
    assert source.notes == (() if note is None else (note,))


@pytest.mark.parametrize(
    ("arrays", "part", "words"),
    [
        ({"image": images(2, 4, 4), "labels": np.zeros(2, int)}, "", ["'images' is missing", "did you mean 'image'"]),
        ({"images": images(2, 4, 4), "labels": np.zeros(2, int)}, "/test", ["test_images", "here are: images"]),
        ({"arr_0": images(2, 4, 4)}, "", ["'arr_1' is missing"]),
        ({"images": images(2, 4, 4), "labels": np.zeros(3, int)}, "", ["2 images but 3 labels"]),
        ({"images": images(2, 4, 4) / 255, "labels": np.zeros(2, int)}, "", ["float64", "uint8"]),
        ({"images": images(2, 3, 8, 8), "labels": np.zeros(2, int)}, "", ["channels last"]),
        ({"images": images(2, 4), "labels": np.zeros(2, int)}, "", ["(2, 4)"]),
        ({"images": images(2, 4, 4), "labels": np.zeros(2)}, "", ["one integer per image"]),
        ({"images": images(2, 4, 4), "labels": np.array([0, -1])}, "", ["count from 0"]),
        ({"images": images(0, 4, 4), "labels": np.zeros(0, int)}, "", ["no images"]),
        ({"images": images(1, 4, 4), "labels": np.array([2]), "class_names": np.array(["a"])}, "", ["1 class_names"]),
        ({"images": images(2, 4, 4), "labels": np.arange(2), "class_names": np.array(["a", "a"])}, "", ["one name"]),
        ({"images": images(1, 4, 4), "labels": np.array([{}], object)}, "", ["Python objects, which are never read"]),
    ],
)
def test_npz_errors(tmp_path, arrays, part, words):
    np.savez(tmp_path / "data.npz", **arrays)
    refused(f"{tmp_path}/data.npz{part}", *words)


def test_truncated_npz(tmp_path):
    np.savez(tmp_path / "data.npz", images=images(20, 9, 9), labels=np.zeros(20, int))
    data = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "data.npz", "data.npz: not a readable")


def test_embedded():
    source = open_source("embedded:fashion-mnist")
    assert len(source) == 10_000
    assert source.classes[0] == "T-shirt/top"
    assert np.bincount(source.labels).tolist() == [1000] * 10
    assert source.labels[:5].tolist() == [9, 2, 1, 1, 6]  # as published
    assert source.read(0).size == (28, 28)
    assert source.images.mean() == pytest.approx(73.146, abs=0.01)  # 0.2868 of 255, the set's known mean
    # The first image is an ankle boot: nothing above, the sole below.
    assert np.asarray(source.read(0))[:3].sum() == 0
    assert np.asarray(source.read(0))[15:19].mean() > 100
    # Labels and images go together: the nearest class mean is the right one for about two images in three.
    pixels = source.images.reshape(10_000, -1).astype(np.float32)
    means = np.stack([pixels[source.labels == label].mean(axis=0) for label in range(10)])
    nearest = ((means**2).sum(axis=1) - 2 * pixels @ means.T).argmin(axis=1)
    assert (nearest == source.labels).mean() > 0.65


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def test_fashion_mnist_files(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTURE_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(known_sets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    pictures, labels = images(7, 28, 28), np.arange(7, dtype=np.uint8)
    (tmp_path / "debian").mkdir()
    import gzip

    (tmp_path / "debian" / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures)))
    (tmp_path / "debian" / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    source = open_source("fashion-mnist/test")
    assert (source.images == pictures).all()
    assert source.labels.tolist() == list(range(7))
    (tmp_path / "debian" / "t10k-labels-idx1-ubyte").write_bytes(idx(labels)[:-1])
    refused("fashion-mnist/test", "truncated")


def test_cifar10_files(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTURE_DATA", str(tmp_path))
    (tmp_path / "cifar-10-batches-bin").mkdir()
    records = np.zeros((10_000, 3073), np.uint8)
    records[:, 0] = np.arange(10_000) % 10
    records[3, 1:] = np.repeat([10, 20, 30], 1024)
    records[3, 1 + 1024 + 32 * 5 + 7] = 99  # green, row 5, column 7
    records.tofile(tmp_path / "cifar-10-batches-bin" / "test_batch.bin")
    source = open_source("cifar10/test")
    assert source.classes[3] == "cat"
    assert source.labels[3] == 3
    assert source.read(3).getpixel((0, 0)) == (10, 20, 30)
    assert source.read(3).getpixel((7, 5)) == (10, 99, 30)


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTURE_DATA", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    refused("cifar10", "cannot be downloaded", "no network at all", "cifar-10-batches-bin")
    assert not list(tmp_path.iterdir())


STRANGER = """
import numpy as np
from PIL import Image
from overture.data.base import CorruptImage, Source, digest

class Stripes(Source):
    def __init__(self, text):
        self.name, self.classes = f"stripes {text}", ("across", "down")
        self.labels = np.arange(int(text or 4)) % 2

    def read(self, index):
        image = np.zeros((6, 6), np.uint8)
        image[(slice(None, None, 2), slice(None)) if index % 2 else (slice(None), slice(None, None, 2))] = index
        return Image.fromarray(image)

    def path(self, index):
        return f"stripe {index}"

    def fingerprint(self):
        return digest(self.name.encode())

def broken(text):
    return {}[text]

def nothing(text):
    return None
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Somebody's module in the current folder."""
    (tmp_path / "my_stripes.py").write_text(STRANGER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "my_stripes.py"
    sys.modules.pop("my_stripes", None)


@pytest.mark.parametrize("spec", ["my_stripes:Stripes?10", "./my_stripes.py:Stripes?10", "FILE:Stripes?10"])
def test_anyones_source(stranger, spec):
    source = open_source(spec.replace("FILE", str(stranger)))
    assert (source.name, len(source), source.classes) == ("stripes 10", 10, ("across", "down"))
    assert np.asarray(source.read(7))[:, 0].tolist() == [7, 0, 7, 0, 7, 0]
    train, held_out = split(source, 0.2)
    assert (len(train), len(held_out)) == (8, 2)
    data = DataConfig(spec.replace("FILE", str(stranger)), image_size=6, held_out_share=0.2).build()
    assert data.num_classes == 2
    images = torch.cat([batch.images for batch in evaluation_batches(data.held_out, DataConfig(image_size=6), 2)])
    assert images.shape == (2, 1, 6, 6)
    assert len(open_source("my_stripes:Stripes")) == 4  # without a text it is empty


def test_wrong_sources_of_others_are_told_in_one_line(stranger):
    refused("my_stripes:Strips?3", "has no 'Strips'", "did you mean 'Stripes'", error=UsageError)
    refused("my_strips:Stripes?3", "no module 'my_strips'", error=UsageError)
    refused("no/such/file.py:Stripes", "no such file", error=UsageError)
    refused("my_stripes:nothing?x", "is no overture.data.base.Source", error=UsageError)
    refused("my_stripes:broken?x", "is no overture.data.base.Source", error=UsageError)  # it is not called
    refused("my_stripes:Stripes?many", "my_stripes.py:9: ValueError: invalid literal")


def test_a_folder_with_a_colon_in_its_name_is_a_folder(folder):
    odd = folder.rename(folder.parent / "pets:small")
    assert len(open_source(str(odd))) == 3


def numbered(labels, classes=3):
    labels = np.array(labels)
    return ArraySource("numbers", images(len(labels), 4, 4), labels, [str(c) for c in range(classes)])


def test_split_is_stratified_and_deterministic():
    source = numbered([0] * 40 + [1] * 25 + [2] * 3)
    train, held_out = split(source, 0.1, seed=3)
    assert np.bincount(held_out.labels, minlength=3).tolist() == [4, 3, 0]
    assert np.bincount(train.labels, minlength=3).tolist() == [36, 22, 3]
    assert sorted([*train.indices, *held_out.indices]) == list(range(68))
    assert (split(source, 0.1, seed=3)[1].indices == held_out.indices).all()
    assert (split(source, 0.1, seed=4)[1].indices != held_out.indices).any()
    assert train.fingerprint() != held_out.fingerprint()
    assert (np.asarray(held_out.read(1)) == source.images[held_out.indices[1]]).all()
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(source, 1.0)
    with pytest.raises(OvertureError, match="too few"):
        split(numbered([0, 1, 2]), 0.5)


def test_subsets_of_subsets():
    source = numbered([0, 1, 2, 0, 1, 2])
    part = subset(subset(source, [5, 3, 1]), [2, 0])
    assert part.labels.tolist() == [1, 2]
    assert part.path(1) == "numbers[5]"
    with pytest.raises(UsageError, match=r"0\.\.5"):
        subset(source, [6])
