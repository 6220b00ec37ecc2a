"""A suite's table in Markdown."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overture.bench.chance import Chance, Comparison, Sample, unit_of
from overture.bench.member_file import Finished
from overture.bench.suite import Suite
from overture.errors import UsageError, near
from overture.evaluation.conditions import Conditions, differences
from overture.report.words import FIELDS, in_words, joined
from overture.training import hardware

__all__ = ["Cell", "cells", "markdown", "page_text"]

WITHIN, UNKNOWN, UNLIKE = "≈", "?", "†"


@dataclass(frozen=True)
class Cell:
    """One metric of one run."""

    sample: Sample
    comparison: Comparison | None
    """With the run that this one is compared with; None where there is no such one."""
    unlike: tuple[str, ...] = ()
    """In which conditions its numbers differ from those it is compared with, or else from the first of the column."""

    @property
    def mark(self) -> str:
        """What stands behind the number."""
        chance = (
            "" if self.comparison is None else {None: UNKNOWN, True: WITHIN, False: ""}[self.comparison.within_chance]
        )
        return chance + (UNLIKE if self.unlike else "")

    @property
    def text(self) -> str:
        """Mean and spread, two digits of the spread, with the marks."""
        mean, spread = self.sample.mean, self.sample.spread
        leading = spread / 10 if spread else abs(mean) / 1000  # the place of the last digit that is told
        digits = max(0, -math.floor(math.log10(leading))) if leading else 0
        digits = 0 if not spread and float(mean).is_integer() else min(digits, 6)
        told = f"{mean:,.{digits}f}" if spread is None else f"{mean:,.{digits}f} ± {spread:,.{digits}f}"
        return f"{told} {self.mark}".rstrip()

    @property
    def unbroken(self) -> str:
        """The same for a page, where a narrow column must not take it apart."""
        return self.text.replace(" ", "\N{NO-BREAK SPACE}")


def cells(suite: Suite, finished: Mapping[str, Finished]) -> dict[tuple[str, str], Cell]:
    """By run and metric; what no finished member has is left out. A metric that none has is refused, once every run has
    a finished member."""
    present = {name for each in finished.values() for name in each.values}
    whole = {each.member.run for each in finished.values() if not each.lacks} == {run.name for run in suite.runs}
    for metric in suite.metrics:
        if whole and metric not in present and not suite.is_tiny:  # which has few images and tokens
            raise UsageError(f"suite: no member has a value '{metric}'{near(metric, present)}")
    samples: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    protocols: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in finished.values():
        for metric in suite.metrics:
            if metric in each.values:
                value, member = each.values[metric], each.member
                samples.setdefault((member.run, metric), {})[member.seed, member.prior] = value.value
                protocols.setdefault((member.run, metric), []).append(value.protocol or {})
    unit = unit_of(samples.values())
    of_metric = {
        metric: {run: Sample(values, unit) for (run, own), values in samples.items() if own == metric}
        for metric in suite.metrics
    }
    chances = {metric: Chance.pooled(_own_values(suite, runs)) for metric, runs in of_metric.items()}
    found = {}
    for run, metric in samples:
        other = suite.compared_with(run)
        sample, baseline = of_metric[metric][run], of_metric[metric].get(other)
        compared = Comparison.of(sample, baseline, chances[metric]) if baseline else None
        column = next(protocols[own.name, metric] for own in suite.runs if (own.name, metric) in protocols)
        first = protocols.get((other, metric), column)[0]
        odd = dict.fromkeys(name for own in protocols[run, metric] for name in _unlike(first, own))
        found[run, metric] = Cell(sample, compared, tuple(odd))
    return found


def _own_values(suite: Suite, samples: Mapping[str, Sample]) -> list[Sample]:
    """Without runs that have the value of the tokenizer that they start from: it is no second measure of chance."""
    starts = {run: samples.get(suite.starts_from.get(run, "")) for run in samples}
    return [
        sample
        for run, sample in samples.items()
        if not (start := starts[run]) or any(start.values.get(unit) != value for unit, value in sample.values.items())
    ]


def _unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The conditions in which two values differ, but for those that say whose the values are."""
    if "checkpoint" in first and "checkpoint" in other:
        return differences(Conditions.from_dict(first), Conditions.from_dict(other))
    own = ("seed", "checkpoint")
    return [name for name in sorted({*first, *other}) if name not in own and first.get(name) != other.get(name)]


def markdown(name: str, suite: Suite, finished: Mapping[str, Finished]) -> str:
    """The table, and below it what its numbers are."""
    table = cells(suite, finished)
    notes = [*_notes(name, suite, finished, table), *_protocols(suite, finished)]
    return "\n".join([*_rows(suite, {key: cell.text for key, cell in table.items()}), "", "  \n".join(notes)]) + "\n"


def page_text(name: str, suite: Suite, finished: Mapping[str, Finished], picture: str) -> str:
    """The same for a page: with a picture, and how each number was made where a reader unfolds it."""
    table = cells(suite, finished)
    parts = [
        "\n".join(_rows(suite, {key: cell.unbroken for key, cell in table.items()})),
        "  \n".join(_notes(name, suite, finished, table)),
        picture,
        "<details><summary>How these numbers were made</summary>",
        "  \n".join(_protocols(suite, finished)),
        "</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(suite: Suite, texts: Mapping[tuple[str, str], str]) -> list[str]:
    head = ["", *suite.metrics.values()]
    begun = dict.fromkeys(run for run, _ in texts)
    rows = [
        [run.name, *(texts.get((run.name, metric), "") for metric in suite.metrics)]
        for run in suite.runs
        if run.name in begun
    ]
    return [f"|{'|'.join(f' {text} ' if text else ' ' for text in row)}|" for row in (head, ["---"] * len(head), *rows)]


def _notes(
    name: str, suite: Suite, finished: Mapping[str, Finished], table: Mapping[tuple[str, str], Cell]
) -> list[str]:
    command = f"overture bench {name}" + (" --tiny" if suite.is_tiny else "")
    whole = sum(not each.lacks for each in finished.values())
    lacking = len(finished) - whole
    short = f"; {lacking} more without all of their readings" if lacking else ""
    notes = [f"{whole} of {len(suite.members)} members{short} (`{command}`), {_counts(suite)}."]
    begun = {each.member.run for each in finished.values()}
    absent = [run.name for run in suite.runs if run.name not in begun]
    notes += [f"Not run yet: {joined(absent)}."] if absent else []
    if suite.is_tiny:
        notes.append("This is the tiny form, trained for seconds: its numbers mean nothing.")
    unit = next((cell.sample.over for cell in table.values() if cell.sample.spread is not None), "")
    notes += [f"Mean ± standard deviation over {unit}."] if unit else []
    compared = [cell.comparison for cell in table.values() if cell.comparison is not None]
    if compared:
        known = sum(each.margin is not None for each in compared)
        if known:
            notes.append(
                f"{WITHIN}: the difference to {suite.baselines} is within chance (its 95 % interval holds 0; the variance "
                f"over {unit} is pooled over all runs). {known} were compared; of differences that are nothing but chance, "
                "one in twenty is not marked."
            )
        if known < len(compared):
            notes.append(f"{UNKNOWN}: chance is not known, it takes two seeds or two priors of each.")
    marked = {(suite.metrics[m], FIELDS.get(f, f)) for (_, m), cell in table.items() for f in cell.unlike}
    notes += [f"{UNLIKE} made under unlike conditions: {'; '.join(f'{m}: {f}' for m, f in sorted(marked))}."] * bool(
        marked
    )
    return notes


def _counts(suite: Suite) -> str:
    seeds = f"seed {suite.seeds[0]}" if len(suite.seeds) == 1 else f"seeds {joined([str(s) for s in suite.seeds])}"
    return f"{len(suite.runs)} runs, {seeds}" + (f", {suite.priors} priors a tokenizer" if suite.priors > 1 else "")


def _protocols(suite: Suite, finished: Mapping[str, Finished]) -> list[str]:
    """How the numbers of a column were made, of its first number, columns with one protocol together; and on what."""
    said: dict[str, list[str]] = {}
    for metric, heading in suite.metrics.items():
        protocol = next((each.values[metric].protocol for each in finished.values() if metric in each.values), None)
        if not protocol:
            continue
        if "checkpoint" in protocol:
            words = in_words(Conditions.from_dict({**protocol, "seed": None, "checkpoint": None}))
        else:
            told = {
                key.replace("_", " "): value for key, value in protocol.items() if key != "seed" and value is not None
            }
            numbers = ((key, f"{value:,}" if isinstance(value, int) else value) for key, value in told.items())
            words = f"{'; '.join(f'{key} {value}' for key, value in numbers)}."
        said.setdefault(words, []).append(heading)
    notes = [f"{joined(headings)}: {words}" for words, headings in said.items()]
    data = dict.fromkeys(
        tuple(each.record["data"][p]["images"] for p in ("train", "held_out")) for each in finished.values()
    )
    notes += [f"Images: {joined([f'{n:,} for training, {m:,} held out' for n, m in data])}."] if data else []
    return notes + _machines(list(finished.values()))


def _machines(finished: Sequence[Finished]) -> list[str]:
    """Where numbers were measured, and where models were trained as far as members say so (older ones do not)."""
    records = [record for each in finished for record in (each.record, *each.record.get("added", ()))]
    measured = {f"{record['processor']} ({record['device']}, PyTorch {record['torch']})" for record in records}
    notes = [f"Measured on: {joined(sorted(measured))}."] if measured else []
    trained: Counter[str] = Counter()
    for each in finished:
        made = (each.record.get("trained_with") or {}).values()
        trained.update({html.escape(hardware.in_words(told), quote=False) for told in made} or {"not recorded"})
    if trained.keys() - {"not recorded"}:
        counts = [f"{words} ({count} of {len(finished)} members)" for words, count in sorted(trained.items())]
        notes.append(f"Trained on: {joined(counts)}.")
    return notes
