"""What was measured of a run: between the stage that measures, ``results.json``, and whoever reads it.

A part is None until it is measured. Numbers stand in plain dictionaries, as they do in the file; the properties know
where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from overture.errors import OvertureError
from overture.evaluation.conditions import Measurement
from overture.runs.forms import RESULTS, check_form, check_lengths

__all__ = ["Results"]

Part = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Everything in ``results.json``."""

    models: dict[str, str] = field(default_factory=dict)
    """``tokenizer_hash`` and ``prior_hash``: the models that everything else was measured of."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time of each training stage."""
    entropy: Part | None = None
    """Of the training tokens (:meth:`~overture.analysis.entropy.ConditionalEntropy.to_dict`)."""
    likelihood: Part | None = None
    """Bits of training and held-out tokens: ``PART_vocabulary`` and ``PART_allowed``, per position and per image."""
    reconstruction: Part | None = None
    """Of held-out images (:meth:`~overture.evaluation.reconstruction.ReconstructionReport.to_dict`)."""
    generation: dict[str, Part] | None = None
    """``unguided`` and ``guided`` samples and real ``held_out`` images against the training images
    (:meth:`~overture.evaluation.evaluation.Evaluation.to_dict`)."""
    elbo: Part | None = None
    """The negative ELBO of held-out images and its terms."""
    failed: dict[str, str] = field(default_factory=dict)
    """Parts that could not be measured, with the reason; the same command tries them again."""
    shared_rows: Part | None = None
    """Rows of samples that share their first segment (:mod:`overture.analysis.shared_rows`)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; parts that are not measured are left out."""
        return {key: part for key, part in dataclasses.asdict(self).items() if part not in (None, {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "results") -> Results:
        """The inverse of :meth:`to_dict`; also reads what version 0.1.0 wrote."""
        known = {field.name for field in dataclasses.fields(cls)}
        parts = {key: part for key, part in data.items() if key in known and part is not None}
        try:
            if isinstance(parts.get("generation"), list) or "held_out_images_distance" in (
                parts.get("reconstruction") or {}
            ):
                parts = _from_old(parts)
            for part, content in parts.items():
                if content is not None:
                    check_form(content, RESULTS[part], part)
            results = cls(**parts)
            results._check()
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, OvertureError) as error:
            said = str(error) if isinstance(error, OvertureError) else repr(error)
            raise OvertureError(f"{where}: damaged ({said}); delete it to measure again") from error
        return results

    def _check(self) -> None:
        """Refuse measurements that are none, and lists of unlike lengths."""
        _ = self.reconstruction_distance, *map(self.measurements, self.generation or {})
        if self.entropy:
            lists = ("conditional_entropy_bits", "cumulative_bits", "unique_share", "sizes")
            check_lengths("entropy", *(self.entropy[name] for name in lists))
        if self.likelihood:
            parts = (part for part in self.likelihood.values() if isinstance(part, dict))
            check_lengths("likelihood", *(part["bits_per_position"] for part in parts))

    def measurements(self, kind: str) -> dict[str, Measurement]:
        """Numbers by metric of ``unguided``, ``guided`` or ``held_out`` images; empty if there are none."""
        found = (self.generation or {}).get(kind, {}).get("measurements", {})
        return {name: Measurement.from_dict(entry) for name, entry in found.items()}

    @property
    def reconstruction_distance(self) -> Measurement | None:
        """``rFID`` or ``rFD(network)``."""
        distance = (self.reconstruction or {}).get("distance")
        return Measurement.from_dict(distance) if distance else None


def _from_old(parts: dict[str, Any]) -> dict[str, Any]:
    """Results of version 0.1.0, where samples had a Fréchet distance alone, beside that of held-out images."""
    generation = {}
    for entry in parts.get("generation") or ():
        entry = {**entry, "name": str(entry["name"]).removeprefix("g")}
        # Said of samples what was done to the images they were measured against.
        entry["protocol"] = {**entry["protocol"], "crop": "as they are", "resize": None}
        guided = entry["protocol"].get("guidance") not in (None, "none")
        generation["guided" if guided else "unguided"] = {"measurements": {"fid": entry}, "skipped": {}}
    reconstruction = dict(parts.get("reconstruction") or {})
    real = reconstruction.pop("held_out_images_distance", None)
    if real:
        real = {**real, "name": str(real["name"]).removeprefix("g")}
        generation["held_out"] = {"measurements": {"fid": real}, "skipped": {}}
    if "l1" not in reconstruction and not parts.get("elbo"):
        reconstruction = {}  # it was stopped between the two, and the ELBO now needs what was not kept then
    generated = generation if parts.get("generation") else None
    return {**parts, "generation": generated, "reconstruction": reconstruction or None}
