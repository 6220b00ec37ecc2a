"""A run on disk, and who may work in it.

::

    runs/NAME/ config.json  metrics.jsonl  results.json  report.html  samples/  networks/
               tokens/{train,val}.tokens  tokenizer/{model.safetensors, step-*/}  prior/{model.safetensors, step-*/}
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from overture.config import differing_keys, from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.runs.config import RunConfig

__all__ = ["RunDirectory"]


class RunDirectory:
    """Paths inside a run, its config and its results. ``networks`` may lie outside, shared by several runs."""

    def __init__(self, root: Path | str, networks: Path | None = None) -> None:
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.metrics = self.root / "metrics.jsonl"
        self.results = self.root / "results.json"
        self.report = self.root / "report.html"
        self.samples = self.root / "samples"
        self.networks = networks or self.root / "networks"
        """Feature networks trained on the data; runs that are compared share them."""
        self.tokenizer = self.root / "tokenizer"
        self.prior = self.root / "prior"

    @property
    def tokenizer_model(self) -> Path:
        """The trained tokenizer."""
        return self.tokenizer / "model.safetensors"

    @property
    def prior_model(self) -> Path:
        """The trained prior."""
        return self.prior / "model.safetensors"

    def tokens(self, part: str) -> Path:
        """The token file of the ``train`` images or of those ``held_out``."""
        return self.root / "tokens" / ("val.tokens" if part == "held_out" else f"{part}.tokens")

    def adopt(self, config: RunConfig) -> None:
        """Write the config into a new run; refuse to go on with another config than a run was begun with."""
        wanted = to_dict(config)
        if self.config.exists():
            try:
                present = json.loads(self.config.read_text())
            except ValueError as error:
                raise OvertureError(f"{self.config}: not valid JSON ({error}); delete the run to start over") from error
            # Read as a config first: a field that this version has added has its default in an older run.
            different = differing_keys(to_dict(from_dict(RunConfig, present, str(self.config))), wanted)
            if different:
                raise UsageError(
                    f"{self.root}: was begun with another config ({'; '.join(different[:3])}); "
                    "give another --out, or delete it to start over"
                )
            return
        write_json(self.config, wanted)

    def add_results(self, part: str, values: Mapping[str, Any] | list[dict[str, Any]]) -> None:
        """Store the results of one part of the evaluation."""
        write_json(self.results, {**self.read_results(), part: values})

    def read_results(self) -> dict[str, Any]:
        """All results so far."""
        if not self.results.exists():
            return {}
        try:
            results = json.loads(self.results.read_text())
        except (OSError, ValueError) as error:
            raise OvertureError(f"{self.results}: not valid JSON ({error}); delete it to measure again") from error
        if not isinstance(results, dict):
            raise OvertureError(f"{self.results}: holds no results by name; delete it to measure again")
        return results

    @contextmanager
    def locked(self, patience: float = 20.0) -> Iterator[None]:
        """Keep other processes out of this run while we work in it.

        For ``patience`` seconds it waits for one that is there: the worker of a killed command saves and ends by itself.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            deadline = time.monotonic() + patience
            while not _lock(file):
                if time.monotonic() > deadline:
                    raise OvertureError(f"{self.root}: another process is working in this run; end it, or wait for it")
                time.sleep(0.2)
            yield


def _lock(file: IO[str]) -> bool:
    """Whether the file is ours now."""
    try:
        import fcntl
    except ImportError:
        return True  # no such locks on this system
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_json(path: Path, data: Any) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise OvertureError(f"{path}: cannot save: {error.strerror}; free some space and run again") from error
