"""What a data source is: a list of labelled images that can be read in any order."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from overture.errors import OvertureError, UsageError

__all__ = [
    "ArraySource",
    "CorruptImage",
    "Source",
    "Subset",
    "decode_image",
    "digest",
    "plain_image",
    "same_fingerprint",
    "split",
    "subset",
]

MAX_PIXELS = 2**27
"""134 megapixels: 400 MB in colour."""
MAX_ASPECT = 128
"""How often the shorter side may fit into the longer one: the picture is resized by the shorter."""

_RGB_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
_GREY_MODES = ("L", "LA", "La", "1")


class CorruptImage(OvertureError):
    """An image whose bytes cannot be decoded; the message names it."""


class Source(ABC):
    """Labelled images. Sources pickle small, so that each worker process can open its own."""

    name: str
    """What the user asked for: the text given to :func:`overture.data.sources.open_source`."""
    classes: tuple[str, ...]
    """The class names, in label order."""
    labels: NDArray[np.int64]
    """The class of every image ``[N]``."""
    in_memory: bool = False
    """Whether reading costs no decoding."""
    notes: tuple[str, ...] = ()
    """What a user should know of how the data were understood, such as folders that were left out."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Image ``index``, mode ``L`` or ``RGB`` (``LA`` or ``RGBA`` if transparent); raises :class:`CorruptImage`."""

    @abstractmethod
    def path(self, index: int) -> str:
        """The name of image ``index`` for messages."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes when the data does, and not when they are moved elsewhere."""


class ArraySource(Source):
    """Images that are already decoded: uint8 ``[N, H, W]`` or ``[N, H, W, 3]``."""

    in_memory = True

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer],
        classes: Sequence[str],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.notes = name, notes
        self.images = np.ascontiguousarray(images)
        self.labels = np.asarray(labels).astype(np.int64)
        self.classes = tuple(classes)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def path(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        return digest(str(self.images.shape).encode(), self.images.data, self.labels.data, repr(self.classes).encode())


class Subset(Source):
    """Some images of another source, with all of its classes."""

    def __init__(self, source: Source, indices: NDArray[np.integer], name: str = "") -> None:
        self.indices = np.asarray(indices).astype(np.int64)
        if isinstance(source, Subset):
            self.indices = source.indices[self.indices]
            source = source.source
        self.source: Source = source
        self.name = name or source.name
        self.classes = source.classes
        self.labels = source.labels[self.indices]
        self.in_memory, self.notes = source.in_memory, source.notes

    def read(self, index: int) -> Image.Image:
        return self.source.read(int(self.indices[index]))

    def path(self, index: int) -> str:
        return self.source.path(int(self.indices[index]))

    def fingerprint(self) -> str:
        whole = self.source.fingerprint()
        way = whole.rpartition("-")[0]
        return (f"{way}-" if way else "") + digest(whole.encode(), self.indices.data)


def subset(source: Source, indices: Sequence[int] | NDArray[np.integer]) -> Source:
    """The images of ``source`` at ``indices``, in that order; labels and class names stay as they are."""
    chosen = np.asarray(indices, dtype=np.int64)
    if chosen.ndim != 1 or (len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(source))):
        raise UsageError(f"{source.name}: a subset needs a list of indices in 0..{len(source) - 1}")
    return Subset(source, chosen)


def split(source: Source, share: float, seed: int = 0) -> tuple[Source, Source]:
    """``(train, held_out)``: about ``share`` of every class is held out, the same images for the same seed.

    At least one image of every class stays for training.
    """
    if not 0 < share < 1:
        raise UsageError(f"the share of images held out is {share}, needs to be between 0 and 1")
    held_out = []
    for label in range(len(source.classes)):
        members = np.flatnonzero(source.labels == label)
        count = min(int(share * len(members) + 0.5), len(members) - 1)
        order = np.random.default_rng((seed, label)).permutation(len(members))
        held_out.append(members[order[: max(count, 0)]])
    chosen = np.sort(np.concatenate(held_out))
    if not len(chosen):
        raise OvertureError(f"{source.name}: {len(source)} images are too few to hold out a share of {share}")
    rest = np.setdiff1d(np.arange(len(source)), chosen)
    return Subset(source, rest, f"{source.name} (training share)"), Subset(
        source, chosen, f"{source.name} (held-out share)"
    )


def decode_image(data: bytes, where: str) -> Image.Image:
    """Decode an image file to mode ``L`` or ``RGB``, or ``LA`` or ``RGBA`` where some of it is transparent.

    Turned upright as its EXIF tag says; palettes, CMYK and the like become RGB; of an animation the first frame counts.
    16-bit and float images are refused: cutting them to 8 bits would be a guess about their range. So are, by their
    header alone, images of more than ``MAX_PIXELS`` and those narrower than ``MAX_ASPECT``.
    """
    if not data:
        raise CorruptImage(f"{where}: the file is empty")
    with _told(where):
        return _plain(Image.open(io.BytesIO(data)), where, in_place=True)


def plain_image(image: Image.Image, where: str) -> Image.Image:
    """As :func:`decode_image`, of an image that Pillow has opened, which stays as it is."""
    with _told(where):
        return _plain(image, where, in_place=False)


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever goes wrong with an image, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd tags; what is wrong is an error anyway
            yield
    except (MemoryError, OvertureError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = " ".join(str(error).split()) if not isinstance(error, UnidentifiedImageError) else "no image"
        raise CorruptImage(f"{where}: cannot decode this image ({reason or type(error).__name__})") from error


def _plain(image: Image.Image, where: str, *, in_place: bool) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise CorruptImage(f"{where}: {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise CorruptImage(f"{where}: {image.width} x {image.height} pixels, too narrow to cut a square from")
    image.load()
    plain = _without_palette(_upright(image, in_place))
    if plain is None:
        raise OvertureError(
            f"{where}: images of mode {image.mode} are not supported, convert them to 8-bit grey or RGB"
        )
    return plain


def _upright(image: Image.Image, in_place: bool) -> Image.Image:
    """Turned as the camera was held; a tag that cannot be read turns nothing."""
    with contextlib.suppress(Exception):  # tags are read by rules of their own, and the pixels are good
        if not in_place:
            return ImageOps.exif_transpose(image)
        ImageOps.exif_transpose(image, in_place=True)  # not a copy of every image
    return image


def _without_palette(image: Image.Image) -> Image.Image | None:
    """In mode L, RGB, LA or RGBA, with alpha only where something shows through; None for other kinds of images."""
    if image.mode.startswith("I;16"):  # grey of 16 bits: the upper eight, as an 8-bit reader would see it
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    grey = image.mode in _GREY_MODES
    if not grey and image.mode not in _RGB_MODES:
        return None
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        colour = image.convert("RGBA")
        alpha = colour.getchannel("A")
        if alpha.getextrema() != (255, 255):
            return Image.merge("LA", (colour.getchannel("R"), alpha)) if grey else colour
        image = colour
    return image.convert("L" if grey else "RGB") if image.mode != ("L" if grey else "RGB") else image


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints may be of the same data. Those of another way to take them (``WAY-...``) cannot be told."""
    comparable = bool(one and other) and one.rpartition("-")[0] == other.rpartition("-")[0]
    return one == other or not comparable


def digest(*parts: bytes | memoryview) -> str:
    """The first 16 hex digits of the SHA-256 over all parts."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()[:16]
