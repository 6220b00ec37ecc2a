"""What a run will take, told before anything runs: parameters, operations, disk, steps, memory.

Nothing is trained, downloaded or allocated; the data need not be there. All numbers are plain (operations, bytes,
images); :func:`make_plan` says what was assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.data.stream import crops_per_row
from overture.data.token_files import TokenHeader
from overture.errors import UsageError
from overture.layout import Layout
from overture.losses.perceptual import ConvNextConfig, DomainConfig, LpipsConfig
from overture.plan.cost_counter import Cost, CostCounter, parameters
from overture.plan.reference_curve import reference_curve
from overture.priors.guidance import Guidance
from overture.priors.model import PriorConfig
from overture.runs.config import RunConfig
from overture.training.prior_pass import sequence_loss
from overture.training.step import Precision, autocast

__all__ = ["Images", "count_images", "make_plan", "sampling_flops"]

KNOWN_IMAGES = {"fashion-mnist": (60_000, 10_000, 10), "cifar10": (50_000, 10_000, 10)}
IMAGENET = (1_281_167, 50_000, 1000)

ASSUMPTIONS = (
    "parameters: the encoder is counted with the quantizers, as the released files are cut",
    "FLOPs: of matrix products, convolutions and attention, counted on shapes by torch.utils.flop_counter; a backward "
    "pass counts as two forward passes, as one where the weights are frozen; R1 steps and optimizers are left out; "
    "sampling is computed in closed form, with a key-value cache and only the output rows that a position may hold",
    "memory: everything is replicated on every device (with --engine.shard the prior is shared out), nothing is "
    "recomputed; float32 weights, gradients, two "
    "Adam moments and EMA, and what autograd keeps at the largest moment of a step; temporary tensors, and buffers of the "
    "allocator and of the communication, come on top",
)


@dataclass(frozen=True)
class Images:
    """How many images there are, and ``how`` that is known."""

    train: int
    held_out: int
    classes: int
    how: str


def count_images(config: RunConfig, given: int | None = None) -> Images:
    """The images of a run: as ``given``, counted where the source is there, or known (ImageNet for 1000 classes)."""
    source, classes = config.data.source, config.tokenizer.num_classes
    if given is not None:
        return Images(given, 0, classes, "given")
    if source in KNOWN_IMAGES:
        return Images(*KNOWN_IMAGES[source], "known")
    if ":" in source or _present(source):
        data = config.data.build()
        return Images(len(data.train), len(data.held_out), data.num_classes, "counted")
    if classes == IMAGENET[2]:
        return Images(*IMAGENET, "ImageNet's, the source is not there")
    raise UsageError(f"plan: {source} is not there; say how many training images it has: --images N")


def _present(source: str) -> bool:
    path = Path(source)
    return path.exists() or any(parent.is_file() for parent in path.parents)


def make_plan(config: RunConfig, images: Images, world_size: int = 1) -> dict[str, Any]:
    """Everything as one object for JSON."""
    if world_size < 1:
        raise UsageError(f"plan: world size is {world_size}, needs >= 1")
    config = config.resolve(images.classes)
    layout, training, stage3 = config.tokenizer.layout, config.tokenizer_training, config.prior_training
    modules, costs = _count(config, CostCounter())
    flops = {name: cost.flops for name, cost in costs.items()}
    step = _tokenizer_step(config, flops)
    counts = {name: parameters(module) for name, module in modules.items()}
    steps1 = training.steps if counts["trained"] else 0
    steps3 = stage3.steps if config.prior_source == "tokens" else 0
    tokenizer_memory = _tokenizer_memory(modules, costs, images_at_a_time(config, "tokenizer", world_size))
    return {
        "recipe": config.recipe,
        "run": config.name,
        "world_size": world_size,
        "images": asdict(images),
        "layout": {
            "segments": str(layout),
            "tokens": layout.length,
            "sequence_length": layout.sequence_length,
            "vocabulary": layout.vocabulary_size,
            "bits": layout.total_bits,
        },
        "parameters": {
            "encoder": counts["encoder"] + counts["quantizers"],
            "encoder_quantizers": counts["quantizers"],
            **{name: counts[name] for name in ("post_encoder", "decoder", "discriminator", "joint_prior", "prior")},
        },
        "flops_per_image": {
            "encode": flops["encode"],
            "decode": flops["decode"],
            "tokenizer_step": step,
            "prior_step": 3 * flops["prior"] if steps3 else 0,
            "sample": sampling_flops(config.prior, layout, Guidance.none()) + flops["decode"],
            "sample_guided": sampling_flops(config.prior, layout, config.evaluation.guided.guidance) + flops["decode"],
        },
        "stages": {
            "tokenizer": _stage(steps1, training.batch_size, images.train, step),
            "tokens": _tokens(config, images, flops["encode"]),
            "prior": _stage(steps3, stage3.batch_size, _prior_images(config, images), 3 * flops["prior"]),
        },
        "memory_per_device": {
            "tokenizer": tokenizer_memory if steps1 else None,
            "prior": _prior_memory(config, counts["prior"], costs["prior"], world_size) if steps3 else None,
        },
        "checkpoints": _checkpoints(config, counts),
        "reference": reference_curve(config),
        "assumptions": list(ASSUMPTIONS),
    }


# -- parameters and operations --------------------------------------------------------------------------------------


def _count(config: RunConfig, counter: CostCounter) -> tuple[dict[str, nn.Module | None], dict[str, Cost]]:
    """Every module of the run, and what one image's forward pass costs in each."""
    training, size, channels = config.tokenizer_training, config.data.image_size, config.data.channels
    layout, device = config.tokenizer.layout, torch.device("cpu")
    tokenizer = counter.build(config.tokenizer.build)
    trained = dict(tokenizer.trained_parameters(training.trains))
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(name in trained)
    adversarial = counter.build(lambda: training.adversarial.build(channels, size))
    prior = counter.build(lambda: config.prior.build(layout))
    joint_config, post = training.joint, tokenizer.post_encoder
    joint = counter.build(lambda: joint_config.prior.build(layout)) if joint_config else None

    def images(batch: int) -> Tensor:
        return torch.zeros(batch, channels, size, size)

    def codes(batch: int) -> dict[str, Tensor]:
        quantizers, reached = tokenizer.quantizers, any(name.startswith("encoder.") for name in trained)
        return {
            s.name: torch.zeros(batch, len(s), quantizers[s.name].z_dim, requires_grad=reached) for s in layout.segments
        }

    def patches(batch: int) -> Tensor:
        return torch.zeros(batch, config.tokenizer.grid**2, config.tokenizer.encoder.dim)

    def cost(run: Callable[[int], Any], precision: Precision = training.precision) -> Cost:
        with autocast(device, precision):
            return counter.cost(run)

    def prior_cost(model: nn.Module, precision: Precision, in_blocks: bool = True) -> Cost:
        plain = cost(lambda batch: _predict(model, batch), precision)
        return (
            Cost(plain.flops, cost(lambda batch: _blockwise_loss(model, batch), precision).kept) if in_blocks else plain
        )

    costs = {
        "encode": cost(lambda batch: tokenizer.encode_for_training(images(batch))),
        "decode": cost(lambda batch: tokenizer.decoder(codes(batch))),
        "discriminator": cost(lambda batch: adversarial.discriminator(images(batch))),
        "prior": prior_cost(prior, config.prior_training.precision, config.prior_training.loss == "vocabulary"),
        "joint_prior": prior_cost(joint, training.precision) if joint is not None else Cost(0, 0),
        "post": cost(lambda batch: post(patches(batch))) if post is not None else Cost(0, 0),
        "perceptual": _perceptual(config, counter),
    }
    modules = {
        "tokenizer": tokenizer,
        "trained": nn.ParameterList(trained.values()),
        "encoder": tokenizer.encoder,
        "quantizers": tokenizer.quantizers,
        "post_encoder": post,
        "decoder": tokenizer.decoder,
        "discriminator": adversarial if training.adversarial.weight and trained else None,
        "joint_prior": joint,
        "prior": prior,
    }
    return modules, costs


def _predict(model: Any, batch: int) -> Tensor:
    """The loss of a prior on sequences of its layout."""
    sequence_BL = torch.zeros(batch, model.layout.sequence_length, dtype=torch.long)
    logits_BLV = model.predict(model.token_embedding(sequence_BL[:, :-1]), sequence_BL[:, 0])
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), sequence_BL.flatten())


def _blockwise_loss(model: Any, batch: int) -> Tensor:
    """The same as training computes it over the whole vocabulary: all logits are never held."""
    sequence_BL = torch.zeros(batch, model.layout.sequence_length, dtype=torch.long)
    hidden_BLD = model.hidden(model.token_embedding(sequence_BL[:, :-1]), sequence_BL[:, 0])
    return sequence_loss(model, hidden_BLD, sequence_BL, torch.zeros(sequence_BL.shape[1]))[0]


def _perceptual(config: RunConfig, counter: CostCounter) -> Cost:
    """One pass of the perceptual loss's network, without its trained weights; a loss that is not ours counts nothing."""
    kind, size = config.tokenizer_training.perceptual, config.data.image_size
    if isinstance(kind, LpipsConfig):
        network, shape = counter.build(kind.backbone.layers), (3, size, size)
    elif isinstance(kind, ConvNextConfig):
        from torchvision.models import convnext_small

        network, shape = counter.build(lambda: convnext_small(weights=None)), (3, 224, 224)
    elif isinstance(kind, DomainConfig):
        domain = config.perceptual_network.network
        network, shape = counter.build(domain.build), (domain.channels, size, size)
    else:
        return Cost(0, 0)
    network.eval().requires_grad_(False)
    with autocast(torch.device("cpu"), config.tokenizer_training.precision):
        return counter.cost(lambda batch: network(torch.zeros(batch, *shape, requires_grad=True)))


def _tokenizer_step(config: RunConfig, flops: dict[str, int]) -> int:
    """Operations of one image in a generator step and a discriminator step."""
    if config.tokenizer_training.trains == "nothing":
        return 0
    total = flops["encode"] + flops["decode"]
    if config.tokenizer_training.trains == "decoder":
        total += 2 * flops["decode"]
    else:
        total += 2 * (total if config.tokenizer.post_encoder is None else flops["post"])
    total += 3 * flops["perceptual"]  # both images forward, one backward
    if config.tokenizer_training.adversarial.weight:
        total += (2 + 6) * flops["discriminator"]  # frozen for the generator; then two images with gradient
    return total + (2 + 3) * flops["joint_prior"]


def sampling_flops(config: PriorConfig, layout: Layout, guidance: Guidance) -> int:
    """Operations of sampling one sequence with a key-value cache; the unconditional half runs as far as it is needed.

    Position i costs every matrix of the blocks once, ``4 dim (i + 1)`` a layer for attention over what came before,
    and one output row for each id it may hold. A position with one possible id needs no output.
    """
    size, scales = config.transformer, guidance.scales(layout)
    choices = [position.high - position.low for position in layout.positions]
    sampled = [step for step, count in enumerate(choices) if count > 1]
    guided = [step for step in sampled if scales[step] != 1]
    blocks = 2 * size.depth * (4 * size.dim**2 + 3 * size.dim * size.hidden)

    def upto(last: int) -> int:
        return sum(blocks + 4 * size.depth * size.dim * (step + 1) for step in range(last + 1))

    halves = (upto(sampled[-1]) if sampled else 0) + (upto(guided[-1]) if guided else 0)
    return halves + 2 * size.dim * sum(choices[step] for step in (*sampled, *guided))


# -- length, disk, memory -------------------------------------------------------------------------------------------


def _stage(steps: int, batch: int, images: int, flops: int) -> dict[str, Any]:
    """Length of a training stage; epochs count each image once (mirrors are not others)."""
    seen = steps * batch
    return {
        "steps": steps, "batch_size": batch, "images_seen": seen, "epochs": seen / images, "flops": seen * flops
    }  # fmt: skip


def _prior_images(config: RunConfig, images: Images) -> int:
    """Training images that become tokens."""
    return min(config.tokens.images or images.train, images.train)


def _tokens(config: RunConfig, images: Images, flops: int) -> dict[str, Any]:
    """The token files of training and held-out images (without their headers of a few kilobytes)."""
    crops = crops_per_row(config.tokens.crops)
    header = TokenHeader(config.tokenizer.layout, "", config.tokens.crops, crops, 1, images.classes)
    rows, size = _prior_images(config, images) + images.held_out, header.row_bytes + 4
    return {
        "crops_per_image": crops, "images_encoded": rows * crops, "bytes_per_image": size, "bytes": rows * size,
        "flops": rows * crops * flops,
    }  # fmt: skip


def _memory(trained: int, averaged: int, frozen: int, activations: int) -> dict[str, int]:
    """Bytes by use, from numbers of parameters and values of activations."""
    parts = {
        "weights": 4 * (trained + frozen), "gradients": 4 * trained, "adam": 8 * trained, "ema": 4 * averaged,
        "activations": activations,
    }  # fmt: skip
    return {**parts, "total": sum(parts.values())}


def _tokenizer_memory(modules: dict[str, nn.Module | None], costs: dict[str, Cost], batch: int) -> dict[str, int]:
    """The largest moment of the generator step: each judge's activations are gone before the next one's come."""
    module = modules["tokenizer"]
    assert module is not None
    everything = parameters(module)
    own, joint, discriminator = (parameters(modules[name]) for name in ("trained", "joint_prior", "discriminator"))
    kept = {name: cost.kept for name, cost in costs.items()}
    judge = max(kept["perceptual"], kept["discriminator"] if discriminator else 0)
    images = kept["encode"] + max(kept["joint_prior"], kept["decode"] + judge)
    return _memory(own + discriminator + joint, everything + joint, everything - own, batch * images)


def images_at_a_time(config: RunConfig, stage: str, world_size: int) -> int:
    """How many images of a batch a device of ``world_size`` holds at once while it trains."""
    training = config.prior_training if stage == "prior" else config.tokenizer_training
    share = math.ceil(training.batch_size / world_size)
    return min(share, config.engine.micro_batch or share) if stage == "prior" else share


def _prior_memory(config: RunConfig, parameters: int, cost: Cost, world_size: int) -> dict[str, int]:
    """Of one process; spread over all, weights and what belongs to them are shared out (--engine.shard)."""
    held = math.ceil(parameters / world_size) if config.engine.shard else parameters
    return _memory(held, held, 0, images_at_a_time(config, "prior", world_size) * cost.kept)


def _checkpoints(config: RunConfig, counts: dict[str, int]) -> dict[str, int]:
    """Bytes of the finished models (raw and EMA weights) and of the state that a resume needs (Adam's, too)."""
    tokenizer, trained, joint, prior = (counts[name] for name in ("tokenizer", "trained", "joint_prior", "prior"))
    return {
        "tokenizer_model": 8 * tokenizer,
        "tokenizer_resume": 8 * (tokenizer + trained) + 16 * joint + 12 * counts["discriminator"] if trained else 0,
        "prior_model": 8 * prior,
        "prior_resume": 16 * prior if config.prior_source == "tokens" else 0,
    }
