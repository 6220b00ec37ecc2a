"""Trained models by path, and the two together: classes in, images out.

A path may be a model file, the directory it lies in, a run, or on the hub (``hf:owner/name[@revision][/folder]``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from overture.config import from_dict
from overture.data.transforms import to_uint8
from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.model_files import find_model, load_model, read_metadata
from overture.priors.model import Prior, PriorConfig
from overture.priors.sampler import Sampler
from overture.priors.sampling import Sampling
from overture.processes import Processes
from overture.tokenizers.config import TokenizerConfig
from overture.tokenizers.tokenizer import Tokenizer

__all__ = ["Pipeline", "balanced_classes", "load_prior", "load_tokenizer"]

Weights = Literal["raw", "ema"]


def load_tokenizer(path: str | Path, weights: Weights | None = None, device: str | torch.device = "cpu") -> Tokenizer:
    """A trained tokenizer, ready to use, with the weights its file asks for (EMA if it does not say) or those given."""
    file = find_model(path, "tokenizer")
    metadata = read_metadata(file, "tokenizer")
    config = from_dict(TokenizerConfig, metadata.get("config"), where=f"{file}: config")
    return load_model(file, weights or metadata.get("use_weights", "ema"), config.build).to(device)


def load_prior(path: str | Path, weights: Weights = "raw", device: str | torch.device = "cpu") -> Prior:
    """A trained prior, ready to use; published numbers use the raw weights."""
    file = find_model(path, "prior")
    metadata = read_metadata(file, "prior")
    config = from_dict(PriorConfig, metadata.get("config"), where=f"{file}: config")
    layout = Layout.from_dict(metadata.get("layout"))
    return load_model(file, weights, lambda: config.build(layout)).to(device)


class Pipeline:
    """A tokenizer and a prior that fit each other: classes in, images out."""

    def __init__(self, tokenizer: Tokenizer, prior: Prior) -> None:
        if tokenizer.layout != prior.layout:
            raise OvertureError(
                f"tokenizer ({tokenizer.layout}) and prior ({prior.layout}) have different layouts; "
                "use the prior that was trained on this tokenizer's tokens"
            )
        self.tokenizer, self.prior = tokenizer, prior

    @classmethod
    def load(
        cls,
        run: str | Path,
        device: str | torch.device = "cpu",
        *,
        tokenizer: str | Path | None = None,
        prior: str | Path | None = None,
        prior_weights: Weights = "raw",
    ) -> Pipeline:
        """Both models of a run, with the weights that published numbers use (tokenizer EMA unless its file says, prior raw).

        ``tokenizer`` and ``prior`` are paths of either, if not the run's.
        """
        return cls(load_tokenizer(tokenizer or run, device=device), load_prior(prior or run, prior_weights, device))

    @property
    def layout(self) -> Layout:
        """The layout of the tokens between the two."""
        return self.prior.layout

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.prior.token_embedding.weight.device

    @torch.inference_mode()
    def decode(self, ids: Tensor, batch_size: int = 100) -> Tensor:
        """Local ids ``[N, T]`` -> images uint8 ``[N, C, H, W]`` on the CPU."""
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
