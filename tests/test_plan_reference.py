"""Reference curves and hours on a card: against fresh models, and against arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overture.cli import main
from overture.data.stream import TrainingStream
from overture.data.token_files import TokenBatch
from overture.errors import UsageError
from overture.losses.perceptual import NoPerceptual
from overture.plan.card_hours import card_hours, sampling_bytes
from overture.plan.cards import CARDS, load_card
from overture.plan.reference_curve import expected_start, first_nat, largest_cosine, reference_curve
from overture.plan.run_plan import Images, make_plan
from overture.priors import Guidance
from overture.processes import Processes
from overture.recipes import recipe_configs
from overture.runs.config import RunConfig
from overture.training.train_prior import PriorTrainer
from overture.training.train_tokenizer import TokenizerTrainer

PAGE = Path(__file__).parents[1] / "docs" / "reference-curves.md"


def fresh(name: str) -> RunConfig:
    """A tiny run whose discriminator plays from the first step, as on ImageNet."""
    changes = {"tokenizer_training.adversarial.start": 0, "tokenizer_training.perceptual": NoPerceptual()}
    return recipe_configs(name, tiny=True)[0].changed(changes).resolve(10)


@pytest.mark.parametrize("name", ["imagenet-vcq", "prologue-b-b"])
def test_the_first_tokenizer_step_is_as_expected(name: str) -> None:
    config = fresh(name)
    data = config.data.build()
    measured: list[dict[str, float]] = []
    for seed in range(3):
        trainer = TokenizerTrainer(config.tokenizer, config.tokenizer_training, seed=seed, processes=Processes())
        batch = next(TrainingStream(data.train, config.data, 32, seed).batches(0))
        measured.append({term: float(value) for term, value in trainer.train_batch(batch).items()})
    expected = expected_start(config)["tokenizer"]
    assert {"l1", "quantizer", "discriminator"} <= set(expected)
    assert ("joint_prior" in expected) == (config.tokenizer_training.joint is not None)
    for term, value in expected.items():
        tolerance = 0.02 if term.startswith(("joint", "ce")) else 0.12  # chance of weights, codes and images
        assert np.mean([terms[term] for terms in measured]) == pytest.approx(value, rel=tolerance), term


@pytest.mark.parametrize("loss", ["vocabulary", "allowed"])
@pytest.mark.parametrize("name", ["imagenet-2d", "imagenet-vcq", "prologue-b-b"])
def test_the_first_prior_step_is_as_expected(name: str, loss: str) -> None:
    config = fresh(name).changed({"prior_training.loss": loss})
    layout, training = config.tokenizer.layout, config.prior_training
    trainer = PriorTrainer(config.prior, training, layout, seed=0, processes=Processes())
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(size, (training.batch_size,), generator=generator) for size in layout.sizes], 1)
    labels = torch.zeros(training.batch_size, dtype=torch.long)
    measured = trainer.train_batch(TokenBatch(ids, labels, labels))
    expected = expected_start(config)["prior"]
    assert float(measured["bits_per_image"]) == pytest.approx(expected["bits_per_image"], rel=0.002)
    ratio = float(measured["gradient_norm"]) / expected["gradient_norm"]
    assert 0.95 < ratio < (1.05 if name == "imagenet-2d" else 1.5)  # at least: unequal sizes are some order


def test_what_starts_from_trained_weights_has_no_expectation() -> None:
    changes = {"tokenizer_training.start_from": "somewhere", "prior_training.start_from": "somewhere"}
    config = fresh("imagenet-1d").changed(changes)
    assert reference_curve(config)["prior_first_nat"] is None
    assert {stage: set(values) for stage, values in expected_start(config).items()} == {"tokenizer": {"discriminator"}}


@pytest.mark.parametrize(("codes", "dim"), [(2, 1), (5, 1), (3, 2), (64, 14)])
def test_the_largest_cosine_by_drawing(codes: int, dim: int) -> None:
    codes_NKD = np.random.default_rng(0).normal(size=(4000, codes, dim))
    cosines = codes_NKD[..., 0] / np.linalg.norm(codes_NKD, axis=-1)  # to the first axis: any vector does
    assert largest_cosine(codes, dim) == pytest.approx(cosines.max(axis=1).mean(), abs=0.02)


def test_the_first_nat_by_walking() -> None:
    for warmup in (50, 5000):
        optimizer = replace(recipe_configs("imagenet-1d")[0].prior_training.optimizer, warmup=warmup)
        moved, step = 0.0, 0
        while moved < 1:
            moved += np.sqrt(2 / np.pi) * 768 * optimizer.learning_rate * min((step + 1) / warmup, 1)
            step += 1
        assert first_nat(768, optimizer) == pytest.approx(step, abs=2)


def test_the_table_of_the_page_is_computed() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(("| `imagenet", "| `prologue"))]
    assert len(rows) == 12
    for row in rows:
        name, *told = (cell.strip() for cell in row.strip("| ").split(" | "))
        config = recipe_configs(name.strip("`"))[0].resolve(1000)
        curve = reference_curve(config)
        first, second = (curve["step_0"].get(stage, {}) for stage in ("tokenizer", "prior"))
        values = [
            (first.get("quantizer"), ".3f"), (first.get("discriminator"), ".2f"), (first.get("joint_prior"), ".2f"),
            (second.get("bits_per_image"), ",.0f"), (config.tokenizer.layout.total_bits, ",.0f"),
            (second.get("gradient_norm"), ".3f"), (curve["prior_first_nat"], ",d"),
        ]  # fmt: skip
        assert told == ["-" if value is None else format(value, form) for value, form in values]


# -- a card -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "published"),
    [("prologue-b-b", (59, 932, 1168)), ("prologue-b-xl", (9.3, 189, 258))],
)
def test_sampling_is_the_roofline_that_others_computed(recipe: str, published: tuple[float, ...]) -> None:
    """Images a second of an H100 in bfloat16 with guidance everywhere, at batch 1, 64 and 512."""
    config = recipe_configs(recipe)[0]
    for batch, images in zip((1, 64, 512), published, strict=True):
        read = sampling_bytes(config.prior, config.tokenizer.layout, Guidance.constant(2.0), batch, 2)
        assert batch / (read / load_card("h100").bandwidth) == pytest.approx(images, rel=0.04)


@pytest.fixture(scope="module")
def vcq() -> tuple[RunConfig, dict[str, Any]]:
    config = recipe_configs("imagenet-vcq-xl")[0]
    small = {
        "tokenizer_training.perceptual": NoPerceptual(),
        "prior_training.loss": "allowed",
        "tokenizer.encoder.depth": 1,
        "tokenizer.decoder.depth": 1,
    }
    config = config.changed(small)  # the prior is whole, and counted once
    return config, make_plan(config, Images(1_281_167, 0, 1000, "given"), world_size=16)


def test_hours_in_closed_form(vcq: tuple[RunConfig, dict[str, Any]]) -> None:
    config, plan = vcq
    found = card_hours(plan, config, "a100", 0.5)
    tokens = 800 * (1_281_167 // 2048) * 2048 * 256
    estimate = 6 * plan["parameters"]["prior"] * tokens / (312e12 * 0.5) / 3600
    assert found["hours"]["prior"] == pytest.approx(estimate, rel=0.08)  # embeddings too much, attention too little
    assert found["first_hour"]["prior"] == pytest.approx(
        16 * config.prior_training.steps / found["hours"]["prior"], abs=1
    )
    assert (
        found["total_hours"]
        == pytest.approx(16 * found["elapsed_hours"])
        == pytest.approx(sum(found["hours"].values()))
    )
    assert card_hours(plan, config, "a100", 0.25)["total_hours"] == pytest.approx(2 * found["total_hours"])


def test_the_batch_that_would_fit_fits(vcq: tuple[RunConfig, dict[str, Any]]) -> None:
    config, plan = vcq
    memory = card_hours(plan, config, "h100", 0.4)["memory"]["prior"]
    assert memory["left"] < 0
    fitting = memory["fitting_batch"]
    assert memory["advice"].endswith(f"--engine.micro-batch {fitting}")
    activations = plan["memory_per_device"]["prior"]["activations"] // 128  # of a sequence
    held = plan["memory_per_device"]["prior"]["total"] - 128 * activations
    assert held + fitting * activations <= 0.92 * 80e9 < held + (fitting + 1) * activations
    assert "no image fits" in card_hours(plan, config, "tests_card:SMALL", 0.4)["memory"]["prior"]["advice"]


@pytest.fixture(autouse=True)
def own_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "from overture.plan.cards import Card\n\nSMALL = Card(flops=1e13, bandwidth=1e11, memory=8e9)\n"
    (tmp_path / "tests_card.py").write_text(lines)
    monkeypatch.chdir(tmp_path)


def test_every_card_is_one() -> None:
    assert all(load_card(name).memory >= 24e9 for name in CARDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--card", "h10"], "unknown card 'h10' (did you mean"),
        (["--card", "h100", "--utilisation", "40"], "--utilisation is 40, needs a share"),
        (["--card", "overture.plan.cards:Card"], "is a class of cards, not a card"),
        (["--card", "overture.plan.cards:SPARE"], "has no 'SPARE'"),
        (["--utilisation", "0.4"], "name it with --card"),
    ],
)
def test_wrong_cards_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quickstart", "--tiny", "--only", "vcq", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_card_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "quickstart", "--tiny", "--only", "vcq", "--card", "tests_card:SMALL"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "if 10 % of both is reached (an assumption about your machine)" in text
    assert "expected in the log at step 0" in text
    hours = []
    for share in ("0.1", "0.3"):
        assert main([*words, "--utilisation", share, "--json"]) == 0
        hours.append(json.loads(capsys.readouterr().out)["runs"][0]["card"]["total_hours"])
    assert hours[0] == pytest.approx(3 * hours[1])
    with pytest.raises(UsageError, match="above 0"):
        card_hours({"images": {"classes": 10}}, fresh("imagenet-1d"), "h100", 0.0)
