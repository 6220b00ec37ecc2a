"""Puts the page together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.files import replacing
from overture.report import svg_figures as figures
from overture.report.cautions import cautions
from overture.report.read_entries import read_entries
from overture.report.records import Record, read_records
from overture.report.strips import Strips, read_strips
from overture.report.summary import missing_parts, summary
from overture.report.table import Footnotes, metric_groups, protocol_sentences, ratio
from overture.report.words import short

if TYPE_CHECKING:
    from overture.runs.directory import RunDirectory

__all__ = ["write_report"]

HERE = Path(__file__).parent


def write_report(runs: Sequence[RunDirectory], path: Path, title: str) -> Path:
    """Write one self-contained page about ``runs`` to ``path``; returns ``path``.

    Reads only what the runs have on disk, and says "not measured yet" where there is nothing. Several runs are shown
    side by side; numbers that were made under unlike conditions are marked.

    Raises :class:`~overture.errors.UsageError` for no runs or a directory that does not exist, and
    :class:`~overture.errors.OvertureError` for damaged files or a ``path`` that cannot be written.
    """
    page = render(read_records(runs), title)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(records: Sequence[Record], title: str) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from overture import __version__

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ratio"] = ratio
    notes = Footnotes()
    config = config_rows(records)
    content: dict[str, Any] = {
        "title": title,
        "version": __version__,
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),
        "runs": records,
        "markers": [figures.marker(place) for place in range(len(records))],
        "summary": summary(records),
        "missing": missing_parts(records),
        "cautions": cautions(records),
        "groups": metric_groups(records, notes),
        "footnotes": notes,
        "protocols": protocol_sentences(records),
        "checkpoints": checkpoints(records),
        "figures": {name: svg and Markup(svg) for name, svg in all_figures(records).items()},
        "priors": [svg and Markup(svg) for svg in (figures.prior_figure(records, p) for p in range(len(records)))],
        "hidden_after": hidden_after(records),
        "samples": class_rows(records),
        "shared": shared_pictures(records),
        "reconstructions": reconstruction_rows(records),
        "entries": entries(records),
        "config": config,
        "different": [row for row in config if row["different"] and row["key"] != "name"],
        "commands": commands(records),
    }
    return environment.get_template("report.html").render(content)


def all_figures(records: Sequence[Record]) -> dict[str, str | None]:
    """The figures that show all runs together, by name."""

    def stage1(terms: dict[str, str], label: str) -> str | None:
        return figures.curves_figure(records, "tokenizer", terms, label)

    return {
        "entropy": figures.entropy_figure(records),
        "entropy_narrow": figures.entropy_figure(records, narrow=True),
        "cumulative": figures.cumulative_figure(records),
        "codebook": figures.codebook_figure(records),
        "used": figures.position_figure(records, "used_per_position", "share of K_t used, percent"),
        "perplexity": figures.position_figure(records, "perplexity_per_position", "perplexity, codes (logarithmic)"),
        "pixels": stage1({"l1": "L1", "l2": "L2"}, "pixel difference, images in −1..1"),
        "perceptual": stage1({"perceptual": "perceptual"}, "perceptual loss, no unit"),
        "adversarial": stage1(
            {"adversarial": "generator's term", "discriminator": "discriminator"}, "adversarial losses, nats"
        ),
        "quantizer": stage1({"quantizer": "quantizer"}, "quantizer loss, no unit"),
        "watched_tokenizer": stage1({"rfd": "rFD"}, "distance of reconstructions"),
        "watched_prior": figures.curves_figure(
            records, "prior", {"gfd": "unguided", "gfd_guided": "guided"}, "distance of samples"
        ),
        "bits": figures.curves_figure(
            records,
            "prior",
            {
                "train_bits_per_image": "training images",
                "held_out_bits_per_image": "held-out images",
                "bits_per_image": "training batches",
            },
            "cross-entropy, bits per image",
        ),
    }


def hidden_after(records: Sequence[Record]) -> tuple[int, int] | None:
    """First and last position that the entropy figures leave out, if any."""
    longest = max((len(r.entropy["conditional_entropy_bits"]) for r in records if r.entropy), default=0)
    shown = figures.shown_positions(records)
    return (shown + 1, longest) if shown < longest else None


def checkpoints(records: Sequence[Record]) -> list[dict[str, str]]:
    """What was measured: hashes of the weights, and the seed."""
    rows = []
    for record in records:
        samples = [*record.results.measurements("unguided").values(), *record.results.measurements("guided").values()]
        found = {"tokenizer": record.results.reconstruction_distance, "prior": next(iter(samples), None)}
        row = {name: short(m.conditions.checkpoint) if m else "not measured yet" for name, m in found.items()}
        rows.append({"name": record.name, **row, "seed": str(record.config.get("seed", "unknown"))})
    return rows


def class_rows(records: Sequence[Record]) -> dict[str, Any] | None:
    """Samples row by row: one row a class, one strip a run."""
    strips = [
        read_strips(
            record,
            "classes.png",
            columns=record.config.get("evaluation", {}).get("shown_per_class"),
            share=0.5 / len(records),
        )
        for record in records
    ]
    if not any(strips):
        return None
    cut = all(s is None or s.columns for s in strips)
    count = max(len(s.rows) for s in strips if s) if cut else 1
    names = max((r.classes for r in records), key=len)
    return {
        "strips": strips,
        "names": [(names[place] if place < len(names) else f"class {place}") if cut else "" for place in range(count)],
        "scale": max(s.scale for s in strips if s),
        "guidance": _guidance(records, strips),
    }


def shared_pictures(records: Sequence[Record]) -> list[dict[str, Any]]:
    """For every run of several segments: rows that share the first one, beside rows that do not."""
    pictures = []
    for place, record in enumerate(records):
        measured = record.results.shared_rows
        strips = read_strips(record, "shared_rows.png", columns=2 * measured["columns"]) if measured else None
        if measured and strips:
            pictures.append({"place": place, "strips": strips, "names": record.classes, **measured})
    return pictures


def _guidance(records: Sequence[Record], strips: Sequence[Strips | None]) -> str:
    """With which guidance the samples were drawn, in words."""
    settings = {
        r.name: r.config.get("evaluation", {}).get("guidance", "unknown")
        for r, s in zip(records, strips, strict=True)
        if s
    }
    different = len(set(settings.values())) > 1
    return "; ".join([f"{v} in {k}" for k, v in settings.items()] if different else list(settings.values())[:1])


def reconstruction_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows of the reconstruction picture: runs of the same originals share them."""
    groups: list[dict[str, Any]] = []
    for place, record in enumerate(records):
        strips = read_strips(record, "reconstructions.png", rows=2, share=0.5 / len(records))
        if strips is None:
            continue
        if len(strips.rows) != 2:
            groups.append({"strips": strips, "rows": [("", place, strips.rows[0])]})
            continue
        originals, decoded = strips.rows
        group = next((g for g in groups if _same_originals(g, strips)), None)
        if group is None:
            group = {"strips": strips, "rows": [("originals", None, originals)]}
            groups.append(group)
        group["rows"].append(("", place, decoded))
    return groups


def _same_originals(group: dict[str, Any], strips: Strips) -> bool:
    label, _, first = group["rows"][0]
    return label == "originals" and first.content == strips.rows[0].content


def entries(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What instruments left in the runs, those of one name together."""
    found = [
        {"place": place, **entry}
        for place, record in enumerate(records)
        for entry in read_entries(record.root / "instruments")
    ]
    return sorted(found, key=lambda entry: entry["name"])


def config_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every dotted key of the resolved configs, with the runs' values."""
    flat = [dict(_flatten(record.config)) for record in records]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = []
    for key in keys:
        values = [values.get(key, "—") for values in flat]
        rows.append({"key": key, "values": values, "different": len(set(values)) > 1})
    return rows


def _flatten(value: Any, where: str = "") -> list[tuple[str, str]]:
    """Dotted keys and printed values; lists of plain values stay together."""
    if isinstance(value, dict) and value:
        return [pair for key, item in value.items() for pair in _flatten(item, f"{where}.{key}" if where else key)]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [pair for place, item in enumerate(value) for pair in _flatten(item, f"{where}.{place}")]
    if isinstance(value, list):
        return [(where, ", ".join(map(_printed, value)) or "(empty)")]
    return [] if value == {} and not where else [(where, _printed(value))]


def _printed(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "":
        return "(empty)"
    return "none" if value is None else str(value)


def commands(records: Sequence[Record]) -> list[str]:
    """The commands that make such runs."""
    recipes = dict.fromkeys(r.config.get("recipe") for r in records)
    return [f"overture run {shlex.quote(recipe)}" for recipe in recipes if recipe]
