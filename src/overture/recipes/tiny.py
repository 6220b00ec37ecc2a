"""The tiny form of any run: the same arrangement on the embedded images, trained for seconds."""

from __future__ import annotations

from dataclasses import replace

from overture.data.stream import DataConfig
from overture.evaluation.metrics import METRICS
from overture.evaluation.networks import DomainNetwork
from overture.losses.perceptual import ConvNextConfig, DomainConfig, LpipsConfig
from overture.nn.classifier import ClassifierConfig
from overture.nn.transformer import TransformerConfig
from overture.priors.model import PriorConfig
from overture.runs.config import DomainNetworkConfig, RunConfig
from overture.tokenizers.config import SegmentConfig, TokenizerConfig
from overture.training.train_prior import PriorTrainingConfig
from overture.training.train_tokenizer import TokenizerTrainingConfig
from overture.training.write_tokens import TokensConfig

__all__ = ["tiny_form"]

TRANSFORMER = TransformerConfig(dim=32, depth=2, heads=2, condition_dim=16)
PRIOR = PriorConfig(dim=32, depth=2, heads=2, condition_dim=16)
TOKENS = 16  # of a segment, at most: as many as there are patches of 7 px


def tiny_form(config: RunConfig) -> RunConfig:
    """Small networks, 16 tokens a segment, 40 steps; codebooks, quantizers, losses and guidance stay as they are."""
    return replace(
        config,
        tiny=True,
        data=DataConfig(held_out_share=0.1, image_size=28, channels=1, crop="center", mirror=False),
        judge=_network(config.judge, 0),
        perceptual_network=_network(config.perceptual_network, 1),
        tokenizer=_tokenizer(config.tokenizer),
        tokenizer_training=_tokenizer_training(config.tokenizer_training),
        tokens=TokensConfig(crops="center"),
        prior=replace(PRIOR, dropout=config.prior.dropout),
        prior_training=_prior_training(config.prior_training),
        evaluation=replace(
            config.evaluation,
            network="domain",
            samples=200,
            batch_size=100,
            metrics=_metrics(config.evaluation.metrics),
        ),
    )


def _network(config: DomainNetworkConfig, seed: int) -> DomainNetworkConfig:
    training = replace(config.training, steps=30, log_every=10)
    return replace(config, network=ClassifierConfig(width=16), training=training, seed=seed)


def _metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    """Without those that need more than a network trained on the data has."""
    return tuple(name for name in names if name == "all" or not METRICS.get(name).lacks(DomainNetwork.offers))


def _tokenizer(config: TokenizerConfig) -> TokenizerConfig:
    post = config.post_encoder
    return replace(
        config,
        image_size=28,
        channels=1,
        patch_size=7,
        encoder=replace(TRANSFORMER, gate=config.encoder.gate, init=config.encoder.init),
        decoder=replace(TRANSFORMER, gate=config.decoder.gate, init=config.decoder.init),
        post_encoder=replace(TRANSFORMER, gate=post.gate, init=post.init) if post else None,
        rope_axes=None,
        segments=tuple(map(_segment, config.segments)),
    )


def _segment(segment: SegmentConfig) -> SegmentConfig:
    codebook = replace(segment.codebook, explicit=segment.codebook.explicit[:TOKENS])
    return replace(segment, tokens=min(segment.tokens, TOKENS), codebook=codebook)


def _tokenizer_training(config: TokenizerTrainingConfig) -> TokenizerTrainingConfig:
    rate = replace(config.optimizer, learning_rate=2e-3, learning_rate_min=1e-4, warmup=5, flat=10)
    joint = config.joint
    if joint is not None:
        joint = replace(
            joint,
            prior=replace(PRIOR, dropout=joint.prior.dropout),
            optimizer=replace(joint.optimizer, learning_rate=2e-3, warmup=5, flat=10),
            ema_half_life=50.0,
        )
    needs_download = isinstance(config.perceptual, LpipsConfig | ConvNextConfig)
    return replace(
        config,
        steps=40,
        batch_size=32,
        start_from="",
        trains="everything",
        optimizer=rate,
        discriminator_optimizer=replace(rate, weight_decay=config.discriminator_optimizer.weight_decay),
        perceptual=DomainConfig() if needs_download else config.perceptual,
        adversarial=replace(config.adversarial, start=20, channels=16, layers=2),
        joint=joint,
        ema_half_life=min(config.ema_half_life, 100.0),
        precision="float32",
        compile=False,
        log_every=10,
        checkpoint_minutes=0.5,
    )


def _prior_training(config: PriorTrainingConfig) -> PriorTrainingConfig:
    return replace(
        config,
        steps=40,
        batch_size=32,
        start_from="",
        optimizer=replace(config.optimizer, learning_rate=3e-3, learning_rate_min=1e-5, warmup=5, flat=0),
        ema_half_life=min(config.ema_half_life, 100.0),
        precision="float32",
        compile=False,
        log_every=10,
        evaluate_every=20,
        evaluate_rows=200,
        checkpoint_minutes=0.5,
    )
