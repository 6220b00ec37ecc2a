"""Suites on a prologue: before the patches of a 2D tokenizer, over a finished one, and over growing codebooks."""

from __future__ import annotations

from dataclasses import replace

from overture.bench.codebook_suites import (
    BITS,
    CONTENT,
    GENERATION,
    READINGS,
    codebook_run,
    in_colour,
    laws,
    small_images,
)
from overture.bench.suite import Suite
from overture.interop.releases import prologue_segment
from overture.recipes.prologue_small import (
    PATCHES_START,
    POST_TRAINING,
    SHARED_RATE,
    joint_prior,
    second_encoder,
    visual_segment,
)
from overture.recipes.quickstart import one_dimensional
from overture.runs.config import RunConfig
from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig

__all__ = ["cifar_prologue", "prologue", "prologue_vcq"]

VISUAL_CODES, PROLOGUE_CODES = 512, 64
RATE = "tokenizer_training.optimizer.learning_rate"
JOINT_PRIOR = joint_prior(warmup=100, flat=800, ema_half_life=100.0)


def prologue() -> Suite:
    """Prologue against its 2D baseline on Fashion-MNIST at 16 px: shared encoder and Post, of 4 and of 16 tokens.

    Patches of 4 px, so 16 visual tokens of 512 codes; prologue tokens of 64 codes. The prologue's own cross-entropy has no
    weight, but in ``prologue-4-paper``, which has the published weights; ``prologue-4-low`` has a third of the published
    weight on the visual term; ``prologue-4-deep`` has an encoder of twice the depth. Post starts from the tokenizer of
    ``2d`` of the same seed, whose reconstructions it keeps.
    Hardware: one CPU core a member.
    """
    return _suite(prologue_runs(), compare="2d", folder="fashion-mnist-16")


def prologue_vcq() -> Suite:
    """Prologue and VCQ together, which nobody has published: each alone, and Post over uniform and growing 1D tokens.

    Hardware: one CPU core a member; tokenizers are those of ``uniform-vcq``.
    """
    one_d = {name: codebook_run(name, laws()[name]) for name in ("uniform", "linear")}
    runs = [one_d["uniform"]]
    for name, run in one_d.items():
        tokenizer = run.tokenizer
        runs += [run] * (name != "uniform")
        runs.append(_post(run, f"{name}-post", 4, tokenizer.segments[0]))
    starts = {f"{name}-post": name for name in one_d}
    compare = {"linear": "uniform", **starts}  # a prologue with its own tokenizer alone
    return _suite(tuple(runs), compare=compare, folder="fashion-mnist-16", starts_from=starts)


def cifar_prologue() -> Suite:
    """Prologue against its 2D baseline on CIFAR-10 at 16 px, in colour.

    Hardware: one CPU core a member.
    """
    names = ("2d", "prologue-4", "post-4")
    runs = tuple(in_colour(run) for run in prologue_runs() if run.name in names)
    return _suite(runs, compare="2d", folder="cifar10-16")


# -- what they have in common -----------------------------------------------------------------------------------------


def prologue_runs() -> tuple[RunConfig, ...]:
    """The baseline, prologues in a shared encoder, and those of Post."""
    plain = small_images(one_dimensional("2d", laws()["uniform"])).changed({RATE: SHARED_RATE, **PATCHES_START})
    patches = visual_segment("patches", CodebookConfig("uniform", k_max=VISUAL_CODES))
    plain = plain.changed({"tokenizer.segments": (patches,)})
    four, sixteen = (_shared(plain, tokens, patches) for tokens in (4, 16))
    weight = "tokenizer_training.joint.{}_weight"
    return (
        plain,
        four,
        sixteen,
        four.changed({"name": "prologue-4-paper", weight.format("prologue"): 3.0}),
        four.changed({"name": "prologue-4-low", weight.format("encoder"): 1.0}),
        four.changed({"name": "prologue-4-deep", "tokenizer.encoder.depth": 2 * plain.tokenizer.encoder.depth}),
        _post(plain, "post-4", 4, patches),
        _post(plain, "post-16", 16, patches),
    )


def _shared(plain: RunConfig, tokens: int, visual: SegmentConfig) -> RunConfig:
    """A prologue from the encoder of the visual tokens."""
    segments = (prologue_segment(tokens, PROLOGUE_CODES), visual)
    joint = replace(JOINT_PRIOR, prologue_weight=0.0)
    return plain.changed(
        {"name": f"prologue-{tokens}", "tokenizer.segments": segments, "tokenizer_training.joint": joint}
    )


def _post(plain: RunConfig, name: str, tokens: int, visual: SegmentConfig) -> RunConfig:
    """A prologue from a second encoder over a finished tokenizer, which stays as it is."""
    tokenizer = replace(
        plain.tokenizer,
        segments=(prologue_segment(tokens, PROLOGUE_CODES, source="post"), visual),
        post_encoder=second_encoder(plain.tokenizer.encoder),
    )
    run = replace(plain, tokenizer=tokenizer).changed({"name": name, "tokenizer_training.joint": JOINT_PRIOR})
    return run.changed(POST_TRAINING)


def _suite(
    runs: tuple[RunConfig, ...],
    *,
    compare: str | dict[str, str],
    folder: str,
    starts_from: dict[str, str] | None = None,
) -> Suite:
    starts = starts_from or {run.name: "2d" for run in runs if run.name.startswith("post")}
    return Suite(
        runs=runs,
        compare=compare,
        starts_from=starts,
        metrics={
            **GENERATION,
            **BITS,
            **CONTENT,
            "bits.held_out.prologue": "bits of the prologue",
            "shared_rows.ratio": "within a prologue / between",
            "composition.shared": "composition within / between",
            "composition.independent": "of independent samples",
        },
        readings=(*READINGS, "composition"),
        folder=folder,
    )
