"""What a plan's work takes on a named card: hours, steps of the first hour, and whether its memory is enough.

Training is held against the card's peak of dense bfloat16 products, sampling against its memory bandwidth: with few
rows a step, sampling costs what it takes to read weights and cache. ``utilisation`` is the share of either peak that is
reached: an assumption about a machine that is not at hand. Hours are inversely proportional to it.
"""

from __future__ import annotations

import math
from typing import Any

from overture.errors import UsageError
from overture.layout import Layout
from overture.plan.cards import load_card
from overture.plan.run_plan import images_at_a_time
from overture.priors.guidance import Guidance
from overture.priors.model import PriorConfig
from overture.runs.config import RunConfig

__all__ = ["card_hours", "sampling_bytes"]

SPARE = 0.08
"""Share of a card's memory that is left for what a plan does not count: temporary tensors, buffers of the allocator."""

VALUE_BYTES = 4
"""Of a value in sampling: a run draws its samples in float32."""


def card_hours(plan: dict[str, Any], config: RunConfig, name: str, utilisation: float) -> dict[str, Any]:
    """The part of a plan (:func:`overture.plan.run_plan.make_plan`) that depends on the card ``name``, for JSON.

    ``hours`` are accelerator-hours by stage, and by setting that a run samples with; ``first_hour`` the steps that all
    devices together take in one hour; ``memory`` what is left on a device and, where that is nothing, what would fit.
    """
    if not 0 < utilisation <= 1:
        raise UsageError(f"--utilisation is {utilisation:g}, needs a share of the card's peak: above 0, at most 1")
    card, config = load_card(name), config.resolve(plan["images"]["classes"])
    flops, bandwidth = card.flops * utilisation, card.bandwidth * utilisation
    hours = {stage: work["flops"] / flops / 3600 for stage, work in plan["stages"].items()}
    evaluation, layout = config.evaluation, config.tokenizer.layout
    for setting, sampling in evaluation.samplings.items():
        batch = min(evaluation.batch_size, evaluation.samples)
        read = sampling_bytes(config.prior, layout, sampling.guidance, batch, VALUE_BYTES) / batch
        seconds = read / bandwidth + plan["flops_per_image"]["decode"] / flops
        hours[f"samples_{setting}"] = evaluation.samples * seconds / 3600
    total, world_size = sum(hours.values()), plan["world_size"]
    trained = {stage: work for stage, work in plan["stages"].items() if work.get("steps") and work["flops"]}
    return {
        "name": name,
        "flops": card.flops,
        "bandwidth": card.bandwidth,
        "memory_bytes": card.memory,
        "utilisation": utilisation,
        "samples": evaluation.samples,
        "hours": hours,
        "total_hours": total,
        "elapsed_hours": total / world_size,
        "first_hour": {
            stage: min(work["steps"], int(work["steps"] * world_size / hours[stage])) for stage, work in trained.items()
        },
        "memory": {
            stage: _memory(stage, memory, config, card.memory, world_size)
            for stage, memory in plan["memory_per_device"].items()
            if memory
        },
    }


def sampling_bytes(config: PriorConfig, layout: Layout, guidance: Guidance, batch: int, value_bytes: int) -> int:
    """Bytes that sampling ``batch`` sequences reads, at ``value_bytes`` a value.

    At every position that has a choice: all matrices of the blocks once, the output rows of the ids it may hold, and the
    keys and values of all positions so far, of both halves where the guidance scale is not 1. Left out: the one pass in
    which a half catches up that was not needed before, embeddings, and what is written.
    """
    size = config.transformer
    blocks = size.depth * (4 * size.dim**2 + 3 * size.dim * size.hidden)
    values = 0
    for step, (position, scale) in enumerate(zip(layout.positions, guidance.scales(layout), strict=True)):
        choices = position.high - position.low
        if choices > 1:
            rows = batch * (1 if scale == 1 else 2)
            values += blocks + choices * size.dim + 2 * size.depth * size.dim * (step + 1) * rows
    return values * value_bytes


def _memory(stage: str, memory: dict[str, int], config: RunConfig, card: float, world_size: int) -> dict[str, Any]:
    """Bytes left on a device (negative: lacking), and in words how the batch has to be cut to fit."""
    room = card * (1 - SPARE)
    left = room - memory["total"]
    if left >= 0:
        return {"left": int(left), "fitting_batch": None, "advice": ""}
    at_a_time = images_at_a_time(config, stage, world_size)
    held = memory["total"] - memory["activations"]
    fitting = max(math.floor((room - held) / (memory["activations"] / at_a_time)), 0)
    if not fitting:
        more = "--engine.shard over more devices" if stage == "prior" else "a card with more memory"
        advice = f"no image fits beside weights, gradients and optimizer; {more}"
    elif stage == "prior":
        advice = f"{fitting} sequences at a time would fit: --engine.micro-batch {fitting}"
    else:
        devices = math.ceil(config.tokenizer_training.batch_size / fitting)
        advice = f"{fitting} images a device would fit: {devices} devices"
        advice += f", or --tokenizer-training.batch-size {fitting * world_size}, another training"
    return {"left": int(left), "fitting_batch": fitting, "advice": advice}
