"""Prologue on Fashion-MNIST, for a laptop: against the 2D baseline, and together with variable codebooks."""

from __future__ import annotations

from dataclasses import replace

from overture.interop.releases import prologue_segment
from overture.losses.perceptual import NoPerceptual
from overture.nn.transformer import TransformerConfig
from overture.priors.model import PriorConfig
from overture.quantizers import VectorConfig
from overture.recipes.quickstart import one_dimensional
from overture.runs.config import RunConfig
from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig
from overture.training.joint_prior import JointPriorConfig
from overture.training.optim import OptimizerConfig

__all__ = [
    "joint_prior",
    "prologue_fashion_mnist",
    "prologue_post_fashion_mnist",
    "vcq_prologue",
    "visual_segment",
]

UNIFORM = CodebookConfig("uniform", k_max=512)
GROWING = CodebookConfig("linear", k_min=2, k_max=512)
PRIOR_RATE, SHARED_RATE, POST_RATE = 2e-3, 5e-4, 2e-4
"""Learning rates of the joint prior and of the encoder that it teaches, shared with the visual tokens or a second one: at one
rate for both, a prologue comes out empty (docs/experiments/prologue.md)."""
PATCHES_START = {"tokenizer.encoder.init": "released", "tokenizer.decoder.init": "released"}
"""Fresh weights of 2D tokenizers: those that fit the width make them worse (docs/experiments/prologue.md)."""
POST_TRAINING = {
    # The decoder is frozen: nothing that looks at images has a gradient.
    "tokenizer_training.perceptual": NoPerceptual(),
    "tokenizer_training.adversarial.weight": 0.0,
    "tokenizer_training.joint.prologue_weight": 0.0,
    "tokenizer_training.optimizer.learning_rate": POST_RATE,
}
"""How Post is trained, as changes of a run that has a joint prior."""


def prologue_fashion_mnist() -> tuple[RunConfig, ...]:
    """The 2D baseline and Prologue on Fashion-MNIST, with equal budgets: 49 patch tokens, and 8 more in front.

    Method: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), patches of 4 px, visual codebook 512,
    prologue codebook 64; both runs have the same data, sizes, steps and batches. Expect the same reconstruction;
    what happens to generation and to the cross-entropy of the whole sequence is the question.
    Data: torchvision's Fashion-MNIST (downloaded, or Debian's package dataset-fashion-mnist).
    Hardware: one CPU core a model, about 30 and 50 minutes. Command: ``overture run prologue-fashion-mnist``.
    """
    patches = visual_segment("patches", UNIFORM)
    return _laptop("2d", (patches,)), _laptop("prologue", (prologue_segment(8, 64), patches))


def prologue_post_fashion_mnist() -> tuple[RunConfig, ...]:
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
    segments = (prologue_segment(4, 64, source="post"), visual_segment("patches", UNIFORM))
    post = _laptop("post", segments, post_encoder=second_encoder(one_dimensional("", UNIFORM).tokenizer.encoder))
    return (post.changed({"tokenizer_training.start_from": "runs/prologue-fashion-mnist/2d", **POST_TRAINING}),)


def vcq_prologue() -> tuple[RunConfig, ...]:
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
        "vcq-visual": (prologue, visual_segment("patches", GROWING)),
        "vcq-prologue": (growing_prologue, visual_segment("patches", UNIFORM)),
        "vcq-1d": (prologue, replace(visual_segment("queries", GROWING), tokens=49)),
    }
    return tuple(_laptop(name, segments) for name, segments in layouts.items())


def second_encoder(first: TransformerConfig) -> TransformerConfig:
    """The encoder of Post, as large as the first. With gates at 0 it begins, and stays, the same for every image."""
    return replace(first, gate=1.0, init="released")


def visual_segment(source: str, codebook: CodebookConfig) -> SegmentConfig:
    """What the decoder sees of a small tokenizer."""
    quantizer = VectorConfig(z_dim=12, revive_after=200)
    return SegmentConfig("visual", source, 0, codebook, quantizer)  # type: ignore[arg-type]


def joint_prior(warmup: int, flat: int, ema_half_life: float) -> JointPriorConfig:
    """A joint prior of the size of these tokenizers."""
    return JointPriorConfig(
        prior=PriorConfig(dim=64, depth=3, heads=4, condition_dim=16, dropout=0.0),
        optimizer=OptimizerConfig(
            learning_rate=PRIOR_RATE,
            learning_rate_min=1e-4,
            betas=(0.9, 0.99),
            weight_decay=0.03,
            warmup=warmup,
            flat=flat,
        ),
        ema_half_life=ema_half_life,
    )


def _laptop(name: str, segments: tuple[SegmentConfig, ...], post_encoder: TransformerConfig | None = None) -> RunConfig:
    """An evening's run; where the decoder skips a segment, a joint prior trains it."""
    joint = None
    if not all(segment.decoded for segment in segments):
        joint = joint_prior(warmup=200, flat=2000, ema_half_life=300.0)
    config = one_dimensional(name, UNIFORM)
    config = replace(
        config, tokenizer=replace(config.tokenizer, patch_size=4, segments=segments, post_encoder=post_encoder)
    )
    return config.changed(
        {
            **PATCHES_START,
            "data.source": "fashion-mnist",
            "data.held_out": "fashion-mnist/test",
            "tokenizer_training.steps": 4000,
            "tokenizer_training.optimizer.learning_rate": SHARED_RATE,
            "tokenizer_training.optimizer.warmup": 200,
            "tokenizer_training.optimizer.flat": 2000,
            "tokenizer_training.discriminator_optimizer.warmup": 200,
            "tokenizer_training.discriminator_optimizer.flat": 2000,
            "tokenizer_training.adversarial.start": 2000,
            "tokenizer_training.joint": joint,
            "tokenizer_training.ema_half_life": 300.0,
            "tokenizer_training.checkpoint_minutes": 5.0,
            "prior.dim": 96,
            "prior.depth": 4,
            "prior_training.steps": 4000,
            "prior_training.ema_half_life": 300.0,
            "prior_training.evaluate_every": 1000,
            "prior_training.checkpoint_minutes": 5.0,
        }
    )
