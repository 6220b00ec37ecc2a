"""Suites on codebooks that grow along the sequence, and on where the entropy cliff lies; 1D tokenizers of small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from overture.bench.suite import Suite
from overture.losses.perceptual import NoPerceptual
from overture.recipes.quickstart import one_dimensional
from overture.runs.config import RunConfig
from overture.schedules import CodebookConfig, Schedule

__all__ = [
    "cifar_codebooks",
    "cifar_long",
    "cliff",
    "codebook_run",
    "few_images",
    "prior_sizes",
    "same_bits",
    "uniform_vcq",
]

TOKENS, K_MAX, LARGEST = 32, 1024, 4096
READINGS = ("results", "neighbours", "probe", "calibration")


def uniform_vcq() -> Suite:
    """Uniform codebooks against ones whose sizes differ, on Fashion-MNIST at 16 px: of equal K_max, and of equal bits.

    ``equal-bits`` grows up to 4096 codes by the power law that has the 320 bits of ``uniform``; ``uniform-349`` has the 270
    bits of ``linear``. ``reversed`` and ``shuffled`` have the sizes of ``linear`` in another order: what they lose is the
    order's doing.
    Hardware: one CPU core a member.
    """
    return Suite(
        runs=tuple(codebook_run(name, law) for name, law in laws().items()),
        compare="uniform",
        metrics={**GENERATION, **BITS, **CONTENT, **FEW_CODES},
        readings=READINGS,
        folder="fashion-mnist-16",
    )


def same_bits() -> Suite:
    """Growing codebooks, each against the uniform one that has its bits: 320 and 270, under priors of many and few images.

    Every run is one of ``uniform-vcq`` or ``few-images``.
    Hardware: one CPU core a member.
    """
    few = few_images()
    runs = {run.name: run for run in (*uniform_vcq().runs, *few.runs)}
    compare = {
        "uniform": "uniform",
        "equal-bits": "uniform",
        "uniform-349": "uniform-349",
        "linear": "uniform-349",
        "reversed": "uniform-349",
        "shuffled": "uniform-349",
    }
    compare |= {f"{name}-2000": f"{other}-2000" for name, other in compare.items() if f"{name}-2000" in runs}
    return Suite(
        runs=tuple(runs[name] for name in compare),
        compare=compare,
        starts_from={name: start for name, start in few.starts_from.items() if name in compare},
        metrics={**GENERATION, **BITS, **COPIES, **ROOM, "probe.all.4": "probe of 4 tokens, %"},
        readings=READINGS,
        folder="fashion-mnist-16",
    )


def few_images() -> Suite:
    """The same tokenizers under priors that see 10,000 or 2,000 images: what a prior does that memorises.

    All judge against the 60,000 images that the tokenizers have seen: a prior that repeats its 2,000 does not get near.
    Hardware: one CPU core a member; those of ``uniform-vcq`` are members here too.
    """
    priors = {str(images): {"tokens.images": images} for images in (10_000, 2_000)}
    return _with_other_priors(
        ("uniform", "uniform-349", "linear", "equal-bits"), priors, {**GENERATION, **BITS, **COPIES}
    )


def prior_sizes() -> Suite:
    """Priors of four sizes on uniform and growing tokens: does the difference close or widen?

    Hardware: one CPU core a member; the largest takes the longest, about as long as 6 of the second.
    """
    priors = {name: {"prior.dim": dim, "prior.depth": depth} for name, (dim, depth) in PRIORS.items()}
    return _with_other_priors(("uniform", "linear", "equal-bits"), priors, {**GENERATION, **BITS})


def cifar_codebooks() -> Suite:
    """Uniform against growing codebooks on CIFAR-10 at 16 px, in colour.

    Hardware: one CPU core a member.
    """
    names = ("uniform", "linear", "power-2", "equal-bits")
    return Suite(
        runs=tuple(in_colour(codebook_run(name, laws()[name])) for name in names),
        compare="uniform",
        metrics={**GENERATION, **BITS, **CONTENT, **FEW_CODES},
        readings=READINGS,
        folder="cifar10-16",
    )


def cifar_long() -> Suite:
    """Uniform against growing codebooks on CIFAR-10 with wider tokenizers and 13 times the images: an accelerator's.

    With the priors of ``cifar-codebooks``, and with priors of four times as many batches: such tokens hold much more.
    Hardware: an accelerator for the tokenizers (``--device cuda --jobs 4``: several small ones share it well); a CPU core
    would take more than an hour for one. Everything else is a CPU core's work.
    """
    long = {
        "tokenizer.encoder.dim": 128,
        "tokenizer.encoder.depth": 4,
        "tokenizer.decoder.dim": 128,
        "tokenizer.decoder.depth": 4,
        "tokenizer_training.batch_size": 256,
        "tokenizer_training.steps": 2000,
        "tokenizer_training.optimizer.flat": 1000,
        "tokenizer_training.discriminator_optimizer.flat": 1000,
        "tokenizer_training.adversarial.start": 700,
    }
    short = cifar_codebooks()
    whole = [run.changed({"name": f"{run.name}-long", **long}) for run in short.runs if run.name != "power-2"]
    runs, starts, compare = _under_other_priors(whole, {"6000": {"prior_training.steps": 6000}})
    return replace(short, runs=runs, starts_from=starts, compare=compare)


def cliff() -> Suite:
    """Where the entropy cliff lies: measured t* against ceil(log2 N / log2 K), for four K and four N.

    Uniform tokenizers on Fashion-MNIST at 16 px, no prior. The entropy of N images is that of the tokens of N training
    images, drawn by chance; the tokenizer has seen all 60,000.
    Hardware: one CPU core a member.
    """
    runs = []
    for size in (16, 256, 1024, 4096):
        run = codebook_run(f"K{size}", CodebookConfig("uniform", k_max=size))
        training = replace(run.tokenizer_training, perceptual=NoPerceptual())
        # Nothing is judged, so no network has to be trained for it.
        evaluation = replace(run.evaluation, network="random:64", metrics=("fid",))
        runs.append(replace(run, tokenizer_training=training, evaluation=evaluation))
    metrics = {}
    for images in (1_000, 5_000, 20_000, 60_000):
        metrics[f"cliff.{images}.predicted"] = f"N = {images:,}: predicted"
        metrics[f"cliff.{images}.at_90"] = "90 % of the bits"
        metrics[f"cliff.{images}.measured"] = "99 %"
    return Suite(runs=tuple(runs), metrics=metrics, readings=("cliff",), until="tokens")


# -- what they have in common -----------------------------------------------------------------------------------------

GENERATION = {
    "generation.unguided.fid": "gFD",
    "generation.guided.fid": "gFD, guided",
    "reconstruction.distance": "rFD",
    "generation.over_reconstruction": "gFD / rFD",
}
BITS = {
    "bits.train": "bits, training",
    "bits.held_out": "bits, held out",
}
NEAR_COPIES = {"neighbours.features.suspicious": "near copies, % (chance: 1)"}
COPIES = {**NEAR_COPIES, "neighbours.tokens.copies": "exact copies"}
ROOM = {"entropy.room": "room, bits", "entropy.cliff": "cliff"}
CONTENT = {
    **ROOM,
    "probe.all.4": "probe of 4 tokens, %",
    "probe.all.8": "probe of 8, %",
    **NEAR_COPIES,
    "calibration.held_out.all.excess": "overconfident by, %",
}
FEW_CODES = {"calibration.held_out.2-7.excess": "the same where 2 to 7 codes, %"}
PRIORS = {"0.1M": (48, 2), "1.5M": (144, 5), "3M": (192, 6)}
"""Width and depth of the priors beside the usual one."""


def laws() -> dict[str, CodebookConfig]:
    """The codebooks that are compared, by name."""
    linear = Schedule.linear(TOKENS, 2, K_MAX)
    equal_bits = Schedule.power_for_bits(TOKENS, 2, LARGEST, Schedule.uniform(TOKENS, K_MAX).total_bits)
    return {
        "uniform": CodebookConfig("uniform", k_max=K_MAX),
        "uniform-349": CodebookConfig("uniform", k_max=349),  # the 270 bits of linear growth
        "linear": CodebookConfig("linear", k_min=2, k_max=K_MAX),
        "power-2": CodebookConfig("power", k_min=2, k_max=K_MAX, exponent=2.0),
        "power-3": CodebookConfig("power", k_min=2, k_max=K_MAX, exponent=3.0),
        "geometric": CodebookConfig("geometric", k_min=2, k_max=K_MAX),
        "cosine": CodebookConfig("cosine", k_min=2, k_max=K_MAX),
        "reversed": CodebookConfig("explicit", explicit=linear.reversed().sizes),
        "shuffled": CodebookConfig("explicit", explicit=linear.shuffled(0).sizes),
        "equal-bits": CodebookConfig("explicit", explicit=equal_bits.sizes),
    }


def codebook_run(name: str, codebook: CodebookConfig) -> RunConfig:
    """A 1D tokenizer of 16 px Fashion-MNIST and its prior: minutes of one core, and generation is what binds.

    Small batches and many of them: a 1D tokenizer first has to learn to look at the patches at all, and that takes steps.
    """
    return small_images(one_dimensional(name, codebook)).changed(
        {
            "tokenizer.segments.0.tokens": TOKENS,
            "tokenizer.segments.0.quantizer.revive_after": 30,
            "tokenizer_training.batch_size": 16,
            "tokenizer_training.steps": 2400,
            "tokenizer_training.optimizer.flat": 1200,
            "tokenizer_training.discriminator_optimizer.flat": 1200,
            "tokenizer_training.adversarial.start": 800,
            "evaluation.likelihood_images": 10_000,
        }
    )


def small_images(run: RunConfig) -> RunConfig:
    """On all of Fashion-MNIST at 16 px, in patches of 4, with short priors."""
    return run.changed(
        {
            "data.source": "fashion-mnist",
            "data.held_out": "fashion-mnist/test",
            "data.image_size": 16,
            "data.mirror": True,
            "tokenizer.patch_size": 4,
            "tokenizer_training.batch_size": 32,
            "tokenizer_training.checkpoint_minutes": 5.0,
            "prior_training.batch_size": 64,
            "prior_training.evaluate_every": 500,
            "prior_training.checkpoint_minutes": 5.0,
            "evaluation.guidance": "cosine 1.2",
        }
    )


def in_colour(run: RunConfig) -> RunConfig:
    """The same on CIFAR-10."""
    return run.changed({"data.source": "cifar10", "data.held_out": "cifar10/test", "data.channels": 3})


def _with_other_priors(names: Sequence[str], priors: Mapping[str, dict[str, int]], metrics: dict[str, str]) -> Suite:
    """Codebooks of :func:`laws` on Fashion-MNIST, under their own prior and under other ones."""
    whole = [codebook_run(name, laws()[name]) for name in names]
    runs, starts, compare = _under_other_priors(whole, priors)
    return Suite(
        runs=runs, compare=compare, starts_from=starts, metrics=metrics, readings=READINGS, folder="fashion-mnist-16"
    )


def _under_other_priors(
    whole: Sequence[RunConfig], priors: Mapping[str, dict[str, int]]
) -> tuple[tuple[RunConfig, ...], dict[str, str], dict[str, str]]:
    """Runs, and each again with its tokenizer under other priors; what these start from; what each is compared with.

    That is the first of ``whole`` under the same prior.
    """
    runs: list[RunConfig] = []
    starts: dict[str, str] = {}
    compare: dict[str, str] = {}
    for run in whole:
        runs.append(run)
        compare[run.name] = whole[0].name
        training = replace(run.tokenizer_training, trains="nothing", start_from=run.name)
        for prior, changes in priors.items():
            name = f"{run.name}-{prior}"
            runs.append(replace(run, tokenizer_training=training).changed({"name": name, **changes}))
            starts[name], compare[name] = run.name, f"{whole[0].name}-{prior}"
    return tuple(runs), starts, compare
