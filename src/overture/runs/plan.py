"""What a run will take, told before anything runs: parameters, operations, disk, steps, memory.

Nothing is trained, downloaded or allocated; the data need not be there. All numbers are plain (operations, bytes,
images); :func:`make_plan` says what was assumed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from overture.data.stream import crops_per_row
from overture.data.tokens import TokenHeader
from overture.errors import UsageError
from overture.layout import Layout
from overture.losses.perceptual import ConvNextConfig, DomainConfig, LpipsConfig
from overture.priors.guidance import Guidance
from overture.priors.model import PriorConfig
from overture.runs.config import RunConfig
from overture.runs.counting import Cost, Shapes, parameters

__all__ = ["Images", "count_images", "make_plan", "sampling_flops"]

KNOWN_IMAGES = {"fashion-mnist": (60_000, 10_000, 10), "cifar10": (50_000, 10_000, 10)}
IMAGENET = (1_281_167, 50_000, 1000)

ASSUMPTIONS = (
    "parameters: the encoder is counted with the quantizers, as the released files are cut",
    "FLOPs: of matrix products, convolutions and attention, counted on shapes by torch.utils.flop_counter; a backward "
    "pass counts as two forward passes, as one where the weights are frozen; R1 steps and optimisers are left out; "
    "sampling is computed in closed form, with a key-value cache and only the output rows that a position may hold",
    "memory: everything is replicated on every device (no sharding, no recomputation); float32 weights, gradients, two "
    "Adam moments and EMA; activations are what autograd keeps of one forward pass in the training precision, times "
    "the images of a device; buffers of the allocator and of the communication come on top",
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
    if source.startswith("embedded:") or _present(source):
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
    modules, costs = _count(config, Shapes())
    step = _tokenizer_step(config, costs)
    sampling = sampling_flops(config.prior, layout, Guidance.none())
    guided = sampling_flops(config.prior, layout, Guidance.parse(config.evaluation.guidance))
    counts = {name: parameters(module) for name, module in modules.items()}
    own_prior = config.prior_source == "tokens"
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
            "post_encoder": counts["post_encoder"],
            "decoder": counts["decoder"],
            "discriminator": counts["discriminator"],
            "joint_prior": counts["joint_prior"],
            "prior": counts["prior"],
        },
        "flops_per_image": {
            "encode": costs["encode"].flops,
            "decode": costs["decode"].flops,
            "tokenizer_step": step,
            "prior_step": 3 * costs["prior"].flops if own_prior else 0,
            "sample": sampling + costs["decode"].flops,
            "sample_guided": guided + costs["decode"].flops,
        },
        "stages": {
            "tokenizer": _stage(training.steps, training.batch_size, images.train, step),
            "tokens": _tokens(config, images, costs["encode"].flops),
            "prior": _stage(
                stage3.steps if own_prior else 0, stage3.batch_size, images.train, 3 * costs["prior"].flops
            ),
        },
        "memory_per_device": {
            "tokenizer": _tokenizer_memory(config, modules, costs, math.ceil(training.batch_size / world_size)),
            "prior": _memory(
                counts["prior"], counts["prior"], 0, costs["prior"].kept * math.ceil(stage3.batch_size / world_size)
            )
            if own_prior
            else None,
        },
        "checkpoints": _checkpoints(config, modules),
        "assumptions": list(ASSUMPTIONS),
    }


def _count(config: RunConfig, shapes: Shapes) -> tuple[dict[str, nn.Module | None], dict[str, Cost]]:
    """Every module of the run, and what one image costs in each."""
    training, size = config.tokenizer_training, config.data.image_size
    layout, channels = config.tokenizer.layout, config.data.channels
    tokenizer = shapes.build(config.tokenizer.build)
    adversarial = shapes.build(lambda: training.adversarial.build(channels, size))
    prior = shapes.build(lambda: config.prior.build(layout))
    joint_config = training.joint
    joint = shapes.build(lambda: joint_config.prior.build(layout)) if joint_config else None
    low = training.precision == "bfloat16"
    with shapes.mode:
        image, grid = torch.zeros(1, channels, size, size), config.tokenizer.grid**2
        sequence = torch.zeros(1, layout.sequence_length, dtype=torch.long)
        codes = {
            segment.name: torch.zeros(1, len(segment), tokenizer.quantizers[segment.name].z_dim)
            for segment in layout.segments
        }

    def encode() -> Any:
        parts = tokenizer.features(image)
        return [tokenizer.quantizers[name](part) for name, part in parts.items()]

    def predict(model: Any) -> Any:
        logits = model.predict(model.token_embedding(sequence[:, :-1]), sequence[:, 0])
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), sequence.flatten())

    costs = {
        "encode": shapes.cost(tokenizer, encode, bfloat16=low),
        "decode": shapes.cost(tokenizer, lambda: tokenizer.decoder(codes), bfloat16=low),
        "discriminator": shapes.cost(adversarial, lambda: adversarial.discriminator(image), bfloat16=low),
        "prior": shapes.cost(prior, lambda: predict(prior), bfloat16=config.prior_training.precision == "bfloat16"),
        "joint_prior": shapes.cost(joint, lambda: predict(joint), bfloat16=low) if joint is not None else Cost(0, 0),
        "perceptual": _perceptual(config, shapes, low),
        "post": Cost(0, 0),
    }
    post = tokenizer.post_encoder
    if post is not None:
        with shapes.mode:
            outputs = torch.zeros(1, grid, config.tokenizer.encoder.dim)
        costs["post"] = shapes.cost(post, lambda: post(outputs), bfloat16=low)
    modules = {
        "tokenizer": tokenizer,
        "encoder": tokenizer.encoder,
        "quantizers": tokenizer.quantizers,
        "post_encoder": post,
        "decoder": tokenizer.decoder,
        "discriminator": adversarial if training.adversarial.weight else None,
        "joint_prior": joint,
        "prior": prior,
    }
    return modules, costs


def _perceptual(config: RunConfig, shapes: Shapes, low: bool) -> Cost:
    """One pass of the perceptual loss's network, without its trained weights."""
    kind, size = config.tokenizer_training.perceptual, config.data.image_size
    if isinstance(kind, LpipsConfig):
        from torchvision.models import vgg16

        network, shape = shapes.build(lambda: vgg16(weights=None).features[:30]), (1, 3, size, size)
    elif isinstance(kind, ConvNextConfig):
        from torchvision.models import convnext_small

        network, shape = shapes.build(lambda: convnext_small(weights=None)), (1, 3, 224, 224)
    elif isinstance(kind, DomainConfig):
        domain = config.perceptual_network.network
        network, shape = shapes.build(domain.build), (1, domain.channels, size, size)
    else:
        return Cost(0, 0)
    network.eval().requires_grad_(False)
    with shapes.mode:
        image = torch.zeros(shape, requires_grad=True)
    return shapes.cost(network, lambda: network(image), bfloat16=low)


def _tokenizer_step(config: RunConfig, costs: dict[str, Cost]) -> int:
    """Operations of one image in a generator step and a discriminator step."""
    training = config.tokenizer_training
    flops = {name: cost.flops for name, cost in costs.items()}
    frozen = config.tokenizer.post_encoder is not None
    own = flops["encode"] + flops["decode"]
    total = own + 2 * flops["post"] if frozen else 3 * own
    total += 3 * flops["perceptual"]  # both images forward, one backward
    if training.adversarial.weight:
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


def _stage(steps: int, batch: int, images: int, flops: int) -> dict[str, Any]:
    """Length of a training stage; epochs count each image once (mirrors are not others)."""
    seen = steps * batch
    return {
        "steps": steps, "batch_size": batch, "images_seen": seen, "epochs": seen / images, "flops": seen * flops
    }  # fmt: skip


def _tokens(config: RunConfig, images: Images, flops: int) -> dict[str, Any]:
    """The token files of training and held-out images (without their headers of a few kilobytes)."""
    crops = crops_per_row(config.tokens.crops)
    header = TokenHeader(config.tokenizer.layout, "", config.tokens.crops, crops, 1, images.classes)
    rows = images.train + images.held_out
    return {
        "crops_per_image": crops, "images_encoded": rows * crops, "bytes_per_image": header.row_bytes + 4,
        "bytes": rows * (header.row_bytes + 4), "flops": rows * crops * flops,
    }  # fmt: skip


def _memory(trained: int, averaged: int, frozen: int, activations: int) -> dict[str, int]:
    """Bytes by use, from numbers of parameters and bytes of activations."""
    parts = {
        "weights": 4 * (trained + frozen), "gradients": 4 * trained, "adam": 8 * trained, "ema": 4 * averaged,
        "activations": activations,
    }  # fmt: skip
    return {**parts, "total": sum(parts.values())}


def _tokenizer_memory(
    config: RunConfig, modules: dict[str, nn.Module | None], costs: dict[str, Cost], batch: int
) -> dict[str, int]:
    """The generator step with its graph through the frozen discriminator, perceptual network and joint prior."""
    training, tokenizer = config.tokenizer_training, modules["tokenizer"]
    all_of, others = parameters(tokenizer), parameters(modules["discriminator"]) + parameters(modules["joint_prior"])
    own, kept = all_of, {name: cost.kept for name, cost in costs.items()}
    graph = kept["encode"] + kept["decode"]
    if tokenizer is not None:
        own = sum(p.numel() for _, p in tokenizer.trained_parameters())  # type: ignore[operator]
        graph = kept["post"] if own < all_of else graph
    adversarial = kept["discriminator"] if training.adversarial.weight else 0
    graph += kept["perceptual"] + adversarial + kept["joint_prior"]
    averaged = all_of + parameters(modules["joint_prior"])
    return _memory(own + others, averaged, all_of - own, graph * batch)


def _checkpoints(config: RunConfig, modules: dict[str, nn.Module | None]) -> dict[str, int]:
    """Bytes of the finished models (raw and EMA weights) and of the state that a resume needs (Adam's, too)."""
    tokenizer, joint, prior = (parameters(modules[name]) for name in ("tokenizer", "joint_prior", "prior"))
    discriminator = parameters(modules["discriminator"])
    separate = config.prior_source == "tokens"
    return {
        "tokenizer_model": 8 * tokenizer,
        "tokenizer_resume": 16 * (tokenizer + joint) + 12 * discriminator,
        "prior_model": 8 * prior,
        "prior_resume": 16 * prior if separate else 0,
    }
