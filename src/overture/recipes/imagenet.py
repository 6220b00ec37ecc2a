"""ImageNet 256 at the papers' size: the 2D and 1D baselines, and VCQ.

Data: ``data/imagenet.zip/train`` and ``/val`` (Kaggle's zip as it is, or a zip with one folder a class), or set
``--data.source`` and ``--data.held-out`` (folders, parquet, tars: docs/own-data.md).
The numbers are the papers' own; they have not been reproduced with this code.
"""

from __future__ import annotations

from dataclasses import replace

from overture.data.stream import DataConfig
from overture.interop.releases import RELEASES, XL
from overture.losses.perceptual import LpipsConfig
from overture.priors.model import PriorConfig
from overture.recipes.presets import PRESETS, preset_words
from overture.runs.config import EvaluationConfig, RunConfig
from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig, TokenizerConfig
from overture.training.train_prior import PriorTrainingConfig
from overture.training.train_tokenizer import TokenizerTrainingConfig

__all__ = ["imagenet_1d", "imagenet_2d", "imagenet_run", "imagenet_vcq", "imagenet_vcq_xl", "prior_training"]

IMAGENET_IMAGES = 1_281_167


def imagenet_2d() -> tuple[RunConfig, ...]:
    """The 2D baseline of the Prologue paper on ImageNet 256: 256 patch tokens, codebook 16384, Base prior.

    Paper: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), row "2D": rFID 2.15, gFID 21.01
    without guidance (temperature 0.85), 5.02 with guidance cosine 10 power 1.5; both settings are presets. 750 k batches
    of 256 in stage 1 (150 epochs; the paper counts 1.5 M alternating steps, two for each batch), ten crops of every
    image in stage 2, 400 epochs at batch 512 in stage 3. Hardware: 8 accelerators, days.
    Command: ``torchrun --nproc-per-node 8 -m overture run imagenet-2d``.
    """
    return (imagenet_run("imagenet-2d", RELEASES["2d-tokenizer"].tokenizer),)


def imagenet_1d() -> tuple[RunConfig, ...]:
    """The 1D baseline of the Prologue paper on ImageNet 256: 256 query tokens, codebook 16384, Base prior.

    Paper: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), row "1D": rFID 2.11, gFID 19.32
    without guidance (temperature 0.85), 6.10 with guidance cosine 19 power 1.75. Hardware and command as
    ``imagenet-2d``.
    """
    return (imagenet_run("imagenet-1d", RELEASES["1d-tokenizer"].tokenizer),)


def imagenet_vcq() -> tuple[RunConfig, ...]:
    """VCQ on ImageNet 256: the 1D tokenizer with codebooks that grow from 2 to 16384, Base prior.

    Paper: "Taming the Entropy Cliff" (arXiv 2605.06207): gFID without guidance 27.98 (uniform) to 14.80 (VCQ, base).
    Known: K_min = 2, monotone growth, one shared codebook, losses unchanged. Not known, so our choice: the growth law
    (power 2 here: t* = 9 instead of 2), K_max, and all training settings, which are the Prologue paper's 1D ones.
    Another law, or another K_max: ``--growth "geometric 2..4096"``. Hardware and command as ``imagenet-2d``.
    """
    return (_growing("imagenet-vcq"),)


def imagenet_vcq_xl() -> tuple[RunConfig, ...]:
    """VCQ on ImageNet 256 at the paper's largest size: the tokenizer of ``imagenet-vcq`` with the XL prior.

    Paper: "Taming the Entropy Cliff" (arXiv 2605.06207): gFID 1.71 with a prior labelled 684 M. Which K_max and growth
    law that model had is not published, nor how it was trained, nor whether it was sampled with guidance. Ours: K_t from
    2 to 16384 by power 2 (another law or K_max: ``--growth "geometric 2..4096"``), and the Prologue paper's XL prior and
    its training: 32 layers of 1280 channels, 800 epochs at batch 2048. That has 691 M parameters; of powers of two 16384
    comes nearest to the paper's label (32768: 733 M, 8192: 670 M), which is no proof.
    Hardware: 32 accelerators of 80 GB (68 GB each at 64 sequences), days; ``overture plan imagenet-vcq-xl --card
    h100 --world-size 32`` tells the hours at an assumed utilisation.
    Command: ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run imagenet-vcq-xl``.
    """
    return (replace(_growing("imagenet-vcq-xl"), prior=XL, prior_training=prior_training(epochs=800, batch_size=2048)),)


def _growing(name: str) -> RunConfig:
    """The 1D tokenizer with a growing codebook."""
    growing = CodebookConfig("power", k_min=2, k_max=16384, exponent=2.0)
    return imagenet_run(name, TokenizerConfig(segments=(SegmentConfig("visual", "queries", 256, growing),)))


def imagenet_run(name: str, tokenizer: TokenizerConfig) -> RunConfig:
    """A run on ImageNet 256 with the settings of the Prologue paper's baselines, evaluated at its recipe's presets."""
    return RunConfig(
        name=name,
        data=DataConfig(
            source="data/imagenet.zip/train",
            held_out="data/imagenet.zip/val",
            image_size=256,
            channels=3,
            crop="random",
            mirror=True,
            workers=8,
        ),
        tokenizer=tokenizer,
        tokenizer_training=TokenizerTrainingConfig(steps=750_000, perceptual=LpipsConfig()),
        prior=PriorConfig(),
        prior_training=prior_training(epochs=400, batch_size=512),
        evaluation=published_evaluation(name),
    )


def prior_training(epochs: int, batch_size: int) -> PriorTrainingConfig:
    """The papers' training of a prior for so many epochs of whole batches."""
    return PriorTrainingConfig(steps=epochs * (IMAGENET_IMAGES // batch_size), batch_size=batch_size)


def published_evaluation(name: str) -> EvaluationConfig:
    """FID at 50,000 samples, at the recipe's published settings; a recipe without them is judged unguided."""
    evaluation = EvaluationConfig(network="inception", samples=50_000)
    if name not in PRESETS:
        return evaluation
    unguided = preset_words(name, "unguided")["temperature"]
    return replace(evaluation, **preset_words(name, "paper"), unguided_temperature=unguided)
