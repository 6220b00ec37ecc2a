"""What a run has written, for those who follow it: its config, its rates and its results as numbers by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["begins_with_tokens", "final_numbers", "images_per_second", "training_of"]

Config = Mapping[str, Any]


def begins_with_tokens(config: Config) -> bool:
    """Whether this is the config of a run on token files, which has no tokenizer and no images."""
    return "held_out" in config and "tokenizer" not in config


def training_of(config: Config, stage: str) -> Mapping[str, Any]:
    """The part of a run's config that says how a stage is trained: ``steps``, ``batch_size``; empty if none does."""
    part = config.get(f"{stage}_training")
    if part is None:
        network = config.get("judge" if stage == "judge" else "perceptual_network" if stage == "perceptual" else "")
        part = network.get("training") if isinstance(network, dict) else None
    return part if isinstance(part, dict) else {}


def images_per_second(config: Config, entry: Mapping[str, Any]) -> float | None:
    """Of all processes together, from a line of ``pace.jsonl``."""
    batch_size, rate = training_of(config, entry["stage"]).get("batch_size"), entry.get("steps_per_second")
    if not isinstance(batch_size, int) or rate is None:
        return None
    return float(rate * batch_size)


def final_numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """What ``results.json`` says, as ``unguided/FD(domain)``, ``usage/visual``, ``entropy/total_bits``: finite numbers."""
    try:
        found = dict(_numbers(results))
    except (AttributeError, KeyError, TypeError):  # a file that somebody has changed
        return {}
    return {name: float(x) for name, x in found.items() if isinstance(x, int | float) and math.isfinite(x)}


def _numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for kind, part in (results.get("generation") or {}).items():
        for measurement in part["measurements"].values():
            yield f"{kind}/{measurement['name']}", measurement["value"]
    reconstruction = results.get("reconstruction") or {}
    if distance := reconstruction.get("distance"):
        yield f"reconstruction/{distance['name']}", distance["value"]
    for name in ("psnr", "ssim", "lpips"):
        yield f"reconstruction/{name}", (reconstruction.get("quality") or {}).get(name)
    yield "reconstruction/l1", reconstruction.get("l1")
    for name, segment in (reconstruction.get("usage") or {}).get("segments", {}).items():
        yield f"usage/{name}", segment.get("used")
        yield f"perplexity/{name}", segment.get("perplexity")
    for name in ("total_bits", "cliff"):
        yield f"entropy/{name}", (results.get("entropy") or {}).get(name)
    for name, part in (results.get("likelihood") or {}).items():
        if isinstance(part, dict):
            yield f"likelihood/{name}_bits_per_image", part.get("bits_per_image")
    yield "elbo/negative_elbo_bits", (results.get("elbo") or {}).get("negative_elbo_bits")
