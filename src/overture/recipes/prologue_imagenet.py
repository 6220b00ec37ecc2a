"""ImageNet 256 as in "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137): every row of its results.

Names are TOKENIZER-PRIOR: ``prologue-b-xl`` is the base tokenizer with the XL prior. Data as in ``imagenet-2d``:
``data/imagenet.zip``. Hardware: what ``overture plan`` says of the memory, and our guess of the time. The rows of one
tokenizer can share its stages 1 and 2 (copy ``tokenizer/`` and ``tokens/`` into the new run). The numbers are the
paper's; they have not been reproduced with this code. rFID is that of reconstructions, gFID that of 50,000 samples by
the ADM protocol; the settings they were sampled at are the presets ``paper`` and ``unguided``, and a run measures both.
"""

from __future__ import annotations

from dataclasses import replace

from overture.interop.releases import BASE, LARGE, RELEASES, XL
from overture.losses.perceptual import ConvNextConfig, LpipsConfig, NoPerceptual
from overture.priors.model import PriorConfig
from overture.recipes.imagenet import imagenet_run, prior_training
from overture.runs.config import RunConfig
from overture.training.joint_prior import JointPriorConfig
from overture.training.train_prior import PriorTrainingConfig
from overture.training.write_tokens import TokensConfig

__all__ = [
    "prologue_b_b", "prologue_b_l", "prologue_b_xl", "prologue_l_b", "prologue_l_l", "prologue_l_xl",
    "prologue_onestage", "prologue_post",
]  # fmt: skip


def prologue_b_b() -> tuple[RunConfig, ...]:
    """Prologue B-B on ImageNet 256: 16 prologue tokens before 256 patch tokens, base tokenizer and base prior.

    Paper: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), row B-B: rFID 2.24; gFID 4.11 guided
    (prologue constant 0.7, visual cosine 3.75 power 0.2), 10.75 unguided (temperatures 0.7 and 0.9); IS 210.3,
    precision 0.83, recall 0.48. Prologue codebook 1024, visual 16384. 1 M batches of 256 in stage 1 (200 epochs; the
    paper counts 2 M alternating steps) with a joint prior of dim 512, 7 layers, unconditional; 400 epochs at batch 512
    in stage 3. Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run prologue-b-b``.
    """
    return (_base("prologue-b-b", BASE, prior_training(400, 512)),)


def prologue_b_l() -> tuple[RunConfig, ...]:
    """Prologue B-L on ImageNet 256: the tokenizer of ``prologue-b-b`` with the large prior.

    Paper: arXiv 2605.06137, row B-L: rFID 2.24; gFID 2.67 guided (prologue constant 0.8, visual cosine 3.0 power
    0.225), 6.56 unguided (temperatures 0.7 and 0.9); IS 251.2, precision 0.82, recall 0.56. 800 epochs at batch 2048 in
    stage 3. The prior is labelled 305 M; with its embeddings for this vocabulary it has 348 M parameters.
    Hardware: 32 accelerators of 80 GB (42 GB each at 64 sequences), a day (``overture plan --card``). Command:
    ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run prologue-b-l``.
    """
    return (_base("prologue-b-l", LARGE, prior_training(800, 2048)),)


def prologue_b_xl() -> tuple[RunConfig, ...]:
    """Prologue B-XL on ImageNet 256: the tokenizer of ``prologue-b-b`` with the XL prior.

    Paper: arXiv 2605.06137, row B-XL: rFID 2.24; gFID 2.43 guided (prologue constant 0.8, visual cosine 2.75 power
    0.25), 5.22 unguided (temperatures 0.8 and 0.9); IS 252.6, precision 0.80, recall 0.59. 800 epochs at batch 2048 in
    stage 3. The XL prior has 32 layers of 1280 channels: the paper's table of sizes says 24 of 2048, a typo that its
    authors corrected and the released weights confirm; it is labelled 685 M and has 693 M parameters here.
    Hardware: 32 accelerators of 80 GB (72 GB each at 64 sequences), two days (``overture plan --card``). Command:
    ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run prologue-b-xl``.
    """
    return (_base("prologue-b-xl", XL, prior_training(800, 2048)),)


def prologue_l_b() -> tuple[RunConfig, ...]:
    """Prologue L-B on ImageNet 256: large decoder, visual codebook 4096, ConvNeXt loss, with the base prior.

    Paper: arXiv 2605.06137, row L-B: rFID 0.99; gFID 2.15 guided (prologue constant 0.65, visual cosine 2.75 power
    0.25), 5.02 unguided (temperatures 0.8 and 0.95); IS 219.9, precision 0.79, recall 0.60. The encoder is the base
    one, the decoder has 24 layers of 1024 channels; the perceptual loss is the difference of ConvNeXt-S logits in place
    of LPIPS. The prior is labelled 115 M, its size at a codebook of 16384; here it has 97 M parameters.
    Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run prologue-l-b``.
    """
    return (_large("prologue-l-b", BASE, prior_training(400, 512)),)


def prologue_l_l() -> tuple[RunConfig, ...]:
    """Prologue L-L on ImageNet 256: the tokenizer of ``prologue-l-b`` with the large prior.

    Paper: arXiv 2605.06137, row L-L: rFID 0.99; gFID 1.52 guided (prologue constant 0.7, visual cosine 2.5 power 0.25),
    2.81 unguided (temperatures 0.95 and 0.9); IS 251.6, precision 0.77, recall 0.66. 800 epochs at batch 2048 in
    stage 3. Hardware as ``prologue-b-l``. Command: ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run
    prologue-l-l``.
    """
    return (_large("prologue-l-l", LARGE, prior_training(800, 2048)),)


def prologue_l_xl() -> tuple[RunConfig, ...]:
    """Prologue L-XL on ImageNet 256, the paper's best: the tokenizer of ``prologue-l-b`` with the XL prior.

    Paper: arXiv 2605.06137, row L-XL: rFID 0.99; gFID 1.46 guided (prologue constant 0.7, visual cosine 2.25 power
    0.225), 2.26 unguided (temperatures 1.0 and 0.9); IS 257.7, precision 0.78, recall 0.66. 800 epochs at batch 2048 in
    stage 3; the size of the XL prior as in ``prologue-b-xl``.
    Hardware as there. Command: ``torchrun --nnodes 4 --nproc-per-node 8 -m overture run prologue-l-xl``.
    """
    return (_large("prologue-l-xl", XL, prior_training(800, 2048)),)


def prologue_post() -> tuple[RunConfig, ...]:
    """Prologue-Post on ImageNet 256: a prologue added to the finished tokenizer of ``imagenet-2d``, which stays frozen.

    Paper: arXiv 2605.06137, row Post: rFID 2.15 (the 2D tokenizer's), gFID 3.88 guided (prologue constant 0.6, visual
    cosine 3.75 power 0.25), 11.04 unguided (temperatures 0.8 and 0.8). A second transformer (10 layers of 512 channels)
    reads the frozen encoder's outputs and 16 queries; it, its quantizer and the joint prior are all that stage 1 trains.
    Its length is that of the release's config, 1.3 M batches (the paper gives none). Before it: ``overture train
    tokenizer imagenet-2d``, or any 2D tokenizer of the same sizes: ``--tokenizer-training.start-from RUN``. The tiny
    form starts from fresh weights, so its reconstructions are noise.
    Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run prologue-post``.
    """
    config = _with_joint(imagenet_run("prologue-post", RELEASES["prologue-post-tokenizer"].tokenizer))
    return (
        config.changed(
            {
                "tokenizer_training.steps": 1_300_000,
                "tokenizer_training.start_from": "runs/imagenet-2d",
                # The decoder is frozen: nothing that looks at images has a gradient.
                "tokenizer_training.perceptual": NoPerceptual(),
                "tokenizer_training.adversarial.weight": 0.0,
            }
        ),
    )


def prologue_onestage() -> tuple[RunConfig, ...]:
    """Prologue in one stage on ImageNet 256: a base prior trained beside the tokenizer and used as it is.

    Paper: arXiv 2605.06137, row OneStage: rFID 2.09, gFID 5.41 guided (prologue constant 0.8, visual cosine 3.75 power
    0.25), 21.00 unguided (temperatures 0.8 and 0.8). Stage 1 of ``prologue-b-b`` with a joint prior of base size that
    is told the class (label drop 0.1); its raw weights and the tokenizer's raw weights are the model. There is no
    stage 3; the tokens of stage 2 (centre crops) are only measured. Dropout of this prior is not given: none, as in the
    other joint priors. Hardware: 8 accelerators, days. Command: ``torchrun --nproc-per-node 8 -m overture run
    prologue-onestage``.
    """
    release = RELEASES["prologue-onestage-joint"]
    assert release.prior is not None
    joint = JointPriorConfig(prior=release.prior, label_drop=0.1)
    config = _with_joint(imagenet_run("prologue-onestage", release.tokenizer), joint)
    return (
        replace(
            config.changed({"tokenizer_training.steps": 1_000_000}),
            tokens=TokensConfig(crops="center"),
            prior=joint.prior,
            prior_source="joint",
        ),
    )


def _with_joint(config: RunConfig, joint: JointPriorConfig | None = None) -> RunConfig:
    return config.changed({"tokenizer_training.joint": joint or JointPriorConfig()})


def _base(name: str, prior: PriorConfig, training: PriorTrainingConfig) -> RunConfig:
    return _prologue(name, "prologue-b-tokenizer", LpipsConfig(), prior, training)


def _large(name: str, prior: PriorConfig, training: PriorTrainingConfig) -> RunConfig:
    return _prologue(name, "prologue-l-tokenizer", ConvNextConfig(), prior, training)


def _prologue(
    name: str,
    release: str,
    perceptual: LpipsConfig | ConvNextConfig,
    prior: PriorConfig,
    training: PriorTrainingConfig,
) -> RunConfig:
    config = _with_joint(imagenet_run(name, RELEASES[release].tokenizer))
    training1 = {"tokenizer_training.steps": 1_000_000, "tokenizer_training.perceptual": perceptual}
    return replace(config.changed(training1), prior=prior, prior_training=training)
