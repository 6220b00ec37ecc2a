import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from overture.data import known_sets
from overture.data.base import CorruptImage, decode_image
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

    alpha = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert through(alpha).getpixel((0, 0)) == (10, 20, 30)  # dropped, not composited
    assert through(Image.new("LA", (2, 2), (10, 0))).getpixel((0, 0)) == 10
    assert through(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == 255
    palette = Image.new("RGB", (2, 2), (200, 100, 50)).quantize(4)
    assert palette.mode == "P"
    assert through(palette).getpixel((0, 0)) == (200, 100, 50)
    with pytest.raises(OvertureError, match=r"it\.png: images of mode I;16") as caught:
        through(Image.fromarray(np.full((2, 2), 40_000, np.uint16)))
    assert not isinstance(caught.value, CorruptImage)


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
    refused(folder / "dog" / "a.PNG", "not a folder, a .zip or a .npz", error=UsageError)


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
    np.savez(tmp_path / "c.npz", images=colour, labels=np.array([0, 1, 0]), class_names=np.array(["a", "b", "c"]))
    source = open_source(str(tmp_path / "c.npz"))
    assert source.classes == ("a", "b", "c")
    assert source.read(1).mode == "RGB"
    assert (np.asarray(source.read(1)) == colour[1]).all()


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
        ({"images": images(1, 4, 4), "labels": np.array([{}], object)}, "", ["cannot read", "pickle"]),
    ],
)
def test_npz_errors(tmp_path, arrays, part, words):
    np.savez(tmp_path / "data.npz", **arrays)
    refused(f"{tmp_path}/data.npz{part}", *words)


def test_truncated_npz(tmp_path):
    np.savez(tmp_path / "data.npz", images=images(20, 9, 9), labels=np.zeros(20, int))
    data = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "data.npz", "cannot read this npz")


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
    line = STRANGER[: STRANGER.index("return {}[text]")].count("\n") + 1
    refused("my_stripes:broken?x", f"my_stripes.py:{line}: KeyError: 'x'")
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
