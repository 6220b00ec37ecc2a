"""A run that begins with trained models: what it takes over of them, and which they were (docs/fine-tune.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from overture.config import from_dict, option
from overture.errors import UsageError
from overture.model_files import model_hash
from overture.priors.model import PriorConfig
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.tokenizers.config import TokenizerConfig
from overture.training.start_from import Start

__all__ = ["starting_from", "with_start_hashes"]


def starting_from(config: RunConfig, path: str, *, prior: bool = True) -> RunConfig:
    """The run with the models at ``path`` as its start: their sizes, and those of their images, in place of its own.

    ``path`` is a run, a directory of imports, or ``hf:owner/name``; without ``prior`` a tokenizer is enough.
    """
    if config.tokenizer.post_encoder is not None:
        raise UsageError(
            f"--start-from: run {config.name} adds to a finished tokenizer; name that one with "
            "--tokenizer-training.start-from"
        )
    start = Start.find(path, "tokenizer")
    tokenizer = from_dict(TokenizerConfig, start.metadata.get("config"), f"{start.file}: config")
    config = replace(
        config,
        data=replace(config.data, image_size=tokenizer.image_size, channels=tokenizer.channels),
        tokenizer=tokenizer,
        tokenizer_training=replace(config.tokenizer_training, start_from=path),
        prior_training=replace(config.prior_training, start_from=path if prior else ""),
    )
    if not prior:
        return config
    start = Start.find(path, "prior")
    return replace(config, prior=from_dict(PriorConfig, start.metadata.get("config"), f"{start.file}: config"))


def with_start_hashes(config: RunConfig, run: RunDirectory) -> RunConfig:
    """The config with the hashes of what its stages start from; refuses other weights than a run was begun with.

    What a finished stage has started from need not be there any more.
    """
    known = run.read_config() if run.is_run else config
    stages = {"tokenizer": run.tokenizer_model, "prior": run.prior_model}
    changes: dict[str, Any] = {}
    for kind, model in stages.items():
        name = f"{kind}_training"
        training = getattr(config, name)
        if not training.start_from:
            continue
        begun = training.start_hash or getattr(known, name).start_hash
        found = begun if model.exists() else model_hash(training.start_from, kind)
        if begun not in ("", found):
            raise UsageError(
                f"{option(f'{name}.start_from')} {training.start_from}: its weights are {found}, this run was begun with "
                f"{begun}; bring them back, or give another --out"
            )
        changes[name] = replace(training, start_hash=found)
    return replace(config, **changes)
