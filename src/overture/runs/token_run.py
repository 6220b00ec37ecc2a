"""A run that begins with tokens: a prior on token files of anyone's tokenizer, judged in bits. It has no images.

It lies on disk as other runs do, without a tokenizer: what asks tokens or the prior alone works on it.
"""

from __future__ import annotations

import dataclasses
import filecmp
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from overture.config import differences, from_dict, no_number, option, to_dict
from overture.data.token_files import TokenFile
from overture.errors import OvertureError, UsageError
from overture.files import copy_file, read_record, write_record
from overture.priors.model import PriorConfig
from overture.processes import Processes
from overture.progress import Interrupted, Progress, SilentProgress, stop_requested
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import measure_run_likelihood, token_entropy
from overture.runs.results import Results
from overture.runs.stages import prior_stage
from overture.training.step import chosen_precision
from overture.training.train_prior import EngineConfig, PriorTrainingConfig

__all__ = ["TokenRunConfig", "execute_tokens"]


@dataclass(frozen=True)
class TokenRunConfig:
    """Everything about a run on token files: where they are, and how the prior is made and trained.

    ``recipe`` is where the settings are from. The number of classes is that of the files.
    """

    train: str = no_number("")
    held_out: str = no_number("")
    name: str = no_number("run")
    recipe: str = no_number("")
    seed: int = 0
    prior: PriorConfig = PriorConfig()
    prior_training: PriorTrainingConfig = PriorTrainingConfig()
    engine: EngineConfig = EngineConfig()


def execute_tokens(config: TokenRunConfig, run: RunDirectory, progress: Progress, processes: Processes) -> Results:
    """Train the prior and measure its bits, from wherever the run stands.

    Raises :class:`~overture.errors.UsageError` for files of unlike layouts, a config that cannot be run, or one that the
    run was not begun with; :class:`Interrupted` when the user asked to stop, after saving.
    """
    given = {part: TokenFile.open(path) for part, path in (("train", config.train), ("held_out", config.held_out))}
    config = _resolved(config, given, processes)
    if processes.is_main:
        _begin(config, given, run)
    else:
        progress = SilentProgress()
    processes.barrier()
    layout, tokens_of = given["train"].layout, given["train"].header.tokenizer
    prior_stage(config, layout, (), tokens_of, run, progress, processes)
    if stop_requested():
        raise Interrupted("stopped after stage prior, saved; the same command goes on")
    _measure(run, progress, processes)
    processes.barrier()
    return run.read_results()


def _resolved(config: TokenRunConfig, files: dict[str, TokenFile], processes: Processes) -> TokenRunConfig:
    """With the number of classes and the number type; refuses what cannot be run."""
    train, held_out = files["train"], files["held_out"]
    if train.layout != held_out.layout:
        raise UsageError(
            f"{held_out.path}: its layout ({held_out.layout}) is not that of {train.path} ({train.layout}); import it with "
            f"--layout {train.path}"
        )
    if held_out.header.tokenizer != train.header.tokenizer:
        raise UsageError(f"{held_out.path}: tokens of another tokenizer than {train.path}")
    if _same_ids(train, held_out):
        raise UsageError(f"{held_out.path}: the same tokens as {train.path}; hold out rows that are not trained on")
    training = config.prior_training
    if training.start_from:
        raise UsageError("--prior-training.start-from needs a run with a tokenizer; tokens of others start from none")
    if training.batch_size % processes.size:
        raise UsageError(
            f"--prior-training.batch-size is {training.batch_size}, needs a multiple of the {processes.size} processes"
        )
    try:
        training.optimizer.schedule(training.steps)
    except UsageError as error:
        raise UsageError(f"{option('prior_training.optimizer')}: {error}") from error
    prior = dataclasses.replace(config.prior, num_classes=max(file.num_classes for file in files.values()))
    with torch.device("meta"):  # sizes that do not fit are told before any work
        prior.build(train.layout)
    precise = dataclasses.replace(training, precision=chosen_precision(training.precision, processes.device))
    return dataclasses.replace(config, prior=prior, prior_training=precise)


def _begin(config: TokenRunConfig, files: dict[str, TokenFile], run: RunDirectory) -> None:
    """Put config and token files into a new run; refuse to go on with others than it was begun with."""
    if run.config.exists():
        known = read_record(run.config, "delete the run to start over")
        if "tokenizer" in known:
            raise UsageError(f"{run.root}: is a run on images; give another --out")
        different = differences(from_dict(TokenRunConfig, known, str(run.config)), config)
        if different:
            raise UsageError(
                f"{run.root}: was begun with another config ({'; '.join(different[:3])}); give another --out, or delete it "
                "to start over"
            )
    for part, file in files.items():
        place = run.tokens(part)
        if not place.exists():
            if run.prior_model.exists():
                raise OvertureError(f"{place}: is gone, and the prior was trained on it; delete the run to start over")
            _link(file.path, place)
        elif not _same_tokens(TokenFile.open(place), file):
            raise UsageError(
                f"{file.path}: other tokens than this run was begun with ({place}); give another --out, or delete the run"
            )
    if not run.config.exists():  # last: a run that has a config has its tokens
        write_record(run.config, to_dict(config))


def _same_tokens(one: TokenFile, other: TokenFile) -> bool:
    same_place = os.path.samefile(one.path, other.path)
    return same_place or (one.header == other.header and filecmp.cmp(one.path, other.path, shallow=False))


def _same_ids(one: TokenFile, other: TokenFile, rows: int = 4096) -> bool:
    """Whether both hold the same ids in the same order, whatever is said of them."""
    parts = (slice(start, start + rows) for start in range(0, one.rows, rows))
    same_shape = one.stored.shape == other.stored.shape
    return same_shape and all(np.array_equal(one.stored[part], other.stored[part]) for part in parts)


def _link(source: Path, place: Path) -> None:
    """The same file under another name where the disk can do that, else a copy: token files are never changed in place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), place)
    except OSError:
        copy_file(source, place)


def _measure(run: RunDirectory, progress: Progress, processes: Processes) -> None:
    """The entropy of the training tokens and the prior's bits, unless they are known of this prior."""
    from overture.pipeline import load_prior

    models = run.model_hashes("prior")
    results = run.read_results()
    if processes.any(processes.is_main and (results.models != models or results.likelihood is None)):
        likelihood = measure_run_likelihood(load_prior(run.root, device=processes.device), run, progress, processes)
        if processes.is_main:
            entropy = token_entropy(run).to_dict()
            run.write_results(Results(models, results.seconds, entropy=entropy, likelihood=likelihood))
