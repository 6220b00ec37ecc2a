"""Published numbers whose weights were released: what ``overture reproduce`` measures again.

Source: "Autoregressive Visual Generation Needs a Prologue" (arXiv 2605.06137), its table of results on ImageNet 256, and
its release of weights. A row has the name of the recipe that would train it; the settings are that recipe's presets, the
sizes are those of the directories (:mod:`overture.interop.releases`). No weights of VCQ (arXiv 2605.06207) were released.
Anyone's row is named ``module:name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from overture.errors import UsageError, nearest
from overture.evaluation.references import ADM_IMAGENET_256, PublishedReference
from overture.interop.releases import RELEASES, Release
from overture.priors.sampling import Sampling
from overture.recipes.presets import load_preset
from overture.registry import OpenList

__all__ = ["PUBLISHED", "PublishedResult", "PublishedRow", "load_row"]


@dataclass(frozen=True)
class PublishedResult:
    """What was published at one setting: ``numbers`` by the names of metrics (``fid``, ``is``, ...)."""

    sampling: Sampling
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table of results, with all that is needed to measure it again."""

    label: str
    """What the paper calls it."""
    source: str
    """The paper."""
    tokenizer: str
    """Name of the directory of the release with the tokenizer, and that with the prior (the same one, where they were
    trained in one stage)."""
    prior: str
    results: Mapping[str, PublishedResult]
    """By the name of the setting: ``guided``, ``unguided``."""
    weights: str
    """Where the directories lie: a folder, or ``hf:owner/name``."""
    config: Path | None = None
    """The release's ``config_resolved.json``, if the directories have other names than those in ``RELEASES``."""
    reference: PublishedReference | None = ADM_IMAGENET_256
    """What the numbers were measured against; None where it cannot be had: then ``--reference`` has to be given."""
    samples: int = 50_000
    rfid: float | None = None
    """FID of reconstructions, told but not measured here: it needs the validation images."""
    notes: tuple[str, ...] = field(default=())
    """What is known of how the published numbers were made, and differs here."""

    @property
    def directories(self) -> tuple[str, ...]:
        """The directories of the release that are needed, the tokenizer's first."""
        return tuple(dict.fromkeys((self.tokenizer, self.prior)))

    @property
    def release(self) -> Release:
        """Sizes of both models."""
        if self.config is not None:
            from overture.interop.release_config import read_config

            return read_config(self.config)[0]
        for name in self.directories:
            if name not in RELEASES:
                raise UsageError(
                    f"{self.label}: no released directory is called '{name}'{nearest(name, RELEASES)}; give its config"
                )
        return RELEASES[self.prior]


def load_row(name: str) -> PublishedRow:
    """The row called ``name``, ours or ``module:name``; an unknown one is answered with the nearest."""
    row: PublishedRow = PUBLISHED.get(name)
    return row


_NOTES = (
    "the release samples in bfloat16 and takes the statistics of its samples with the Inception network in TensorFlow",
)


def _row(
    label: str,
    recipe: str,
    tokenizer: str,
    prior: str,
    rfid: float,
    fid: float,
    unguided_fid: float,
    company: tuple[float, float, float] | None = None,
) -> PublishedRow:
    """A row of the Prologue paper: gFID with guidance and without, and with it IS, precision and recall, where told."""
    guided = {"fid": fid, **dict(zip(("is", "precision", "recall"), company or (), strict=False))}
    return PublishedRow(
        label,
        "arXiv 2605.06137",
        tokenizer,
        prior,
        {
            "guided": PublishedResult(load_preset(recipe, "paper"), guided),
            "unguided": PublishedResult(load_preset(recipe, "unguided"), {"fid": unguided_fid}),
        },
        "hf:Zyriix/prologue",
        rfid=rfid,
        notes=_NOTES,
    )


_B, _L, _JOINT = "prologue-b-tokenizer", "prologue-l-tokenizer", "prologue-onestage-joint"

ONE_D = _row("1D", "imagenet-1d", "1d-tokenizer", "ar-1d-base", 2.11, 6.10, 19.32)
TWO_D = _row("2D", "imagenet-2d", "2d-tokenizer", "ar-2d-base", 2.15, 5.02, 21.01)
B_B = _row("B-B", "prologue-b-b", _B, "ar-prologue-b-b", 2.24, 4.11, 10.75, (210.3, 0.83, 0.48))
B_L = _row("B-L", "prologue-b-l", _B, "ar-prologue-b-l", 2.24, 2.67, 6.56, (251.2, 0.82, 0.56))
B_XL = _row("B-XL", "prologue-b-xl", _B, "ar-prologue-b-xl", 2.24, 2.43, 5.22, (252.6, 0.80, 0.59))
L_B = _row("L-B", "prologue-l-b", _L, "ar-prologue-l-b", 0.99, 2.15, 5.02, (219.9, 0.79, 0.60))
L_L = _row("L-L", "prologue-l-l", _L, "ar-prologue-l-l", 0.99, 1.52, 2.81, (251.6, 0.77, 0.66))
L_XL = _row("L-XL", "prologue-l-xl", _L, "ar-prologue-l-xl", 0.99, 1.46, 2.26, (257.7, 0.78, 0.66))
POST = _row("Post", "prologue-post", "prologue-post-tokenizer", "ar-prologue-post-b", 2.15, 3.88, 11.04)
ONE_STAGE = _row("OneStage", "prologue-onestage", _JOINT, _JOINT, 2.09, 5.41, 21.00)

PUBLISHED = OpenList(
    "published row",
    {
        "imagenet-1d": "overture.recipes.published:ONE_D",
        "imagenet-2d": "overture.recipes.published:TWO_D",
        "prologue-b-b": "overture.recipes.published:B_B",
        "prologue-b-l": "overture.recipes.published:B_L",
        "prologue-b-xl": "overture.recipes.published:B_XL",
        "prologue-l-b": "overture.recipes.published:L_B",
        "prologue-l-l": "overture.recipes.published:L_L",
        "prologue-l-xl": "overture.recipes.published:L_XL",
        "prologue-post": "overture.recipes.published:POST",
        "prologue-onestage": "overture.recipes.published:ONE_STAGE",
    },
    kind="overture.recipes.published:PublishedRow",
)
