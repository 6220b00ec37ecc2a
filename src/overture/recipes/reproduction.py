"""A published row measured again: weights imported, samples drawn and judged as published.

What is there is used again, so the same command goes on where it was stopped. Other samples than were asked for first
need another folder; another reference or network measures the same samples anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from overture.errors import UsageError, nearest
from overture.evaluation.conditions import Conditions, Measurement
from overture.evaluation.judge import Judge
from overture.evaluation.sample_file import partial_file, write_sample_file
from overture.files import remove
from overture.hub import is_hub
from overture.pipeline import Pipeline, balanced_classes
from overture.processes import Processes
from overture.progress import Progress, SilentProgress, TerminalProgress, stoppable
from overture.recipes.published import PublishedResult, PublishedRow, load_row
from overture.recipes.reproduction_folder import ReproductionFolder, Request
from overture.runs.results import Results
from overture.training.hardware import device_name, so_many

__all__ = ["Reproduction", "find_reference", "reproduce"]

Precision = Literal["float32", "bfloat16"]
DTYPES: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Reproduction:
    """What was measured of a row, with what a reader has to know of it."""

    row: PublishedRow
    request: Request
    measured: dict[str, dict[str, Measurement]]
    """By setting and metric."""
    skipped: dict[str, str]
    """Metrics that could not be measured, with the reason."""
    protocol: dict[str, str]
    """In words: weights, samples, reference, network, precision, device."""
    unlike: tuple[str, ...]
    """Why the numbers may not be compared with the published ones; nothing where they may."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        settings = {
            kind: {
                **self.row.results[kind].sampling.to_dict(),
                "published": dict(self.row.results[kind].numbers),
                "measured": {metric: found.to_dict() for metric, found in numbers.items()},
            }
            for kind, numbers in self.measured.items()
        }
        return {
            "row": self.request.row,
            "label": self.row.label,
            "source": self.row.source,
            "comparable": not self.unlike,
            "unlike": list(self.unlike),
            "settings": settings,
            "skipped": self.skipped,
            "protocol": self.protocol,
            "notes": list(self.row.notes),
        }


def find_reference(row: PublishedRow, processes: Processes) -> str:
    """The published reference on this machine, downloaded by the main process first, where it is not there."""
    published = row.reference
    if published is None:
        raise UsageError(f"row {row.label}: its reference is not published; give one with --reference FILE")
    _on_main(processes, published.fetch)
    # Machines that share no cache fetch their own; on the main one it is there now.
    return str(published.place if published.place.is_file() else published.fetch())


def reproduce(
    name: str,
    out: Path,
    judge: Judge,
    *,
    weights: str | None = None,
    samples: int | None = None,
    only: str | None = None,
    metrics: tuple[str, ...] = (),
    seed: int = 0,
    precision: Precision = "float32",
    batch_size: int = 64,
) -> Reproduction:
    """Measure the row called ``name`` again in the folder ``out``; the processes of the ``judge`` share the work.

    ``weights``, ``samples`` and ``metrics`` are those of the row unless given; ``only`` names one of its settings. Too few
    samples, a reference that lacks something, weights of another row and a folder of another request are one-line
    errors before the first sample.
    """
    row, processes = load_row(name), judge.processes
    kinds = _settings(row, only)
    place = weights or row.weights
    request = Request(
        name,
        place if is_hub(place) else str(Path(place).expanduser().resolve()),
        row.samples if samples is None else samples,
        seed,
        precision,
        tuple(f"{kind}: {result.sampling}" for kind, result in row.results.items()),
    )
    names = {kind: metrics or tuple(row.results[kind].numbers) for kind in kinds}
    for wanted in names.values():
        judge.check(wanted, request.samples, row.release.tokenizer.image_size)
    folder = ReproductionFolder(out)
    progress = TerminalProgress() if processes.is_main else SilentProgress()
    skipped: dict[str, str] = {}
    with stoppable(), _alone(folder, processes):
        try:
            _on_main(processes, lambda: folder.begin(row, request, progress))
            work = _Work(folder, request, judge, batch_size, progress)
            for kind in kinds:
                work.sample(kind, row.results[kind])
                skipped |= work.measure(kind, row.results[kind], names[kind])
        finally:
            progress.finish()
        results = folder.run.read_results()
        measured = {kind: results.measurements(kind) for kind in kinds}
        protocol = _protocol(folder, request, measured)
        return Reproduction(row, request, measured, skipped, protocol, tuple(_unlike(row, request, judge, measured)))


def _settings(row: PublishedRow, only: str | None) -> list[str]:
    if only is not None and only not in row.results:
        raise UsageError(f"--only {only}: row {row.label} has no such setting{nearest(only, row.results)}")
    return [only] if only is not None else list(row.results)


class _Work:
    """Sampling and judging in a folder that holds the models."""

    def __init__(
        self, folder: ReproductionFolder, request: Request, judge: Judge, batch_size: int, progress: Progress
    ) -> None:
        self.folder, self.run, self.request, self.judge = folder, folder.run, request, judge
        self.batch_size, self.progress, self.processes = batch_size, progress, judge.processes
        self.pipe: Pipeline | None = None
        """Loaded when there is something to sample."""

    def sample(self, kind: str, result: PublishedResult) -> None:
        """The samples of a setting, unless they are there."""
        path = self.run.samples / f"{kind}.npz"
        if self.processes.any(self.processes.is_main and path.exists()):
            return
        self._tell_device()
        self.pipe = self.pipe or Pipeline.load(self.run.root, self.processes.device)
        classes = balanced_classes(self.request.samples, self.pipe.prior.config.num_classes)
        write_sample_file(
            path,
            self.pipe,
            classes,
            result.sampling,
            seed=self.request.seed,
            batch_size=self.batch_size,
            dtype=DTYPES[self.request.precision],
            progress=self.progress,
            processes=self.processes,
        )

    def measure(self, kind: str, result: PublishedResult, names: tuple[str, ...]) -> dict[str, str]:
        """The numbers of a setting into the results, unless they were measured so; returns those that cannot be had."""
        known = self.judge.has_measured(self.run.read_results().measurements(kind), names)
        if self.processes.any(self.processes.is_main and known):
            return {}
        self._tell_device()
        path = self.run.samples / f"{kind}.npz"
        words: dict[str, Any] = result.sampling.to_dict()
        about = Conditions(
            classes="balanced",
            dtype=self.request.precision,
            weights=self.folder.roles,
            checkpoint=self.folder.models["prior_hash"],
            seed=self.request.seed,
            **words,
        )
        found = self.judge.measure(path, names, about)
        _on_main(self.processes, lambda: self._keep(kind, found.to_dict()))
        return found.skipped

    def _keep(self, kind: str, found: dict[str, Any]) -> None:
        generation = self.run.read_results().generation or {}
        self.run.write_results(Results(models=self.folder.models, generation={**generation, kind: found}))
        remove(partial_file(self.run.samples / f"{kind}.npz"))

    def _tell_device(self) -> None:
        device = so_many(device_name(self.processes.device), self.processes.size)
        _on_main(self.processes, lambda: self.folder.add_device(device))


# -- what a reader has to know --------------------------------------------------------------------------------------


def _protocol(
    folder: ReproductionFolder, request: Request, measured: dict[str, dict[str, Measurement]]
) -> dict[str, str]:
    """How the numbers were made, in words."""
    weights = folder.weights()
    told = {
        "tokenizer": f"{weights['tokenizer']} [{folder.models['tokenizer_hash']}]",
        "prior": f"{weights['prior']} [{folder.models['prior_hash']}]",
        "samples": f"{request.samples:,} a setting, classes balanced, seed {request.seed}",
        "precision": "float32" if request.precision == "float32" else f"{request.precision} in the prior, else float32",
        "device": ", ".join(folder.devices),
    }
    for conditions in (found.conditions for numbers in measured.values() for found in numbers.values()):
        if conditions.reference is not None:
            count = conditions.reference_images
            images = f", {count:,} images" if count is not None else ""
            told.setdefault("reference", f"{conditions.reference}{images} [{(conditions.reference_hash or '?')[:12]}]")
        if conditions.network is not None:
            told.setdefault("network", f"{conditions.network} [{(conditions.network_hash or '?')[:12]}]")
            told.setdefault("preparation", str(conditions.preparation))
    return told


def _unlike(
    row: PublishedRow, request: Request, judge: Judge, measured: dict[str, dict[str, Measurement]]
) -> Iterator[str]:
    """Why the measured numbers may not be compared with the published ones."""
    if request.samples != row.samples:
        yield f"{request.samples:,} samples; the published numbers are of {row.samples:,}"
    against = [
        found.conditions for numbers in measured.values() for found in numbers.values() if found.conditions.reference
    ]
    if against and row.reference is not None and not row.reference.is_file(judge.reference, against[0].reference_hash):
        yield f"the reference {against[0].reference} is not the published file {row.reference.name}"
    if judge.network.label != "FID":
        yield f"the network {judge.network.name} does not have the official Inception weights"


# -- processes ------------------------------------------------------------------------------------------------------


def _on_main(processes: Processes, work: Callable[[], object]) -> None:
    """``work`` on the main process, while the others wait; if it fails there, it has failed for all."""
    with processes.agree():
        if processes.is_main:
            work()


@contextmanager
def _alone(folder: ReproductionFolder, processes: Processes) -> Iterator[None]:
    """The folder for these processes alone."""
    with ExitStack() as stack:
        _on_main(processes, lambda: stack.enter_context(folder.run.locked()))
        yield
