"""One member in a process of its own: the run to its end, the readings, the member's file; then disk is given back."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from overture.bench.member_file import add_values, lacking, write_finished
from overture.bench.readings import take_readings
from overture.errors import OvertureError
from overture.files import read_record, remove
from overture.model_files import read_metadata
from overture.processes import Processes
from overture.progress import Progress
from overture.runs.directory import RunDirectory
from overture.runs.worker import Task, main
from overture.training.hardware import was_trained_with

__all__ = ["Keep", "MemberTask"]

Keep = Literal["models", "run"]
"""What stays of a finished member's run: without its tokens and samples, or all of it."""


@dataclass(frozen=True)
class MemberTask(Task):
    """A run, and what is read off it when it is finished."""

    MODULE: ClassVar[str] = "overture.bench.member_worker"

    about: dict[str, Any] = field(default_factory=dict)
    """What the member's file says before the numbers."""
    file: str = ""
    """Where that file will be."""
    keep: Keep = "models"

    def is_done(self) -> bool:
        """Another suite with this folder may have finished the member since, and taken all readings of this one."""
        return not lacking(self.about["readings"], self._known())

    def conclude(self, run: RunDirectory, progress: Progress, processes: Processes) -> None:
        """Read, write the member's file, and give back the disk that models and numbers do not need."""
        results = run.read_results()
        if results.failed:
            parts = "; ".join(f"{part} ({why})" for part, why in results.failed.items())
            raise OvertureError(f"could not be measured: {parts}; the same command tries again")
        files = {"tokenizer": run.tokenizer_model, "prior": run.prior_model}
        said = {kind: read_metadata(file, kind) for kind, file in files.items() if file.exists()}
        models = {f"{kind}_hash": metadata["weights_hash"] for kind, metadata in said.items()}
        known = self._known()
        if known and known["models"] != models:
            raise OvertureError(f"{self.file}: is of other models than lie in {run.root}; delete it to measure these")
        readings = lacking(self.about["readings"], known)
        values = take_readings(readings, run, processes.device)
        if known:
            add_values(Path(self.file), known, readings, str(processes.device), values)
        else:
            resolved = run.read_config()
            about = {
                **self.about,
                "device": str(processes.device),
                "precision": {p: getattr(resolved, p).precision for p in ("tokenizer_training", "prior_training")},
                "data": read_record(run.data),
                "models": models,
                "trained_with": {kind: told for kind, about in said.items() if (told := was_trained_with(about))},
            }
            write_finished(Path(self.file), about, values)
        if self.keep == "models":
            remove(run.root / "tokens")
            for samples in run.samples.glob("*.npz"):
                remove(samples)

    def _known(self) -> dict[str, Any]:
        """What the member's file holds; nothing where there is none."""
        return read_record(Path(self.file)) if Path(self.file).exists() else {}


if __name__ == "__main__":
    sys.exit(main(MemberTask))
