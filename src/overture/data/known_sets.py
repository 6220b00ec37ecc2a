"""Data sets that are known by name: the embedded one, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overture.data.base import ArraySource
from overture.errors import OvertureError, UsageError, nearest
from overture.files import cache_folder

__all__ = ["EMBEDDED", "KNOWN_SETS", "data_root", "open_embedded", "open_known_set"]

EMBEDDED = ("fashion-mnist",)
KNOWN_SETS = ("cifar10", "fashion-mnist")

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# torchvision reads CIFAR-10 from pickles; the same images are published as plain bytes too.
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


def data_root() -> Path:
    """Where data sets are looked for and downloaded to: ``$OVERTURE_DATA`` or ``~/.cache/overture/data``."""
    return cache_folder("OVERTURE_DATA", "data")


def open_embedded(name: str) -> ArraySource:
    """``embedded:fashion-mnist``: the 10,000 test images of Fashion-MNIST (MIT licence, Zalando SE), in the package.

    One PNG holds them as a sheet of 100 x 100, with the labels and class names in its text fields.
    """
    chosen = name.removeprefix("embedded:")
    if chosen not in EMBEDDED:
        raise UsageError(f"no embedded data set '{chosen}'{nearest(chosen, EMBEDDED)}")
    file = resources.files("overture.data") / "embedded" / "fashion-mnist-test.png"
    with file.open("rb") as stream, Image.open(stream) as sheet:
        pixels = np.asarray(sheet)
        text: dict[str, str] = sheet.text  # type: ignore[attr-defined]
    images = pixels.reshape(100, 28, 100, 28).transpose(0, 2, 1, 3).reshape(10_000, 28, 28)
    labels = np.frombuffer(text["labels"].encode(), np.uint8) - ord("0")
    return ArraySource(name, images, labels, text["classes"].split(", "))


def open_known_set(name: str) -> ArraySource:
    """``cifar10``, ``fashion-mnist``, or one of them with ``/train`` or ``/test``; downloaded when absent."""
    known, _, part = name.partition("/")
    part = part or "train"
    if part not in ("train", "test"):
        raise UsageError(f"{known} has no split '{part}'{nearest(part, ('train', 'test'))}")
    try:
        return _cifar10(name, part) if known == "cifar10" else _fashion_mnist(name, part)
    except (OSError, EOFError, zlib.error) as error:
        raise OvertureError(f"{name}: cannot read its files ({error})") from error


def _fashion_mnist(name: str, part: str) -> ArraySource:
    stem = {"train": "train", "test": "t10k"}[part]
    files = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
    own = data_root() / "fashion-mnist"
    places = [own, data_root() / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    place = next((place for place in places if all(_idx_path(place, file) for file in files)), None)
    if place is None:
        from torchvision.datasets import FashionMNIST

        sources = [(FashionMNIST.mirrors[0] + file, md5) for file, md5 in FashionMNIST.resources]
        _download(name, sources, own, [path.rsplit("/", 1)[1] for path, _ in sources])
        place = own
    images, labels = (_read_idx(path) for file in files if (path := _idx_path(place, file)))
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise OvertureError(f"{place}: images {images.shape} and labels {labels.shape} are not Fashion-MNIST")
    return ArraySource(name, images, labels, FASHION_MNIST_CLASSES)


def _idx_path(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array in the idx format: 0, 0, 8 (bytes), number of dimensions, their sizes (big-endian), the values."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise OvertureError(f"{path}: not an idx file of bytes")
    shape = tuple(np.frombuffer(data, ">u4", data[3], offset=4).tolist())
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if len(values) != np.prod(shape, dtype=np.int64):
        raise OvertureError(f"{path}: {len(values)} values, its header says {' x '.join(map(str, shape))}; truncated?")
    return values.reshape(shape)


def _cifar10(name: str, part: str) -> ArraySource:
    folder = data_root() / "cifar-10-batches-bin"
    files = [f"data_batch_{number}.bin" for number in range(1, 6)] if part == "train" else ["test_batch.bin"]
    if not all((folder / file).is_file() for file in files):
        _download(name, [(CIFAR10_URL, CIFAR10_MD5)], folder, ["cifar-10-batches-bin"])
    records = []
    for file in files:
        data = np.fromfile(folder / file, np.uint8)
        if data.size != 10_000 * 3073:
            raise OvertureError(f"{folder / file}: {data.size} bytes, CIFAR-10 has {10_000 * 3073}; truncated?")
        records.append(data.reshape(10_000, 3073))  # the label, then the planes of red, green and blue
    table = np.concatenate(records)
    images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySource(name, images, table[:, 0], CIFAR10_CLASSES)


def _download(name: str, sources: list[tuple[str, str]], target: Path, wanted: list[str]) -> None:
    """Fetch (url, md5) files into a temporary folder and move what is ``wanted`` to ``target``: whole or not at all."""
    from torchvision.datasets.utils import download_url, extract_archive

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            for url, md5 in sources:
                download_url(url, temporary, md5=md5)
                file = Path(temporary) / url.rsplit("/", 1)[1]
                if file.name.endswith(".tar.gz"):
                    extract_archive(str(file), temporary)
            found = [Path(temporary) / entry for entry in wanted]
            if len(found) == 1:
                shutil.copytree(found[0], target, dirs_exist_ok=True)
            else:
                target.mkdir(exist_ok=True)
                for path in found:
                    path.replace(target / path.name)
    except (OSError, RuntimeError) as error:  # a failed download and a wrong checksum
        reason = " ".join(str(error).split())
        raise OvertureError(f"{name}: not in {target} and cannot be downloaded ({reason}); put it there") from error
