"""A trained tokenizer and its prior on own pictures: the prior alone, the decoder too, or all of it (docs/fine-tune.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from overture.interop.releases import RELEASES, XL
from overture.losses.perceptual import NoPerceptual
from overture.recipes.imagenet import imagenet_run
from overture.recipes.quickstart import quickstart
from overture.runs.config import RunConfig

__all__ = ["fine_tune", "fine_tune_imagenet"]


def fine_tune() -> tuple[RunConfig, ...]:
    """A small trained model on some hundred pictures of your own: its prior alone, its decoder too, or all of it.

    Three runs, one of them with ``--only``. ``prior``: the tokenizer is taken as it is, and a prior that knows its ids
    learns the new pictures and classes. ``decoder``: the decoder is tuned as well; pictures keep their ids. ``whole``:
    encoder and codebook move, too, and the prior follows. Learning rates are half (tokenizer) and a tenth (prior) of the
    quickstart's peaks, steps about a tenth: with 160 pictures more of either learns these by heart. Neither a
    discriminator nor a perceptual network is trained, which would do so first. With ten times the pictures give ten times
    the steps.
    Data: ``--data.source``, the embedded images if it is not given. Start: the quickstart's VCQ model
    (``overture run quickstart`` before it), or ``--start-from`` a run, a directory of imports or ``hf:owner/name``, whose
    sizes are taken over. The tiny form trains fresh models.
    Hardware: one CPU core, three minutes for all at the quickstart's size. Command: ``overture run fine-tune
    --data.source photos --start-from runs/quickstart/vcq``.
    """
    changes = {
        "data.held_out_share": 0.2,
        "tokenizer.segments.0.quantizer.revive_after": 200,
        "tokenizer_training.steps": 200,
        "tokenizer_training.batch_size": 64,
        "tokenizer_training.optimizer.learning_rate": 1e-3,
        "tokenizer_training.optimizer.learning_rate_min": 5e-5,
        "tokenizer_training.perceptual": NoPerceptual(),
        "tokenizer_training.adversarial.weight": 0.0,
        "tokenizer_training.ema_half_life": 50.0,
        "prior_training.steps": 50,
        "prior_training.optimizer.learning_rate": 3e-4,
        "prior_training.evaluate_every": 10,
        "prior_training.ema_half_life": 20.0,
        "evaluation.samples": 1000,
    }
    parts = {"prior": "nothing", "decoder": "decoder", "whole": "everything"}
    return _runs(quickstart()[1].changed(changes), "runs/quickstart/vcq", parts)


def fine_tune_imagenet() -> tuple[RunConfig, ...]:
    """A released model of ImageNet 256 on some thousand pictures of your own: its prior alone, or its decoder too.

    As ``fine-tune``, at the size of the released models and with their losses: a fifth of the papers' peak learning rate
    for the decoder, a tenth for the prior, the discriminator from step 1000 on. Without a joint prior nothing would hold
    a prologue in place, so that there is no run ``whole``: ``fine-tune`` says what it is. These settings are our choice;
    nobody has run them.
    Data: ``data/pictures``, one folder a class, or ``--data.source``. Start: ``models/l-xl`` (docs/import.md), or
    ``--start-from``. The tiny form trains fresh models.
    Hardware: one accelerator of 80 GB (``overture plan fine-tune-imagenet --images 5000``), hours. Command: ``overture
    run fine-tune-imagenet --only decoder --start-from models/l-xl``.
    """
    run = imagenet_run("fine-tune-imagenet", RELEASES["prologue-l-tokenizer"].tokenizer)
    changes = {
        "data.source": "data/pictures",
        "data.held_out": "",
        "tokenizer_training.steps": 5000,
        "tokenizer_training.batch_size": 64,
        "tokenizer_training.optimizer.learning_rate": 2e-5,
        "tokenizer_training.optimizer.learning_rate_min": 2e-6,
        "tokenizer_training.adversarial.start": 1000,
        "prior_training.steps": 5000,
        "prior_training.batch_size": 64,
        "prior_training.optimizer.learning_rate": 4e-5,
        "prior_training.optimizer.learning_rate_min": 1e-6,
        "prior_training.evaluate_every": 250,
        "evaluation.samples": 10_000,
        "evaluation.guidance": "1.5",
    }
    return _runs(replace(run, prior=XL).changed(changes), "models/l-xl", {"prior": "nothing", "decoder": "decoder"})


def _runs(config: RunConfig, start: str, parts: dict[str, str]) -> tuple[RunConfig, ...]:
    """A run for each name, of which this part of the tokenizer is trained."""
    started: dict[str, Any] = {"tokenizer_training.start_from": start, "prior_training.start_from": start}
    return tuple(
        config.changed({**started, "name": name, "tokenizer_training.trains": part}) for name, part in parts.items()
    )
