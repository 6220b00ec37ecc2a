"""Images per second, ours and torchvision's ImageFolder: the same JPEGs, the same crops, one thread, in one run.

Makes photographs' likes of 500 x 375 pixels (ImageNet's commonest size) in a temporary folder, once as class folders,
once in a zip, a tar and a parquet file, and reads them in one shuffled order to random crops of 256 px, uint8
``[B, 3, 256, 256]``. ImageFolder gets the reference's way as its transform: Pillow resizes the whole image, and the
square is cut from it. Times are the CPU seconds of this process, the best of some rounds, the sides taking turns; so
other work on the machine disturbs them little. Says how far our crops are from the reference's, in levels of 255.

With ``--entries N`` it also makes a zip's directory of N images (sparse: the images are holes), and tells how long it
takes to open it, and what of it a worker process gets.

    OMP_NUM_THREADS=1 python benchmarks/image_reading.py --entries 1281167
"""

from __future__ import annotations

import argparse
import io
import pickle
import resource
import struct
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from overture.data import parquet, reading
from overture.data.order import ShuffledOrder, generator
from overture.data.sources import Source, open_source
from overture.data.stream import DataConfig, TrainingStream, evaluation_batches

WIDTH, HEIGHT, SIZE, BATCH = 500, 375, 256, 16


def photograph(seed: int, quality: int = 95) -> bytes:
    """A JPEG with detail at every scale, of about the bytes of one of ImageNet's (110 kB)."""
    rng = np.random.default_rng(seed)
    total = np.full((HEIGHT, WIDTH, 3), 127.0, np.float32)
    for scale in (4, 8, 16, 32, 64, 128, 256):
        shape = (max(2, HEIGHT * scale // 512), max(2, WIDTH * scale // 512), 3)
        noise = Image.fromarray(rng.integers(0, 256, shape, np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        total += (np.asarray(noise, np.float32) - 127) * (1.6 / scale**0.5)
    buffer = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def write_all(root: Path, count: int) -> dict[str, str]:
    """The same images in every kind of source; the words that open them."""
    files = {f"n{label:08d}/{place:06d}.JPEG": photograph(place) for place, label in _labels(count)}
    for name, data in files.items():
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with zipfile.ZipFile(root / "images.zip", "w") as target:
        for name, data in files.items():
            target.writestr(name, data)
    with tarfile.open(root / "images.tar", "w") as target:
        for name, data in files.items():
            for kind, content in (("jpg", data), ("cls", str(int(name[1:9])).encode())):
                info = tarfile.TarInfo(f"{Path(name).stem}.{kind}")
                info.size = len(content)
                target.addfile(info, io.BytesIO(content))
    places = {"folder": str(root / "folder"), "zip": f"{root}/images.zip", "tar": f"{root}/images.tar"}
    try:
        import pyarrow as pa
        from pyarrow.parquet import write_table
    except ImportError:
        print("parquet is left out: pyarrow is not installed")
        return places
    images = [{"bytes": data, "path": name} for name, data in files.items()]
    table = pa.table({"image": images, "label": [int(name[1:9]) for name in files]})
    for rows in (10, 100):
        write_table(table, root / f"images-{rows}.parquet", row_group_size=rows)
        places[f"parquet, groups of {rows}"] = f"{root}/images-{rows}.parquet"
    return places


def _labels(count: int) -> list[tuple[int, int]]:
    return [(place, place * 10 // count) for place in range(count)]


def reference(image: Image.Image, shorter: int) -> np.ndarray:
    """The whole image, resized as the papers' crops ask."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def reference_random(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    pixels = reference(image, int(rng.integers(SIZE, -(-5 * SIZE // 4), endpoint=True)))
    top = int(rng.integers(0, pixels.shape[0] - SIZE, endpoint=True))
    left = int(rng.integers(0, pixels.shape[1] - SIZE, endpoint=True))
    return pixels[top : top + SIZE, left : left + SIZE]


def reference_center(image: Image.Image) -> np.ndarray:
    pixels = reference(image, SIZE)
    top, left = (pixels.shape[0] - SIZE) // 2, (pixels.shape[1] - SIZE) // 2
    return pixels[top : top + SIZE, left : left + SIZE]


def theirs(folder: str, crop: str) -> Iterator[torch.Tensor]:
    """ImageFolder's batches, without end: the same items and crops as ours."""
    data = ImageFolder(folder)
    order = ShuffledOrder(len(data), BATCH, seed=0)
    step = 0
    while True:
        images = []
        items = (
            zip(*order.batch(step), strict=True) if crop == "random" else ((0, step * BATCH + i) for i in range(BATCH))
        )
        for epoch, item in items:
            image = data[int(item) % len(data)][0]
            rng = generator("crop", 0, int(epoch), int(item))
            pixels = reference_random(image, rng) if crop == "random" else reference_center(image)
            images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        yield torch.stack(images)
        step += 1


def ours(source: Source, crop: str) -> Iterator[torch.Tensor]:
    config = DataConfig(image_size=SIZE, channels=3, mirror=False)
    while True:
        if crop == "random":
            batches = TrainingStream(source, config, BATCH, seed=0).batches()
        else:
            batches = evaluation_batches(source, config, BATCH)
        for batch in batches:
            yield batch.images


def compare(sides: dict[str, Callable[[], Iterator[torch.Tensor]]], images: int, rounds: int) -> dict[str, float]:
    """Images per CPU second of every side, the best of the rounds."""
    best = dict.fromkeys(sides, 0.0)
    for _ in range(rounds):
        for name, start in sides.items():
            batches = start()
            begin = time.process_time()
            for _ in range(images // BATCH):
                next(batches)
            best[name] = max(best[name], images // BATCH * BATCH / (time.process_time() - begin))
    return best


def difference(sides: dict[str, Callable[[], Iterator[torch.Tensor]]], images: int) -> tuple[int, float]:
    """The largest difference of values between two sides, in levels of 255, and the share of values that differ."""
    most, share = 0, []
    for one, other, _ in zip(*(start() for start in sides.values()), range(images // BATCH), strict=False):
        gap = (one.int() - other.int()).abs()
        most = max(most, int(gap.max()))
        share.append((gap > 0).double().mean().item())
    return most, float(np.mean(share))


def write_directory(path: Path, count: int) -> None:
    """A zip of ``count`` images of 110 kB in 1000 classes; the images themselves are holes."""
    parts, offset = [], 0
    for place in range(count):
        name = f"n{place * 1000 // count:08d}/n{place * 1000 // count:08d}_{place}.JPEG".encode()
        extra = struct.pack("<HHQ", 1, 8, offset)
        head = struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, 110_000, 110_000, len(name), 12, 0, 0, 0, 0, 2**32 - 1
        )
        parts += [head, name, extra]
        offset += 30 + len(name) + 110_000
    directory = b"".join(parts)
    with path.open("wb") as file:
        file.seek(offset)
        file.write(directory)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), offset))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, offset + len(directory), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0))


def measure_directory(root: Path, count: int) -> None:
    write_directory(root / "large.zip", count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    source = open_source(f"{root}/large.zip")
    seconds = time.process_time() - begin
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = len(pickle.dumps(source, protocol=5)) / 1e6
    print(f"\na zip of {len(source):,} images is opened in {seconds:.1f} s (CPU), {peak:.0f} MB more at its peak")
    print(f"a worker gets {size:.0f} MB if it is sent the source, and shares them if it is forked")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=320, help="different images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--entries", type=int, default=0, help="of a zip to open (default: none)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reading.CACHE_BYTES = parquet.HELD_BYTES = (
        0  # as with data that do not fit into memory: nothing is read twice from it
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if options.entries:
            measure_directory(root, options.entries)
        places = write_all(root, options.images)
        sizes = [path.stat().st_size for path in (root / "folder").rglob("*.JPEG")]
        print(
            f"\n{options.images} JPEGs of {WIDTH} x {HEIGHT}, {np.mean(sizes) / 1000:.0f} kB each; per second, one thread:"
        )
        for crop in ("random", "center"):
            sides = {"ImageFolder": lambda crop=crop: theirs(places["folder"], crop)}
            for kind, place in places.items():
                sides[kind] = lambda place=place, crop=crop: ours(open_source(place), crop)
            rates = compare(sides, options.images, options.rounds)
            pair = {kind: sides[kind] for kind in ("ImageFolder", "folder")}
            most, share = difference(pair, min(options.images, 160))
            for name, rate in rates.items():
                print(f"{crop} crops, {name:22} {rate:6.1f}   {rate / rates['ImageFolder']:.2f} of ImageFolder")
            print(f"{crop} crops differ from the reference by at most {most} level, in {share:.6f} of the values")


if __name__ == "__main__":
    main()
