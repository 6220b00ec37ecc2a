"""The opening paragraph, computed from the numbers; it states them and leaves the judgement to the reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from overture.evaluation.conditions import Measurement, differences
from overture.report import words
from overture.report.records import Record

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
        without = [r.name for r in records if not getattr(r.results, part)]
        if without:
            missing.append(name + (f" ({words.joined(without)})" if len(records) > 1 else ""))
    return missing


def summary(records: Sequence[Record]) -> list[list[str]]:
    """Two paragraphs of sentences; those whose numbers are missing are left out."""
    return [
        [*_subject(records), *_cliff(records), *_samples(records)],
        [*_reconstruction(records), *_prior(records), *_seeds(records)],
    ]


def _subject(records: Sequence[Record]) -> list[str]:
    names = words.joined([r.name for r in records])
    compared = len(records) > 1
    sizes = {(r.entropy["rows"], r.entropy["log2_n"]) for r in records if r.entropy}
    if len(sizes) != 1:
        return [f"This page {'compares the runs' if compared else 'describes the run'} {names}."]
    images, bits = sizes.pop()
    verb = "are compared" if compared else "was trained"
    where = "" if all(r.entropy for r in records) else ", as far as that is measured"
    return [
        f"The {'runs' if compared else 'run'} {names} {verb} on {words.count(images)} images{where}; naming one of them takes {bits:.2f} bits."
    ]


def _cliff(records: Sequence[Record]) -> list[str]:
    measured = [r for r in records if r.entropy]
    if not measured:
        return []
    several = len(records) > 1
    room, held, no_room = [], [], []
    for record in measured:
        e, run = record.entropy, f" ({record.name})" if several else ""
        if e["predicted_cliff"] is None:
            no_room.append(record.name)
        else:
            room.append(f"the first {_tokens(e['predicted_cliff'])}{run}")
        others = words.other_cliffs(e)
        held.append(f"the first {e['cliff']} of {e['positions']}{f' ({others})' if others else ''}{run}")
    sentences = []
    if room:
        single = room[1:] == [] and measured[0].entropy["predicted_cliff"] == 1
        sentences.append(f"{words.joined(room)} {'has' if single else 'have'} room for that: the predicted cliff t*")
    if no_room:
        sentences.append(
            f"the tokens of {words.joined(no_room)} have room for less than that, so there is no predicted t*"
        )
    sentences.append(f"measured, 99 % of the entropy of the tokens lies in {words.joined(held)}")
    shared = [r for r in measured if r.entropy["total_bits"] < 0.99 * r.entropy["log2_n"]]
    if shared:
        bits = [words.bits(r.entropy["total_bits"]) + (f" ({r.name})" if several else "") for r in shared]
        sentences.append(
            f"not every training image has tokens of its own: the tokens hold {words.joined(bits)} of those bits"
        )
    return [words.sentence(sentence) for sentence in sentences]


def _tokens(count: int) -> str:
    return "token" if count == 1 else f"{count} tokens"


def _samples(records: Sequence[Record]) -> list[str]:
    sentences: list[str] = []
    for kind, where in (("unguided", "without guidance"), ("guided", "with guidance")):
        values = _values(records, lambda r, kind=kind: r.distance(kind))  # type: ignore[misc]
        if values:
            name = f"{values[0]} of samples " if not sentences else ""
            sentences.append(f"{name}{where}: {values[1]}")
    if not sentences:
        return []
    floor = _values(records, lambda r: r.distance("held_out"))
    real = f"; real held-out images score {floor[1]}" if floor else ""
    return ["; ".join(sentences) + real + " (lower: nearer to the training images)."]


def _reconstruction(records: Sequence[Record]) -> list[str]:
    values = _values(records, lambda r: r.results.reconstruction_distance)
    return [f"{values[0]} of reconstructions: {values[1]}."] if values else []


def _values(records: Sequence[Record], find: Callable[[Record], Measurement | None]) -> tuple[str, str] | None:
    """The name of a distance, and its value for each run; equal values that stand for one thing are said once."""
    found = [(r.name, m) for r in records if (m := find(r)) and math.isfinite(m.value)]
    if not found:
        return None
    names = {m.name for _, m in found}
    name = " or ".join(sorted(names))
    printed = [(run, words.distance(m.value)) for run, m in found]
    first = found[0][1].conditions
    unlike = any(differences(first, m.conditions) for _, m in found[1:])
    mark = " (measured differently, see the marks)" if unlike else ""
    if len({value for _, value in printed}) == 1:
        runs = f" ({words.joined([run for run, _ in printed])})" if len(records) > 1 else ""
        return name, printed[0][1] + runs + mark
    return name, ", ".join(f"{value} ({run})" for run, value in printed) + mark


def _prior(records: Sequence[Record]) -> list[str]:
    parts = []
    for record in records:
        likelihood = record.results.likelihood
        if likelihood:
            train, held_out = (likelihood[f"{part}_allowed"]["bits_per_image"] for part in ("train", "held_out"))
            run = f" in {record.name}" if len(records) > 1 else ""
            parts.append(
                f"{words.bits(train)} bits for a training image and {words.bits(held_out)} for a held-out one{run}"
            )
    return [f"The prior needs {'; '.join(parts)}."] if parts else []


def _seeds(records: Sequence[Record]) -> list[str]:
    seeds = {r.config.get("seed") for r in records}
    if len(records) < 2 or len(seeds) != 1 or None in seeds:
        return []
    return [
        f"Every run was trained once (seed {seeds.pop()}); how far the numbers vary from seed to seed is not measured."
    ]
