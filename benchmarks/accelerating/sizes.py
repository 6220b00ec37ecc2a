"""What is measured at full size on an accelerator, and at toy size anywhere."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from overture.losses.perceptual import NoPerceptual
from overture.plan.run_plan import count_images, make_plan
from overture.priors import PriorConfig
from overture.recipes import recipe_configs
from overture.recipes.tiny import PRIOR as TINY
from overture.runs.config import RunConfig
from overture.training.step import Precision

__all__ = ["FULL", "TOY", "Sizes", "planned"]


@dataclass(frozen=True)
class Sizes:
    """Batches are those of one accelerator in the recipes: 256 over 8 of them, 512 over 8, 2,048 over 32."""

    toy: bool
    side: int
    """Of the matrices whose product is the ceiling."""
    seconds: float
    """For the repeats of one measurement."""
    tokenizer_batch: int
    prior_batch: int
    encode_batch: int
    sample_batches: tuple[int, ...]

    def run(self, recipe: str, precision: Precision, batch: int) -> RunConfig:
        """A recipe's config for one accelerator."""
        config = recipe_configs(recipe, tiny=self.toy)[0]
        classes = 10 if self.toy else 1000
        tokenizer = replace(config.tokenizer_training, precision=precision, batch_size=batch)
        if self.toy:  # a perceptual network would have to be trained first, and the adversary plays at once
            adversarial = replace(tokenizer.adversarial, start=0)
            tokenizer = replace(tokenizer, perceptual=NoPerceptual(), adversarial=adversarial)
        prior = replace(config.prior_training, precision=precision, batch_size=batch)
        return replace(config, tokenizer_training=tokenizer, prior_training=prior).resolve(classes)

    def prior(self, config: PriorConfig) -> PriorConfig:
        """A prior, or the tiny recipes' in its place."""
        return replace(TINY, num_classes=10) if self.toy else config


@functools.cache
def planned(config: RunConfig) -> dict[str, Any]:
    """What ``overture plan`` says of a run; known to all processes that are forked afterwards."""
    return make_plan(config, count_images(config))


FULL = Sizes(False, 8192, 4.0, 32, 64, 256, (1, 64, 512))
TOY = Sizes(True, 128, 0.05, 4, 4, 4, (1, 2, 3))
