"""The first suites: growing codebooks against a uniform one, and where the entropy cliff lies."""

from __future__ import annotations

from dataclasses import replace

from overture.bench.suite import Suite
from overture.losses.perceptual import NoPerceptual
from overture.recipes.quickstart import one_dimensional
from overture.runs.config import RunConfig
from overture.schedules import CodebookConfig, Schedule

__all__ = ["cliff", "uniform_vcq"]

TOKENS = 32


def uniform_vcq() -> Suite:
    """A uniform codebook against growing ones on Fashion-MNIST at 16 px: four laws of equal K_max, one of equal bits.

    The models of the quickstart on all 60,000 images and their mirrors, 32 tokens of patches of 4 px, a prior of 2,000
    steps: here the distance of generated images was twice that of reconstructions, so generation is what is compared.
    ``equal-bits`` grows up to 4096 codes by the power law that has the uniform model's 320 bits.
    Hardware: one CPU core a member, 15 members; training a member took 22 minutes with AVX2.
    """
    uniform = Schedule.uniform(TOKENS, 1024)
    equal_bits = Schedule.power_for_bits(TOKENS, 2, 4096, uniform.total_bits)
    codebooks = {
        "uniform": CodebookConfig("uniform", k_max=1024),
        "linear": CodebookConfig("linear", k_min=2, k_max=1024),
        "power-2": CodebookConfig("power", k_min=2, k_max=1024, exponent=2.0),
        "geometric": CodebookConfig("geometric", k_min=2, k_max=1024),
        "equal-bits": CodebookConfig("explicit", explicit=equal_bits.sizes),
    }
    return Suite(
        runs=tuple(_small_images(name, codebook) for name, codebook in codebooks.items()),
        compare="uniform",
        metrics={
            "generation.unguided.fid": "gFD",
            "generation.guided.fid": "gFD, guidance 1.5",
            "reconstruction.distance": "rFD",
            "generation.over_reconstruction": "gFD / rFD",
            "bits.train": "bits, training",
            "bits.held_out": "bits, held out",
            "entropy.bits": "entropy of tokens, bits",
            "entropy.cliff": "cliff",
            "neighbours.features.suspicious": "near copies, %",
            "seconds.training": "seconds of training",
        },
        readings=("results", "neighbours"),
    )


def cliff() -> Suite:
    """Where the entropy cliff lies: measured t* against ceil(log2 N / log2 K), for four K and up to four N.

    Uniform tokenizers of 32 tokens on Fashion-MNIST at 16 px, no prior. The entropy of N images is that of the tokens
    of N training images, drawn by chance; the tokenizer has seen all 60,000.
    Hardware: one CPU core a member, 12 members, each shorter than one of ``uniform-vcq``.
    """
    runs = []
    for size in (16, 256, 1024, 4096):
        run = _small_images(f"K{size}", CodebookConfig("uniform", k_max=size))
        training = replace(run.tokenizer_training, perceptual=NoPerceptual())
        # Nothing is judged, so no network has to be trained for it.
        evaluation = replace(run.evaluation, network="random:64", metrics=("fid",))
        runs.append(replace(run, tokenizer_training=training, evaluation=evaluation))
    metrics = {}
    for images in (1_000, 5_000, 20_000, 60_000):
        metrics[f"cliff.{images}.measured"] = f"N = {images:,}: measured t*"
        metrics[f"cliff.{images}.predicted"] = f"N = {images:,}: predicted"
    return Suite(runs=tuple(runs), metrics=metrics, readings=("cliff",), until="tokens")


def _small_images(name: str, codebook: CodebookConfig) -> RunConfig:
    return one_dimensional(name, codebook).changed(
        {
            "data.source": "fashion-mnist",
            "data.held_out": "fashion-mnist/test",
            "data.image_size": 16,
            "data.mirror": True,
            "tokenizer.patch_size": 4,
            "tokenizer.segments.0.tokens": TOKENS,
            "tokenizer_training.checkpoint_minutes": 5.0,
            "prior_training.steps": 2000,
            "prior_training.checkpoint_minutes": 5.0,
        }
    )
