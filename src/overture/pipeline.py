"""Trained models by path, and the two together: classes in, images out.

A path may be a model file, the directory it lies in, a run, or on the hub (``hf:owner/name[@revision][/folder]``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor

from overture.data.pil_images import Pictures, from_pil, to_pil
from overture.data.transforms import to_float, to_uint8
from overture.errors import OvertureError, UsageError
from overture.hub import HubFolder, find_place, is_hub
from overture.layout import Layout
from overture.priors.model import Prior
from overture.priors.sampler import Sampler
from overture.priors.sampling import Sampling
from overture.processes import Processes
from overture.saved_model import Weights, push_models
from overture.tokenizers.tokenizer import Tokenizer

__all__ = ["Pipeline", "balanced_classes", "load_prior", "load_tokenizer"]


def load_tokenizer(path: str | Path, weights: Weights | None = None, device: str | torch.device = "cpu") -> Tokenizer:
    """A trained tokenizer, ready to use, with the weights its file asks for (EMA if it does not say) or those given."""
    return Tokenizer.open(path, weights, device)


def load_prior(path: str | Path, weights: Weights = "raw", device: str | torch.device = "cpu") -> Prior:
    """A trained prior, ready to use; published numbers use the raw weights."""
    return Prior.open(path, weights, device)


class Pipeline:
    """A tokenizer and a prior that fit each other: classes in, images out."""

    def __init__(self, tokenizer: Tokenizer, prior: Prior) -> None:
        if tokenizer.layout != prior.layout:
            raise OvertureError(
                f"tokenizer ({tokenizer.layout}) and prior ({prior.layout}) have different layouts; "
                "use the prior that was trained on this tokenizer's tokens"
            )
        self.tokenizer, self.prior = tokenizer, prior

    # -- loading and saving -----------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        run: str | Path | HubFolder,
        device: str | torch.device = "cpu",
        *,
        tokenizer: str | Path | None = None,
        prior: str | Path | None = None,
        prior_weights: Weights = "raw",
    ) -> Pipeline:
        """Both models of a run, with the weights that published numbers use (tokenizer EMA unless its file says, prior raw).

        ``tokenizer`` and ``prior`` are paths of either, if not the run's.
        """
        encoder = Tokenizer.open(tokenizer or run, device=device)
        if is_hub(run) and encoder.origin and not tokenizer:  # both of one commit, whatever is pushed meanwhile
            run = HubFolder.parse(run).pinned(encoder.origin.file)
        return cls(encoder, Prior.open(prior or run, prior_weights, device))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        device: str | torch.device = "cpu",
    ) -> Pipeline:
        """Both models of a run, of a folder of :meth:`save_pretrained`, or of the hub (``owner/name``), ready to use.

        ``revision`` is a branch, a tag or a commit of the hub (default: its default branch as it is now), ``subfolder`` a
        folder inside. Files of the hub are kept in its cache, and are taken from there where there is no network.
        """
        return cls.load(find_place(path, revision, subfolder), device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write both models into a folder that :meth:`from_pretrained` and every command read like a run; the folder."""
        root = Path(folder).expanduser()
        for model in (self.tokenizer, self.prior):
            model.save_pretrained(root / model.kind)
        return root

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str = "",
        card: str = "",
    ) -> HubFolder:
        """Save both into a repository of the hub, as :meth:`overture.saved_model.SavedModel.push_to_hub` does.

        ``overture push`` does it for a run, with a card of its numbers.
        """
        models = {model.kind: model for model in (self.tokenizer, self.prior)}
        message = message or "Add models"
        return push_models(models, repository, private=private, revision=revision, message=message, card=card)

    def to(self, device: str | torch.device) -> Pipeline:
        """Move both models to a device; the pipeline itself."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """The layout of the tokens between the two."""
        return self.prior.layout

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.prior.token_embedding.weight.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in order; their numbers, padded so that they sort, where the model does not know them."""
        count = self.prior.config.num_classes
        width = len(str(count - 1))
        return self.prior.class_names or tuple(f"{number:0{width}d}" for number in range(count))

    # -- images and tokens ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, images: Pictures, batch_size: int = 100) -> Tensor:
        """Images -> local ids ``[N, T]`` on the CPU: a Pillow image, several, or uint8 ``[N, C, H, W]``, of any size.

        They are prepared as the run prepared its images: upright, on the background that it was trained with where
        they are transparent, resized, the square in the middle. Colour for a grey model is refused.
        """
        config = self.tokenizer.config
        pixels = from_pil(images, config.image_size, config.channels, self.tokenizer.background)
        parts = [self.tokenizer.encode(to_float(part.to(self.device))) for part in pixels.split(batch_size)]
        return torch.cat(parts).cpu()

    @torch.inference_mode()
    def decode(self, ids: Tensor, batch_size: int = 100) -> Tensor:
        """Local ids ``[N, T]`` -> images uint8 ``[N, C, H, W]`` on the CPU (Pillow images of them: ``overture.to_pil``)."""
        self.layout.check(ids)
        parts = [self.tokenizer.decode_valid(part.to(self.device)) for part in ids.split(batch_size)]
        return torch.cat([to_uint8(part).cpu() for part in parts])

    def sample_ids(
        self,
        class_ids: Sequence[int] | Tensor,
        sampling: Sampling = Sampling(),
        *,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
        prefix: Tensor | None = None,
        fixed: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Tensor]:
        """Batches of local ids ``[b, T]`` of the given classes: images ``first``, ``first + 1``, ... of a ``seed``.

        The one loop that samples in batches: an image depends on its class, its index, the seed and the
        :class:`Sampling` alone, not on ``batch_size``. ``prefix`` and ``fixed`` (``[N, ..]`` sequence ids, or one row for
        all) and ``dtype`` are as in :func:`overture.priors.sampler.generate`.
        """
        if batch_size < 1:
            raise UsageError(f"batch size is {batch_size}, needs >= 1")
        classes = _check_classes(class_ids, self.prior)
        prefix, fixed = (
            given.expand(len(classes), -1) if given is not None and given.ndim == 1 else given
            for given in (prefix, fixed)
        )
        sampler = Sampler(self.prior, sampling, dtype=dtype)
        for start in range(0, len(classes), batch_size):
            rows = slice(start, start + batch_size)
            sequence = sampler(
                classes[rows],
                seed=seed,
                first=first + start,
                prefix=None if prefix is None else prefix[rows],
                fixed=None if fixed is None else fixed[rows],
            )
            yield self.layout.from_sequence(sequence)

    @torch.inference_mode()
    def sample(
        self, class_ids: Sequence[int] | Tensor, sampling: Sampling = Sampling(), **options: Unpack[SampleOptions]
    ) -> Iterator[Tensor]:
        """Batches of images uint8 ``[b, C, H, W]`` on the CPU; the parameters are those of :meth:`sample_ids`."""
        for ids in self.sample_ids(class_ids, sampling, **options):
            yield self._images(ids)

    @torch.inference_mode()
    def _images(self, ids: Tensor) -> Tensor:
        return to_uint8(self.tokenizer.decode_valid(ids)).cpu()

    def sample_together(
        self,
        class_ids: Sequence[int] | Tensor,
        sampling: Sampling = Sampling(),
        *,
        processes: Processes,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Tensor]:
        """As :meth:`sample`, the work shared by all processes: each samples ``batch_size`` images, and all get them all."""
        classes = _check_classes(class_ids, self.prior)
        sampler = Sampler(self.prior, sampling, dtype=dtype)
        for start in range(0, len(classes), batch_size * processes.size):
            count = min(batch_size * processes.size, len(classes) - start)
            share = -(-count // processes.size)
            mine = start + processes.rank * share
            # Beyond the last image some make one more of its class, so that all have equally many; it is cut off below.
            rows = torch.arange(mine, mine + share).clamp(max=len(classes) - 1)
            images = self._images(self.layout.from_sequence(sampler(classes[rows], seed=seed, first=first + mine)))
            yield processes.gather(images)[:count]

    def __call__(
        self, class_ids: Sequence[int] | Tensor, sampling: Sampling = Sampling(), **options: Unpack[SampleOptions]
    ) -> Tensor:
        """Images uint8 ``[N, C, H, W]`` of the given classes, all at once; the parameters are those of :meth:`sample_ids`.

        The same call gives the same images: other ones have another ``seed``. Unlike there, "unconditional" is no
        class here: all have to be those of the data.
        """
        classes = _check_classes(class_ids, self.prior)
        if (classes == self.prior.unconditional).any():
            raise UsageError(
                f"class {self.prior.unconditional} is out of range, the model knows 0..{self.prior.unconditional - 1}"
            )
        return torch.cat(list(self.sample(classes, sampling, **options)))

    def pictures(
        self, class_ids: Sequence[int] | Tensor, sampling: Sampling = Sampling(), **options: Unpack[SampleOptions]
    ) -> list[Image.Image]:
        """As a call of the pipeline, as Pillow images."""
        return to_pil(self(class_ids, sampling, **options))


class SampleOptions(TypedDict, total=False):
    """The optional parameters of :meth:`Pipeline.sample_ids`."""

    seed: int
    first: int
    batch_size: int
    prefix: Tensor | None
    fixed: Tensor | None
    dtype: torch.dtype | None


def _check_classes(class_ids: Sequence[int] | Tensor, prior: Prior) -> Tensor:
    """Classes as integers ``[N]``; refuses anything else, and classes that the prior does not know."""
    if not isinstance(class_ids, Tensor) and any(isinstance(one, str) for one in class_ids):
        raise UsageError("classes are names, need numbers: pipe.class_names.index('sneaker')")
    classes = torch.as_tensor(class_ids)
    if classes.ndim != 1 or len(classes) == 0 or classes.is_floating_point() or classes.dtype == torch.bool:
        raise UsageError(f"classes are {classes.dtype} of shape {list(classes.shape)}, need at least one integer [N]")
    prior.check_classes(classes)
    return classes.long()


def balanced_classes(samples: int, num_classes: int) -> Tensor:
    """Every class equally often (to within one), in turn; of more classes than samples some from all over."""
    if samples < num_classes:
        return torch.arange(samples) * num_classes // samples
    return torch.arange(samples) % num_classes
