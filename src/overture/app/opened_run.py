"""A run as the page has it open: its models, the names of its classes, and pictures to tokens and back.

Legend: T local tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from overture.data.pil_images import from_pil, to_pil
from overture.data.transforms import to_float, to_uint8
from overture.errors import UsageError
from overture.layout import Layout
from overture.model_files import NoModel, find_model
from overture.pipeline import Pipeline
from overture.priors.model import Prior
from overture.runs.class_names import class_names
from overture.tokenizers.tokenizer import Tokenizer

__all__ = ["Ids", "OpenedRun"]

Ids = tuple[int, ...]
"""The local ids of one picture."""


@dataclass(frozen=True)
class OpenedRun:
    """Models and what is known of them. A run without a prior has pictures to tokens and back, and no more."""

    path: str
    tokenizer: Tokenizer
    prior: Prior | None = None
    classes: tuple[str, ...] = ()
    """The classes that the prior knows, by name."""

    @classmethod
    def open(cls, path: str | Path, device: str | torch.device = "cpu") -> OpenedRun:
        """The models of a run, of a folder with models, or of the hub (``hf:owner/name``)."""
        if not _has_prior(path):
            return cls(str(path), Tokenizer.open(path, device=device))
        pipe = Pipeline.load(path, device)
        names = pipe.prior.class_names or class_names(path, pipe.prior.config.num_classes)
        return cls(str(path), pipe.tokenizer, pipe.prior, tuple(names))

    @property
    def tokenizer_hash(self) -> str:
        """Which tokenizer it is: the hash of its file's weights."""
        return _hash_of(self.tokenizer)

    @property
    def prior_hash(self) -> str:
        """Which prior it is; empty where there is none."""
        return _hash_of(self.prior) if self.prior else ""

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.path if self.path.startswith("hf:") else Path(self.path).resolve().name

    @property
    def layout(self) -> Layout:
        """The layout of its tokens."""
        return self.tokenizer.layout

    @property
    def device(self) -> torch.device:
        """Where its models are."""
        return next(self.tokenizer.parameters()).device

    def needs_prior(self) -> Prior:
        """The prior, or one line that there is none."""
        if self.prior is None:
            raise UsageError(f"{self.name}: holds no prior, so it makes no new pictures; train one (overture run)")
        return self.prior

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Ids:
        """The tokens of a picture of any size: cut and resized as the run cuts its images.

        For a grey model colours are turned grey, which no command does; the page says so.
        """
        config = self.tokenizer.config
        fitting = image.convert("LA" if image.mode == "RGBA" else "L") if config.channels == 1 else image
        pixels = from_pil(fitting, config.image_size, config.channels, self.tokenizer.background)
        return as_ids(self.tokenizer.encode(to_float(pixels.to(self.device))))

    @torch.inference_mode()
    def decode(self, ids: Ids) -> Image.Image:
        """The picture of all T tokens; ids that the layout does not allow are refused."""
        row_1T = torch.tensor([ids], device=self.device)
        return to_pil(to_uint8(self.tokenizer.decode(row_1T)).cpu())[0]

    @cached_property
    def nothing(self) -> Ids:
        """What stands for tokens that have not come yet: those of a plain grey picture."""
        config = self.tokenizer.config
        mode, grey = ("L", 128) if config.channels == 1 else ("RGB", (128,) * 3)
        return self.encode(Image.new(mode, (config.image_size,) * 2, grey))

    def segment_ends(self) -> tuple[tuple[str, int], ...]:
        """Every segment's name, and how many tokens there are up to its end."""
        return tuple((name, self.layout.slice(name).stop) for name in self.layout.names)

    def grid_of(self, segment: str) -> int | None:
        """Patches on a side, where a segment's tokens lie on the picture; None where they are a row."""
        config = next(part for part in self.tokenizer.config.segments if part.name == segment)
        return self.tokenizer.config.grid if config.source == "patches" else None


def as_ids(row_1T: Tensor) -> Ids:
    """One row of a tensor as plain numbers."""
    return tuple(int(number) for number in row_1T[0].tolist())


def _has_prior(path: str | Path) -> bool:
    """Whether a prior lies there beside the tokenizer; what is there and damaged is told when it is read."""
    tokenizer = find_model(path, "tokenizer")
    try:
        return find_model(path, "prior") != tokenizer
    except NoModel:
        return False


def _hash_of(model: Tokenizer | Prior) -> str:
    assert model.origin is not None  # opened from a file
    return str(model.origin.metadata["weights_hash"])
