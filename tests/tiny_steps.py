"""One step of every kind of training, at a tiny size and on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from overture.data.stream import Batch
from overture.data.token_files import TokenBatch
from overture.losses.perceptual import NoPerceptual
from overture.processes import Processes
from overture.recipes import recipe_configs
from overture.runs.config import RunConfig
from overture.training.train_prior import PriorTrainer
from overture.training.train_tokenizer import TokenizerTrainer

BATCH = 4


class TinyTraining:
    """A trainer and a batch for it."""

    def __init__(self, trainer: Any, batch: Any) -> None:
        self.trainer, self.batch = trainer, batch

    def step(self) -> None:
        """What the loop does in every step."""
        terms = self.trainer.train_batch(self.batch)
        self.trainer.nonfinite.note(terms, self.trainer.step - 1)


def _config(recipe: str, **changes: Any) -> RunConfig:
    """An adversary that plays from the first step on, R1 in every step, dead codes that revive at once."""
    run = recipe_configs(recipe, tiny=True)[-1].resolve(10)
    last = len(run.tokenizer.segments) - 1
    return run.changed(
        {
            "tokenizer_training.perceptual": NoPerceptual(),
            "tokenizer_training.adversarial.start": 0,
            "tokenizer_training.adversarial.r1_every": 1,
            f"tokenizer.segments.{last}.quantizer.revive_after": 1,
            **changes,
        }
    )


def _tokenizer(recipe: str, device: torch.device) -> TinyTraining:
    run = _config(recipe)
    shape = (BATCH, run.data.channels, run.data.image_size, run.data.image_size)
    images, labels = torch.zeros(shape, dtype=torch.uint8), torch.zeros(BATCH, dtype=torch.long)
    processes = Processes(device=device)
    trainer = TokenizerTrainer(run.tokenizer, run.tokenizer_training, seed=0, processes=processes)
    return TinyTraining(trainer, Batch(images, labels, labels))


def _prior(device: torch.device, **changes: Any) -> TinyTraining:
    run = _config("vcq-prologue", **changes)
    layout, processes = run.tokenizer.layout, Processes(device=device)
    ids, labels = torch.zeros(BATCH, layout.length, dtype=torch.long), torch.zeros(BATCH, dtype=torch.long)
    trainer = PriorTrainer(run.prior, run.prior_training, layout, seed=0, processes=processes)
    return TinyTraining(trainer, TokenBatch(ids, labels, labels))


TRAININGS: dict[str, Callable[[torch.device], TinyTraining]] = {
    "tokenizer, adversary and joint prior": lambda device: _tokenizer("vcq-prologue", device),
    "tokenizer and the prior of one stage": lambda device: _tokenizer("prologue-onestage", device),
    "prior": _prior,
    "prior, loss over allowed ids": lambda device: _prior(device, **{"prior_training.loss": "allowed"}),
}
