"""The stages of a run, in order: networks, tokenizer, tokens, prior, evaluation. Each is skipped when it is done."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from overture.config import differences, from_dict, option, to_dict
from overture.data.base import same_fingerprint
from overture.data.stream import ImageData, TrainingStream, evaluation_batches
from overture.data.token_files import TokenFile, TokenStream
from overture.errors import OvertureError, UsageError, error_line
from overture.layout import Layout
from overture.model_files import check_config, ids_hash, read_metadata
from overture.nn.classifier import Classifier, load_classifier
from overture.pipeline import Pipeline, load_tokenizer
from overture.priors.model import PriorConfig
from overture.processes import Processes
from overture.progress import Interrupted, Progress, SilentProgress, stop_requested
from overture.runs.adopt import with_start_hashes
from overture.runs.checks import check_run, check_weights, look_at, needed_networks
from overture.runs.config import DomainNetworkConfig, RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import (
    evaluate_run,
    forget_other_models,
    judge_network,
    make_training_reference,
    token_entropy,
    write_samples,
)
from overture.runs.monitor import PriorMonitor, TokenizerMonitor
from overture.training.loop import Monitor, train
from overture.training.step import chosen_precision
from overture.training.train_classifier import ClassifierTrainer, ClassifierTrainingConfig
from overture.training.train_prior import EngineConfig, PriorTrainer, PriorTrainingConfig, bits_of_files, save_prior
from overture.training.train_tokenizer import TokenizerTrainer, save_finished
from overture.training.write_tokens import write_tokens

__all__ = ["execute", "prior_stage", "train_network"]


def execute(
    config: RunConfig, run: RunDirectory, progress: Progress, processes: Processes, until: str = "report"
) -> RunConfig:
    """Bring a run to its end (or ``until`` the tokenizer, the tokens or the prior), from wherever it stands.

    Returns the resolved config.

    Raises :class:`Interrupted` when the user asked to stop, after saving.
    """
    data, given = config.data.build(), config
    config = with_precision(with_start_hashes(config.resolve(data.num_classes), run), processes.device)
    check_run(config, processes, until)
    config.tokens.chosen(data.train)  # refuses more than there are
    if not run.tokenizer_model.exists():
        check_weights(config)
    if processes.is_main:
        notes = look_at(data, config.data)
        run.write_or_check_config(config)
        run.write_or_check_data(data)
        for note in [*notes, *precision_notes(given, config)]:
            progress.say(note)
    else:
        progress = SilentProgress()
    processes.barrier()
    for name in needed_networks(config):
        train_network(config, data, name, run, progress, processes)
        _check_stop(name)
    _tokenizer_stage(config, data, run, progress, processes)
    _check_stop("tokenizer")
    if until == "tokenizer":
        return config
    _tokens_stage(config, data, run, progress, processes)
    _check_stop("tokens")
    if until == "tokens":
        return config
    _prior_stage(config, data, run, progress, processes)
    _check_stop("prior")
    if until == "prior":
        return config
    pipe = Pipeline.load(run.root, processes.device)
    _samples_stage(config, run, pipe, progress, processes)
    evaluate_run(config, data, run, pipe, progress, processes)
    processes.barrier()
    return config


def precision_notes(given: RunConfig, chosen: RunConfig) -> list[str]:
    """What ``auto`` has become, for the log."""
    stages = ("tokenizer_training", "prior_training")
    return [
        f"{option(f'{stage}.precision')} auto: {getattr(chosen, stage).precision} on this hardware"
        for stage in stages
        if getattr(given, stage).precision == "auto"
    ]


def with_precision(config: RunConfig, device: torch.device) -> RunConfig:
    """The config with number types in place of ``auto``: what a number was made with has to be in its record."""
    tokenizer, prior = config.tokenizer_training, config.prior_training
    return dataclasses.replace(
        config,
        tokenizer_training=dataclasses.replace(tokenizer, precision=chosen_precision(tokenizer.precision, device)),
        prior_training=dataclasses.replace(prior, precision=chosen_precision(prior.precision, device)),
    )


def train_network(
    config: RunConfig, data: ImageData, name: str, run: RunDirectory, progress: Progress, processes: Processes
) -> None:
    """Train one domain network (``judge`` or ``perceptual``); never the same one for both."""
    with run.locked_network(name) if processes.is_main else nullcontext():
        processes.barrier()
        if (run.networks / f"{name}.safetensors").exists():
            _check_network(config, data, name, run)
            if processes.is_main:
                shutil.rmtree(run.networks / name, ignore_errors=True)
        else:
            _train_network(config, data, name, run, progress, processes)
        processes.barrier()


def _network_config(config: RunConfig, name: str) -> DomainNetworkConfig:
    """With the seed that its weights and batches are drawn from."""
    wanted = config.judge if name == "judge" else config.perceptual_network
    return dataclasses.replace(wanted, seed=config.seed * 1000 + wanted.seed)


def _train_network(
    config: RunConfig, data: ImageData, name: str, run: RunDirectory, progress: Progress, processes: Processes
) -> None:
    wanted = _network_config(config, name)
    # Of a small set whole batches that the processes can share.
    batch_size = min(wanted.training.batch_size, len(data.train) // processes.size * processes.size)
    trainer = ClassifierTrainer(wanted.network, wanted.training, seed=wanted.seed, processes=processes, stage=name)
    settings = dataclasses.replace(config.data, crop="center", mirror=False)  # as it will see images later
    stream = TrainingStream(data.train, settings, batch_size, wanted.seed, processes.rank, processes.size)
    directory = run.networks / name
    train(trainer, stream.batches, directory, directory / "metrics.jsonl", progress)
    if processes.is_main:
        held_out = evaluation_batches(data.held_out, config.data, 500)
        path = run.networks / f"{name}.safetensors"
        record = trainer.save(path, len(data.train), held_out, data.train.fingerprint())
        progress.say(
            f"{name} network: {record.accuracy:.1%} of {record.held_out_images} held-out images right (chance "
            f"{record.chance:.1%})"
        )
        shutil.rmtree(directory, ignore_errors=True)


def _check_network(config: RunConfig, data: ImageData, name: str, run: RunDirectory) -> None:
    """Refuse a network that was trained otherwise, or on other images."""
    path = run.networks / f"{name}.safetensors"
    record = load_classifier(path)[1]
    training = from_dict(ClassifierTrainingConfig, record.training, f"{path}: training")
    different = differences(DomainNetworkConfig(record.config, training, record.seed), _network_config(config, name))
    if not (1 - config.data.corrupt_limit) * len(data.train) <= record.train_images <= len(data.train):
        different.append(f"it was trained on {record.train_images} images, there are {len(data.train)}")
    if not same_fingerprint(record.data, data.train.fingerprint()):
        different.append("it was trained on other images")
    if different:
        raise UsageError(
            f"{path}: is of another config ({'; '.join(different[:3])}); give another --out, or delete {path.parent} to "
            "train it again"
        )


def _tokenizer_stage(
    config: RunConfig, data: ImageData, run: RunDirectory, progress: Progress, processes: Processes
) -> None:
    joint = config.prior_source == "joint"
    if run.tokenizer_model.exists() and (run.prior_model.exists() or not joint):
        check_config(run.tokenizer_model, "tokenizer", config.tokenizer)
        _remove_steps(run.tokenizer, processes)
        return
    training = config.tokenizer_training
    if training.trains == "nothing":
        if processes.is_main:
            save_finished(config.tokenizer, training, run.tokenizer_model, {"run_config": to_dict(config)})
        processes.barrier()
        return
    network: Classifier | None = None
    if "perceptual" in needed_networks(config):
        network = load_classifier(run.networks / "perceptual.safetensors")[0]
    trainer = TokenizerTrainer(
        config.tokenizer, training, seed=config.seed, processes=processes, perceptual_network=network
    )
    stream = TrainingStream(data.train, config.data, training.batch_size, config.seed, processes.rank, processes.size)
    monitor = None
    if config.watch.tokenizer_every:
        monitor = TokenizerMonitor(config, data, run, trainer, judge_network(config, run, processes.device))
    with _timed(run, "tokenizer", processes):
        train(trainer, stream.batches, run.tokenizer, run.metrics, progress, monitor=monitor)
    if stream.corrupt:
        progress.say(f"{len(stream.corrupt)} corrupt images were skipped, the first is {stream.corrupt[0]}")
    if processes.is_main:
        about: dict[str, Any] = {"run_config": to_dict(config)}
        # A joint prior has learned the ids of the raw tokenizer, so the two are used together.
        digest = trainer.save(run.tokenizer_model, {**about, "use_weights": "raw"} if joint else about)
        if joint and trainer.joint:
            about |= {"tokenizer_hash": digest, "step": trainer.step, "classes": list(data.classes)}
            save_prior(run.prior_model, trainer.joint.trained, about)
        _remove_steps(run.tokenizer, processes)
    processes.barrier()


def _tokens_stage(
    config: RunConfig, data: ImageData, run: RunDirectory, progress: Progress, processes: Processes
) -> None:
    sources = {"train": config.tokens.chosen(data.train), "held_out": data.held_out}
    digest = ids_hash(read_metadata(run.tokenizer_model, "tokenizer"))
    for part, source in sources.items():
        if run.tokens(part).exists():
            file = TokenFile.open(run.tokens(part))
            file.check_layout(config.tokenizer.layout)
            file.check_tokenizer(digest)
            file.check_source(source)
    processes.barrier()  # the files stay as everyone has seen them until here
    missing = [part for part in sources if not run.tokens(part).exists()]
    if not missing:
        return
    tokenizer = load_tokenizer(run.root, device=processes.device)
    for part in missing:
        write_tokens(
            tokenizer, digest, sources[part], config.data, config.tokens, run.tokens(part),
            processes=processes, progress=progress, label=f"tokens {part}",
        )  # fmt: skip
    if processes.is_main and (entropy := token_entropy(run)).collapsed:
        bits = f"its tokens hold {entropy.total_bits:.2f} of {entropy.log2_n:.2f} bits"
        advice = "train it longer or with a lower --tokenizer-training.optimizer.learning-rate"
        collapsed = f"the tokenizer has collapsed: {bits}; {advice}"
        progress.say(f"the tiny form is hardly trained: {bits}" if config.tiny else collapsed)


def _prior_stage(
    config: RunConfig, data: ImageData, run: RunDirectory, progress: Progress, processes: Processes
) -> None:
    def monitor(trainer: PriorTrainer, save: Callable[[Path], None]) -> PriorMonitor | None:
        if not config.watch.prior_every:
            return None
        judge = judge_network(config, run, processes.device)
        make_training_reference(config, data, judge, run, processes)
        tokenizer = load_tokenizer(run.root, device=processes.device)
        return PriorMonitor(config, run, trainer, tokenizer, judge, save)

    digest = ids_hash(read_metadata(run.tokenizer_model, "tokenizer"))
    prior_stage(config, config.tokenizer.layout, data.classes, digest, run, progress, processes, monitor)


class PriorRun(Protocol):
    """What the stage of the prior needs of a run's config."""

    @property
    def seed(self) -> int: ...
    @property
    def prior(self) -> PriorConfig: ...
    @property
    def prior_training(self) -> PriorTrainingConfig: ...
    @property
    def engine(self) -> EngineConfig: ...


def prior_stage(
    config: PriorRun,
    layout: Layout,
    classes: Sequence[str],
    tokens_of: str,
    run: RunDirectory,
    progress: Progress,
    processes: Processes,
    make_monitor: Callable[[PriorTrainer, Callable[[Path], None]], Monitor | None] = lambda trainer, save: None,
) -> None:
    """Train the run's prior on its token files, unless that is done; ``tokens_of`` is the tokenizer that wrote them."""
    if run.prior_model.exists():
        made_for = check_config(run.prior_model, "prior", config.prior).get("tokenizer_hash", tokens_of)
        if made_for != tokens_of:
            raise OvertureError(
                f"{run.prior_model}: trained on another tokenizer's tokens ({made_for}, not {tokens_of}); "
                "move it away to train it again"
            )
        _remove_steps(run.prior, processes)
        return
    training = config.prior_training
    trainer = PriorTrainer(
        config.prior, training, layout, seed=config.seed, processes=processes, engine=config.engine, classes=classes
    )
    files = {part: run.token_file(part) for part in ("train", "held_out")}
    for file in files.values():
        file.check_layout(layout)
    stream = TokenStream(files["train"], training.batch_size, config.seed, processes.rank, processes.size)
    about = {"run_config": to_dict(config), "tokenizer_hash": tokens_of}
    monitor = make_monitor(trainer, lambda path: trainer.save(path, about))
    with _timed(run, "prior", processes):
        train(
            trainer, stream.batches, run.prior, run.metrics, progress,
            measure=bits_of_files(trainer, files), monitor=monitor,
        )  # fmt: skip
    trainer.save(run.prior_model, about)
    _remove_steps(run.prior, processes)
    processes.barrier()


def _samples_stage(
    config: RunConfig, run: RunDirectory, pipe: Pipeline, progress: Progress, processes: Processes
) -> None:
    """The samples that will be measured; all processes share the work."""
    if processes.is_main:
        forget_other_models(run)
    processes.barrier()
    for kind, sampling in config.evaluation.samplings.items():
        if processes.any(processes.is_main and not (run.samples / f"{kind}.npz").exists()):
            try:
                write_samples(config, run, pipe, sampling, kind, progress, processes)
            except Interrupted:
                raise
            except Exception as error:
                if processes.size > 1:  # the others wait for this one
                    raise
                progress.say(f"samples {kind} could not be made: {error_line(error)}")


@contextmanager
def _timed(run: RunDirectory, stage: str, processes: Processes) -> Iterator[None]:
    """Add the wall-clock seconds spent here to those of the stage so far, interrupted or not."""
    begin = time.monotonic()
    try:
        yield
    finally:
        if processes.is_main:
            results = run.read_results()
            spent = results.seconds.get(stage, 0.0) + time.monotonic() - begin
            run.write_results(dataclasses.replace(results, seconds={**results.seconds, stage: round(spent, 1)}))


def _remove_steps(directory: Path, processes: Processes) -> None:
    """A finished stage needs no resume."""
    if not processes.is_main:
        return
    for step in directory.glob("step-*"):
        shutil.rmtree(step, ignore_errors=True)


def _check_stop(stage: str) -> None:
    if stop_requested():
        raise Interrupted(f"stopped after stage {stage}, saved; the same command goes on")
