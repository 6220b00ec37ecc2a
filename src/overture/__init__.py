"""Overture: autoregressive image generators whose first tokens carry the meaning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Layout": "overture.layout",
    "Segment": "overture.layout",
    "Schedule": "overture.schedules",
    "OvertureError": "overture.errors",
    "UsageError": "overture.errors",
    "Guidance": "overture.priors.guidance",
    "Sampling": "overture.priors.sampling",
    "Pipeline": "overture.pipeline",
    "Prior": "overture.priors.model",
    "Tokenizer": "overture.tokenizers.tokenizer",
    "to_pil": "overture.data.pil_images",
    "load_tokenizer": "overture.pipeline",
    "load_prior": "overture.pipeline",
    "conditional_entropy": "overture.analysis.entropy",
    "EntropyTracker": "overture.analysis.entropy_tracker",
    "FiniteScalarConfig": "overture.quantizers",
    "LookupFreeConfig": "overture.quantizers",
    "PriorConfig": "overture.priors.model",
    "PrologueLoss": "overture.training.prologue_loss",
    "SoftConfig": "overture.quantizers",
    "UsageMeter": "overture.evaluation.usage",
    "VectorConfig": "overture.quantizers",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from overture.analysis.entropy import conditional_entropy as conditional_entropy
    from overture.analysis.entropy_tracker import EntropyTracker as EntropyTracker
    from overture.data.pil_images import to_pil as to_pil
    from overture.errors import OvertureError as OvertureError
    from overture.errors import UsageError as UsageError
    from overture.evaluation.usage import UsageMeter as UsageMeter
    from overture.layout import Layout as Layout
    from overture.layout import Segment as Segment
    from overture.pipeline import Pipeline as Pipeline
    from overture.pipeline import load_prior as load_prior
    from overture.pipeline import load_tokenizer as load_tokenizer
    from overture.priors.guidance import Guidance as Guidance
    from overture.priors.model import Prior as Prior
    from overture.priors.model import PriorConfig as PriorConfig
    from overture.priors.sampling import Sampling as Sampling
    from overture.quantizers import FiniteScalarConfig as FiniteScalarConfig
    from overture.quantizers import LookupFreeConfig as LookupFreeConfig
    from overture.quantizers import SoftConfig as SoftConfig
    from overture.quantizers import VectorConfig as VectorConfig
    from overture.schedules import Schedule as Schedule
    from overture.tokenizers.tokenizer import Tokenizer as Tokenizer
    from overture.training.prologue_loss import PrologueLoss as PrologueLoss


if not TYPE_CHECKING:  # a type checker knows the names above, and tells a misspelt one

    def __getattr__(name: str) -> Any:
        """Public names load their module on first use, so that ``import overture`` does not import torch."""
        if name not in _HOMES:
            raise AttributeError(f"module 'overture' has no attribute '{name}'")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
