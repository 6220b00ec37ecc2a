"""Prologue on Fashion-MNIST, for a laptop: against the 2D baseline, and together with variable codebooks."""

from __future__ import annotations

from dataclasses import replace

from overture.data.stream import DataConfig
from overture.losses.perceptual import NoPerceptual
from overture.nn.transformer import TransformerConfig
from overture.priors.model import PriorConfig
from overture.quantizers import VectorConfig
from overture.recipes.prologue import prologue_segment, tiny_joint
from overture.recipes.quickstart import one_dimensional, shrink
from overture.runs.config import RunConfig
from overture.tokenizers.config import CodebookConfig, SegmentConfig
from overture.training.joint import JointPriorConfig
from overture.training.optim import OptimizerConfig

__all__ = ["prologue_fashion_mnist", "prologue_post_fashion_mnist", "vcq_prologue"]

UNIFORM = CodebookConfig("uniform", k_max=512)
GROWING = CodebookConfig("linear", k_min=2, k_max=512)


def prologue_fashion_mnist(tiny: bool = False) -> tuple[RunConfig, ...]:
    """The 2D baseline and Prologue on Fashion-MNIST, with equal budgets: 49 patch tokens, and 8 more in front.

    Method: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), patches of 4 px, visual codebook 512,
    prologue codebook 64; both runs have the same data, sizes, steps and batches. Expect the same reconstruction;
    what happens to generation and to the cross-entropy of the whole sequence is the question.
    Data: torchvision's Fashion-MNIST (downloaded, or Debian's package dataset-fashion-mnist).
    Hardware: one CPU core a model, about 30 and 50 minutes. Command: ``overture run prologue-fashion-mnist``.
    """
    patches = _visual("patches", UNIFORM)
    baseline = _laptop("prologue-fashion-mnist", "2d", (patches,))
    prologue = _laptop("prologue-fashion-mnist", "prologue", (prologue_segment(8, 64), patches))
    return tuple(_small(run) if tiny else run for run in (baseline, prologue))


def prologue_post_fashion_mnist(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue-Post on Fashion-MNIST: 4 prologue tokens before those of a finished 2D tokenizer, which stays frozen.

    Method: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), Post. Reconstructions are those of the
    2D tokenizer, so what is measured is the prologue alone. The prologue's own cross-entropy has no weight here, and the
    second transformer's gates start open: a short run empties the prologue otherwise (docs/experiments/prologue.md).
    Before it: ``overture run prologue-fashion-mnist
    --only 2d``, or any tokenizer of the same sizes: ``--tokenizer-training.start-from RUN``. The tiny form starts from
    fresh weights, so its reconstructions are noise.
    Data: as ``prologue-fashion-mnist``. Hardware: one CPU core, about 35 minutes. Command:
    ``overture run prologue-post-fashion-mnist``.
    """
    prologue = replace(prologue_segment(4, 64), source="post")
    segments = (prologue, _visual("patches", UNIFORM))
    post_encoder = replace(one_dimensional("", UNIFORM).tokenizer.encoder, gate=1.0)
    config = _laptop("prologue-post-fashion-mnist", "post", segments, post_encoder=post_encoder)
    training = config.tokenizer_training
    assert training.joint is not None  # a segment that the decoder skips has one
    config = replace(
        config,
        tokenizer_training=replace(
            training,
            start_from="" if tiny else "runs/prologue-fashion-mnist/2d",
            # The decoder is frozen: nothing that looks at images has a gradient.
            perceptual=NoPerceptual(),
            adversarial=replace(training.adversarial, weight=0.0),
            joint=replace(training.joint, prologue_weight=0.0),
        ),
    )
    return (_small(config) if tiny else config,)


def vcq_prologue(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue together with variable codebooks on Fashion-MNIST: in the visual segment, in the prologue, over 1D.

    Methods: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137) and "Taming the Entropy Cliff"
    (arXiv 2605.06207); neither paper joins them, so there are no published numbers. ``vcq-visual``: a prologue before
    patch tokens whose codebook grows. ``vcq-prologue``: the prologue's own codebook grows. ``vcq-1d``: a prologue before
    the 49 tokens of a 1D VCQ tokenizer. Each is only another layout.
    Data, hardware and sizes as ``prologue-fashion-mnist``. Command: ``overture run vcq-prologue``, one of them with
    ``--only vcq-1d``.
    """
    prologue = prologue_segment(8, 64)
    growing_prologue = replace(prologue, codebook=CodebookConfig("linear", k_min=2, k_max=64))
    layouts = {
        "vcq-visual": (prologue, _visual("patches", GROWING)),
        "vcq-prologue": (growing_prologue, _visual("patches", UNIFORM)),
        "vcq-1d": (prologue, replace(_visual("queries", GROWING), tokens=49)),
    }
    runs = tuple(_laptop("vcq-prologue", name, segments) for name, segments in layouts.items())
    return tuple(map(_small, runs)) if tiny else runs


def _visual(source: str, codebook: CodebookConfig) -> SegmentConfig:
    quantizer = VectorConfig(z_dim=12, revive_after=200)
    return SegmentConfig("visual", source, 0, codebook, quantizer)  # type: ignore[arg-type]


def _laptop(
    recipe: str, name: str, segments: tuple[SegmentConfig, ...], post_encoder: TransformerConfig | None = None
) -> RunConfig:
    """An evening's run; where the decoder skips a segment, a joint prior trains it."""
    config = one_dimensional(name, UNIFORM)
    training, prior = config.tokenizer_training, config.prior_training
    rate = replace(training.optimizer, warmup=200, flat=2000)
    joint = None
    if not all(segment.decoded for segment in segments):
        joint = JointPriorConfig(
            prior=PriorConfig(dim=64, depth=3, heads=4, condition_dim=16, dropout=0.0),
            optimizer=OptimizerConfig(
                learning_rate=2e-3, learning_rate_min=1e-4, betas=(0.9, 0.99), weight_decay=0.03, warmup=200, flat=2000
            ),
            ema_half_life=300.0,
        )
    return replace(
        config,
        recipe=recipe,
        data=replace(config.data, source="fashion-mnist", held_out="fashion-mnist/test"),
        tokenizer=replace(config.tokenizer, patch_size=4, segments=segments, post_encoder=post_encoder),
        tokenizer_training=replace(
            training,
            steps=4000,
            optimizer=rate,
            discriminator_optimizer=replace(training.discriminator_optimizer, warmup=200, flat=2000),
            adversarial=replace(training.adversarial, start=2000),
            joint=joint,
            ema_half_life=300.0,
            checkpoint_minutes=5.0,
        ),
        prior=replace(config.prior, dim=96, depth=4),
        prior_training=replace(
            prior, steps=4000, batch_size=96, ema_half_life=300.0, evaluate_every=1000, checkpoint_minutes=5.0
        ),
    )


def _small(config: RunConfig) -> RunConfig:
    """The tiny form: the embedded images, patches of 7 px, 16 visual tokens."""
    transformer = TransformerConfig(dim=32, depth=2, heads=2, condition_dim=16)
    segments = tuple(replace(segment, tokens=min(segment.tokens, 16)) for segment in config.tokenizer.segments)
    small = shrink(config)
    joint = tiny_joint() if config.tokenizer_training.joint else None
    return replace(
        small,
        data=DataConfig(held_out_share=0.1, image_size=28, channels=1, crop="center", mirror=False),
        tokenizer=replace(
            small.tokenizer,
            patch_size=7,
            encoder=transformer,
            decoder=transformer,
            post_encoder=transformer if config.tokenizer.post_encoder else None,
            segments=segments,
        ),
        tokenizer_training=replace(small.tokenizer_training, joint=joint),
        prior=replace(small.prior, dim=32, depth=2, heads=2),
    )
