"""CIFAR-10: small colour photographs, where generation is harder than on Fashion-MNIST."""

from __future__ import annotations

from dataclasses import replace

from overture.data.stream import DataConfig
from overture.nn.classifier import ClassifierConfig
from overture.nn.transformer import TransformerConfig
from overture.recipes.quickstart import one_dimensional, shrink
from overture.runs.config import DomainNetworkConfig, RunConfig
from overture.tokenizers.config import CodebookConfig
from overture.training.classifier import ClassifierTrainingConfig

__all__ = ["cifar10"]


def cifar10(tiny: bool = False) -> tuple[RunConfig, ...]:
    """A uniform and a VCQ model on CIFAR-10, 1D tokenizers of 64 tokens with codebooks of up to 4096.

    Method: "Taming the Entropy Cliff" (arXiv 2605.06207); the growth law is ours, the paper's is not published.
    Data: torchvision's CIFAR-10 (downloaded), or a folder or zip of it: ``--data.source cifar10.zip/train
    --data.held-out cifar10.zip/test``. Hardware: one accelerator, under an hour a model; a night on a CPU.
    Command: ``overture run cifar10``.
    """
    codebooks = {
        "uniform": CodebookConfig("uniform", k_max=4096),
        "vcq": CodebookConfig("power", k_min=2, k_max=4096, exponent=2.0),
    }
    runs = tuple(_colour(one_dimensional(name, codebook)) for name, codebook in codebooks.items())
    if not tiny:
        return runs
    small = DataConfig(held_out_share=0.1, image_size=28, channels=1)
    return tuple(
        replace(shrink(run), data=small, tokenizer=replace(shrink(run).tokenizer, patch_size=7)) for run in runs
    )


def _colour(config: RunConfig) -> RunConfig:
    transformer = TransformerConfig(dim=256, depth=6, heads=4)
    training, prior = config.tokenizer_training, config.prior_training
    segment = replace(config.tokenizer.segments[0], tokens=64)
    return replace(
        config,
        recipe="cifar10",
        data=replace(config.data, source="cifar10", held_out="cifar10/test", image_size=32, channels=3, mirror=True),
        judge=DomainNetworkConfig(ClassifierConfig(width=48), ClassifierTrainingConfig(steps=4000), seed=0),
        perceptual_network=DomainNetworkConfig(
            ClassifierConfig(width=32), ClassifierTrainingConfig(steps=4000), seed=1
        ),
        tokenizer=replace(
            config.tokenizer, patch_size=4, encoder=transformer, decoder=transformer, segments=(segment,)
        ),
        tokenizer_training=replace(
            training,
            steps=40_000,
            batch_size=128,
            optimizer=replace(training.optimizer, learning_rate=5e-4, warmup=1000, flat=20_000),
            discriminator_optimizer=replace(training.discriminator_optimizer, warmup=1000, flat=20_000),
            adversarial=replace(training.adversarial, start=5000, channels=32, layers=3),
            ema_half_life=1000.0,
            precision="bfloat16",
            checkpoint_minutes=10.0,
        ),
        prior=replace(config.prior, dim=384, depth=8, heads=6),
        prior_training=replace(
            prior,
            steps=40_000,
            batch_size=256,
            optimizer=replace(prior.optimizer, learning_rate=8e-4, warmup=2000),
            ema_half_life=1000.0,
            precision="bfloat16",
            evaluate_every=2000,
            checkpoint_minutes=10.0,
        ),
        evaluation=replace(config.evaluation, samples=10_000),
    )
