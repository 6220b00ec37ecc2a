"""Loggers: where the numbers and pictures of a run go besides its own files.

Each runs in a process of its own that follows what the run writes (:mod:`overture.loggers.follower`): it cannot hold up
the training, change a number of it or take it down. ``--log tensorboard,wandb`` chooses; anyone's are ``module:Class``.
"""

from __future__ import annotations

import importlib.util

from overture.errors import UsageError, missing_package
from overture.registry import OpenList

__all__ = ["LOGGERS", "chosen_loggers"]

LOGGERS = OpenList(
    "logger",
    {
        "tensorboard": "overture.loggers.tensorboard_events:TensorBoardLogger",
        "wandb": "overture.loggers.wandb_run:WandbLogger",
        "trackio": "overture.loggers.trackio_run:TrackioLogger",
    },
    kind="overture.loggers.logger:RunLogger",
)


def chosen_loggers(text: str) -> tuple[str, ...]:
    """The names in ``tensorboard,wandb``, each once.

    Refuses what is no logger, and what needs a package that is not installed: before any work.
    """
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not names:
        raise UsageError(f"--log '{text}': name a logger ({', '.join(LOGGERS)}) or module:name")
    for name in names:
        package = LOGGERS.get(name).package
        if package and not _installed(package):
            raise missing_package(package, "log", f"--log {name}")
    return names


def _installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name, such as the one that wandb leaves, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
