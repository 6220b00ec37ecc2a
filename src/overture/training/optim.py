"""AdamW with the schedule and parameter groups of the paper ("Prologue", docs/prologue.md, section 6 and 8)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overture.errors import UsageError

__all__ = [
    "LearningRateSchedule",
    "OptimizerConfig",
    "decays",
    "set_learning_rate",
]


@dataclass(frozen=True)
class LearningRateSchedule:
    """Linear warm-up to the peak, flat, linear decay that reaches the minimum at the last step.

    Steps are the optimizer's own, counted from 0.
    """

    peak: float
    minimum: float
    warmup: int
    flat: int
    total: int

    def __post_init__(self) -> None:
        if self.warmup + self.flat >= self.total:
            raise UsageError(
                f"optimizer: warm-up of {self.warmup} and {self.flat} flat steps leave no decay in {self.total} steps; "
                "lower warmup or flat, or train longer"
            )

    def learning_rate(self, step: int) -> float:
        """The rate of update ``step``: above 0 at the first, the minimum at the last and after."""
        update = step + 1
        if update <= self.warmup:
            return self.peak * (update / self.warmup)
        decay_from = self.warmup + self.flat
        progress = min(max(update - decay_from, 0) / (self.total - decay_from), 1.0)
        return self.peak * (1 - progress) + self.minimum * progress


@dataclass(frozen=True)
class OptimizerConfig:
    """One AdamW and its schedule; the defaults are the tokenizer's."""

    learning_rate: float = 1e-4
    """The peak."""
    learning_rate_min: float = 1e-5
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 0.0
    """Of matrices outside the norms, see :func:`decays`."""
    warmup: int = 20_000
    """Steps of linear warm-up."""
    flat: int = 100_000
    """Steps at the peak after the warm-up; what is left of the run is the decay."""
    clip: float = 0.0
    """Largest norm of the whole gradient, applied by the training loop; 0: no clipping."""

    def __post_init__(self) -> None:
        if not 0 <= self.learning_rate_min <= self.learning_rate:
            rates = f"learning_rate_min {self.learning_rate_min}, learning_rate {self.learning_rate}"
            raise UsageError(f"optimizer: {rates}: needs 0 <= learning_rate_min <= learning_rate")
        for name in ("weight_decay", "warmup", "flat", "clip"):
            if getattr(self, name) < 0:
                raise UsageError(f"optimizer: {name} is {getattr(self, name)}, needs >= 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"optimizer: betas {self.betas} need to be in [0, 1)")

    def schedule(self, total_steps: int) -> LearningRateSchedule:
        """The learning rate over a run of ``total_steps`` of this optimizer."""
        return LearningRateSchedule(self.learning_rate, self.learning_rate_min, self.warmup, self.flat, total_steps)

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], total_steps: int
    ) -> tuple[torch.optim.AdamW, LearningRateSchedule]:
        """The optimizer over all parameters that are trained, and its schedule; the loop brings the two together."""
        schedule = self.schedule(total_steps)
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        if not trained:
            raise UsageError("optimizer: no parameters to train")
        decayed = [parameter for name, parameter in trained if decays(name, parameter)]
        others = [parameter for name, parameter in trained if not decays(name, parameter)]
        groups = [
            {"params": parameters, "weight_decay": weight_decay}
            for parameters, weight_decay in ((decayed, self.weight_decay), (others, 0.0))
            if parameters
        ]
        rate = schedule.learning_rate(0)
        return torch.optim.AdamW(groups, lr=rate, betas=self.betas, fused=True), schedule


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices (embeddings and convolutions, too) with no norm in their dotted name."""
    return parameter.ndim >= 2 and "norm" not in name.lower()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` in every parameter group from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
