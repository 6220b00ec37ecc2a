"""Images to tokens, and classes to images."""

from __future__ import annotations

from functools import partial

import torch

from accelerating.fitting import fitting
from accelerating.isolation import Emit
from accelerating.machine import Machine
from accelerating.sizes import Sizes, planned
from overture.layout import Layout
from overture.plan.run_plan import sampling_flops
from overture.priors import Guidance, PriorConfig, Sampling
from overture.priors.sampler import Sampler
from overture.tokenizers.tokenizer import Tokenizer

__all__ = ["encode", "sample", "sampling_bytes"]


def encode(machine: Machine, sizes: Sizes, emit: Emit) -> None:
    """Tokens of images, as token files are made: in float32."""
    config = sizes.run("prologue-b-b", machine.precision, sizes.encode_batch)
    plan = planned(config)
    machine.remember_base()
    machine.forget_memory()
    tokenizer = config.tokenizer.build().eval().to(machine.device)
    size = config.tokenizer.image_size

    @torch.inference_mode()
    def measured(batch: int) -> float:
        images = torch.rand(batch, config.tokenizer.channels, size, size, device=machine.device) * 2 - 1
        tokenizer.encode_valid(images)
        return machine.seconds(lambda: tokenizer.encode_valid(images), sizes.seconds)

    seconds, batch, remark = fitting(measured, sizes.encode_batch)
    emit(
        {
            "batch": batch, "seconds": seconds, "images_per_second": batch / seconds, "precision": "float32",
            "flops": plan["flops_per_image"]["encode"], "peak": machine.peak_memory(), "remark": remark,
        }
    )  # fmt: skip


def sample(size: PriorConfig, machine: Machine, sizes: Sizes, emit: Emit) -> None:
    """Classes to pixels with guidance at every position, in the type of the matrix products; one row a batch."""
    config = sizes.run("prologue-b-b", machine.precision, sizes.prior_batch)
    plan = planned(config)
    prior_config, layout, guidance = sizes.prior(size), config.tokenizer.layout, Guidance.constant(1.5)
    machine.remember_base()
    machine.forget_memory()
    tokenizer = config.tokenizer.build().eval().to(machine.device)
    prior = prior_config.build(layout).eval().to(machine.device)
    flops = sampling_flops(prior_config, layout, guidance) + plan["flops_per_image"]["decode"]
    sampler = Sampler(prior, Sampling(guidance), dtype=machine.dtype)
    for wanted in sizes.sample_batches:
        machine.forget_memory()
        (seconds, first), batch, remark = fitting(
            partial(_seconds_of_samples, sampler, tokenizer, machine, sizes), wanted
        )
        emit(
            {
                "batch": batch, "seconds": seconds, "images_per_second": batch / seconds,
                "precision": machine.precision, "flops": flops, "peak": machine.peak_memory(), "remark": remark,
                "bytes": sampling_bytes(prior_config, layout, batch, machine.dtype.itemsize),
                "execution": sampler.snapshot.execution, "first": first,
            }
        )  # fmt: skip


@torch.inference_mode()
def _seconds_of_samples(
    sampler: Sampler, tokenizer: Tokenizer, machine: Machine, sizes: Sizes, batch: int
) -> tuple[float, float]:
    layout, classes = tokenizer.layout, sampler.snapshot.prior.config.num_classes

    def images() -> torch.Tensor:
        sequence = sampler(torch.arange(batch) % classes)
        return tokenizer.decode_valid(layout.from_sequence(sequence))

    first = machine.seconds(images, 0.0)  # graphs are captured, and blocks compiled where that is so
    return machine.seconds(images, sizes.seconds), first


def sampling_bytes(config: PriorConfig, layout: Layout, batch: int, itemsize: int) -> int:
    """What sampling has to read, guided at every position: at each one the weights once, and the cache of all rows.

    Rows of the output matrix are float32, and those that a position may hold; keys and values are ``itemsize`` bytes.
    """
    size = config.transformer
    weights = itemsize * size.depth * (4 * size.dim**2 + 3 * size.dim * size.hidden)
    total = 0
    for step, position in enumerate(layout.positions):
        cache = itemsize * 2 * size.depth * size.dim * (step + 1) * 2 * batch
        choices = position.high - position.low
        total += weights + cache + (4 * size.dim * choices if choices > 1 else 0)
    return total
