"""The opening paragraph, computed from the numbers; it states them and leaves the judgement to the reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from overture.evaluation.protocol import differences
from overture.report import words
from overture.report.records import Record
from overture.report.table import samples

__all__ = ["missing_parts", "summary"]

PARTS = {
    "entropy": "entropy of the tokens",
    "likelihood": "cross-entropy of the prior",
    "reconstruction": "reconstruction",
    "generation": "distance of samples",
}


def missing_parts(records: Sequence[Record]) -> list[str]:
    """What is not measured yet, and in which runs."""
    missing = []
    for part, name in PARTS.items():
        without = [r.name for r in records if not r.results.get(part)]
        if without:
            missing.append(name + (f" ({words.joined(without)})" if len(records) > 1 else ""))
    return missing


def summary(records: Sequence[Record]) -> list[str]:
    """Sentences in order; those whose numbers are missing are left out."""
    return [
        *_subject(records),
        *(_cliff(r) for r in records if r.entropy),
        *_samples(records),
        *_reconstruction(records),
        *_prior(records),
        *_seeds(records),
    ]


def _subject(records: Sequence[Record]) -> list[str]:
    names = words.joined([r.name for r in records])
    counts = {r.training_images for r in records if r.training_images}
    if len(counts) != 1:
        return [f"This page compares {names}." if len(records) > 1 else f"This page describes {names}."]
    images = counts.pop()
    bits = next(r.entropy["log2_n"] for r in records if r.entropy)
    verb = "are compared on" if len(records) > 1 else "was trained on"
    if not all(r.entropy for r in records):
        return [f"{names} {verb} {words.count(images)} training images, as far as measured: naming one of them takes {bits:.2f} bits."]
    return [f"{names} {verb} {words.count(images)} images; naming one of them takes {bits:.2f} bits."]


def _cliff(record: Record) -> str:
    e = record.entropy
    t, measured, positions = e["predicted_cliff"], e["cliff"], e["positions"]
    held = f"measured, {_first(measured)} 99 % of what all {positions} tell of the image"
    if t is None:
        return (
            f"In {record.name} the tokens have room for {words.bits(e['total_bits'] if not record.total_bits else record.total_bits)} "
            f"bits, too few to name every training image (no predicted t*); {held}."
        )
    return f"In {record.name} the first {_tokens(t)} could name every training image (predicted t* = {t}); {held}."


def _tokens(count: int) -> str:
    return "token" if count == 1 else f"{count} tokens"


def _first(count: int) -> str:
    return f"the first {_tokens(count)} hold{'s' if count == 1 else ''}"


def _samples(records: Sequence[Record]) -> list[str]:
    sentences = []
    for guided, where in ((False, "without guidance"), (True, "with guidance")):
        values = _values(records, lambda r, guided=guided: samples(r, guided))  # type: ignore[misc]
        if values:
            sentences.append(f"{values[0]} of samples {where}: {values[1]}")
    if not sentences:
        return []
    floor = _values(records, lambda r: (r.results.get("reconstruction") or {}).get("held_out_images_distance"))
    real = f"; real held-out images score {floor[1]}" if floor else ""
    return ["; ".join(sentences) + real + " (lower is nearer to the training images)."]


def _reconstruction(records: Sequence[Record]) -> list[str]:
    values = _values(records, lambda r: (r.results.get("reconstruction") or {}).get("distance"))
    return [f"{values[0]} of reconstructions: {values[1]}."] if values else []


def _values(records: Sequence[Record], find: Callable[[Record], dict[str, Any] | None]) -> tuple[str, str] | None:
    """The name of a distance, and its value for each run; equal values that stand for one thing are said once."""
    found = [(r.name, m) for r in records if (m := find(r)) and m["value"] is not None]
    if not found:
        return None
    names = {m["name"] for _, m in found}
    name = names.pop() if len(names) == 1 else "Fréchet distance"
    printed = [(run, words.distance(m["value"])) for run, m in found]
    protocols = [words.read_protocol(m) for _, m in found]
    mark = " (measured differently, see the marks)" if any(differences(protocols[0], p) for p in protocols[1:]) else ""
    if len({value for _, value in printed}) == 1 and len(printed) == len(records):
        both = " in all runs" if len(records) > 1 else ""
        return name, printed[0][1] + both + mark
    return name, ", ".join(f"{value} ({run})" for run, value in printed) + mark


def _prior(records: Sequence[Record]) -> list[str]:
    parts = []
    for record in records:
        likelihood = record.results.get("likelihood")
        if likelihood:
            train, held_out = (likelihood[f"{part}_allowed"]["bits_per_image"] for part in ("train", "held_out"))
            run = f" in {record.name}" if len(records) > 1 else ""
            parts.append(f"{words.bits(train)} bits for a training image and {words.bits(held_out)} for a held-out one{run}")
    return [f"The prior needs {'; '.join(parts)}."] if parts else []


def _seeds(records: Sequence[Record]) -> list[str]:
    seeds = {r.config.get("seed") for r in records}
    if len(records) < 2 or len(seeds) != 1 or None in seeds:
        return []
    return [f"Every run was trained once (seed {seeds.pop()}); how far the numbers vary from seed to seed is not measured."]
