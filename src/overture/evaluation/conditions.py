"""How a number was made, written beside the number.

Two numbers made under unlike conditions are not put in one table without a mark; :func:`differences` says where they
differ. Records call the conditions of a number its ``protocol``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CENTRE_CROP", "Conditions", "Measurement", "differences"]

CENTRE_CROP: dict[str, Any] = {"crop": "center", "resize": "box halving, bicubic"}
"""The words for what :func:`overture.data.transforms.center_crop` does."""

_SUBJECT: dict[str, bool] = {"subject": True}


@dataclass(frozen=True)
class Conditions:
    """Everything that decides a number besides the model itself. None: does not apply, or is not known."""

    network: str | None = None
    """Name of the feature network, and the hash of its weights."""
    network_hash: str | None = None
    preparation: str | None = None
    """What the feature network does to the images first (resize, grey repeated to 3 channels)."""
    reference: str | None = None
    """Name of the reference images or statistics, and their hash."""
    reference_hash: str | None = None
    reference_images: int | None = None
    images: int | None = None
    """Images on the measured side."""
    image_size: int | None = None
    crop: str | None = None
    """Crop and resize of the images before they are measured."""
    resize: str | None = None
    classes: str | None = None
    """How the classes of the images were chosen: ``balanced``, ``as in the data``, ``none``."""
    dtype: str | None = None
    """Number type in which the model ran."""
    guidance: str | None = None
    """The guidance setting in words; ``none`` without guidance."""
    temperature: str | None = None
    top_k: str | None = None
    """How many of the likeliest ids are kept; 0: all."""
    top_p: str | None = None
    """Which share of the probability is kept; 1: all."""
    weights: str | None = None
    """``raw`` or ``ema``."""
    checkpoint: str | None = field(default=None, metadata=_SUBJECT)
    """Hash of what was measured."""
    seed: int | None = field(default=None, metadata=_SUBJECT)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; every field is there, unknown ones are null."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conditions:
        """The inverse of :meth:`to_dict`. A field of another version is an error: the number may differ in it."""
        for field_ in dataclasses.fields(cls):
            value, kind = data.get(field_.name), int if field_.type == "int | None" else str
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise TypeError(
                    f"{field_.name} is {repr(value)[:40]}, needs {'a text' if kind is str else 'a whole number'}"
                )
        return cls(**data)


@dataclass(frozen=True)
class Measurement:
    """One number, its unit, and how it was made."""

    name: str
    value: float
    unit: str
    conditions: Conditions
    notes: tuple[str, ...] = ()
    """Warnings that belong beside the number, such as a singular covariance."""
    better: str = ""
    """``lower``, ``higher``, or nothing where neither is better."""
    meaning: str = ""
    """What the number says, in a few words."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity and no NaN: such a value is null, and a note says what it was."""
        finite = math.isfinite(self.value)
        notes = list(self.notes) if finite else [*self.notes, f"the value is {self.value}"]
        return {
            "name": self.name,
            "value": self.value if finite else None,
            "unit": self.unit,
            "protocol": self.conditions.to_dict(),
            "notes": notes,
            "better": self.better,
            "meaning": self.meaning,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of :meth:`to_dict`; a value that was not finite is NaN."""
        value, notes = data["value"], data.get("notes") or []
        if not isinstance(notes, list):
            raise TypeError("notes need a list")
        return cls(
            name=str(data["name"]),
            value=math.nan if value is None else float(value),
            unit=str(data.get("unit", "")),
            conditions=Conditions.from_dict(data["protocol"]),
            notes=tuple(map(str, notes)),
            better=str(data.get("better", "")),
            meaning=str(data.get("meaning", "")),
        )


def differences(a: Conditions, b: Conditions) -> list[str]:
    """The fields in which two numbers' conditions differ; empty when they may stand in one table.

    The checkpoint and the seed are left out: they say what was measured, not how. What a reference is called does not
    count where its hash is known and the same.
    """
    fields = [field.name for field in dataclasses.fields(Conditions) if not field.metadata.get("subject")]
    odd = [name for name in fields if getattr(a, name) != getattr(b, name)]
    same_reference = a.reference_hash and a.reference_hash == b.reference_hash
    return [name for name in odd if not (name == "reference" and same_reference)]
