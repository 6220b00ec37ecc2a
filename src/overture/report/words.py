"""Numbers and protocols as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from overture.evaluation.conditions import Conditions

__all__ = [
    "FIELDS",
    "bits",
    "count",
    "distance",
    "duration",
    "in_words",
    "joined",
    "other_cliffs",
    "percent",
    "sentence",
    "short",
]

FIELDS = {
    "network": "feature network",
    "network_hash": "weights of the feature network",
    "preparation": "preparation of the images",
    "reference": "reference",
    "reference_hash": "content of the reference",
    "reference_images": "number of reference images",
    "images": "number of images",
    "image_size": "image size",
    "crop": "crop",
    "resize": "resize",
    "classes": "class balance",
    "dtype": "number type",
    "guidance": "guidance",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "weights": "weights",
}
"""Plain names for what the conditions of two numbers may differ in."""


def distance(value: float) -> str:
    """Three significant digits: 5.30, 0.0412, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def bits(value: float) -> str:
    """Bits with one decimal; small ones with two significant digits."""
    return f"{value:,.1f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A share of 1, in percent; never 100 % when something is missing."""
    if share == 1:
        return "100 %"
    return f"{min(round(100 * share, 1), 99.9):.1f} %"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads well."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def joined(items: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def sentence(note: str) -> str:
    """With a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:].rstrip('.')}."


def short(digest: str | None) -> str:
    """The beginning of a hash."""
    return digest[:12] if digest else "unknown"


def in_words(conditions: Conditions) -> str:
    """How a number was made, as one sentence; what the conditions leave open is left out."""
    p = conditions
    parts = []
    if p.images is not None:
        against = f", measured against {p.reference}" if p.reference else ""
        if p.reference_images is not None:
            against += f" ({count(p.reference_images)} images, sha256 {short(p.reference_hash)})"
        parts.append(f"{count(p.images)} images{against}")
    if p.network:
        prepared = f", images prepared: {p.preparation}" if p.preparation else ""
        parts.append(f"feature network {p.network} (weights sha256 {short(p.network_hash)}){prepared}")
    if p.image_size:
        parts.append(f"{p.image_size} px")
    parts += [f"{name}: {value}" for name, value in (("crop", p.crop), ("resize", p.resize)) if value]
    if p.classes:
        parts.append(f"classes: {p.classes}")
    if p.guidance:
        parts.append(f"guidance: {p.guidance}")
    parts += [f"temperature {p.temperature}"] if p.temperature else []
    parts += [f"top-k {p.top_k}"] if p.top_k not in (None, "0") else []
    parts += [f"top-p {p.top_p}"] if p.top_p not in (None, "1") else []
    parts += [f"weights: {p.weights}"] if p.weights else []
    parts += [f"number type {p.dtype}"] if p.dtype else []
    return "; ".join(parts) + "."


def other_cliffs(entropy: Mapping[str, Any]) -> str:
    """``90 % in the first 4, 95 % in the first 6``: the measured cliff by other thresholds, where they were recorded."""
    others = [(share, cliff) for share, cliff in entropy.get("cliffs", {}).items() if cliff != entropy["cliff"]]
    return ", ".join(f"{share.replace('%', ' %')} in the first {cliff}" for share, cliff in others)
