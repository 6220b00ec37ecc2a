"""The Prologue recipes: sizes and settings of the paper, presets, one stage, and a prologue added afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from overture.cli import main
from overture.data.stream import TrainingStream
from overture.errors import OvertureError, UsageError
from overture.losses.perceptual import ConvNextConfig, LpipsConfig, NoPerceptual
from overture.pipeline import Pipeline
from overture.priors.guidance import Guidance, parse_temperature
from overture.recipes import load_recipe
from overture.recipes.presets import PRESETS, load_preset
from overture.runs.config import EvaluationConfig, RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute
from overture.training.checkpoint import read_weights
from overture.training.distributed import World
from overture.training.progress import SilentProgress
from overture.training.tokenizer import TokenizerTrainer

TABLE = {
    # decoder dim, visual codebook, prior (dim, depth, heads), prior steps, batch
    "prologue-b-b": (768, 16384, (768, 12, 12), 1_000_800, 512),
    "prologue-b-l": (768, 16384, (1024, 24, 16), 500_000, 2048),
    "prologue-b-xl": (768, 16384, (1280, 32, 20), 500_000, 2048),
    "prologue-l-b": (1024, 4096, (768, 12, 12), 1_000_800, 512),
    "prologue-l-l": (1024, 4096, (1024, 24, 16), 500_000, 2048),
    "prologue-l-xl": (1024, 4096, (1280, 32, 20), 500_000, 2048),
    "prologue-post": (768, 16384, (768, 12, 12), 1_000_800, 512),
}


def only(name: str, tiny: bool = False) -> RunConfig:
    (config,) = load_recipe(name)(tiny=tiny)
    return config


@pytest.mark.parametrize("name", TABLE)
def test_rows_of_the_table(name: str) -> None:
    config, (decoder, codebook, prior, steps, batch) = only(name), TABLE[name]
    training, stage3 = config.tokenizer_training, config.prior_training
    assert config.tokenizer.decoder.dim == decoder
    assert [(len(s), s.codebook_size, s.separator) for s in config.tokenizer.layout.segments] == [
        (16, 1024, True),
        (256, codebook, False),
    ]
    assert (config.prior.dim, config.prior.depth, config.prior.heads) == prior
    assert (stage3.steps, stage3.batch_size, stage3.label_drop, stage3.optimizer.clip) == (steps, batch, 0.1, 1.0)
    length = 1_300_000 if name == "prologue-post" else 1_000_000
    assert (training.steps, training.batch_size, training.ema_half_life) == (length, 256, 1000.0)
    assert training.joint is not None
    assert (training.joint.prior.dim, training.joint.prior.depth, training.joint.label_drop) == (512, 7, 1.0)
    assert config.tokens.crops == "ten"
    perceptual = ConvNextConfig if codebook == 4096 else NoPerceptual if name == "prologue-post" else LpipsConfig
    assert isinstance(training.perceptual, perceptual)


@pytest.mark.parametrize("name", ["imagenet-1d", "imagenet-2d"])
def test_baselines(name: str) -> None:
    config = only(name)
    training, stage3 = config.tokenizer_training, config.prior_training
    assert (training.steps, training.batch_size, training.joint) == (750_000, 256, None)
    assert (training.optimizer.learning_rate, training.optimizer.learning_rate_min) == (1e-4, 1e-5)
    assert (stage3.optimizer.learning_rate, stage3.ema_half_life, config.prior.dropout) == (4e-4, 2500.0, 0.1)


@pytest.mark.parametrize("recipe", PRESETS)
def test_presets_fit_the_layout_and_are_what_a_run_measures(recipe: str) -> None:
    for tiny in (False, True):
        config = only(recipe, tiny)
        layout = config.tokenizer.layout
        for name in ("paper", "unguided"):
            preset = load_preset(recipe, name)
            scales = Guidance.parse(preset.guidance).scales(layout)
            assert (set(scales) == {1.0}) == (name == "unguided")
            temperatures = parse_temperature(preset.temperature)
            assert not isinstance(temperatures, dict) or tuple(temperatures) == layout.names
        evaluation = config.evaluation
        assert (evaluation.guidance, evaluation.temperature) == (load_preset(recipe, "paper").guidance, 1.0)
        assert evaluation.unguided_temperature == load_preset(recipe, "unguided").temperature


def test_published_numbers_of_one_preset() -> None:
    layout = only("prologue-b-b").tokenizer.layout
    scales = Guidance.parse(load_preset("prologue-b-b", "paper").guidance).scales(layout)
    assert scales[:16] == (0.7,) * 16
    assert scales[16] == 1.0  # the separator is step 0 of the visual cosine, which starts at 1
    assert 3.7 < scales[-1] < 3.75
    assert parse_temperature(load_preset("prologue-l-l", "unguided").temperature) == {"prologue": 0.95, "visual": 0.9}


def test_unknown_presets_are_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "prologue-b-b", "--preset", "papper"]) == 2
    assert capsys.readouterr().err == (
        "overture: recipe 'prologue-b-b' has no preset 'papper' (did you mean 'paper'?)\n"
    )
    with pytest.raises(UsageError, match=r"recipe 'quickstart' has no presets"):
        load_preset("quickstart", "paper")


@pytest.mark.parametrize("text", ["warm", "prologue: hot", "prologue 0.7, visual: 0.9", "0", "visual: -1", "nan"])
def test_bad_temperatures_are_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="temperature") as error:
        EvaluationConfig(temperature=text)
    assert "\n" not in str(error.value)


def test_one_stage_needs_a_joint_prior() -> None:
    with pytest.raises(UsageError, match="prior_source is joint"):
        RunConfig(prior_source="joint")


def quick(config: RunConfig) -> RunConfig:
    """A tiny recipe at a few steps, with no network trained but the judge, and few samples."""
    training = replace(
        config.tokenizer_training, steps=6, batch_size=8, perceptual=NoPerceptual(),
        optimizer=replace(config.tokenizer_training.optimizer, warmup=1, flat=1),
        discriminator_optimizer=replace(config.tokenizer_training.discriminator_optimizer, warmup=1, flat=1),
    )  # fmt: skip
    if training.joint:
        optimizer = replace(training.joint.optimizer, warmup=1, flat=1)
        training = replace(training, joint=replace(training.joint, optimizer=optimizer))
    return replace(config, tokenizer_training=training)


def test_one_stage_uses_the_joint_prior_with_the_raw_tokenizer(tmp_path: Path) -> None:
    config = quick(only("prologue-onestage", tiny=True))
    run = RunDirectory(tmp_path)
    resolved = execute(config, run, SilentProgress(), World(), until="prior")
    joint = resolved.tokenizer_training.joint
    assert joint is not None
    assert resolved.prior == joint.prior
    assert resolved.prior.num_classes == 10
    assert not list((tmp_path / "prior").glob("step-*"))
    pipe = Pipeline.load(tmp_path)
    raw = read_weights(run.tokenizer_model, "raw")
    ema = read_weights(run.tokenizer_model, "ema")
    loaded = pipe.tokenizer.state_dict()
    assert all(torch.equal(loaded[name], raw[name]) for name in raw)
    assert any(not torch.equal(loaded[name], ema[name]) for name in ema)
    assert pipe([0, 1], seed=0).shape == (2, 1, 28, 28)


@pytest.fixture(scope="module")
def trained_2d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2D tokenizer of the tiny recipe, after a few steps."""
    root = tmp_path_factory.mktemp("2d")
    execute(quick(without_judge("imagenet-2d")), RunDirectory(root), SilentProgress(), World(), until="tokenizer")
    return root


def without_judge(name: str) -> RunConfig:
    config = only(name, tiny=True)
    return replace(config, evaluation=replace(config.evaluation, network="inception"))


def test_post_keeps_the_tokenizer_it_starts_from(trained_2d: Path) -> None:
    config = quick(only("prologue-post", tiny=True)).resolve(10)
    training = replace(config.tokenizer_training, start_from=str(trained_2d))
    trainer = TokenizerTrainer(config.tokenizer, training, seed=0, world=World())
    given = read_weights(trained_2d / "tokenizer/model.safetensors", "ema")
    fresh = {name: value.clone() for name, value in trainer.tokenizer.state_dict().items()}
    batches = TrainingStream(config.data.build().train, config.data, 8, 0).batches(0)
    for _ in range(3):
        trainer.train_batch(next(batches))
    for weights in (trainer.tokenizer.state_dict(), trainer.ema.state_dict()):
        for name, value in weights.items():
            if name in given:
                assert torch.equal(value, given[name]), name
    after = trainer.tokenizer.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], fresh[name])}
    assert moved == {"post_encoder", "quantizers"}
    assert not torch.equal(after["quantizers.prologue.codebook"], fresh["quantizers.prologue.codebook"])


@pytest.mark.parametrize("change", ["size", "missing"])
def test_a_tokenizer_that_does_not_fit_is_refused_by_name(trained_2d: Path, change: str) -> None:
    config = quick(only("prologue-post", tiny=True)).resolve(10)
    tokenizer = config.tokenizer
    if change == "size":
        tokenizer = replace(tokenizer, decoder=replace(tokenizer.decoder, dim=32))
    else:
        tokenizer = replace(tokenizer, decoder=replace(tokenizer.decoder, depth=4))
    training = replace(config.tokenizer_training, start_from=str(trained_2d))
    with pytest.raises(OvertureError, match=r"model\.safetensors: (decoder\.|has no decoder\.)") as error:
        TokenizerTrainer(tokenizer, training, seed=0, world=World())
    assert "\n" not in str(error.value)


def test_variable_segments_with_a_prologue() -> None:
    visual, prologue, over_1d = (run.tokenizer for run in load_recipe("vcq-prologue")())
    assert [s.codebook.schedule for s in visual.segments] == ["uniform", "linear"]
    assert [s.codebook.schedule for s in prologue.segments] == ["linear", "uniform"]
    assert over_1d.segments[1].source == "queries"
    assert over_1d.layout.slice("visual") == slice(8, 57)
    assert over_1d.layout.segments[1].sizes[0] == 2


def test_the_laptop_comparison_has_equal_budgets() -> None:
    baseline, prologue = load_recipe("prologue-fashion-mnist")()
    assert baseline.tokenizer_training == replace(prologue.tokenizer_training, joint=None)
    assert baseline.prior_training == prologue.prior_training
    assert baseline.prior == prologue.prior
    assert baseline.tokenizer.segments == prologue.tokenizer.segments[1:]
    assert (baseline.tokenizer.layout.length, prologue.tokenizer.layout.length) == (49, 57)
