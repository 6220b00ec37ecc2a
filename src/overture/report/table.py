"""The table of numbers, and the marks beside those that may not be compared as they stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from overture.evaluation.conditions import Conditions, Measurement, differences
from overture.report import words
from overture.report.records import Record

__all__ = ["Cell", "Footnotes", "Group", "Row", "metric_groups", "protocol_sentences", "ratio"]


@dataclass(frozen=True)
class Cell:
    """One number as it is printed, or nothing if it is not measured."""

    value: str | None
    detail: str = ""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One quantity for every run."""

    label: str
    unit: str
    cells: tuple[Cell, ...]
    better: str = ""
    """``lower``, ``higher`` or nothing."""
    meaning: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


class Footnotes:
    """Marks a, b, c, ... in the order of their first use; the same text gets the same mark."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, note: str) -> str:
        """The mark of this note."""
        if note not in self.texts:
            self.texts.append(note)
        return _letter(self.texts.index(note))

    @property
    def items(self) -> list[tuple[str, str]]:
        """Every mark with its note."""
        return [(_letter(place), note) for place, note in enumerate(self.texts)]


def _letter(place: int) -> str:
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)


def metric_groups(records: Sequence[Record], notes: Footnotes) -> list[Group]:
    """Every number of every run."""
    return [
        Group("Generated images", _generation_rows(records, notes)),
        Group("Reconstruction of held-out images", _reconstruction_rows(records, notes)),
        Group("Entropy of the tokens", _entropy_rows(records, notes)),
        Group("Prior: cross-entropy given the class", _likelihood_rows(records, notes)),
        Group("Negative ELBO of held-out images", _elbo_rows(records)),
        Group("What the first segment fixes", _shared_rows(records)),
        Group("Size and training", (*_start_rows(records), *_cost_rows(records))),
    ]


# -- one measurement for every run ----------------------------------------------------------------------------------


def _measured_cells(
    records: Sequence[Record],
    notes: Footnotes,
    find: Callable[[Record], Measurement | None],
    also: Callable[[Record], list[str]] = lambda record: [],
) -> tuple[Cell, ...]:
    """Numbers with their marks: notes of the measurement, and conditions that differ from the first run's."""
    found = [find(record) for record in records]
    conditions = [measurement.conditions if measurement else None for measurement in found]
    cells = []
    for record, measurement, marks in zip(records, found, _marks(records, conditions, notes), strict=True):
        if measurement is None:
            cells.append(Cell(None))
            continue
        marks = (*marks, *(notes.mark(words.sentence(note)) for note in [*measurement.notes, *also(record)]))
        images = measurement.conditions.images
        value = words.distance(measurement.value) if math.isfinite(measurement.value) else "no finite value"
        cells.append(Cell(value, f"{words.count(images)} images" if images is not None else "", marks))
    return tuple(cells)


def _marks(
    records: Sequence[Record], conditions: Sequence[Conditions | None], notes: Footnotes
) -> list[tuple[str, ...]]:
    """A mark for every run whose conditions differ from those of the first run that has any."""
    first = next((place for place, about in enumerate(conditions) if about), None)
    marks: list[tuple[str, ...]] = []
    for about in conditions:
        base = None if first is None else conditions[first]
        different = differences(base, about) if base and about else []
        if first is None or not different:
            marks.append(())
            continue
        said = words.joined([_said(name, base, about) for name in different])
        marks.append((notes.mark(f"Not measured as in {records[first].name}: {said}."),))
    return marks


def _said(name: str, base: Conditions | None, about: Conditions | None) -> str:
    values = [getattr(p, name) for p in (about, base)]
    if name.endswith("_hash"):
        values = [words.short(value) for value in values]
    values = [words.count(value) if isinstance(value, int) else value or "not told" for value in values]
    return f"{words.FIELDS.get(name, name)} ({values[0]} here, {values[1]} there)"


def _plain_cells(values: Sequence[str | None], details: Sequence[str] | None = None) -> tuple[Cell, ...]:
    details = details or [""] * len(values)
    return tuple(Cell(value, detail if value else "") for value, detail in zip(values, details, strict=True))


# -- the groups -----------------------------------------------------------------------------------------------------


def _generation_rows(records: Sequence[Record], notes: Footnotes) -> tuple[Row, ...]:
    """Whatever was measured of samples: for every metric the samples without guidance, with it, and real images."""
    kinds = {"unguided": "samples without guidance", "guided": _guided(records), "held_out": "real held-out images"}
    measured = [[r.results.measurements(kind) for r in records] for kind in kinds]
    rows = []
    for metric in dict.fromkeys(name for found in measured for of_run in found for name in of_run):
        for (kind, what), found in zip(kinds.items(), measured, strict=True):
            entries = [of_run[metric] for of_run in found if metric in of_run]
            if not entries:
                continue
            names = {entry.name for entry in entries}
            name = " or ".join(sorted(names))
            cells = _measured_cells(
                records,
                notes,
                lambda r, kind=kind, metric=metric: r.results.measurements(kind).get(metric),  # type: ignore[misc]
                lambda r, kind=kind, metric=metric: _fewer(r, kind, metric),  # type: ignore[misc]
            )
            floor = kind == "held_out"
            meaning = "what images score that were never generated" if floor else entries[0].meaning
            rows.append(Row(f"{name}, {what}", "", cells, "" if floor else entries[0].better, meaning))
    return tuple(rows)


def _guided(records: Sequence[Record]) -> str:
    settings = {m.conditions.guidance for r in records for m in r.results.measurements("guided").values()}
    return f"samples, guidance {settings.pop()}" if len(settings) == 1 else "samples, with guidance"


def _fewer(record: Record, kind: str, metric: str) -> list[str]:
    """Beside a floor that was measured with another number of images than the samples."""
    if kind != "held_out":
        return []
    real, generated = (record.results.measurements(side).get(metric) for side in (kind, "unguided"))
    counts = [side.conditions.images if side else None for side in (real, generated)]
    if counts[0] == counts[1] or None in counts:
        return []
    return [
        "Measured with another number of images than the samples, which changes most metrics (a Fréchet distance grows "
        "with fewer), so this floor is not exactly that of the samples."
    ]


def _reconstruction_rows(records: Sequence[Record], notes: Footnotes) -> tuple[Row, ...]:
    distances = [r.results.reconstruction_distance for r in records]
    names = {measurement.name for measurement in distances if measurement}
    name = " or ".join(sorted(names)) or "Fréchet distance"
    quality = [(r.results.reconstruction or {}).get("quality") for r in records]
    # Pixel measures need no feature network and no reference statistics.
    kept = ("images", "image_size", "crop", "resize", "dtype", "weights")
    pixels = [
        Conditions(**{key: getattr(m.conditions, key) for key in kept}) if m is not None else None for m in distances
    ]
    marks = _marks(records, pixels, notes)

    def cells(key: str, digits: int) -> tuple[Cell, ...]:
        out = []
        for q, mark in zip(quality, marks, strict=True):
            if q is None or key not in q:
                out.append(Cell(None))
            elif q[key] is None:
                note = words.sentence(q.get("note", "some images are exact"))
                out.append(Cell("infinite", marks=(*mark, notes.mark(note))))
            else:
                out.append(Cell(f"{q[key]:.{digits}f}", marks=mark))
        return tuple(out)

    rows = [
        Row(
            f"{name}, reconstructions", "", _measured_cells(records, notes, lambda r: r.results.reconstruction_distance),
            "lower", "against the very images they come from",
        ),
        Row("PSNR", "dB", cells("psnr", 2), "higher", "mean over images"),
        Row("SSIM", "", cells("ssim", 4), "higher", "1 is identical"),
    ]  # fmt: skip
    if any(q and "lpips" in q for q in quality):
        rows.append(Row("LPIPS", "", cells("lpips", 4), "lower", "VGG16, version 0.1; mean over images"))
    return tuple(rows)


def _entropy_rows(records: Sequence[Record], notes: Footnotes) -> tuple[Row, ...]:
    entropies = [r.entropy or None for r in records]
    marks = _marks(records, [Conditions(images=e["rows"]) if e else None for e in entropies], notes)

    def cells(make: Callable[[dict[str, Any]], tuple[str, str]]) -> tuple[Cell, ...]:
        return tuple(Cell(*make(e), mark) if e else Cell(None) for e, mark in zip(entropies, marks, strict=True))

    def predicted(e: dict[str, Any]) -> tuple[str, str]:
        t = e["predicted_cliff"]
        return ("none", "too few bits") if t is None else (f"t* = {t}", "")

    def measured(e: dict[str, Any]) -> tuple[str, str]:
        others = words.other_cliffs(e)
        return str(e["cliff"]), f"of {e['positions']}" + (f"; {others}" if others else "")

    return (
        Row("Tokens per image", "", _plain_cells([str(len(r.sizes)) if r.sizes else None for r in records])),
        Row("Codebook size at a position", "entries", _plain_cells([_size_range(r.sizes) for r in records])),
        Row(
            "Room in the tokens", "bits per image",
            _plain_cells([None if r.total_bits is None else words.bits(r.total_bits) for r in records]),
            meaning="the sum of log2 K over the positions",
        ),
        Row(
            "To name a training image", "bits", cells(lambda e: (f"{e['log2_n']:.2f}", f"N = {words.count(e['rows'])}")),
            meaning="log2 N",
        ),
        Row(
            "Held by the tokens, measured", "bits", cells(lambda e: (f"{e['total_bits']:.2f}", f"of {e['log2_n']:.2f}")),
            meaning="entropy of whole rows of training tokens",
        ),
        Row("Predicted cliff", "tokens", cells(predicted), meaning="first tokens with room for log2 N bits"),
        Row(
            "Measured cliff", "tokens", cells(measured),
            meaning="first tokens that hold 99 % of the entropy of all",
        ),
        Row(
            "Training images with tokens of their own", "", cells(lambda e: (words.percent(e["unique_share"][-1]), "")),
            meaning="no other training image has the same tokens",
        ),
        Row(
            "Codebook used, mean over positions", "", _plain_cells(*_usage(records)),
            meaning="share of K at a position that held-out images use",
        ),
    )  # fmt: skip


def _size_range(sizes: Sequence[int]) -> str | None:
    if not sizes:
        return None
    low, high = min(sizes), max(sizes)
    return words.count(low) if low == high else f"{words.count(low)} to {words.count(high)}"


def _usage(records: Sequence[Record]) -> tuple[list[str | None], list[str]]:
    values: list[str | None] = []
    details = []
    for record in records:
        used = record.usage("used_per_position")
        values.append(words.percent(sum(used) / len(used)) if used else None)
        lowest = min(range(len(used)), key=used.__getitem__) if used else 0
        details.append(f"lowest {words.percent(used[lowest])}, token\u00a0{lowest + 1}" if used else "")
    return values, details


def _likelihood_rows(records: Sequence[Record], notes: Footnotes) -> tuple[Row, ...]:
    parts = [r.results.likelihood for r in records]

    def marks(split: str) -> list[tuple[str, ...]]:
        about = [
            Conditions(images=p[f"{split}_allowed"]["images"], crop=p.get("crop"), weights=p.get("weights"))
            if p
            else None
            for p in parts
        ]
        return _marks(records, about, notes)

    def cells(split: str) -> tuple[Cell, ...]:
        name = f"{split}_allowed"
        return tuple(
            Cell(words.bits(p[name]["bits_per_image"]), f"{words.count(p[name]['images'])} images", mark)
            if p
            else Cell(None)
            for p, mark in zip(parts, marks(split), strict=True)
        )

    def gap(p: dict[str, Any] | None) -> str | None:
        if p is None:
            return None
        value = p["held_out_allowed"]["bits_per_image"] - p["train_allowed"]["bits_per_image"]
        return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"

    def both(p: dict[str, Any] | None) -> str | None:
        if p is None:
            return None
        return " / ".join(words.bits(p[f"{split}_vocabulary"]["bits_per_image"]) for split in ("train", "held_out"))

    allowed = "normalised over the codes a position may use, as in sampling"
    return (
        Row("Training images", "bits per image", cells("train"), meaning=allowed),
        Row(
            "Held-out images", "bits per image", cells("held_out"),
            meaning=f"{allowed}; tokens that tell less cost less: read it beside the reconstruction",
        ),
        Row(
            "Gap, held-out − training", "bits per image", _plain_cells([gap(p) for p in parts]),
            meaning="what the prior knows of the training images only",
        ),
        Row(
            "Training / held-out, over the whole vocabulary", "bits per image", _plain_cells([both(p) for p in parts]),
            meaning="codes a position cannot hold are counted too",
        ),
    )  # fmt: skip


def _elbo_rows(records: Sequence[Record]) -> tuple[Row, ...]:
    """Both terms and their sum; no rows where no run has measured them."""
    parts = [record.results.elbo for record in records]
    if not any(parts):
        return ()

    def row(label: str, key: str, meaning: str) -> Row:
        cells = _plain_cells([f"{part[key]:.1f}" if part else None for part in parts])
        return Row(label, "bits per image", cells, meaning=meaning)

    return (
        row("Pixels given the tokens", "reconstruction_bits", "Laplace density of pixel values at its best scale"),
        row("Tokens under the prior", "sequence_bits", "given the class, over the whole vocabulary"),
        row("Both together", "negative_elbo_bits", "comparable between models of the same images; lower is better"),
    )


def _shared_rows(records: Sequence[Record]) -> tuple[Row, ...]:
    """How alike samples are that share their first segment; only runs of several segments have measured it."""
    parts = [record.results.shared_rows for record in records]
    if not any(parts):
        return ()
    names = [f"shared: {part['segment']}" if part else "" for part in parts]

    def values(kind: str) -> list[str | None]:
        return [ratio(part[kind]["ratio"]) if part else None for part in parts]

    meaning = "mean distance within a row over that between rows of one class, in the judge's features"
    return (
        Row(
            "Rows that share it", "ratio", _plain_cells(values("shared"), names), meaning=f"{meaning}; 1: fixes nothing"
        ),
        Row(
            "Rows that share nothing",
            "ratio",
            _plain_cells(values("independent")),
            meaning="the same, as a check: about 1",
        ),
    )


def ratio(value: float | None) -> str:
    """A ratio of distances, or why there is none."""
    return "none (all samples of a class are alike)" if value is None else f"{value:.3f}"


def _start_rows(records: Sequence[Record]) -> tuple[Row, ...]:
    """The trained models that stages have started from, by path and hash, and what was trained of them."""
    rows = []
    for model in ("tokenizer", "prior"):
        stages = [record.config.get(f"{model}_training", {}) for record in records]
        starts = [stage.get("start_from") or None for stage in stages]
        if any(starts):
            told = [f"{s.get('start_hash', '')}, trained: {s.get('trains', 'everything')}" for s in stages]
            rows.append(Row(f"Started from, {model}", "", _plain_cells(starts, told)))
    return tuple(rows)


def _cost_rows(records: Sequence[Record]) -> tuple[Row, ...]:
    rows = []
    for model in ("tokenizer", "prior"):
        steps, done = [], []
        for record in records:
            training = record.config.get(f"{model}_training", {})
            planned = None if training.get("trains") == "nothing" else training.get("steps")
            reached = max((m["step"] for m in record.metrics if m.get("stage") == model), default=None)
            steps.append(None if reached is None else words.count(reached))
            done.append(f"of {words.count(planned)}" if planned and (reached or 0) < planned else "")
        rows.append(Row(f"Training steps, {model}", "", _plain_cells(steps, done)))
    for model in ("tokenizer", "prior"):
        if any(model in record.weights for record in records):
            values = [f"{record.weights[model] / 1e6:.2f}" if model in record.weights else None for record in records]
            rows.append(Row(f"Weights, {model}", "million", _plain_cells(values), meaning="buffers included"))
        seconds = [record.results.seconds.get(model) for record in records]
        if any(value is not None for value in seconds):
            times = [None if value is None else words.duration(value) for value in seconds]
            rows.append(Row(f"Training time, {model}", "", _plain_cells(times)))
    return tuple(rows)


# -- conditions in words --------------------------------------------------------------------------------------------


def protocol_sentences(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(what, how) for every kind of measurement; runs that were measured alike are told together."""
    kinds: list[tuple[str, Callable[[Record], str | None]]] = [
        ("Samples without guidance", lambda r: _how(r.results.measurements("unguided").values())),
        ("Samples with guidance", lambda r: _how(r.results.measurements("guided").values())),
        ("Real held-out images", lambda r: _how(r.results.measurements("held_out").values())),
        ("Reconstructions", lambda r: _how([m for m in [r.results.reconstruction_distance] if m])),
        ("Entropy of the tokens", _how_entropy),
        ("Prior", _how_likelihood),
        ("Not measured", _skipped),
    ]
    sentences = []
    for what, find in kinds:
        runs: dict[str, list[str]] = {}
        for record in records:
            if how := find(record):
                runs.setdefault(how, []).append(record.name)
        sentences += [
            (what if len(runs) == 1 else f"{what} ({words.joined(names)})", how) for how, names in runs.items()
        ]
    return sentences


def _how(measurements: Iterable[Measurement]) -> str | None:
    """How they were made; where not all were made alike, which ones."""
    how: dict[str, list[str]] = {}
    for measurement in measurements:
        how.setdefault(words.in_words(measurement.conditions), []).append(measurement.name)
    if len(how) <= 1:
        return next(iter(how), None)
    return " ".join(f"{words.joined(names)}: {said}" for said, names in how.items())


def _skipped(record: Record) -> str | None:
    skipped = (record.results.generation or {}).get("unguided", {}).get("skipped", {})
    return "; ".join(f"{metric}: {reason}" for metric, reason in skipped.items()) + "." if skipped else None


def _how_entropy(record: Record) -> str | None:
    if not record.entropy:
        return None
    images = words.count(record.entropy["rows"])
    return f"Exact plug-in estimate on the tokens of {images} training images, one row an image; no class labels."


def _how_likelihood(record: Record) -> str | None:
    about = record.results.likelihood
    if not about:
        return None
    train, held_out = (words.count(about[f"{split}_allowed"]["images"]) for split in ("train", "held_out"))
    settings = "; ".join(f"{key}: {about[key]}" for key in ("weights", "crop") if about.get(key))
    return (
        f"Cross-entropy given the class, {train} training and {held_out} held-out images, without guidance; {settings}."
    )
