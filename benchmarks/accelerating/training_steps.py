"""Steps of training: the trainers that recipes use, on batches made up here."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from accelerating.fitting import fitting
from accelerating.isolation import Emit
from accelerating.machine import Machine
from accelerating.sizes import Sizes, planned
from overture.data.stream import Batch
from overture.data.token_files import TokenBatch
from overture.losses.perceptual import Lpips, LpipsConfig, NoPerceptual
from overture.priors import PriorConfig
from overture.processes import Processes
from overture.runs.config import RunConfig
from overture.training.train_prior import PriorTrainer
from overture.training.train_tokenizer import TokenizerTrainer

__all__ = ["prior_step", "tokenizer_step"]

WARM_UP = 3
"""Steps before any is measured: the first makes optimizer states, the second finds the memory of the first."""


def tokenizer_step(recipe: str, machine: Machine, sizes: Sizes, emit: Emit) -> None:
    """A generator and a discriminator step, with a joint prior if the recipe has one."""
    _measure(
        lambda batch: sizes.run(recipe, machine.precision, batch),
        "tokenizer",
        sizes.tokenizer_batch,
        machine,
        sizes,
        emit,
    )


def prior_step(size: PriorConfig, machine: Machine, sizes: Sizes, emit: Emit, *, compiled: bool = False) -> None:
    """A step of a prior over the sequences of ``prologue-b-b``."""
    if compiled and sizes.toy:  # the tracing alone: making machine code of it takes half a minute
        torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]

    def config_of(batch: int) -> RunConfig:
        config = sizes.run("prologue-b-b", machine.precision, batch)
        training = replace(config.prior_training, compile=compiled)
        return replace(config, prior=sizes.prior(size), prior_training=training)

    _measure(config_of, "prior", sizes.prior_batch, machine, sizes, emit)


def _measure(
    config_of: Callable[[int], RunConfig], stage: str, batch: int, machine: Machine, sizes: Sizes, emit: Emit
) -> None:
    """Take steps of the largest batch that fits, and emit what they took beside what the plan says."""
    make_step = {"tokenizer": _tokenizer_batch, "prior": _prior_batch}[stage]

    def steps(batch: int) -> tuple[float, int | None]:
        machine.remember_base()
        machine.forget_memory()
        step = make_step(config_of(batch), batch, machine)
        for _ in range(WARM_UP):
            step()
        return machine.seconds(step, sizes.seconds), machine.peak_memory()

    (seconds, peak), batch, remark = fitting(steps, batch)
    plan = planned(config_of(batch))
    emit(
        {
            "batch": batch, "seconds": seconds, "images_per_second": batch / seconds, "precision": machine.precision,
            "flops": plan["flops_per_image"][f"{stage}_step"], "peak": peak,
            "planned": plan["memory_per_device"][stage]["total"], "remark": remark,
        }
    )  # fmt: skip


def _tokenizer_batch(config: RunConfig, batch: int, machine: Machine) -> Callable[[], object]:
    training, processes = config.tokenizer_training, Processes(device=machine.device)
    perceptual = training.perceptual
    training = replace(training, perceptual=NoPerceptual())
    trainer = TokenizerTrainer(config.tokenizer, training, seed=0, processes=processes)
    if isinstance(perceptual, LpipsConfig):  # speed does not ask for trained weights, which are not at hand everywhere
        trainer.perceptual = lpips_without_weights().to(machine.device)
    size, labels = config.tokenizer.image_size, torch.zeros(batch, dtype=torch.long)
    images = torch.randint(0, 256, (batch, config.tokenizer.channels, size, size), dtype=torch.uint8)
    images, labels = _pinned(images, machine), _pinned(labels, machine)
    data = Batch(images, labels, labels)
    return lambda: trainer.nonfinite.note(trainer.train_batch(data), trainer.step - 1)


def _prior_batch(config: RunConfig, batch: int, machine: Machine) -> Callable[[], object]:
    layout, processes = config.tokenizer.layout, Processes(device=machine.device)
    trainer = PriorTrainer(config.prior, config.prior_training, layout, seed=0, processes=processes)
    ids = (torch.rand(batch, layout.length) * torch.tensor(layout.sizes)).long()
    labels = torch.arange(batch) % config.prior.num_classes
    ids, labels = _pinned(ids, machine), _pinned(labels, machine)
    data = TokenBatch(ids, labels, labels)
    return lambda: trainer.nonfinite.note(trainer.train_batch(data), trainer.step - 1)


def _pinned(tensor: Tensor, machine: Machine) -> Tensor:
    """Where a data loader puts what goes to a CUDA device."""
    return tensor.pin_memory() if machine.device.type == "cuda" else tensor


def lpips_without_weights() -> Lpips:
    """The perceptual loss of the ImageNet recipes, with weights drawn at random."""
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"])
    stages = [layers[start:end] for start, end in itertools.pairwise((0, 4, 9, 16, 23, 30))]
    return Lpips(stages, [torch.rand(channels) for channels in (64, 128, 256, 512, 512)])
