"""What the numbers of a run's log should be before anything is learned, from its config alone.

A set-up that is wrong (another vocabulary, images in another range, a mask that leaks) shows in the first log lines. The
values are expectations over fresh weights; what starts from trained weights has none. Warm-up holds the learning rate
near zero at first, so the averages of the first log line are hardly other numbers than those of step 0.

Symbols: L sequence positions, V vocabulary, K_t ids that position t may hold, D channels of the prior, B batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from overture.layout import Layout
from overture.losses.adversarial import AdversarialConfig
from overture.priors.model import PriorConfig
from overture.quantizers import SoftConfig, VectorConfig
from overture.runs.config import RunConfig
from overture.tokenizers.config import SegmentConfig
from overture.training.optim import OptimizerConfig
from overture.training.train_prior import PriorTrainingConfig

__all__ = ["MEAN_ABSOLUTE", "expected_start", "first_nat", "largest_cosine", "reference_curve"]

DEVIATION = 0.02
"""Of fresh weights, in the transformers as in the discriminator."""

MEAN_ABSOLUTE = {"fashion-mnist": 0.762, "embedded:fashion-mnist": 0.762, "cifar10": 0.420}
"""Mean absolute value of training images in [-1, 1] (measured): what a grey image is away from them."""


def reference_curve(config: RunConfig) -> dict[str, Any]:
    """:func:`expected_start`, and from which step on the prior's loss may fall (:func:`first_nat`), for JSON."""
    expected = expected_start(config)
    first = first_nat(config.prior.dim, config.prior_training.optimizer) if "prior" in expected else None
    return {"step_0": expected, "prior_first_nat": first}


def expected_start(config: RunConfig) -> dict[str, dict[str, float]]:
    """Logged values at step 0, by stage and by their name in the log, of a config that knows its data.

    **Tokenizer.** ``l1``: the decoder's last matrix starts near zero, so reconstructions are grey, and l1 is the mean
    |x| of the data, which is known for two data sets. ``quantizer``: unit vectors beside the nearest of K_t random ones,
    :func:`largest_cosine`. ``discriminator``: softplus of logits that are random with the deviation of the last
    convolution's sum; a judge that learns nothing falls to ln 2 = 0.69. ``joint_prior`` and its ``ce_`` terms: ln V and
    what the spread of fresh logits adds, D 0.02^2 / 2, as for the prior.

    **Prior.** ``bits_per_image``: L (ln V + D 0.02^2 / 2) / ln 2 over the whole vocabulary. ``gradient_norm``: at least
    sqrt(2 D / (B L)), reached when ids have no order at all; the head and the embeddings have a half of it each. A norm
    above sqrt(2 D / L), which is that of a batch of one image B times, cannot be.
    """
    tokenizer, stage1 = config.tokenizer, config.tokenizer_training
    first: dict[str, float] = {}
    if not stage1.start_from:
        if config.data.source in MEAN_ABSOLUTE and stage1.reconstruction.l1:
            first["l1"] = MEAN_ABSOLUTE[config.data.source]
        if all(isinstance(segment.quantizer, VectorConfig | SoftConfig) for segment in tokenizer.segments):
            first["quantizer"] = sum(
                _quantizer(segment, made.sizes)
                for segment, made in zip(tokenizer.segments, tokenizer.layout.segments, strict=True)
            )
    if stage1.adversarial.active(0) and stage1.trains != "nothing":
        first["discriminator"] = _discriminator(stage1.adversarial)
    if stage1.joint is not None and not stage1.joint.prior.tied:
        first |= _joint(stage1.joint.prior, tokenizer.layout)
    second: dict[str, float] = {}
    if config.prior_source == "tokens" and not config.prior_training.start_from and not config.prior.tied:
        second = _prior(config.prior, config.prior_training, tokenizer.layout)
    return {stage: values for stage, values in (("tokenizer", first), ("prior", second)) if values}


def first_nat(dim: int, optimizer: OptimizerConfig) -> int:
    """The step by which Adam can have moved a logit by one nat during warm-up: no loss falls much before.

    Adam moves every weight by about the learning rate a step, so by ``peak n^2 / (2 warmup)`` in n steps. A logit is a
    sum over D channels of weights times values of mean size sqrt(2 / pi).
    """
    moved = math.sqrt(2 / math.pi) * dim * optimizer.learning_rate
    steps = math.sqrt(2 * optimizer.warmup / moved)
    return math.ceil(steps if steps < optimizer.warmup else optimizer.warmup / 2 + 1 / moved)


def largest_cosine(codes: int, dim: int) -> float:
    """Mean of the largest cosine between a unit vector and ``codes`` random ones in ``dim`` dimensions.

    ``1 - integral of F(c)^K dc``, where F is the distribution of one cosine, whose density is (1 - c^2)^((dim - 3) / 2).
    """
    if dim == 1:
        return 1 - 2 * 0.5**codes
    angle = np.linspace(np.pi, 0, 4001)  # from cosine -1 to 1
    density = np.sin(angle) ** (dim - 2)
    width = np.pi / (len(angle) - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * width)])
    share = (below / below[-1]) ** codes * np.sin(angle)
    return float(1 - ((share[1:] + share[:-1]) / 2 * width).sum())


def _quantizer(segment: SegmentConfig, sizes: tuple[int, ...]) -> float:
    """A straight-through codebook's loss; a soft one has none."""
    if not isinstance(segment.quantizer, VectorConfig):
        return 0.0
    dim = segment.quantizer.z_dim
    cosines = {size: largest_cosine(size, dim) for size in set(sizes)}
    distance = sum(2 - 2 * cosines[size] for size in sizes) / len(sizes)
    return (1 + segment.quantizer.commitment) * distance / dim


def _discriminator(config: AdversarialConfig) -> float:
    """Mean softplus of logits of mean 0: the last convolution sums 16 inputs a channel after leaky ReLU 0.2."""
    inputs = 16 * config.channels * min(2**config.layers, 8)
    deviation = DEVIATION * math.sqrt(inputs * (1 + 0.2**2) / 2)
    logits = np.linspace(-8, 8, 2001) * deviation
    weights = np.exp(-((logits / deviation) ** 2) / 2)
    return float((np.logaddexp(0, logits) * weights).sum() / weights.sum())


def _spread(config: PriorConfig) -> float:
    """Variance of fresh logits: the head's inputs have mean square 1 over D channels."""
    return config.dim * DEVIATION**2


def _joint(config: PriorConfig, layout: Layout) -> dict[str, float]:
    """Mean cross-entropy per position in nats, and the share of each term (:mod:`overture.training.joint_prior`)."""
    nats = math.log(layout.vocabulary_size) + _spread(config) / 2
    counts = {f"ce_{segment.name}": len(segment) for segment in layout.segments}
    counts["ce_separator"] = layout.sequence_length - layout.length
    shares = {name: nats * count / layout.sequence_length for name, count in counts.items() if count}
    return {"joint_prior": nats, **shares}


def _prior(config: PriorConfig, training: PriorTrainingConfig, layout: Layout) -> dict[str, float]:
    variance, length = _spread(config), layout.sequence_length
    choices = [layout.vocabulary_size] * length
    if training.loss == "allowed":
        choices = [position.high - position.low for position in layout.positions]
    # Of few ids the spread adds less: the mean of ln(mean exp) of K logits.
    nats = [math.log(k) + variance / 2 - math.expm1(variance) / (2 * k) for k in choices]
    return {
        "bits_per_image": sum(nats) / math.log(2),
        "gradient_norm": math.sqrt(2 * config.dim / (training.batch_size * length)),
    }
