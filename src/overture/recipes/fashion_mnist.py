"""All of Fashion-MNIST, for an evening on a laptop."""

from __future__ import annotations

from dataclasses import replace

from overture.data.stream import DataConfig
from overture.nn.transformer import TransformerConfig
from overture.recipes.quickstart import one_dimensional, shrink
from overture.runs.config import RunConfig
from overture.tokenizers.config import CodebookConfig

__all__ = ["fashion_mnist"]


def fashion_mnist(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Uniform, linear and geometric codebooks on the 60,000 training images of Fashion-MNIST, tested on its test images.

    Method: as ``quickstart`` ("Taming the Entropy Cliff", arXiv 2605.06207), 1D tokenizers of 16 tokens, codebook 1024.
    Data: torchvision's Fashion-MNIST (downloaded, or Debian's package dataset-fashion-mnist).
    Hardware: one CPU core a model, about 40 minutes each. Command: ``overture run fashion-mnist``.
    """
    codebooks = {
        "uniform": CodebookConfig("uniform", k_max=1024),
        "linear": CodebookConfig("linear", k_min=2, k_max=1024),
        "geometric": CodebookConfig("geometric", k_min=2, k_max=1024),
    }
    runs = tuple(_full(one_dimensional(name, codebook)) for name, codebook in codebooks.items())
    if not tiny:
        return runs
    small = DataConfig(held_out_share=0.1, image_size=28, channels=1)
    return tuple(replace(shrink(run), data=small) for run in runs)


def _full(config: RunConfig) -> RunConfig:
    """More data, a larger model, more steps than the quickstart."""
    transformer = TransformerConfig(dim=96, depth=4, heads=4, condition_dim=16)
    training, prior = config.tokenizer_training, config.prior_training
    rate = replace(training.optimizer, warmup=200, flat=4000)
    return replace(
        config,
        recipe="fashion-mnist",
        data=replace(config.data, source="fashion-mnist", held_out="fashion-mnist/test"),
        tokenizer=replace(config.tokenizer, encoder=transformer, decoder=transformer),
        tokenizer_training=replace(
            training,
            steps=8000,
            optimizer=rate,
            discriminator_optimizer=replace(training.discriminator_optimizer, warmup=200, flat=4000),
            adversarial=replace(training.adversarial, start=2000),
            ema_half_life=300.0,
            checkpoint_minutes=5.0,
        ),
        prior=replace(config.prior, dim=128, depth=4),
        prior_training=replace(
            prior, steps=8000, batch_size=128, ema_half_life=300.0, evaluate_every=1000, checkpoint_minutes=5.0
        ),
        evaluation=replace(config.evaluation, samples=10_000),
    )
