"""All of Fashion-MNIST, for an evening on a laptop."""

from __future__ import annotations

from overture.nn.transformer import TransformerConfig
from overture.recipes.quickstart import one_dimensional
from overture.runs.config import RunConfig
from overture.schedules import CodebookConfig

__all__ = ["fashion_mnist"]


def fashion_mnist() -> tuple[RunConfig, ...]:
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
    return tuple(_full(one_dimensional(name, codebook)) for name, codebook in codebooks.items())


def _full(config: RunConfig) -> RunConfig:
    """More data, a larger model, more steps than the quickstart."""
    transformer = TransformerConfig(dim=96, depth=4, heads=4, condition_dim=16, init="fan-in")
    return config.changed(
        {
            "data.source": "fashion-mnist",
            "data.held_out": "fashion-mnist/test",
            "tokenizer.encoder": transformer,
            "tokenizer.decoder": transformer,
            "tokenizer_training.steps": 8000,
            "tokenizer_training.optimizer.warmup": 200,
            "tokenizer_training.optimizer.flat": 4000,
            "tokenizer_training.discriminator_optimizer.warmup": 200,
            "tokenizer_training.discriminator_optimizer.flat": 4000,
            "tokenizer_training.adversarial.start": 2000,
            "tokenizer_training.ema_half_life": 300.0,
            "tokenizer_training.checkpoint_minutes": 5.0,
            "prior.dim": 128,
            "prior.depth": 4,
            "prior_training.steps": 8000,
            "prior_training.batch_size": 128,
            "prior_training.ema_half_life": 300.0,
            "prior_training.evaluate_every": 1000,
            "prior_training.checkpoint_minutes": 5.0,
            "evaluation.samples": 10_000,
        }
    )
