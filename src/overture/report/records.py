"""What a run has written, read back without torch. Parts that are not there are empty, never made up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.config import from_dict
from overture.errors import OvertureError, UsageError
from overture.files import read_json, read_record
from overture.layout import Layout, Segment
from overture.runs.forms import CONFIG, check_form
from overture.schedules import CodebookConfig
from overture.training.metric_log import read_metrics

if TYPE_CHECKING:
    from overture.evaluation.conditions import Measurement
    from overture.runs.directory import RunDirectory
    from overture.runs.results import Results

__all__ = ["Record", "read_records"]


@dataclass(frozen=True)
class Record:
    """One run as it lies on disk."""

    name: str
    root: Path
    config: dict[str, Any]
    results: Results
    metrics: tuple[dict[str, Any], ...]
    classes: tuple[str, ...]
    """Names of the classes in order; empty if nobody wrote them down."""
    layout: Layout | None
    weights: dict[str, int]
    """Numbers stored as raw weights (buffers included), by model: ``tokenizer``, ``prior``."""

    @property
    def entropy(self) -> dict[str, Any]:
        """The entropy of the training tokens, or nothing."""
        return self.results.entropy or {}

    def distance(self, kind: str) -> Measurement | None:
        """The Fréchet distance of ``unguided`` or ``guided`` samples, or of real ``held_out`` images."""
        return self.results.measurements(kind).get("fid")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codebook size of every local position; empty if unknown."""
        return self.layout.sizes if self.layout else tuple(self.entropy.get("sizes", ()))

    @property
    def total_bits(self) -> float | None:
        """Bits that an image's tokens can hold."""
        return math.fsum(map(math.log2, self.sizes)) if self.sizes else None

    def local_bits(self, part: str) -> list[float]:
        """The prior's cross-entropy in bits at every local position, separators left out.

        ``part`` is a key of the likelihood such as ``held_out_allowed``. Empty if it is not measured.
        """
        bits: list[float] = (self.results.likelihood or {}).get(part, {}).get("bits_per_position", [])
        if self.layout and len(bits) == self.layout.sequence_length:
            return [b for b, position in zip(bits, self.layout.positions, strict=True) if not position.is_separator]
        return bits

    def usage(self, what: str) -> list[float]:
        """``used_per_position`` or ``perplexity_per_position`` of held-out images, over all local positions."""
        segments = (self.results.reconstruction or {}).get("usage", {}).get("segments", {})
        return [value for segment in segments.values() for value in segment[what]]

    def curve(self, stage: str, term: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged term."""
        points = [(m["step"], m[term]) for m in self.metrics if m.get("stage") == stage and term in m]
        return [step for step, _ in points], [value for _, value in points]


def read_records(runs: Sequence[RunDirectory]) -> list[Record]:
    """Read every run; runs of the same name are told apart by their directories."""
    if not runs:
        raise UsageError("report: no runs were given; name at least one run directory")
    records = [_read(run) for run in runs]
    names = [record.name for record in records]
    if len(set(names)) == len(names):
        return records
    return [Record(**{**vars(record), "name": f"{record.name} ({record.root})"}) for record in records]


def _read(run: RunDirectory) -> Record:
    if not run.root.is_dir():
        raise UsageError(f"{run.root}: no such run directory; give the path of a run")
    config = _config(run.config) if run.config.exists() else {}
    classes = read_json(run.classes, list) if run.classes.exists() else []
    models = {"tokenizer": run.tokenizer_model, "prior": run.prior_model}
    return Record(
        name=str(config.get("name") or run.root.resolve().name),
        root=run.root,
        config=config,
        results=run.read_results(),
        metrics=tuple(read_metrics(run.metrics)),
        classes=tuple(map(str, classes)),
        layout=_layout(config, run.config),
        weights={name: _count_weights(path) for name, path in models.items() if path.exists()},
    )


def _config(path: Path) -> dict[str, Any]:
    """The config as plain values: its classes need torch."""
    config = read_record(path)
    try:
        check_form(config, CONFIG, "config")
    except OvertureError as error:
        raise OvertureError(f"{path}: damaged ({error}); repair it") from error
    return config


def _layout(config: dict[str, Any], path: Path) -> Layout | None:
    """The layout that ``TokenizerConfig.layout`` would give, from plain values: its module needs torch."""
    tokenizer = config.get("tokenizer")
    if not tokenizer:
        return None
    try:
        patches = (tokenizer["image_size"] // tokenizer["patch_size"]) ** 2
        segments = []
        for entry in tokenizer["segments"]:
            codebook = from_dict(CodebookConfig, entry["codebook"], f"{path}: codebook")
            segments.append(
                Segment(entry["name"], codebook.build(entry["tokens"] or patches).sizes, entry["separator"])
            )
        return Layout(tuple(segments))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise OvertureError(
            f"{path}: its tokenizer is not one of this version ({error!r}); repair or delete it"
        ) from error


def _count_weights(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys() if name.startswith("raw.")]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise OvertureError(f"{path}: not a readable safetensors file ({error}); train it again") from error
    return sum(math.prod(shape) for shape in shapes)
