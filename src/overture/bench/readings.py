"""What is read off a member's finished run: values by dotted name, each with its unit and its protocol.

A reading is a function of the run and the device. What ``results.json`` holds costs nothing to read; the others measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from overture.analysis import neighbours, probe
from overture.analysis.entropy import conditional_entropy
from overture.data.order import some_of
from overture.errors import UsageError
from overture.layout import Layout
from overture.pipeline import Pipeline, load_prior, load_tokenizer
from overture.priors.likelihood import measure_likelihood
from overture.registry import OpenList, strangers_code
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import judge_network
from overture.runs.results import Results

__all__ = ["READINGS", "Reading", "Value", "take_readings"]

CLIFF_IMAGES = (1_000, 5_000, 20_000, 60_000)
PROBE_ROWS = 6_000
PROBED = (2, 4, 8)
CALIBRATION_ROWS = 10_000
SIZES = ((2, 7), (8, 63), (64, 2**16))
NEIGHBOUR_SAMPLES = 1_000
YARDSTICK = 2_000
"""Held-out images: enough that their nearest hundredth is known."""


@dataclass(frozen=True)
class Value:
    """One number of a member."""

    value: float
    unit: str = ""
    protocol: Mapping[str, Any] | None = None
    """How it was made: :class:`~overture.evaluation.conditions.Conditions` as a dictionary, or words of the reading."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


Reading = Callable[[RunDirectory, torch.device], dict[str, Value]]

READINGS = OpenList(
    "reading",
    {
        "results": "overture.bench.readings:read_results",
        "cliff": "overture.bench.readings:read_cliff",
        "neighbours": "overture.bench.readings:read_neighbours",
        "probe": "overture.bench.readings:read_probe",
        "calibration": "overture.bench.readings:read_calibration",
        "composition": "overture.bench.composition:read_composition",
        "vgg16": "overture.bench.second_judge:read_vgg16",
    },
)


def take_readings(names: tuple[str, ...], run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """The values of all these readings; numbers that are not finite are left out."""
    found: dict[str, Value] = {}
    for name in names:
        reading: Reading = READINGS.get(name)
        with strangers_code(name):
            values = reading(run, device)
        if not isinstance(values, dict) or not all(isinstance(value, Value) for value in values.values()):
            raise UsageError(f"{name}: a reading returns a dictionary of overture.bench.readings.Value")
        found |= values
    return {name: value for name, value in found.items() if math.isfinite(value.value)}


def read_results(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``generation.KIND.METRIC``, ``reconstruction.*``, ``bits.*``, ``entropy.*``, ``elbo.*``, ``seconds.*``."""
    results = run.read_results()
    found: dict[str, Value] = {}
    for kind in results.generation or {}:
        for metric, measured in results.measurements(kind).items():
            found[f"generation.{kind}.{metric}"] = Value(measured.value, measured.unit, measured.conditions.to_dict())
    distance = results.reconstruction_distance
    if distance is not None:
        found["reconstruction.distance"] = Value(distance.value, distance.unit, distance.conditions.to_dict())
        generated = found.get("generation.unguided.fid")
        if generated and distance.value > 0:
            found["generation.over_reconstruction"] = Value(generated.value / distance.value, "", generated.protocol)
    found |= {name: value for name, value in _plain_values(results).items() if value.value is not None}
    found |= _bits_of_segments(results, run.read_config().tokenizer.layout)
    seconds = results.seconds
    found |= {f"seconds.{stage}": Value(spent, "seconds") for stage, spent in seconds.items()}
    found["seconds.training"] = Value(sum(seconds.values()), "seconds")
    return found


def _plain_values(results: Results) -> dict[str, Value]:
    """Those that are no measurements with conditions of their own."""
    found: dict[str, Value] = {}
    if results.reconstruction:
        quality, about = results.reconstruction["quality"], {"images": results.reconstruction["quality"]["images"]}
        for name, unit in (("psnr", "dB"), ("ssim", ""), ("lpips", "")):
            if quality.get(name) is not None:
                found[f"reconstruction.{name}"] = Value(quality[name], unit, about)
    if results.likelihood:
        parts = {part: results.likelihood[f"{part}_allowed"] for part in ("train", "held_out")}
        about = {name: results.likelihood.get(name) for name in ("weights", "crop")}
        for part, entry in parts.items():
            words = {**about, "over": "allowed ids", "images": entry["images"]}
            found[f"bits.{part}"] = Value(entry["bits_per_image"], "bits per image", words)
        gap = parts["held_out"]["bits_per_image"] - parts["train"]["bits_per_image"]
        counts = {f"{part}_images": entry["images"] for part, entry in parts.items()}
        found["bits.gap"] = Value(gap, "bits per image", {**about, "over": "allowed ids", **counts})
    if results.entropy:
        entropy, about = results.entropy, {"rows": results.entropy["rows"]}
        found["entropy.bits"] = Value(entropy["total_bits"], "bits", about)
        found["entropy.room"] = Value(float(np.log2(entropy["sizes"]).sum()), "bits", about)
        found["entropy.cliff"] = Value(entropy["cliff"], "tokens", about)
        if entropy["predicted_cliff"] is not None:
            found["entropy.predicted_cliff"] = Value(entropy["predicted_cliff"], "tokens", about)
    if results.shared_rows and results.shared_rows["shared"]["ratio"] is not None:
        about = {name: results.shared_rows[name] for name in ("segment", "rows", "columns", "network", "guidance")}
        found["shared_rows.ratio"] = Value(results.shared_rows["shared"]["ratio"], "", about)
    if results.elbo:
        found["elbo.negative_elbo"] = Value(results.elbo["negative_elbo_bits"], "bits per held-out image")
    return found


def _bits_of_segments(results: Results, layout: Layout) -> dict[str, Value]:
    """``bits.held_out.SEGMENT`` where there are several; a separator allows one id, so it costs nothing."""
    if results.likelihood is None or len(layout.segments) < 2:
        return {}
    totals = dict.fromkeys(layout.names, 0.0)
    for bits, position in zip(
        results.likelihood["held_out_allowed"]["bits_per_position"], layout.positions, strict=True
    ):
        totals[layout.names[position.segment]] += bits
    about = {"over": "allowed ids", "images": results.likelihood["held_out_allowed"]["images"]}
    return {f"bits.held_out.{name}": Value(bits, "bits per image", about) for name, bits in totals.items()}


def read_cliff(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``cliff.N.measured``, ``.at_90``, ``.predicted``, ``.bits`` of N training images: 1,000, 5,000, ..., all."""
    file = run.token_file("train")
    found = {}
    for images in sorted({*(n for n in CLIFF_IMAGES if n < file.rows), file.rows}):
        ids = file.ids(some_of(file.rows, images), file.central_crop)
        entropy, about = conditional_entropy(ids, layout=file.layout), {"rows": images, "share": "99 %"}
        found[f"cliff.{images}.measured"] = Value(entropy.cliff, "tokens", about)
        found[f"cliff.{images}.at_90"] = Value(entropy.cliff_at(0.9), "tokens", {"rows": images, "share": "90 %"})
        found[f"cliff.{images}.bits"] = Value(entropy.total_bits, "bits", about)
        if entropy.predicted_cliff is not None:
            found[f"cliff.{images}.predicted"] = Value(entropy.predicted_cliff, "tokens", {"rows": images})
    return found


def read_neighbours(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``neighbours.SPACE.suspicious`` in percent (chance: 1) and ``neighbours.SPACE.copies``; space: features, tokens."""
    config = run.read_config()
    samples = min(NEIGHBOUR_SAMPLES, config.evaluation.samples)
    pipe = Pipeline.load(run.root, device)
    training, held_out = run.token_file("train"), run.token_file("held_out")
    yardstick = some_of(held_out.rows, max(samples, YARDSTICK))
    judge = judge_network(config, run, device)
    study = neighbours.study(
        pipe,
        training.tensors()[0],
        held_out.tensors(yardstick)[0],
        judge,
        samples=samples,
        pictures=1,
        seed=config.seed,
    )
    about = {**study.settings, "samples": samples, "training_images": study.training_images}
    found = {}
    for space, part in (("features", study.features), ("tokens", study.tokens)):
        found[f"neighbours.{space}.suspicious"] = Value(100 * part["suspicious_share"], "percent", about)
        found[f"neighbours.{space}.copies"] = Value(part["exact_copies"], "samples", about)
    return found


def read_calibration(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``calibration.PART.WHERE.observed`` and ``.expected``: what held-out (or training) tokens cost under the prior, and
    what the prior itself expects them to; ``.excess`` is the first above the second, in percent: 0 is calibrated, above
    it the prior is overconfident. WHERE: ``all``, or the positions with ``2-7``, ``8-63``, ``64-65536`` codes."""
    prior, found = load_prior(run.prior_model, device=device), {}
    sizes_L = torch.tensor([position.high - position.low for position in prior.layout.positions])
    places = {"all": sizes_L > 1, **{f"{low}-{high}": (sizes_L >= low) & (sizes_L <= high) for low, high in SIZES}}
    for part in ("train", "held_out"):
        file = run.token_file(part)
        rows = some_of(file.rows, CALIBRATION_ROWS)
        bits = measure_likelihood(prior, file.parts(100, rows))
        about = {"weights": "raw", "over": "allowed ids", "images": bits.rows}
        for where, chosen_L in places.items():
            observed, expected = (float(bits_L[chosen_L].sum()) for bits_L in (bits.allowed, bits.expected))
            if expected > 0:
                name = f"calibration.{part}.{where}"
                found[f"{name}.observed"] = Value(observed, "bits per image", about)
                found[f"{name}.expected"] = Value(expected, "bits per image", about)
                found[f"{name}.excess"] = Value(100 * (observed / expected - 1), "percent", about)
    return found


def read_probe(run: RunDirectory, device: torch.device) -> dict[str, Value]:
    """``probe.all.N``: top-1 in percent of a linear probe on the code vectors of the first N tokens, for N of 2, 4, 8."""
    tokenizer = load_tokenizer(run.root, device=device)
    train, test = run.token_file("train"), run.token_file("held_out")
    rows = some_of(train.rows, PROBE_ROWS)
    data = probe.ProbeData(tokenizer.layout, *train.tensors(rows), *test.tensors())
    lengths = [tokens for tokens in PROBED if tokens <= tokenizer.layout.length]
    study = probe.study(data, lengths, codes=tokenizer.codes, kinds=("codes",), segments=("all",), device=device)
    about = {"features": "codes", "train_images": study.train_images, "test_images": study.test_images}
    return {f"probe.{r.segment}.{r.tokens}": Value(100 * r.top1, "percent", about) for r in study.results}
