"""ImageNet 256 as in "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137): every row of its results.

Names are TOKENIZER-PRIOR: ``prologue-b-xl`` is the base tokenizer with the XL prior. Data as in ``imagenet-2d``:
``data/imagenet.zip``. Hardware: what ``overture plan`` says of the memory, and our guess of the time. The rows of one
tokenizer can share its stages 1 and 2 (copy ``tokenizer/`` and ``tokens/`` into the new run). The numbers are the
paper's; they have not been reproduced with this code. rFID is that of reconstructions, gFID that of 50,000 samples by
the ADM protocol; the settings they were sampled at are the presets ``paper`` and ``unguided``, and a run measures both.
"""

from __future__ import annotations

from dataclasses import replace

from overture.losses.perceptual import ConvNextConfig, LpipsConfig, NoPerceptual
from overture.nn.transformer import TransformerConfig
from overture.priors.model import PriorConfig
from overture.quantizers import SoftConfig
from overture.recipes.imagenet import imagenet_run, prior_training, tiny_run
from overture.runs.config import RunConfig
from overture.tokenizers.config import CodebookConfig, SegmentConfig
from overture.training.joint import JointPriorConfig
from overture.training.prior import PriorTrainingConfig
from overture.training.tokens import TokensConfig

__all__ = [
    "prologue_b_b", "prologue_b_l", "prologue_b_xl", "prologue_l_b", "prologue_l_l", "prologue_l_xl",
    "prologue_onestage", "prologue_post", "prologue_segment", "tiny_joint",
]  # fmt: skip

LARGE_DECODER = TransformerConfig(dim=1024, depth=24, heads=16)
POST_ENCODER = TransformerConfig(dim=512, depth=10, heads=8, ratio=11 / 4)

BASE_PRIOR = PriorConfig()
LARGE_PRIOR = PriorConfig(dim=1024, depth=24, heads=16)
XL_PRIOR = PriorConfig(dim=1280, depth=32, heads=20)


def prologue_b_b(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue B-B on ImageNet 256: 16 prologue tokens before 256 patch tokens, base tokenizer and base prior.

    Paper: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), row B-B: rFID 2.24; gFID 4.11 guided
    (prologue constant 0.7, visual cosine 3.75 power 0.2), 10.75 unguided (temperatures 0.7 and 0.9); IS 210.3,
    precision 0.83, recall 0.48. Prologue codebook 1024, visual 16384. 1 M batches of 256 in stage 1 (200 epochs; the
    paper counts 2 M alternating steps) with a joint prior of dim 512, 7 layers, unconditional; 400 epochs at batch 512
    in stage 3. Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run prologue-b-b``.
    """
    return (_base("prologue-b-b", BASE_PRIOR, prior_training(400, 512), tiny),)


def prologue_b_l(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue B-L on ImageNet 256: the tokenizer of ``prologue-b-b`` with the large prior.

    Paper: arXiv 2605.06137, row B-L: rFID 2.24; gFID 2.67 guided (prologue constant 0.8, visual cosine 3.0 power
    0.225), 6.56 unguided (temperatures 0.7 and 0.9); IS 251.2, precision 0.82, recall 0.56. 800 epochs at batch 2048 in
    stage 3. The prior is labelled 305 M; with its embeddings for this vocabulary it has 348 M parameters.
    Hardware: 32 accelerators of 80 GB (43 GB each at 64 sequences), days. Command:
    ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run prologue-b-l``.
    """
    return (_base("prologue-b-l", LARGE_PRIOR, prior_training(800, 2048), tiny),)


def prologue_b_xl(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue B-XL on ImageNet 256: the tokenizer of ``prologue-b-b`` with the XL prior.

    Paper: arXiv 2605.06137, row B-XL: rFID 2.24; gFID 2.43 guided (prologue constant 0.8, visual cosine 2.75 power
    0.25), 5.22 unguided (temperatures 0.8 and 0.9); IS 252.6, precision 0.80, recall 0.59. 800 epochs at batch 2048 in
    stage 3. The XL prior has 32 layers of 1280 channels: the paper's table of sizes says 24 of 2048, a typo that its
    authors corrected and the released weights confirm; it is labelled 685 M and has 693 M parameters here.
    Hardware: 32 accelerators of 80 GB (73 GB each at 64 sequences), a week or more. Command:
    ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run prologue-b-xl``.
    """
    return (_base("prologue-b-xl", XL_PRIOR, prior_training(800, 2048), tiny),)


def prologue_l_b(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue L-B on ImageNet 256: large decoder, visual codebook 4096, ConvNeXt loss, with the base prior.

    Paper: arXiv 2605.06137, row L-B: rFID 0.99; gFID 2.15 guided (prologue constant 0.65, visual cosine 2.75 power
    0.25), 5.02 unguided (temperatures 0.8 and 0.95); IS 219.9, precision 0.79, recall 0.60. The encoder is the base
    one, the decoder has 24 layers of 1024 channels; the perceptual loss is the difference of ConvNeXt-S logits in place
    of LPIPS. The prior is labelled 115 M, its size at a codebook of 16384; here it has 97 M parameters.
    Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run prologue-l-b``.
    """
    return (_large("prologue-l-b", BASE_PRIOR, prior_training(400, 512), tiny),)


def prologue_l_l(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue L-L on ImageNet 256: the tokenizer of ``prologue-l-b`` with the large prior.

    Paper: arXiv 2605.06137, row L-L: rFID 0.99; gFID 1.52 guided (prologue constant 0.7, visual cosine 2.5 power 0.25),
    2.81 unguided (temperatures 0.95 and 0.9); IS 251.6, precision 0.77, recall 0.66. 800 epochs at batch 2048 in
    stage 3. Hardware as ``prologue-b-l``. Command: ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run
    prologue-l-l``.
    """
    return (_large("prologue-l-l", LARGE_PRIOR, prior_training(800, 2048), tiny),)


def prologue_l_xl(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue L-XL on ImageNet 256, the paper's best: the tokenizer of ``prologue-l-b`` with the XL prior.

    Paper: arXiv 2605.06137, row L-XL: rFID 0.99; gFID 1.46 guided (prologue constant 0.7, visual cosine 2.25 power
    0.225), 2.26 unguided (temperatures 1.0 and 0.9); IS 257.7, precision 0.78, recall 0.66. 800 epochs at batch 2048 in
    stage 3; the size of the XL prior as in ``prologue-b-xl``.
    Hardware as there. Command: ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run prologue-l-xl``.
    """
    return (_large("prologue-l-xl", XL_PRIOR, prior_training(800, 2048), tiny),)


def prologue_post(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue-Post on ImageNet 256: a prologue added to the finished tokenizer of ``imagenet-2d``, which stays frozen.

    Paper: arXiv 2605.06137, row Post: rFID 2.15 (the 2D tokenizer's), gFID 3.88 guided (prologue constant 0.6, visual
    cosine 3.75 power 0.25), 11.04 unguided (temperatures 0.8 and 0.8). A second transformer (10 layers of 512 channels)
    reads the frozen encoder's outputs and 16 queries; it, its quantizer and the joint prior are all that stage 1 trains.
    Its length is that of the release's config, 1.3 M batches (the paper gives none). Before it: ``overture train
    tokenizer imagenet-2d``, or any 2D tokenizer of the same sizes: ``--tokenizer-training.start-from RUN``. The tiny
    form starts from fresh weights, so its reconstructions are noise.
    Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run prologue-post``.
    """
    name = "prologue-post"
    segments = (replace(prologue_segment(), source="post"), _visual(16384))
    if tiny:
        post = TransformerConfig(dim=32, depth=2, heads=2, condition_dim=16)
        return (_with_joint(tiny_run(name, segments, post_encoder=post), tiny_joint()),)
    config = _with_joint(imagenet_run(name, segments, post_encoder=POST_ENCODER), JointPriorConfig())
    training = replace(
        config.tokenizer_training,
        steps=1_300_000,
        start_from="runs/imagenet-2d",
        # The decoder is frozen: nothing that looks at images has a gradient.
        perceptual=NoPerceptual(),
        adversarial=replace(config.tokenizer_training.adversarial, weight=0.0),
    )
    return (replace(config, tokenizer_training=training),)


def prologue_onestage(tiny: bool = False) -> tuple[RunConfig, ...]:
    """Prologue in one stage on ImageNet 256: a base prior trained beside the tokenizer and used as it is.

    Paper: arXiv 2605.06137, row OneStage: rFID 2.09, gFID 5.41 guided (prologue constant 0.8, visual cosine 3.75 power
    0.25), 21.00 unguided (temperatures 0.8 and 0.8). Stage 1 of ``prologue-b-b`` with a joint prior of base size that
    is told the class (label drop 0.1); its raw weights and the tokenizer's raw weights are the model. There is no
    stage 3; the tokens of stage 2 (centre crops) are only measured. Dropout of this prior is not given: none, as in the
    other joint priors. Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run
    prologue-onestage``.
    """
    name, segments = "prologue-onestage", (prologue_segment(), _visual(16384))
    if tiny:
        joint = replace(tiny_joint(), label_drop=0.1)
        return (replace(_with_joint(tiny_run(name, segments), joint), prior=joint.prior, prior_source="joint"),)
    joint = JointPriorConfig(prior=replace(BASE_PRIOR, dropout=0.0), label_drop=0.1)
    config = _with_joint(imagenet_run(name, segments), joint)
    return (
        replace(
            config,
            tokenizer_training=replace(config.tokenizer_training, steps=1_000_000),
            tokens=TokensConfig(crops="center"),
            prior=joint.prior,
            prior_source="joint",
        ),
    )


def prologue_segment(tokens: int = 16, codebook: int = 1024) -> SegmentConfig:
    """Tokens that the decoder does not see, in front of a separator; only a joint prior trains them."""
    sizes = CodebookConfig("uniform", k_max=codebook)
    return SegmentConfig("prologue", "queries", tokens, sizes, SoftConfig(), decoded=False, separator=True)


def tiny_joint() -> JointPriorConfig:
    """A joint prior for the tiny forms."""
    default = JointPriorConfig()
    return replace(
        default,
        prior=PriorConfig(dim=32, depth=2, heads=2, condition_dim=16, dropout=0.0),
        optimizer=replace(default.optimizer, learning_rate=2e-3, warmup=5, flat=10),
        ema_half_life=50.0,
    )


def _visual(codebook: int) -> SegmentConfig:
    return SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=codebook))


def _with_joint(config: RunConfig, joint: JointPriorConfig) -> RunConfig:
    return replace(config, tokenizer_training=replace(config.tokenizer_training, joint=joint))


def _base(name: str, prior: PriorConfig, training: PriorTrainingConfig, tiny: bool) -> RunConfig:
    return _prologue(name, 16384, None, LpipsConfig(), prior, training, tiny)


def _large(name: str, prior: PriorConfig, training: PriorTrainingConfig, tiny: bool) -> RunConfig:
    return _prologue(name, 4096, LARGE_DECODER, ConvNextConfig(), prior, training, tiny)


def _prologue(
    name: str,
    codebook: int,
    decoder: TransformerConfig | None,
    perceptual: LpipsConfig | ConvNextConfig,
    prior: PriorConfig,
    training: PriorTrainingConfig,
    tiny: bool,
) -> RunConfig:
    segments = (prologue_segment(), _visual(codebook))
    if tiny:
        return _with_joint(tiny_run(name, segments), tiny_joint())
    config = _with_joint(imagenet_run(name, segments, decoder=decoder), JointPriorConfig())
    return replace(
        config,
        tokenizer_training=replace(config.tokenizer_training, steps=1_000_000, perceptual=perceptual),
        prior=prior,
        prior_training=training,
    )
