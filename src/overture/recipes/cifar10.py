"""CIFAR-10: small colour photographs, where generation is harder than on Fashion-MNIST."""

from __future__ import annotations

from overture.nn.transformer import TransformerConfig
from overture.recipes.quickstart import one_dimensional
from overture.runs.config import RunConfig
from overture.schedules import CodebookConfig

__all__ = ["cifar10"]


def cifar10() -> tuple[RunConfig, ...]:
    """A uniform and a VCQ model on CIFAR-10, 1D tokenizers of 64 tokens with codebooks of up to 4096.

    Method: "Taming the Entropy Cliff" (arXiv 2605.06207); the growth law is ours, the paper's is not published: linear,
    which generated nearest of the laws tried at 16 px (docs/experiments/codebooks.md).
    Data: torchvision's CIFAR-10 (downloaded), or a folder or zip of it: ``--data.source cifar10.zip/train
    --data.held-out cifar10.zip/test``. Hardware: one accelerator, under an hour a model
    (by ``overture plan cifar10 --card h100``; not run in full yet), a week on CPU cores. Command: ``overture run cifar10``.
    """
    codebooks = {
        "uniform": CodebookConfig("uniform", k_max=4096),
        "vcq": CodebookConfig("linear", k_min=2, k_max=4096),
    }
    return tuple(_colour(one_dimensional(name, codebook)) for name, codebook in codebooks.items())


def _colour(config: RunConfig) -> RunConfig:
    transformer = TransformerConfig(dim=256, depth=6, heads=4)
    return config.changed(
        {
            "data.source": "cifar10",
            "data.held_out": "cifar10/test",
            "data.image_size": 32,
            "data.channels": 3,
            "data.mirror": True,
            "judge.network.width": 48,
            "judge.training.steps": 4000,
            "perceptual_network.network.width": 32,
            "perceptual_network.training.steps": 4000,
            "tokenizer.patch_size": 4,
            "tokenizer.encoder": transformer,
            "tokenizer.decoder": transformer,
            "tokenizer.segments.0.tokens": 64,
            "tokenizer_training.steps": 40_000,
            "tokenizer_training.batch_size": 128,
            "tokenizer_training.optimizer.learning_rate": 5e-4,
            "tokenizer_training.optimizer.warmup": 1000,
            "tokenizer_training.optimizer.flat": 20_000,
            "tokenizer_training.discriminator_optimizer.warmup": 1000,
            "tokenizer_training.discriminator_optimizer.flat": 20_000,
            "tokenizer_training.adversarial.start": 5000,
            "tokenizer_training.adversarial.channels": 32,
            "tokenizer_training.adversarial.layers": 3,
            "tokenizer_training.ema_half_life": 1000.0,
            "tokenizer_training.precision": "auto",
            "tokenizer_training.checkpoint_minutes": 10.0,
            "prior.dim": 384,
            "prior.depth": 8,
            "prior.heads": 6,
            "prior_training.steps": 40_000,
            "prior_training.batch_size": 256,
            "prior_training.optimizer.learning_rate": 8e-4,
            "prior_training.optimizer.warmup": 2000,
            "prior_training.ema_half_life": 1000.0,
            "prior_training.precision": "auto",
            "prior_training.evaluate_every": 2000,
            "prior_training.checkpoint_minutes": 10.0,
            "evaluation.samples": 10_000,
        }
    )
