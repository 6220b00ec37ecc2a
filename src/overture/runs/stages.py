"""The stages of a run, in order: networks, tokenizer, tokens, prior, evaluation. Each is skipped when it is done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from overture.config import differing_keys, to_dict
from overture.data.base import Source
from overture.data.stream import ImageData, TrainingStream, evaluation_batches
from overture.data.tokens import TokenFile
from overture.errors import OvertureError, UsageError
from overture.evaluation.processes import alone
from overture.losses.perceptual import DomainConfig
from overture.nn.classifier import Classifier, load_classifier
from overture.pipeline import load_tokenizer
from overture.runs.config import DomainNetworkConfig, RunConfig
from overture.runs.directory import RunDirectory, write_json
from overture.runs.evaluate import check_evaluation, evaluate_run, judge_network, training_reference
from overture.runs.watch import PriorWatch, TokenizerWatch
from overture.training.checkpoint import check_config, read_metadata
from overture.training.classifier import train_classifier
from overture.training.distributed import World
from overture.training.prior import PriorTrainer, train_prior
from overture.training.progress import Interrupted, Progress, SilentProgress, stop_requested
from overture.training.tokenizer import TokenizerTrainer, train_tokenizer
from overture.training.tokens import write_tokens

__all__ = ["execute", "needed_networks", "train_network"]


def execute(config: RunConfig, run: RunDirectory, progress: Progress, world: World, until: str = "report") -> RunConfig:
    """Bring a run to its end (or ``until`` the tokenizer or the prior is trained), from wherever it stands.

    Returns the resolved config.

    Raises :class:`Interrupted` when the user asked to stop, after saving.
    """
    data = config.data.build()
    config = config.resolve(data.num_classes)
    if until == "report":
        check_evaluation(config)
    if world.is_main:
        run.adopt(config)
        write_json(run.root / "classes.json", list(data.train.classes))
    else:
        progress = SilentProgress()
    world.barrier()
    if world.is_main:
        for name in needed_networks(config):
            train_network(config, data, name, run, progress)
            _check_stop(f"network {name}")
    world.barrier()
    _tokenizer_stage(config, data, run, progress, world)
    _check_stop("tokenizer")
    if until == "tokenizer":
        return config
    _tokens_stage(config, data, run, progress, world)
    _check_stop("tokens")
    _prior_stage(config, data, run, progress, world)
    _check_stop("prior")
    if until == "prior":
        return config
    if world.is_main:
        with alone():  # the others wait at the barrier
            evaluate_run(config, data, run, progress, world)
    world.barrier()
    return config


def needed_networks(config: RunConfig) -> list[str]:
    """The domain networks that this run trains on its own data."""
    judge = ["judge"] if config.evaluation.network == "domain" else []
    perceptual = config.tokenizer_training.perceptual
    own = isinstance(perceptual, DomainConfig) and not perceptual.weights
    return [*judge, *(["perceptual"] if own else [])]


def train_network(config: RunConfig, data: ImageData, name: str, run: RunDirectory, progress: Progress) -> None:
    """Train one domain network (``judge`` or ``perceptual``); never the same one for both."""
    path = run.networks / f"{name}.safetensors"
    wanted: DomainNetworkConfig = config.judge if name == "judge" else config.perceptual_network
    seed = config.seed * 1000 + wanted.seed
    if path.exists():
        record = load_classifier(path)[1]
        present = {"network": to_dict(record.config), "training": record.training, "seed": record.seed}
        asked = {"network": to_dict(wanted.network), "training": to_dict(wanted.training), "seed": seed}
        different = differing_keys(present, asked)
        if not (1 - config.data.corrupt_limit) * len(data.train) <= record.train_images <= len(data.train):
            different.append(f"it has seen {record.train_images} images, there are {len(data.train)}")
        if different:
            raise UsageError(
                f"{path}: is of another config ({'; '.join(different[:3])}); give another --out, or delete "
                f"{run.networks} to train it again"
            )
        return
    if config.judge == config.perceptual_network and name == "perceptual":
        raise OvertureError(
            "perceptual_network equals judge: a network must not judge what it trained; change its seed"
        )
    progress.say(f"training the {name} network, a classifier on {data.train.name}")
    images, labels = all_images(data.train, config)
    held_out = all_images(data.held_out, config)
    record = train_classifier(
        images,
        labels,
        wanted.network,
        wanted.training,
        seed=seed,
        out=path,
        held_out=held_out,
        progress=False,
    )
    if record.accuracy is not None:
        progress.say(f"{name} network: {record.accuracy:.1%} of {record.held_out_images} held-out images right")


def all_images(source: Source, config: RunConfig) -> tuple[Tensor, Tensor]:
    """Every image of a source, centre-cropped, uint8 ``[N, C, H, W]``, and the labels ``[N]``."""
    batches = list(evaluation_batches(source, config.data, 1000))
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def _tokenizer_stage(config: RunConfig, data: ImageData, run: RunDirectory, progress: Progress, world: World) -> None:
    joint = config.prior_source == "joint"
    if run.tokenizer_model.exists() and (run.prior_model.exists() or not joint):
        check_config(run.tokenizer_model, "tokenizer", config.tokenizer)
        return
    training = config.tokenizer_training
    network: Classifier | None = None
    if "perceptual" in needed_networks(config):
        network = load_classifier(run.networks / "perceptual.safetensors")[0]
    trainer = TokenizerTrainer(config.tokenizer, training, seed=config.seed, world=world, perceptual_network=network)
    stream = TrainingStream(data.train, config.data, training.batch_size, config.seed, world.rank, world.size)
    watch = None
    if config.watch.tokenizer_every and world.is_main:
        watch = TokenizerWatch(config, data, run, trainer, judge_network(config, run))
    with _timed(run, "tokenizer", world):
        train_tokenizer(trainer, stream, run.tokenizer, run.metrics, progress, watch)
    if stream.corrupt:
        progress.say(f"{len(stream.corrupt)} corrupt images were skipped, the first is {stream.corrupt[0]}")
    if world.is_main:
        about = {"run_config": to_dict(config)}
        # A joint prior has learned the ids of the raw tokenizer, so the two are used together.
        digest = trainer.save(run.tokenizer_model, {**about, "use_weights": "raw"} if joint else about)
        if joint and trainer.joint:
            trainer.joint.save(run.prior_model, trainer.step, {**about, "tokenizer_hash": digest})
        _remove_steps(run.tokenizer)
    world.barrier()


def _tokens_stage(config: RunConfig, data: ImageData, run: RunDirectory, progress: Progress, world: World) -> None:
    parts = [(part, run.tokens(part)) for part in ("train", "held_out")]
    digest = read_metadata(run.tokenizer_model, "tokenizer")["weights_hash"]
    for _, path in parts:
        if path.exists():
            file = TokenFile.open(path)
            file.check_layout(config.tokenizer.layout)
            file.check_tokenizer(digest)
    world.barrier()  # the files stay as everyone has seen them until here
    if all(path.exists() for _, path in parts):
        return
    tokenizer = load_tokenizer(run.root, device=world.device)
    for part, path in parts:
        if path.exists():
            continue
        source = data.train if part == "train" else data.held_out
        write_tokens(
            tokenizer, digest, source, config.data, config.tokens, path,
            world=world, progress=progress, label=f"tokens {part}",
        )  # fmt: skip


def _prior_stage(config: RunConfig, data: ImageData, run: RunDirectory, progress: Progress, world: World) -> None:
    digest = read_metadata(run.tokenizer_model, "tokenizer")["weights_hash"]
    if run.prior_model.exists():
        made_for = check_config(run.prior_model, "prior", config.prior).get("tokenizer_hash", digest)
        if made_for != digest:
            raise OvertureError(
                f"{run.prior_model}: trained on another tokenizer's tokens ({made_for}, not {digest}); "
                "move it and results.json away to train it again"
            )
        return
    layout = config.tokenizer.layout
    trainer = PriorTrainer(config.prior, config.prior_training, layout, seed=config.seed, world=world)
    train, held_out = (TokenFile.open(run.tokens(part)) for part in ("train", "held_out"))
    about = {"run_config": to_dict(config), "tokenizer_hash": digest}
    watch = None
    if config.watch.prior_every and world.is_main:
        judge = judge_network(config, run)
        with alone():
            reference = training_reference(config, data, judge, run)
        tokenizer = load_tokenizer(run.root, device=world.device)
        watch = PriorWatch(config, run, trainer, tokenizer, judge, reference, lambda path: trainer.save(path, about))
    with _timed(run, "prior", world):
        train_prior(trainer, train, held_out, run.prior, run.metrics, progress, watch)
    if world.is_main:
        trainer.save(run.prior_model, about)
        _remove_steps(run.prior)
    world.barrier()


@contextmanager
def _timed(run: RunDirectory, stage: str, world: World) -> Iterator[None]:
    """Add the wall-clock seconds spent here to those of the stage so far, interrupted or not."""
    begin = time.monotonic()
    try:
        yield
    finally:
        if world.is_main:
            seconds = run.read_results().get("seconds", {})
            spent = seconds.get(stage, 0.0) + time.monotonic() - begin
            run.add_results("seconds", {**seconds, stage: round(spent, 1)})


def _remove_steps(directory: Path) -> None:
    """A finished stage needs no resume."""
    for step in directory.glob("step-*"):
        shutil.rmtree(step, ignore_errors=True)


def _check_stop(stage: str) -> None:
    if stop_requested():
        raise Interrupted(f"stopped after stage {stage}, saved; the same command goes on")
