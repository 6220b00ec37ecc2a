"""Trained models by path, and the two together.

A path may be a model file, the directory it lies in, a run, or a hub id (``owner/repository`` with our files).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from overture.config import from_dict
from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.priors.guidance import Guidance
from overture.priors.model import Prior, PriorConfig
from overture.tokenizers.config import TokenizerConfig
from overture.tokenizers.tokenizer import Tokenizer
from overture.training.checkpoint import find_model, read_metadata, read_weights

__all__ = ["Pipeline", "find_model", "load_prior", "load_tokenizer"]

Weights = Literal["raw", "ema"]


def load_tokenizer(path: str | Path, weights: Weights | None = None, device: str | torch.device = "cpu") -> Tokenizer:
    """A trained tokenizer, ready to use, with the weights its file asks for (EMA if it does not say) or those given."""
    file = find_model(path, "tokenizer")
    metadata = read_metadata(file, "tokenizer")
    tokenizer = from_dict(TokenizerConfig, metadata["config"], where=f"{file}: config").build()
    _load(tokenizer, file, weights or metadata.get("use_weights", "ema"))
    return tokenizer.to(device)


def load_prior(path: str | Path, weights: Weights = "raw", device: str | torch.device = "cpu") -> Prior:
    """A trained prior, ready to use; published numbers use the raw weights."""
    file = find_model(path, "prior")
    metadata = read_metadata(file, "prior")
    config = from_dict(PriorConfig, metadata["config"], where=f"{file}: config")
    prior = config.build(Layout.from_dict(metadata["layout"]))
    _load(prior, file, weights)
    return prior.to(device)


def _load(module: torch.nn.Module, file: Path, weights: str) -> None:
    if weights not in ("raw", "ema"):
        raise UsageError(f"weights '{weights}' are none of raw, ema")
    try:
        module.load_state_dict(read_weights(file, weights))
    except RuntimeError as error:
        raise OvertureError(f"{file}: does not fit its own config ({' '.join(str(error).split())})") from error
    module.eval().requires_grad_(False)


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
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> Pipeline:
        """Both models of a run, with the weights that published numbers use (tokenizer EMA unless its file says, prior raw)."""
        return cls(load_tokenizer(run, device=device), load_prior(run, device=device))

    def __call__(
        self,
        class_ids: Sequence[int] | Tensor,
        *,
        seed: int | None = None,
        guidance: Guidance | float | None = None,
        temperature: float | Mapping[str, float] = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        prefix: Tensor | None = None,
        fixed: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] of the given classes; the same ``seed`` and batch give the same images."""
        device = self.prior.token_embedding.weight.device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        sequence = self.prior.generate(
            class_ids,
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prefix=prefix,
            fixed=fixed,
            generator=generator,
            dtype=dtype,
        )
        with torch.no_grad():
            return self.tokenizer.decode(self.prior.layout.from_sequence(sequence)).clamp(-1, 1)
