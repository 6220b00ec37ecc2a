"""The folder of a reproduction: a run's models, samples and results, beside a record of what was asked for.

::

    OUT/ reproduce.json   the request, the models that were imported, the devices that the work was done on
         tokenizer/ prior/ samples/{guided,unguided}.npz results.json   as in a run: generate and compare take OUT
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from overture.config import differences, from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.files import read_record, remove, write_record
from overture.hub import is_hub
from overture.interop import import_release
from overture.model_files import read_metadata
from overture.progress import Progress
from overture.recipes.published import PUBLISHED, PublishedRow, load_row
from overture.runs.directory import RunDirectory

__all__ = ["ReproductionFolder", "Request"]


@dataclass(frozen=True)
class Request:
    """Everything that decides the samples, beside what the weights hold."""

    row: str
    weights: str
    """Where the directories of the release lie: a folder, or ``hf:owner/name``."""
    samples: int
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    settings: tuple[str, ...] = ()
    """All settings of the row, in words."""


@dataclass(frozen=True)
class _Record:
    """What ``reproduce.json`` holds."""

    request: Request
    tokenizer_hash: str = ""
    """Of the models, once both are imported."""
    prior_hash: str = ""
    devices: tuple[str, ...] = ()

    @property
    def models(self) -> dict[str, str]:
        """As results name them."""
        return {"tokenizer_hash": self.tokenizer_hash, "prior_hash": self.prior_hash}


class ReproductionFolder:
    """``OUT``; the main process writes."""

    def __init__(self, root: Path) -> None:
        self.run = RunDirectory(root)
        self.record = root / "reproduce.json"

    def begin(self, row: PublishedRow, request: Request, progress: Progress) -> None:
        """A new folder with the row's models in it, or the one of an earlier such command, which must have asked the same."""
        if not self.record.exists():
            if any(not entry.name.startswith(".") for entry in self.run.root.iterdir()):
                raise UsageError(f"--out {self.run.root}: holds other things than a reproduction; give a new folder")
            self._write(_Record(request))
        known = self._read()
        different = differences(known.request, request)
        if different:
            raise UsageError(
                f"{self.run.root}: was begun with another request ({'; '.join(different[:3])}); "
                "give another --out, or delete it to start over"
            )
        if not known.prior_hash:
            self._import(row, request, progress)
            found = self._hashes()
            self._write(replace(known, tokenizer_hash=found["tokenizer_hash"], prior_hash=found["prior_hash"]))
        elif self._hashes() != known.models:
            raise OvertureError(f"{self.run.root}: its models were changed since they were imported; delete it")

    @property
    def models(self) -> dict[str, str]:
        """``tokenizer_hash`` and ``prior_hash``: which models the samples are of."""
        return self._read().models

    @property
    def devices(self) -> tuple[str, ...]:
        """On what the work was done."""
        return self._read().devices

    def add_device(self, words: str) -> None:
        """Write down that work is done on a device."""
        known = self._read()
        if words not in known.devices:
            self._write(replace(known, devices=(*known.devices, words)))

    @property
    def roles(self) -> str:
        """Which weights of the two models are used, as the conditions of a number say it."""
        files = self._source("tokenizer")["files"]
        # In one stage both roles hold the raw weights, which are the published ones.
        same = files.get("raw") == files["ema"]
        return f"raw (tokenizer {'raw' if same else 'ema'})"

    def weights(self) -> dict[str, str]:
        """Which files of the release the two models are, in words."""
        used = {"tokenizer": "ema", "prior": "raw"}
        sources = {kind: self._source(kind) for kind in used}
        return {
            kind: f"{source['release']} ({', '.join(f'{name}.safetensors' for name in source['files'][used[kind]])})"
            for kind, source in sources.items()
        }

    def _source(self, kind: str) -> dict[str, Any]:
        """What the importer has written of a model's origin."""
        path = self.run.tokenizer_model if kind == "tokenizer" else self.run.prior_model
        source: dict[str, Any] = read_metadata(path, kind)["source"]
        return source

    def _hashes(self) -> dict[str, str]:
        """As :attr:`_Record.models`."""
        return self.run.model_hashes("tokenizer", "prior")

    def _import(self, row: PublishedRow, request: Request, progress: Progress) -> None:
        """Both models, anew: what an interrupted import left may be half of it."""
        for place in (self.run.tokenizer, self.run.prior):
            remove(place)
        if not is_hub(request.weights):
            _check_folder(Path(request.weights), row, request.row)
        for name in row.directories:
            progress.say(f"importing {name}")
            import_release(f"{request.weights}/{name}", self.run.root, row.config)

    def _read(self) -> _Record:
        advice = "delete the folder to start over"
        return from_dict(_Record, read_record(self.record, advice), str(self.record))

    def _write(self, record: _Record) -> None:
        write_record(self.record, to_dict(record))


def _check_folder(folder: Path, row: PublishedRow, name: str) -> None:
    """Refuse a folder without the row's directories, with the rows that it has."""
    if all((folder / directory).is_dir() for directory in row.directories):
        return
    others = [other for other in PUBLISHED if all((folder / part).is_dir() for part in load_row(other).directories)]
    held = f"; it holds those of {', '.join(others)}" if others else ""
    raise UsageError(f"--weights {folder}: row {name} needs the folders {' and '.join(row.directories)} in it{held}")
