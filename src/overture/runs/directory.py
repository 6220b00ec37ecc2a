"""A run on disk, and who may work in it.

::

    runs/NAME/ config.json  metrics.jsonl  results.json  report.html  samples/  networks/
               tokens/{train,held_out}.tokens  tokenizer/{model.safetensors, step-*/}  prior/{model.safetensors, step-*/}
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from overture.config import differences, from_dict, to_dict
from overture.data.base import same_fingerprint
from overture.data.stream import ImageData
from overture.data.token_files import TokenFile
from overture.elsewhere import checked
from overture.errors import OvertureError, UsageError
from overture.files import lock, near_path, read_json, read_record, remove_leftovers, write_json, write_record
from overture.hub import is_hub
from overture.model_files import find_model, read_metadata
from overture.progress import stop_requested
from overture.runs.config import RunConfig
from overture.runs.forms import DATA, check_form
from overture.runs.results import Results

__all__ = ["RunDirectory", "runs_inside"]


class RunDirectory:
    """Paths inside a run, its config and its results. ``networks`` may lie outside, shared by several runs."""

    def __init__(self, root: Path | str, networks: Path | None = None) -> None:
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.classes = self.root / "classes.json"
        self.data = self.root / "data.json"
        self.metrics = self.root / "metrics.jsonl"
        self.results = self.root / "results.json"
        self.samples = self.root / "samples"
        self.instruments = self.root / "instruments"
        beside = self.root.resolve().parent / "networks"  # where the runs of one recipe share them
        own = self.root / "networks"
        self.networks = networks or (beside if beside.is_dir() and not own.is_dir() else own)
        """Feature networks trained on the data; runs that are compared share them."""
        self.tokenizer = self.root / "tokenizer"
        self.prior = self.root / "prior"
        self.judge = self.networks / "judge.safetensors"
        self.reference = self.networks / "reference.npz"

    @property
    def tokenizer_model(self) -> Path:
        """The trained tokenizer."""
        return self.tokenizer / "model.safetensors"

    @property
    def prior_model(self) -> Path:
        """The trained prior."""
        return self.prior / "model.safetensors"

    def tokens(self, part: str) -> Path:
        """The token file of the ``train`` images or of those ``held_out`` (which older runs call ``val``)."""
        path, old = self.root / "tokens" / f"{part}.tokens", self.root / "tokens" / "val.tokens"
        return old if part == "held_out" and old.exists() and not path.exists() else path

    def token_file(self, part: str) -> TokenFile:
        """The same, opened."""
        return TokenFile.open(self.tokens(part))

    @property
    def is_run(self) -> bool:
        """Whether a run lies here, and not only models."""
        return self.config.is_file()

    def check_is_run(self) -> None:
        """Refuse a directory that is no run; one that holds runs, as a recipe's does, with the name of the first."""
        if self.is_run:
            return
        if is_hub(self.root):
            raise UsageError(
                f"{self.root}: this needs a run on this machine; fetch it with overture pull, and give its --out"
            )
        if not self.root.exists():
            raise UsageError(f"{self.root}: no such run directory{near_path(self.root)}")
        inside = runs_inside(self.root)
        hint = f"; give one of its runs: {inside[0]}" if inside else ""
        raise UsageError(f"{self.root}: not a run directory (no config.json){hint}")

    def read_config(self) -> RunConfig:
        """The resolved config."""
        self.check_is_run()
        known = checked(self.config, read_record(self.config))
        if "tokenizer" not in known and "held_out" in known:
            raise UsageError(f"{self.root}: is a run on tokens of another tokenizer; it has no images that this needs")
        return from_dict(RunConfig, known, str(self.config))

    def write_or_check_config(self, config: RunConfig) -> None:
        """Write the config into a new run; refuse to go on with another config than a run was begun with."""
        if not self.config.exists():
            write_record(self.config, to_dict(config))
            return
        # Read as a config: a field that this version has added has its default in an older run.
        known = checked(self.config, read_record(self.config, "delete the run to start over"))
        present = from_dict(RunConfig, known, str(self.config))
        different = differences(present, config)
        if different:
            raise UsageError(
                f"{self.root}: was begun with another config ({'; '.join(different[:3])}); "
                "give another --out, or delete it to start over"
            )
        if present != config:  # what changes no number may change
            write_record(self.config, to_dict(config))

    def write_or_check_data(self, data: ImageData) -> None:
        """Write down which images a new run is of; refuse to go on with others."""
        parts = {"train": data.train, "held_out": data.held_out}
        found: dict[str, dict[str, Any]] = {
            name: {"source": part.name, "images": len(part), "fingerprint": part.fingerprint()}
            for name, part in parts.items()
        }
        classes = list(data.classes)
        present = self._known_data()
        different = []
        if self.classes.exists() and (known := read_json(self.classes, list)) != classes:
            odd = next(((a, b) for a, b in zip_longest(known, classes) if a != b), None)
            different.append(
                f"{len(known)} classes, now {len(classes)}; the first that differs was {odd[0]!r}, now {odd[1]!r}"
                if odd
                else ""
            )
        for name, about in found.items():
            old = present[name] if present else about
            if old["images"] != about["images"] or not same_fingerprint(old["fingerprint"], about["fingerprint"]):
                different.append(
                    f"{name}: {old['images']:,} images with fingerprint {old['fingerprint']}, now {about['images']:,} "
                    f"with {about['fingerprint']}"
                )
        if different:
            raise UsageError(
                f"{self.root}: the data have changed since this run was begun ({'; '.join(different)}); bring them back, "
                "or give another --out"
            )
        if not present:
            write_json(self.classes, classes)
            write_record(self.data, found)  # last: once it is there, so are the classes, whenever the process is killed

    def _known_data(self) -> dict[str, dict[str, Any]]:
        """What was written down of the images; nothing in a new run, or one of version 0.1.0."""
        advice = "delete the run to start over"
        present = read_record(self.data, advice) if self.data.exists() else {}
        try:
            if present:
                check_form(present, DATA, "data")
        except OvertureError as error:
            raise OvertureError(f"{self.data}: damaged ({error}); {advice}") from error
        return present

    def read_results(self) -> Results:
        """All results so far."""
        if not self.results.exists():
            return Results()
        return Results.from_dict(read_record(self.results, "delete it to measure again"), str(self.results))

    def write_results(self, results: Results) -> None:
        """Store the results so far."""
        write_record(self.results, results.to_dict())

    def model_hashes(self, *kinds: str) -> dict[str, str]:
        """``tokenizer_hash`` and ``prior_hash``: which models a number is of."""
        return {f"{kind}_hash": read_metadata(find_model(self.root, kind), kind)["weights_hash"] for kind in kinds}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of this run while we work in it, and clean up after those that were killed.

        It waits a little for one that is there: the worker of a killed command saves and ends by itself.
        """
        refusal = f"{self.root}: another process is working in this run; end it, or wait"
        with _locked(self.root / ".lock", refusal, patience=20):
            for folder in (self.root, self.networks, *(path for path in self.root.rglob("*") if path.is_dir())):
                remove_leftovers(folder)
            yield

    def locked_network(self, name: str) -> AbstractContextManager[None]:
        """Wait until no other process trains this network, which several runs may share, and keep others out."""
        return _locked(self.networks / f".{name}.lock", f"{self.networks}: stopped while another process trains {name}")


def runs_inside(folder: Path) -> list[Path]:
    """The runs one level below a folder, such as that of a recipe with several."""
    return sorted(config.parent for config in folder.glob("*/config.json"))


@contextmanager
def _locked(path: Path, refusal: str, patience: float = math.inf) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        deadline = time.monotonic() + patience
        while not lock(file):
            if time.monotonic() > deadline or stop_requested():
                raise OvertureError(refusal)
            time.sleep(0.2)
        yield
