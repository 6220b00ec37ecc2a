"""Recipes: sizes and settings of the papers, presets, tiny forms, options, anyone's; one stage, and a prologue added
afterwards."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from overture.cli import build_parser, main
from overture.cli.option_help import describe_options
from overture.cli.run import chosen_configs, parse_overrides, switched
from overture.config import from_dict, options, to_dict
from overture.data.stream import TrainingStream
from overture.errors import OvertureError, UsageError
from overture.losses.perceptual import ConvNextConfig, DomainConfig, LpipsConfig, NoPerceptual
from overture.model_files import read_weights
from overture.pipeline import Pipeline
from overture.priors import Sampling
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.quantizers import FiniteScalarConfig, LookupFreeConfig, SoftConfig, VectorConfig
from overture.recipes import RECIPES, load_recipe, recipe_configs, summary
from overture.recipes.presets import PRESETS, load_preset
from overture.recipes.tiny import tiny_form
from overture.runs.checks import check_evaluation
from overture.runs.config import EvaluationConfig, RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute
from overture.training.joint_prior import JointPriorConfig
from overture.training.train_tokenizer import TokenizerTrainer

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


def chosen(*words: str) -> tuple[RunConfig, ...]:
    """The configs that ``overture run WORDS`` would run."""
    parsed, rest = build_parser("run").parse_known_args(["run", *words])
    parsed.overrides = rest
    return chosen_configs(parsed)


def only(name: str, tiny: bool = False) -> RunConfig:
    (config,) = recipe_configs(name, tiny)
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
    paper, unguided = (load_preset(recipe, name) for name in ("paper", "unguided"))
    for tiny in (False, True):
        config = only(recipe, tiny)
        layout = config.tokenizer.layout
        for name, preset in (("paper", paper), ("unguided", unguided)):
            preset.check(layout)
            assert (set(preset.guidance.scales(layout)) == {1.0}) == (name == "unguided")
            assert tuple(preset.temperatures) in (("",), layout.names)
        assert config.evaluation.guided == paper
        assert paper.temperature == config.evaluation.temperature == 1.0
        assert config.evaluation.unguided == unguided
        assert config.evaluation.samplings == {"unguided": unguided, "guided": paper}


@pytest.mark.parametrize(
    ("recipe", "written"),
    [
        ("imagenet-2d", {"guidance": "cosine 10 power 1.5", "temperature": 1.0, "unguided_temperature": 0.85}),
        (
            "prologue-b-b",
            {
                "guidance": "prologue: 0.7, visual: cosine 3.75 power 0.2",
                "temperature": 1.0,
                "unguided_temperature": "prologue: 0.7, visual: 0.9",
            },
        ),
    ],
)
def test_a_run_that_version_0_1_0_began_goes_on(tmp_path: Path, recipe: str, written: dict[str, Any]) -> None:
    """Its config says the same in these words."""
    run, config = RunDirectory(tmp_path), only(recipe).resolve(1000)
    old = to_dict(config)
    old["evaluation"] |= written
    run.config.write_text(json.dumps(old))
    assert run.read_config().evaluation.samplings == config.evaluation.samplings
    run.write_or_check_config(config)


def test_published_numbers_of_one_preset() -> None:
    layout = only("prologue-b-b").tokenizer.layout
    scales = load_preset("prologue-b-b", "paper").guidance.scales(layout)
    assert scales[:16] == (0.7,) * 16
    assert scales[16] == 1.0  # the separator is step 0 of the visual cosine, which starts at 1
    assert 3.7 < scales[-1] < 3.75
    assert load_preset("prologue-l-l", "unguided").temperatures == {"prologue": 0.95, "visual": 0.9}


@pytest.mark.parametrize("name", ["paper", "unguided"])
def test_a_preset_on_the_command_line_is_what_is_measured_guided(name: str) -> None:
    (config,) = chosen("prologue-l-b", "--preset", name)
    assert config.evaluation.guided == load_preset("prologue-l-b", name)
    (config,) = chosen("prologue-l-b", "--preset", name, "--evaluation.top-k", "3")
    assert config.evaluation.guided == replace(load_preset("prologue-l-b", name), top_k=3)


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
    with pytest.raises(UsageError, match="--prior-source is joint"):
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
    resolved = execute(config, run, SilentProgress(), Processes(), until="prior")
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
    execute(quick(without_judge("imagenet-2d")), RunDirectory(root), SilentProgress(), Processes(), until="tokenizer")
    return root


def without_judge(name: str) -> RunConfig:
    config = only(name, tiny=True)
    return replace(config, evaluation=replace(config.evaluation, network="inception"))


def test_post_keeps_the_tokenizer_it_starts_from(trained_2d: Path) -> None:
    config = quick(only("prologue-post", tiny=True)).resolve(10)
    training = replace(config.tokenizer_training, start_from=str(trained_2d))
    trainer = TokenizerTrainer(config.tokenizer, training, seed=0, processes=Processes())
    given = read_weights(trained_2d / "tokenizer/model.safetensors", "ema")
    fresh = {name: value.clone() for name, value in trainer.tokenizer.state_dict().items()}
    batches = TrainingStream(config.data.build().train, config.data, 8, 0).batches(0)
    for _ in range(3):
        trainer.train_batch(next(batches))
    for weights in (trainer.tokenizer.state_dict(), trainer.generator.weights()["ema"]):
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
        tokenizer = replace(tokenizer, decoder=replace(tokenizer.decoder, dim=64))
    else:
        tokenizer = replace(tokenizer, decoder=replace(tokenizer.decoder, depth=4))
    training = replace(config.tokenizer_training, start_from=str(trained_2d))
    with pytest.raises(OvertureError, match=r"model\.safetensors: (decoder\.|has no decoder\.)") as error:
        TokenizerTrainer(tokenizer, training, seed=0, processes=Processes())
    assert "\n" not in str(error.value)


def test_variable_segments_with_a_prologue() -> None:
    visual, prologue, over_1d = (run.tokenizer for run in recipe_configs("vcq-prologue"))
    assert [s.codebook.schedule for s in visual.segments] == ["uniform", "linear"]
    assert [s.codebook.schedule for s in prologue.segments] == ["linear", "uniform"]
    assert over_1d.segments[1].source == "queries"
    assert over_1d.layout.slice("visual") == slice(8, 57)
    assert over_1d.layout.segments[1].sizes[0] == 2


def test_the_laptop_comparison_has_equal_budgets() -> None:
    baseline, prologue = recipe_configs("prologue-fashion-mnist")
    assert baseline.tokenizer_training == replace(prologue.tokenizer_training, joint=None)
    assert baseline.prior_training == prologue.prior_training
    assert baseline.prior == prologue.prior
    assert baseline.tokenizer.segments == prologue.tokenizer.segments[1:]
    assert (baseline.tokenizer.layout.length, prologue.tokenizer.layout.length) == (49, 57)


# -- every recipe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_a_complete_config(name: str) -> None:
    configs = recipe_configs(name)
    assert len({config.name for config in configs}) == len(configs)
    for config in configs:
        assert config.recipe == name
        assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
        for sampling in config.evaluation.samplings.values():
            sampling.check(config.tokenizer.layout)
    assert summary(load_recipe(name)).endswith(".")
    for word in ("ardware", "ommand"):  # where it runs, and how it is run
        assert word in (load_recipe(name).__doc__ or "")


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_tiny_form_of_a_recipe_builds_and_speaks(name: str) -> None:
    full = recipe_configs(name)
    for config, whole in zip(recipe_configs(name, tiny=True), full, strict=True):
        assert (config.name, config.recipe) == (whole.name, name)
        data = config.data.build()
        config = config.resolve(data.num_classes)
        check_evaluation(config)
        layout = config.tokenizer.layout
        # The same arrangement: segments, their sources, quantizers, codebooks and separators.
        assert layout.names == whole.tokenizer.layout.names
        for small, large in zip(config.tokenizer.segments, whole.tokenizer.segments, strict=True):
            assert (small.source, small.quantizer, small.decoded, small.separator) == (
                large.source, large.quantizer, large.decoded, large.separator
            )  # fmt: skip
            assert replace(small.codebook, explicit=()) == replace(large.codebook, explicit=())
        assert max(len(segment) for segment in layout.segments) <= 16
        assert config.prior_source == whole.prior_source
        assert (config.tokenizer_training.joint is None) == (whole.tokenizer_training.joint is None)
        assert config.evaluation.samplings == whole.evaluation.samplings
        assert not config.tokenizer_training.start_from
        perceptual = config.tokenizer_training.perceptual
        assert isinstance(perceptual, DomainConfig | NoPerceptual)  # nothing to download
        trainer_config = replace(config.tokenizer_training, perceptual=NoPerceptual(), batch_size=4)
        trainer = TokenizerTrainer(config.tokenizer, trainer_config, seed=0, processes=Processes())
        batch = next(TrainingStream(data.train, config.data, 4, 0).batches(0))
        trainer.train_batch(batch)
        trainer.nonfinite.check()
        pipe = Pipeline(trainer.tokenizer.eval(), config.prior.build(layout).eval())
        for sampling in config.evaluation.samplings.values():
            assert pipe([0, 9], sampling).shape == (2, 1, 28, 28)


def test_the_tiny_form_of_explicit_sizes_and_of_long_sequences() -> None:
    sizes = ",".join(str(2 + place) for place in range(64))
    (config,) = chosen(
        "cifar10", "--only", "vcq", "--tokenizer.segments.0.codebook.schedule", "explicit",
        "--tokenizer.segments.0.codebook.explicit", sizes,
    )  # fmt: skip
    assert config.tokenizer.layout.sizes == tuple(range(2, 66))
    assert tiny_form(config).tokenizer.layout.sizes == tuple(range(2, 18))


def test_recipes_without_a_codebook() -> None:
    bits, levels = (config.tokenizer for config in recipe_configs("lookup-free"))
    assert isinstance(bits.segments[0].quantizer, LookupFreeConfig)
    assert isinstance(levels.segments[0].quantizer, FiniteScalarConfig)
    quickstart = recipe_configs("quickstart")[0].tokenizer
    assert bits.layout == levels.layout == quickstart.layout
    assert replace(bits.segments[0], quantizer=quickstart.segments[0].quantizer) == quickstart.segments[0]


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines == {name: summary(load_recipe(name)) for name in RECIPES}
    assert main(["recipes", "quickstart"]) == 0
    assert "Hardware: 2 CPU cores" in capsys.readouterr().out
    assert main(["recipes", "quickstrat"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


# -- anyone's ---------------------------------------------------------------------------------------------------------

STRANGER = """
from dataclasses import dataclass, replace
from overture.config import changed
from overture.errors import UsageError
from overture.quantizers import VectorConfig
from overture.recipes import recipe_configs
from overture.runs.config import RunConfig

@dataclass(frozen=True)
class Loud(VectorConfig):
    loudness: float = 2.0

def svhn():
    \"\"\"My digits, in colour.

    Hardware: a shed.
    \"\"\"
    return replace(recipe_configs("quickstart")[1], name="digits", recipe="").changed({"data.channels": 3})

def both():
    return list(recipe_configs("quickstart"))

def number():
    return 3

def nothing():
    return ()

def twins():
    return (RunConfig(), RunConfig())

def raises():
    return {}["svhn"]  # HERE

def refuses():
    return RunConfig().changed({"prior.dpeth": 3})

FIXED = 3
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Somebody's modules in the current folder."""
    (tmp_path / "my_recipes.py").write_text(STRANGER)
    (tmp_path / "my_needy.py").write_text("import math\nimport no_such_package_here\n")
    (tmp_path / "my_typo.py").write_text("import math\n\ndef recipe(:\n    pass\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "inner.py").write_text("from my_recipes import svhn\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "my_other.py").write_text(STRANGER)
    (tmp_path / "folder" / "json.py").write_text(STRANGER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)) or name.startswith("my_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name",
    [
        "my_recipes:svhn",
        "./my_recipes.py:svhn",
        "folder/my_other.py:svhn",
        "TMP/folder/my_other.py:svhn",
        "my_package.inner:svhn",
    ],
)
def test_anyones_recipe(stranger: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = name.replace("TMP", str(stranger))
    (config,) = recipe_configs(name)
    assert (config.name, config.recipe, config.data.channels) == ("digits", name, 3)
    (tiny,) = recipe_configs(name, tiny=True)
    assert (tiny.name, tiny.data.channels, tiny.prior_training.steps) == ("digits", 1, 40)
    assert chosen(name, "--prior.depth", "7")[0].prior.depth == 7
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out.startswith("My digits, in colour.")
    assert main(["run", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Hardware: a shed." in shown
    assert "channels" in shown
    assert main(["run", name, "--help", "channels"]) == 0
    assert "--data.channels" in capsys.readouterr().out
    assert main(["plan", name, "--tiny", "--json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["digits"]


def test_anyones_runs_to_compare(stranger: Path) -> None:
    assert [config.name for config in recipe_configs("my_recipes:both")] == ["uniform", "vcq"]
    assert [config.recipe for config in recipe_configs("my_recipes:both")] == ["quickstart", "quickstart"]
    assert [config.name for config in chosen("my_recipes:both", "--only", "vcq")] == ["vcq"]


def line_of(text: str) -> int:
    """The line of the stranger's module that holds a text."""
    return STRANGER[: STRANGER.index(text)].count("\n") + 1


@pytest.mark.parametrize(
    ("name", "status", "parts"),
    [
        ("her_recipes:svhn", 2, ["no module 'her_recipes'"]),
        ("my_package.outer:svhn", 2, ["no module 'my_package.outer'"]),
        ("her/recipes.py:svhn", 2, ["her/recipes.py: no such file"]),
        ("my_recipes:svnh", 2, ["my_recipes.py has no 'svnh'", "did you mean 'svhn'?"]),
        ("my_recipes:", 2, ["write module:name"]),
        (":svhn", 2, ["write module:name"]),
        ("my_recipes:FIXED", 2, ["is no function that returns the config of a run"]),
        ("my_recipes:number", 2, ["returned int, needs a RunConfig"]),
        ("my_recipes:nothing", 2, ["returned tuple, needs a RunConfig"]),
        ("my_recipes:twins", 2, ["different names, got run, run"]),
        ("my_recipes:refuses", 2, ["unknown option '--prior.dpeth' (did you mean '--prior.depth'"]),
        ("my_recipes:raises", 1, [f"my_recipes.py:{line_of('# HERE')}: KeyError: 'svhn'"]),
        ("folder/my_other.py:raises", 1, [f"folder/my_other.py:{line_of('# HERE')}: KeyError: 'svhn'"]),
        ("my_needy:svhn", 1, ["my_needy.py:2: ModuleNotFoundError", "no_such_package_here"]),
        ("my_needy.py:svhn", 1, ["my_needy.py:2: ModuleNotFoundError", "no_such_package_here"]),
        ("my_typo:recipe", 1, ["my_typo.py:3: SyntaxError"]),
        ("folder/json.py:svhn", 2, ["Python knows another module 'json'", "rename the file"]),
        ("quickstrat", 2, ["did you mean 'quickstart'?", "or write module:name"]),
    ],
)
def test_recipes_of_others_that_fail_are_one_line(
    stranger: Path, name: str, status: int, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", name, "--tiny"]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("overture: ")
    assert said.err.count("\n") == 1
    for part in parts:
        assert part in said.err
    assert not (stranger / "runs").exists()


def test_a_quantizer_of_somebody_in_a_recipe(stranger: Path) -> None:
    (config,) = chosen(
        "quickstart", "--only", "vcq", "--tokenizer.segments.0.quantizer", "my_recipes:Loud",
        "--tokenizer.segments.0.quantizer.loudness", "5",
    )  # fmt: skip
    quantizer: Any = config.tokenizer.segments[0].quantizer
    assert (type(quantizer).__name__, quantizer.loudness) == ("Loud", 5.0)
    written = json.loads(json.dumps(to_dict(config)))
    assert written["tokenizer"]["segments"][0]["quantizer"]["kind"] in ("my_recipes:Loud", "my_recipes.py:Loud")
    assert from_dict(RunConfig, written) == config
    with pytest.raises(UsageError, match="my_recipes:svhn: is no quantizer"):
        chosen("quickstart", "--tokenizer.segments.0.quantizer", "my_recipes:svhn")


# -- options ----------------------------------------------------------------------------------------------------------

SEGMENT = "--tokenizer.segments.0"


def base() -> RunConfig:
    return recipe_configs("quickstart")[1]


def with_options(*words: str) -> RunConfig:
    return base().changed(switched(base(), parse_overrides(list(words))))


def segment(config: RunConfig) -> Any:
    return config.tokenizer.segments[0]


@pytest.mark.parametrize(
    ("words", "read", "value"),
    [
        (["--prior.depth", "6"], lambda c: c.prior.depth, 6),
        (["--prior.depth=6"], lambda c: c.prior.depth, 6),
        (["--prior-training.ema-half-life", "1e3"], lambda c: c.prior_training.ema_half_life, 1e3),
        (["--prior_training.optimizer.clip", "2"], lambda c: c.prior_training.optimizer.clip, 2.0),
        (["--prior.dropout", "0"], lambda c: c.prior.dropout, 0.0),
        (["--seed", "5", "--seed", "7"], lambda c: c.seed, 7),
        (["--data.mirror"], lambda c: c.data.mirror, True),
        (["--data.mirror", "yes"], lambda c: c.data.mirror, True),
        (["--data.mirror", "--data.no-mirror"], lambda c: c.data.mirror, False),
        (["--data.no-mirror"], lambda c: c.data.mirror, False),
        (["--data.mirror", "false"], lambda c: c.data.mirror, False),
        (["--data.source", "my photos.zip"], lambda c: c.data.source, "my photos.zip"),
        (["--data.source", "my", "photos.zip"], lambda c: c.data.source, "my photos.zip"),
        (["--data.source=a=b"], lambda c: c.data.source, "a=b"),
        (["--data.held-out", ""], lambda c: c.data.held_out, ""),
        (["--data.held-out="], lambda c: c.data.held_out, ""),
        (["--tokenizer-training.start-from=", "--seed", "2"], lambda c: c.tokenizer_training.start_from, ""),
        (["--evaluation.metrics", ""], lambda c: c.evaluation.metrics, ()),
        (["--data.crop", "random"], lambda c: c.data.crop, "random"),
        (["--tokenizer.rope-axes", "4,4,8"], lambda c: c.tokenizer.rope_axes, (4, 4, 8)),
        (["--tokenizer.rope-axes", "4 4 8"], lambda c: c.tokenizer.rope_axes, (4, 4, 8)),
        (["--tokenizer.rope-axes", "4", "4", "8"], lambda c: c.tokenizer.rope_axes, (4, 4, 8)),
        (["--tokenizer.rope-axes", "[4, 4, 8]"], lambda c: c.tokenizer.rope_axes, (4, 4, 8)),
        (["--tokenizer.rope-axes", "none"], lambda c: c.tokenizer.rope_axes, None),
        (["--prior-training.optimizer.betas", "0.8,0.9"], lambda c: c.prior_training.optimizer.betas, (0.8, 0.9)),
        (["--evaluation.metrics", "fid,is"], lambda c: c.evaluation.metrics, ("fid", "is")),
        (["--evaluation.metrics", "fid is"], lambda c: c.evaluation.metrics, ("fid", "is")),
        (["--evaluation.metrics", "fid"], lambda c: c.evaluation.metrics, ("fid",)),
        (["--evaluation.guidance", "linear 4"], lambda c: c.evaluation.guided, Sampling.parse("linear 4")),
        (["--evaluation.temperature", "0.9"], lambda c: c.evaluation.temperature, 0.9),
        (["--evaluation.temperature", "visual: 0.9"], lambda c: c.evaluation.temperature, "visual: 0.9"),
        (["--evaluation.unguided-temperature", "none"], lambda c: c.evaluation.unguided_temperature, None),
        (["--watch.prior-every", "50", "--watch.keep-best", "gfd"], lambda c: c.watch.keep_best, "gfd"),
        ([f"{SEGMENT}.codebook.k-max", "64"], lambda c: segment(c).codebook.k_max, 64),
        ([f"{SEGMENT}.quantizer", "lookup-free"], lambda c: segment(c).quantizer, LookupFreeConfig()),
        (
            [f"{SEGMENT}.quantizer", "lookup-free", f"{SEGMENT}.quantizer.entropy", "0.2"],
            lambda c: segment(c).quantizer,
            LookupFreeConfig(entropy=0.2),
        ),
        (
            [f"{SEGMENT}.quantizer.entropy", "0.2", f"{SEGMENT}.quantizer", "lookup-free"],  # in any order
            lambda c: segment(c).quantizer,
            LookupFreeConfig(entropy=0.2),
        ),
        (
            [f"{SEGMENT}.quantizer", "finite-scalar", f"{SEGMENT}.quantizer.levels", "8,8,4,4"],
            lambda c: segment(c).quantizer,
            FiniteScalarConfig((8, 8, 4, 4)),
        ),
        ([f"{SEGMENT}.quantizer", "soft"], lambda c: segment(c).quantizer, SoftConfig()),
        ([f"{SEGMENT}.quantizer", "vector"], lambda c: segment(c).quantizer, VectorConfig()),  # the recipe's is gone
        ([f"{SEGMENT}.quantizer.z-dim", "5"], lambda c: segment(c).quantizer, VectorConfig(z_dim=5, revive_after=30)),
        (["--tokenizer-training.perceptual", "none"], lambda c: c.tokenizer_training.perceptual, NoPerceptual()),
        (
            ["--tokenizer-training.perceptual", "lpips", "--tokenizer-training.perceptual.heads", "a.pth"],
            lambda c: c.tokenizer_training.perceptual,
            LpipsConfig(heads="a.pth"),
        ),
        (["--tokenizer-training.joint", "none"], lambda c: c.tokenizer_training.joint, None),
        (["--tokenizer-training.joint", "default"], lambda c: c.tokenizer_training.joint, JointPriorConfig()),
        (
            ["--tokenizer-training.joint.label-drop", "0.5"],
            lambda c: c.tokenizer_training.joint,
            JointPriorConfig(label_drop=0.5),
        ),
    ],
)  # fmt: skip
def test_options_by_dotted_name(words: list[str], read: Callable[[RunConfig], Any], value: Any) -> None:
    found = read(with_options(*words))
    assert found == value
    assert type(found) is type(value)


def test_the_second_option_may_come_to_a_recipe_that_has_the_first() -> None:
    bits = recipe_configs("lookup-free")[0]
    changed = bits.changed(parse_overrides([f"{SEGMENT}.quantizer.entropy", "0.2"]))
    assert segment(changed).quantizer == LookupFreeConfig(entropy=0.2)


def test_options_leave_all_else_alone() -> None:
    changed = with_options("--prior.depth", "9", f"{SEGMENT}.codebook.k-max", "64")
    assert changed.changed({"prior.depth": base().prior.depth, "tokenizer.segments.0.codebook.k_max": 1024}) == base()
    assert with_options() == base()
    joint = with_options("--tokenizer-training.joint", "default")
    assert joint.changed({"tokenizer_training.joint": None}) == base()


def test_all_options_are_made_at_once() -> None:
    """Only the result has to be valid: either of these alone is refused."""
    assert with_options("--prior.dim", "100", "--prior.heads", "5").prior.dim == 100
    for words in (["--prior.dim", "98"], ["--prior.heads", "5"]):
        with pytest.raises(UsageError):
            with_options(*words)


@pytest.mark.parametrize("recipe", ["quickstart", "prologue-b-b", "lookup-free"])
def test_every_option_that_is_listed_means_what_is_there(recipe: str) -> None:
    config = recipe_configs(recipe)[0]
    from_data = {"tokenizer.image_size", "tokenizer.channels", "tokenizer.num_classes", "prior.num_classes"}
    seen = set()
    present = {name: value for name, _, value in options(config)}
    for line in describe_options(config).splitlines():
        if line.startswith("  --"):
            written, shown, *_ = re.split(r"\s{2,}", line.strip())
            name = written.removeprefix("--").replace("-", "_")
            seen.add(name)
            value = "" if shown in ("(none)", "(empty)") else shown
            if dataclasses.is_dataclass(present[name]):  # a component: the same kind, with its defaults
                changed = {n: v for n, _, v in options(config.changed(parse_overrides([written, value])))}[name]
                assert type(changed) is type(present[name]), line
            elif name not in from_data:
                assert config.changed(parse_overrides([written, value])) == config, line
    assert seen <= {name for name, _, _ in options(config)}
    assert {"seed", "prior.depth", "data.mirror", "tokenizer.segments.0.quantizer", "evaluation.metrics"} <= {
        *seen, *(name.rpartition(".")[0] for name in seen)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prior.dpeth", "3"], "unknown option '--prior.dpeth' (did you mean '--prior.depth'"),
        (["--piror.depth", "3"], "unknown option '--piror"),
        (
            ["--tokenizer.segments.0.quantizer.entropy", "1"],
            "unknown option '--tokenizer.segments.0.quantizer.entropy'",
        ),
        (["--tokenizer.segments.0.quantiser", "vector"], "did you mean '--tokenizer.segments.0.quantizer'"),
        (["--tokenizer.segments.1.tokens", "3"], "tokenizer.segments.1: there are 1, counted from 0"),
        (["--tokenizer.segments.x.tokens", "3"], "tokenizer.segments.x: there are 1, counted from 0"),
        (["--tokenizer.segments.-1.tokens", "3"], "there are 1, counted from 0"),
        (["--prior.depth.deep", "3"], "prior.depth: has no part 'deep'"),
        (["--tokenizer.segments.0.quantizer", "lookup-fre"], "did you mean 'lookup-free'?"),
        (["--tokenizer.segments.0.quantizer", "domain"], "unknown quantizer 'domain'"),
        (["--tokenizer-training.perceptual", "lpisp"], "unknown perceptual loss 'lpisp' (did you mean 'lpips'?)"),
        (["--prior.depth", "abc"], "prior.depth: expected int, got 'abc'"),
        (["--prior.depth", "3.5"], "prior.depth: expected int, got '3.5'"),
        (["--prior.depth"], "--prior.depth needs a value"),
        (["--prior.dropout", "much"], "prior.dropout: expected float, got 'much'"),
        (["--data.mirror", "perhaps"], "data.mirror: expected bool, got 'perhaps'"),
        (["--data.no-mirorr"], "did you mean '--data.mirror'"),
        (["--data.crop", "centre"], "did you mean 'center'?"),
        (["--tokenizer.rope-axes", "4,4"], "tokenizer.rope-axes: expected 3 values, got 2"),
        (["--tokenizer.rope-axes", "4,x,8"], "tokenizer.rope-axes[1]: expected int, got 'x'"),
        (["--tokenizer.rope-axes", "[4, 4"], "tokenizer.rope-axes: expected a list"),
        (["--prior.depth", "none"], "prior.depth: expected int, got 'none'"),
        (["--tokenizer.channels", "3"], "--tokenizer.channels comes from the data: set --data.channels"),
        (["--prior.num-classes", "3"], "--prior.num-classes comes from the data"),
        (["--prior-source", "joint"], "--prior-source is joint"),
        (["--prior", "large"], "prior: expected an object"),
        (["stray"], "unexpected word 'stray'"),
    ],
)
def test_options_that_cannot_be_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        chosen("quickstart", "--only", "vcq", *words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", ["quickstart", "prologue-b-b"])
def test_the_help_of_a_recipe_fits_a_screen(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help", recipe]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 70
    assert max(map(len, lines)) <= 120
    assert any("example" in line.lower() for line in lines)
    for name, hint, value in options(recipe_configs(recipe)[0]):  # every option is there, under its part
        if not dataclasses.is_dataclass(value) and "Config" not in str(hint):
            assert name.rpartition(".")[2].replace("_", "-") in " ".join(lines), name


def test_a_word_that_no_option_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quickstart", "--help", "zzz"]) == 2
    assert "--help zzz: no option of quickstart has this in its name" in capsys.readouterr().err
