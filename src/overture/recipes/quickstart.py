"""The first thing to run: a uniform and a VCQ model on the images that come with the package."""

from __future__ import annotations

from dataclasses import replace

from overture.data.stream import DataConfig
from overture.losses.adversarial import AdversarialConfig
from overture.losses.perceptual import DomainConfig
from overture.nn.classifier import ClassifierConfig
from overture.nn.transformer import TransformerConfig
from overture.priors.model import PriorConfig
from overture.quantizers import FiniteScalarConfig, LookupFreeConfig, VectorConfig
from overture.runs.config import DomainNetworkConfig, EvaluationConfig, RunConfig
from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig, TokenizerConfig
from overture.training.optim import OptimizerConfig
from overture.training.train_classifier import ClassifierTrainingConfig
from overture.training.train_prior import PriorTrainingConfig
from overture.training.train_tokenizer import TokenizerTrainingConfig
from overture.training.write_tokens import TokensConfig

__all__ = ["lookup_free", "one_dimensional", "quickstart"]


def quickstart() -> tuple[RunConfig, ...]:
    """A uniform and a VCQ model on 10,000 Fashion-MNIST images, trained, judged and compared on two CPU cores.

    Method: 1D tokenizers after "Taming the Entropy Cliff" (arXiv 2605.06207), 16 tokens of at most 1024 codes, and a
    causal prior each. Uniform: every position has the whole codebook. VCQ: the codebook grows along the sequence.
    Data: the 10,000 test images of Fashion-MNIST inside the package, 9,000 for training, 1,000 held out.
    Hardware: 2 CPU cores, one for each model, at most 10 minutes. Command: ``overture run quickstart``.
    """
    return (
        in_minutes(one_dimensional("uniform", CodebookConfig("uniform", k_max=1024))),
        in_minutes(one_dimensional("vcq", CodebookConfig("linear", k_min=2, k_max=1024))),
    )


def lookup_free() -> tuple[RunConfig, ...]:
    """The quickstart's uniform model with quantizers that have no codebook: lookup-free and finite-scalar.

    Methods: MAGVIT-v2 (arXiv 2310.05737), where an id is the signs of 10 channels; FSQ (arXiv 2309.15505), where it is
    the levels of 4 channels (8 x 8 x 4 x 4); both have the 1024 codes of ``quickstart``. With ``--tokenizer.segments.0.
    codebook.schedule steps`` the lookup-free codebook grows along the sequence (sizes are powers of two).
    Data and hardware: as ``quickstart``. Command: ``overture run lookup-free``.
    """
    run = in_minutes(one_dimensional("lookup-free", CodebookConfig("uniform", k_max=1024)))
    quantizer = "tokenizer.segments.0.quantizer"
    return (
        run.changed({quantizer: LookupFreeConfig()}),
        run.changed({"name": "finite-scalar", quantizer: FiniteScalarConfig(levels=(8, 8, 4, 4))}),
    )


def in_minutes(run: RunConfig) -> RunConfig:
    """Shortened: small batches, codes that move soon, and a prior that stops before it knows the images by heart."""
    return run.changed(
        {
            "tokenizer.segments.0.quantizer.revive_after": 30,
            "tokenizer_training.batch_size": 32,
            "tokenizer_training.steps": 1800,
            "tokenizer_training.optimizer.flat": 900,
            "tokenizer_training.discriminator_optimizer.flat": 900,
            "tokenizer_training.adversarial.start": 600,
            "prior_training.steps": 800,
        }
    )


def one_dimensional(name: str, codebook: CodebookConfig) -> RunConfig:
    """A 1D tokenizer and its prior at the size of the quickstart."""
    transformer = TransformerConfig(dim=64, depth=3, heads=4, condition_dim=16, init="fan-in")
    rate = OptimizerConfig(
        learning_rate=2e-3, learning_rate_min=1e-4, betas=(0.5, 0.99), weight_decay=0.0, warmup=100, flat=800
    )
    return RunConfig(
        name=name,
        data=DataConfig(
            source="embedded:fashion-mnist", held_out_share=0.1, image_size=28, channels=1, crop="center", mirror=False
        ),
        judge=DomainNetworkConfig(ClassifierConfig(width=32), ClassifierTrainingConfig(), seed=0),
        perceptual_network=DomainNetworkConfig(ClassifierConfig(width=16), ClassifierTrainingConfig(steps=500), seed=1),
        tokenizer=TokenizerConfig(
            image_size=28,
            channels=1,
            patch_size=7,
            num_classes=10,
            encoder=transformer,
            decoder=transformer,
            segments=(SegmentConfig("visual", "queries", 16, codebook, VectorConfig(z_dim=12, revive_after=200)),),
        ),
        tokenizer_training=TokenizerTrainingConfig(
            steps=2200,
            batch_size=64,
            optimizer=rate,
            discriminator_optimizer=replace(rate, learning_rate=5e-4, weight_decay=1e-4),
            perceptual=DomainConfig(),
            perceptual_weight=1.0,
            adversarial=AdversarialConfig(weight=0.05, start=600, channels=16, layers=2),
            ema_half_life=100.0,
            precision="float32",
            log_every=25,
            checkpoint_minutes=0.5,
        ),
        tokens=TokensConfig(crops="center"),
        prior=PriorConfig(dim=96, depth=3, heads=4, condition_dim=16, num_classes=10, dropout=0.1),
        prior_training=PriorTrainingConfig(
            steps=1500,
            batch_size=96,
            optimizer=OptimizerConfig(
                learning_rate=3e-3,
                learning_rate_min=1e-5,
                betas=(0.9, 0.96),
                weight_decay=0.03,
                warmup=100,
                flat=0,
                clip=1.0,
            ),
            ema_half_life=100.0,
            precision="float32",
            evaluate_every=250,
            evaluate_rows=1000,
            checkpoint_minutes=0.5,
        ),
        evaluation=EvaluationConfig(network="domain", samples=5000, guidance="1.5"),
    )
