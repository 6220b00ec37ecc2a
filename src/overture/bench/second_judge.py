"""A reading by a judge that has never seen the data set: VGG16 as ImageNet trained it.

A classifier that was trained on the images that a generator learns may share its blind spots.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from overture.bench.readings import Value
from overture.data.order import some_of
from overture.evaluation.evaluation import evaluate
from overture.evaluation.reconstruction import measure_reconstruction
from overture.evaluation.statistics import open_reference, open_samples
from overture.pipeline import Pipeline
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import (
    centre_crops,
    judge_network,
    make_training_reference,
    run_conditions,
    sample_conditions,
)

__all__ = ["read_vgg16"]

NETWORK = "vgg16:32"
"""Images at 32 px: 6 ms of one core each, and half of CIFAR-10 told by a linear probe (docs/evaluation.md)."""
RECONSTRUCTED = 5_000
"""Held-out images: as many as most suites generate."""


def read_vgg16(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``vgg16.generation``: distance of the unguided samples to all training images; ``vgg16.reconstruction``: of 5,000
    reconstructed held-out images to themselves. Needs ``overture weights vgg16``."""
    declared = run.read_config()
    config = replace(declared, evaluation=replace(declared.evaluation, network=NETWORK, metrics=("fid",)))
    data, judge = config.data.build(), judge_network(config, run, device)
    run = copy.copy(run)  # the same but for the statistics, which are of this judge
    run.reference = run.networks / f"reference-{NETWORK.replace(':', '-')}.npz"
    make_training_reference(config, data, judge, run)
    samples = open_samples(str(run.samples / "unguided.npz"), judge)
    about = sample_conditions(config, run, config.evaluation.samplings["unguided"])
    generated = evaluate(samples, open_reference(str(run.reference), judge), judge, ("fid",), about).measurements["fid"]
    rows = some_of(len(data.held_out), min(RECONSTRUCTED, len(data.held_out)))
    reconstructed = measure_reconstruction(
        Pipeline.load(run.root, device).tokenizer,
        centre_crops(data.held_out, config, rows),
        judge,
        run_conditions(config, run, "tokenizer"),
        device=device,
    ).distance
    found = {"vgg16.generation": generated, "vgg16.reconstruction": reconstructed}
    return {name: Value(each.value, each.unit, each.conditions.to_dict()) for name, each in found.items() if each}
