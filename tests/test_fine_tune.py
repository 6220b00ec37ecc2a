"""A run that starts from trained models: what is copied, what stays frozen, what is recorded, what is refused."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from overture.cli.run import add_options, chosen_configs
from overture.config import to_dict
from overture.data.stream import Batch
from overture.data.token_files import TokenBatch, TokenFile
from overture.errors import OvertureError, UsageError
from overture.layout import Layout, Segment
from overture.model_files import ids_hash, read_metadata, read_weights, save_model
from overture.pipeline import load_prior, load_tokenizer
from overture.plan.run_plan import Images, make_plan
from overture.priors.model import PriorConfig
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.recipes import recipe_configs
from overture.report import write_report
from overture.runs.checks import check_run, check_weights
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute
from overture.training.checkpoint import load_state, save_state
from overture.training.start_from import Start, layout_difference
from overture.training.train_prior import PriorTrainer, PriorTrainingConfig
from overture.training.train_tokenizer import TokenizerTrainer

QUANTIZER = "tokenizer.segments.0.quantizer"


def config_for(source: Path, **changes: Any) -> RunConfig:
    """A tiny run of four steps a stage that needs no feature network; ``__`` for the dots."""
    few: dict[str, Any] = {"data.source": str(source), "data.held_out_share": 0.25, "evaluation.network": "random:8"}
    for stage in ("tokenizer_training", "prior_training"):
        few |= {f"{stage}.steps": 4, f"{stage}.batch_size": 4, f"{stage}.optimizer.warmup": 0}
    few |= {"tokenizer_training.optimizer.flat": 0, "tokenizer_training.discriminator_optimizer.warmup": 0}
    few |= {"tokenizer_training.discriminator_optimizer.flat": 0, "tokenizer_training.perceptual": "none"}
    few |= {"tokenizer_training.adversarial.start": 1, "prior_training.evaluate_every": 2, "prior.dropout": 0.0}
    few |= {
        "tokenizer_training.ema_half_life": 1.0,
        f"{QUANTIZER}.revive_after": 1,
    }  # what can move does, at every step
    return (
        recipe_configs("quickstart", tiny=True)[1]
        .changed(few)
        .changed({name.replace("__", "."): value for name, value in changes.items()})
    )


def pictures(root: Path, **counts: int) -> Path:
    """Noise: a folder a class, with so many images."""
    rng = np.random.default_rng(len(counts))
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(root / name / f"{number}.png")
    return root


def run_to(config: RunConfig, root: Path, until: str = "prior") -> RunDirectory:
    execute(config, RunDirectory(root), SilentProgress(), Processes(), until=until)
    return RunDirectory(root)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A trained run on cats and dogs."""
    folder = tmp_path_factory.mktemp("old")
    return run_to(config_for(pictures(folder / "pets", cat=8, dog=8)), folder / "run")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures: one class as before, two that are new."""
    return pictures(tmp_path_factory.mktemp("zoo"), dog=6, fox=6, owl=6)


def tuned(old: RunDirectory, source: Path, trains: str, prior: bool = True, **changes: Any) -> RunConfig:
    started = {"tokenizer_training__start_from": str(old.root), "tokenizer_training__trains": trains}
    if prior:
        started["prior_training__start_from"] = str(old.root)
    return config_for(source, **{**started, **changes})


def images(count: int, seed: int = 0) -> Tensor:
    """Bytes ``[count, 1, 28, 28]``."""
    return (torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) * 255).byte()


def pixels(count: int) -> Tensor:
    return images(count).float() / 127.5 - 1


def train(trainer: TokenizerTrainer, steps: int) -> None:
    """Batches that are functions of the step."""
    for _ in range(steps):
        trainer.train_batch(Batch(images(8, trainer.step), torch.arange(8) % 2, torch.arange(8)))


def trainer_of(config: RunConfig) -> TokenizerTrainer:
    config = config.resolve(3)
    return TokenizerTrainer(config.tokenizer, config.tokenizer_training, seed=5, processes=Processes())


# -- the tokenizer ------------------------------------------------------------------------------------------------------


def frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items() if not name.startswith("decoder.")}


@pytest.mark.parametrize("quantizer", ["vector", "lookup-free"])
def test_a_tuned_decoder_leaves_every_id_as_it_was(quantizer: str, tmp_path: Path, zoo: Path) -> None:
    changes: dict[str, Any] = {"tokenizer__segments__0__codebook__schedule": "uniform"}
    if quantizer == "lookup-free":
        config = config_for(zoo).changed(
            {"tokenizer.segments.0.codebook.schedule": "uniform", QUANTIZER: "lookup-free"}
        )
    else:
        config = config_for(zoo, **changes)
    start = trainer_of(config)
    train(start, 3)
    start.save(tmp_path / "model.safetensors", {})
    before = load_tokenizer(tmp_path)
    ids, shown = before.encode(pixels(8)), before.decode(before.encode(pixels(8)))
    alone = {"start_from": str(tmp_path), "trains": "decoder"}
    trainer = trainer_of(config.changed({f"tokenizer_training.{name}": value for name, value in alone.items()}))
    given, first = frozen(before.state_dict()), trainer.tokenizer.state_dict()["decoder.head.projection.weight"].clone()
    assert "quantizers.visual.idle" in given or quantizer == "lookup-free"
    train(trainer, 4)
    for weights in (trainer.tokenizer.state_dict(), trainer.generator.weights()["ema"]):
        kept = frozen(dict(weights))
        assert kept.keys() == given.keys()
        for name, value in kept.items():
            assert torch.equal(value, given[name]), name
        assert not torch.equal(weights["decoder.head.projection.weight"], first)
    trainer.save(tmp_path / "tuned" / "model.safetensors", {})
    for weights_role in ("raw", "ema"):
        after = load_tokenizer(tmp_path / "tuned", weights_role)  # type: ignore[arg-type]
        assert torch.equal(after.encode(pixels(8)), ids)
        assert not torch.equal(after.decode(ids), shown)


def test_a_whole_tokenizer_moves_in_all_its_parts(old: RunDirectory, zoo: Path) -> None:
    """It starts as what it was, for data of another number of classes too; then encoder and codebook move as well."""
    trainer = trainer_of(tuned(old, zoo, "everything"))
    before = load_tokenizer(old.root)
    assert before.config.num_classes != trainer.config.num_classes
    assert torch.equal(trainer.tokenizer.eval().encode(pixels(8)), before.encode(pixels(8)))
    assert torch.equal(trainer.tokenizer.decode(before.encode(pixels(8))), before.decode(before.encode(pixels(8))))
    first = {name: value.clone() for name, value in trainer.tokenizer.state_dict().items()}
    train(trainer, 2)
    after = trainer.tokenizer.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], first[name])}
    assert moved == {"encoder", "quantizers", "decoder"}


@pytest.mark.parametrize("trains", ["decoder", "everything"])
def test_a_resume_is_exact(old: RunDirectory, zoo: Path, tmp_path: Path, trains: str) -> None:
    config = tuned(old, zoo, trains)
    whole, first = trainer_of(config), trainer_of(config)
    train(whole, 4)
    train(first, 2)
    save_state(tmp_path, 2, first.state_dict())
    again = trainer_of(config)
    again.load_state_dict(load_state(tmp_path, 2))
    train(again, 2)
    for role, weights in whole.generator.weights().items():
        for name, value in again.generator.weights()[role].items():
            assert torch.equal(value, weights[name]), name


# -- runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", ["nothing", "decoder", "everything"])
def test_a_run_from_a_run(old: RunDirectory, zoo: Path, tmp_path: Path, trains: str) -> None:
    run = run_to(tuned(old, zoo, trains), tmp_path / "run")
    started, model = (read_metadata(of.tokenizer_model, "tokenizer") for of in (old, run))
    prior = read_metadata(run.prior_model, "prior")
    # What the files say.
    assert model["started_from"] == {
        "model": str(old.root), "weights": "ema", "weights_hash": started["weights_hash"]
    }  # fmt: skip
    assert prior["started_from"]["weights_hash"] == read_metadata(old.prior_model, "prior")["weights_hash"]
    assert prior["classes"] == ["dog", "fox", "owl"]
    written = json.loads(run.config.read_text())
    assert written["tokenizer_training"]["start_hash"] == started["weights_hash"]
    assert written["prior_training"]["start_hash"] == prior["started_from"]["weights_hash"]
    assert prior["run_config"]["prior_training"]["start_hash"] == prior["started_from"]["weights_hash"]
    # Whose ids they are, by hash and by the ids themselves.
    tokens = TokenFile.open(old.tokens("train"))
    kept = trains != "everything"
    assert (ids_hash(model) == ids_hash(started)) == kept
    assert prior["tokenizer_hash"] == run.token_file("train").header.tokenizer == ids_hash(model)
    before, after = load_tokenizer(old.root), load_tokenizer(run.root)
    assert torch.equal(before.encode(pixels(4)), after.encode(pixels(4))) == kept
    ids = torch.from_numpy(np.array(tokens.ids(crop=0)))
    assert torch.equal(before.decode(ids), after.decode(ids)) == (trains == "nothing")
    if kept:
        tokens.check_tokenizer(ids_hash(model))
    else:
        with pytest.raises(OvertureError, match="written by another tokenizer"):
            tokens.check_tokenizer(ids_hash(model))
    page = write_report([run], tmp_path / "report.html", "tuned").read_text()
    assert "Started from, tokenizer" in page
    assert f"{started['weights_hash']}, trained: {trains}" in page
    # It is done, and needs its start no more.
    gone = replace(run.read_config(), name="again")
    hidden = old.root.rename(old.root.with_name("elsewhere"))
    try:
        execute(gone, run, SilentProgress(), Processes(), until="prior")
    finally:
        hidden.rename(old.root)


def test_tuned_again_the_ids_are_still_those_of_the_first(old: RunDirectory, zoo: Path, tmp_path: Path) -> None:
    first = run_to(tuned(old, zoo, "decoder"), tmp_path / "first")
    config = tuned(first, zoo, "nothing", prior_training__start_from=str(old.root))  # a prior that learned the same ids
    second = run_to(config, tmp_path / "second")
    hashes = {ids_hash(read_metadata(run.tokenizer_model, "tokenizer")) for run in (old, first, second)}
    assert len(hashes) == 1


def test_another_model_in_its_place_is_told(old: RunDirectory, zoo: Path, tmp_path: Path) -> None:
    start = RunDirectory(shutil.copytree(old.root, tmp_path / "start"))
    config = tuned(start, zoo, "decoder")
    run_to(config, tmp_path / "run", "tokenizer")
    weights, metadata = read_weights(start.prior_model, "raw"), read_metadata(start.prior_model, "prior")
    weights["class_embedding.weight"] += 1
    about = {key: value for key, value in metadata.items() if key not in ("weights_hash", "metadata_hash")}
    digest = save_model(start.prior_model, "prior", {"raw": weights}, about)
    with pytest.raises(
        UsageError, match=rf"start-from .*start: its weights are {digest}, this run was begun with"
    ) as told:
        run_to(config, tmp_path / "run")
    assert "\n" not in str(told.value)


def test_of_the_hub_the_commit_is_recorded(old: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "snapshots" / "c0ffee"
    shutil.copytree(old.tokenizer, cache / "tokenizer")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, file, revision=None: str(cache / file))
    start = Start.find("hf:owner/name@main", "tokenizer")
    assert start.record["model"] == "hf:owner/name@c0ffee"


def test_hashes_of_digits_stay_words(tmp_path: Path) -> None:
    save_model(
        tmp_path / "m.safetensors", "prior", {"raw": {"x": torch.zeros(1)}}, {"tokenizer_hash": "12345e7890123456"}
    )
    assert read_metadata(tmp_path / "m.safetensors", "prior")["tokenizer_hash"] == "12345e7890123456"


# -- the prior ----------------------------------------------------------------------------------------------------------

LAYOUT = Layout((Segment("visual", (2, 5, 9, 16)),))
SIZES = PriorConfig(dim=24, depth=2, heads=2, condition_dim=8, num_classes=3, dropout=0.0)


def prior_of(classes: tuple[str, ...], start: Path | None = None, **sizes: Any) -> PriorTrainer:
    config = replace(SIZES, **{"num_classes": len(classes), **sizes})
    training = PriorTrainingConfig(steps=9, start_from=str(start or ""), precision="float32")
    training = replace(training, optimizer=replace(training.optimizer, warmup=0))
    return PriorTrainer(config, training, LAYOUT, seed=1, processes=Processes(), classes=classes)


def logits(trainer: PriorTrainer, label: int) -> Tensor:
    """Of two sequences."""
    ids = torch.tensor([[0, 1, 2, 3], [1, 4, 8, 15]])
    return trainer.prior.eval()(LAYOUT.to_sequence(ids), torch.tensor([label, label])).detach()


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> tuple[PriorTrainer, Path]:
    """A prior of three classes that it tells apart, and its file."""
    trainer, path = prior_of(("ant", "bee", "cat")), tmp_path_factory.mktemp("prior")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.prior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    trainer.save(path / "model.safetensors", {})
    return trainer, path


@pytest.mark.parametrize(
    ("classes", "like"),
    [
        (("ant", "bee", "cat"), (0, 1, 2)),
        (("cat", "dog"), (2, 3)),
        (("bee", "cat", "elk"), (1, 2, 3)),
        (("emu", "elk", "fox", "gnu"), (3, 3, 3, 3)),
    ],
)
def test_classes_are_known_by_their_names(
    animals: tuple[PriorTrainer, Path], classes: tuple[str, ...], like: tuple[int, ...]
) -> None:
    """Every class gives the logits of its namesake, and one that is new those of "no class"; so does "no class"."""
    known, path = animals
    trainer = prior_of(classes, path)
    for label, same in enumerate((*like, 3)):
        assert torch.equal(logits(trainer, label), logits(known, same))
    assert not torch.equal(logits(known, 0), logits(known, 3))


def test_without_names_equal_numbers_are_the_same_classes(animals: tuple[PriorTrainer, Path], tmp_path: Path) -> None:
    known, path = animals
    metadata = read_metadata(path / "model.safetensors", "prior")
    about = {"config": to_dict(known.config), "layout": metadata["layout"]}  # as an imported prior has it
    save_model(tmp_path / "model.safetensors", "prior", {"raw": known.prior.state_dict()}, about)
    same, fewer = prior_of(("x", "y", "z"), tmp_path), prior_of(("ant", "bee"), tmp_path)
    assert torch.equal(logits(same, 1), logits(known, 1))
    assert torch.equal(logits(fewer, 0), logits(known, 3))


def test_a_prior_resumes_exactly(animals: tuple[PriorTrainer, Path], tmp_path: Path) -> None:
    def steps(trainer: PriorTrainer, count: int) -> None:
        for _ in range(count):
            generator = torch.Generator().manual_seed(trainer.step)
            ids = (torch.rand(8, LAYOUT.length, generator=generator) * torch.tensor(LAYOUT.sizes)).long()
            trainer.train_batch(TokenBatch(ids, torch.arange(8) % 2, torch.arange(8)))

    whole, first, again = (prior_of(("cat", "dog"), animals[1]) for _ in range(3))
    steps(whole, 4)
    steps(first, 2)
    save_state(tmp_path, 2, first.state_dict())
    again.load_state_dict(load_state(tmp_path, 2))
    steps(again, 2)
    assert not torch.equal(whole.prior.class_embedding.weight, first.prior.class_embedding.weight)
    for role, weights in whole.trained.weights().items():
        for name, value in again.trained.weights()[role].items():
            assert torch.equal(value, weights[name]), name


# -- what is refused ----------------------------------------------------------------------------------------------------


def refused(config: RunConfig, told: str) -> None:
    check_run(config.resolve(3), until="prior")
    with pytest.raises(OvertureError, match=told) as caught:
        check_weights(config.resolve(3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"prior__dim": 64},
            r"prior.model\.safetensors: a prior of other sizes than this run's \(dim was 32, now 64\)",
        ),
        ({"tokenizer__decoder__depth": 3}, r"tokenizer of other sizes than this run's \(decoder.depth was 2, now 3\)"),
        (
            {"tokenizer__segments__0__codebook__k_max": 512},
            "its ids are of another layout: its visual token 1 has 70 codes, this run's 36",
        ),
        (
            {"tokenizer__segments__0__codebook__k_max": 512, "tokenizer_training__trains": "everything"},
            r"codebook is \[1024, 12\], the new tokenizer has \[512, 12\]",
        ),
        ({"tokenizer__segments__0__tokens": 8}, "its visual segment has 16 tokens, this run's 8"),
        ({"tokenizer_training__start_from": "nowhere"}, "nowhere: no such file or run"),
        ({"prior_training__start_from": "nowhere"}, "nowhere: no such file or run"),
    ],
)
def test_models_that_do_not_fit(old: RunDirectory, zoo: Path, changes: dict[str, Any], told: str) -> None:
    check_weights(tuned(old, zoo, "decoder").resolve(3))
    check_weights(tuned(old, zoo, "decoder", prior__dropout=0.3).resolve(3))  # no size
    refused(tuned(old, zoo, "decoder", **changes), told)


def test_a_prior_of_other_ids(old: RunDirectory, zoo: Path, tmp_path: Path) -> None:
    other = run_to(config_for(zoo, seed=1), tmp_path / "other", "tokenizer")
    refused(
        tuned(other, zoo, "nothing", prior_training__start_from=str(old.root)),
        "has learned the ids of the tokenizer .*; start both from one run",
    )
    refused(tuned(other, zoo, "nothing"), "holds no prior")


def test_files_that_are_no_models(old: RunDirectory, zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "note.safetensors").write_text("hello")
    refused(
        tuned(old, zoo, "decoder", tokenizer_training__start_from=str(tmp_path / "note.safetensors")), "not a readable"
    )
    refused(
        tuned(old, zoo, "decoder", prior_training__start_from=str(old.tokenizer_model)),
        "is a tokenizer, expected a prior",
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer_training__trains": "decoder"}, r"trains is decoder.*--tokenizer-training\.start-from"),
        ({"tokenizer_training__trains": "nothing"}, r"trains is nothing.*--tokenizer-training\.start-from"),
        ({"tokenizer_training__trains": "encoder"}, "'encoder' is not a valid choice"),
        ({"prior_training__start_from": "runs/x"}, r"set --tokenizer-training\.start-from to that one"),
        (
            {
                "tokenizer_training__start_from": "x",
                "tokenizer_training__trains": "decoder",
                "tokenizer_training__joint": "default",
            },
            "a joint prior teaches the encoder",
        ),
    ],
)
def test_settings_that_go_against_each_other(zoo: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        config_for(zoo, **changes)


def test_a_prologue_is_not_left_to_fade() -> None:
    config = recipe_configs("prologue-fashion-mnist", tiny=True)[1].resolve(10)
    started = {"tokenizer_training.start_from": "x", "tokenizer_training.joint": None}
    with pytest.raises(UsageError, match="nothing would hold the prologue segment in place"):
        check_run(config.changed(started), until="tokenizer")
    check_run(config.changed({**started, "tokenizer_training.trains": "decoder"}), until="tokenizer")


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (LAYOUT, ""),
        (Layout((Segment("visual", (2, 5, 9)),)), "its visual segment has 3 tokens, this run's 4"),
        (Layout((Segment("visual", (2, 5, 8, 16)),)), "its visual token 2 has 8 codes, this run's 9"),
        (Layout((Segment("a", (2,)), *LAYOUT.segments)), "its segments are a, visual, this run's visual"),
    ],
)
def test_layouts_are_told_apart(there: Layout, told: str) -> None:
    assert layout_difference(there, LAYOUT) == told
    parted, joined = (Layout((Segment("a", (2,), separator), *LAYOUT.segments)) for separator in (True, False))
    assert layout_difference(parted, joined) == "a separator follows the a segment in one of the two alone"


# -- the recipe and its plan --------------------------------------------------------------------------------------------


def chosen(*words: str, until: str = "report") -> tuple[RunConfig, ...]:
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    options, rest = parser.parse_known_args([*words])
    options.overrides, options.until = rest, until
    return chosen_configs(options)


def test_a_recipe_takes_the_sizes_of_its_start(old: RunDirectory) -> None:
    configs = chosen("fine-tune", "--start-from", str(old.root), "--data.source", "x", "--prior.dropout", "0.3")
    assert [(config.name, config.tokenizer_training.trains) for config in configs] == [
        ("prior", "nothing"), ("decoder", "decoder"), ("whole", "everything")
    ]  # fmt: skip
    there = old.read_config()
    for config in configs:
        assert config.tokenizer == there.tokenizer
        assert config.prior == replace(there.prior, dropout=0.3)
        assert config.tokenizer_training.start_from == config.prior_training.start_from == str(old.root)
        check_weights(config.resolve(3))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["quickstart", "--growth", "power 2"], "--growth does not go with --start-from"),
        (["prologue-onestage"], "starts from none"),
        (["prologue-post-fashion-mnist"], "name that one with --tokenizer-training.start-from"),
    ],
)
def test_starts_that_would_be_passed_over(old: RunDirectory, words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        chosen(*words, "--tiny", "--start-from", str(old.root))


@pytest.mark.parametrize("trains", ["everything", "decoder"])
@pytest.mark.parametrize("revive_after", [0, 7])
def test_how_codes_are_revived_is_no_part_of_a_start(
    old: RunDirectory, zoo: Path, trains: str, revive_after: int
) -> None:
    check_weights(tuned(old, zoo, trains, **{f"{QUANTIZER}.revive_after": revive_after}).resolve(3))


def test_a_tokenizer_alone_is_a_start_for_tokenizers(old: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(old.tokenizer, tmp_path / "tokenizer")
    words = ("fine-tune", "--only", "decoder", "--start-from", str(tmp_path))
    with pytest.raises(OvertureError, match="holds no prior"):
        chosen(*words)
    (config,) = chosen(*words, until="tokenizer")
    assert config.tokenizer == old.read_config().tokenizer
    assert not config.prior_training.start_from


def test_a_plan_counts_what_is_trained() -> None:
    tiny, images = recipe_configs("quickstart", tiny=True)[1], Images(160, 40, 10, "given")
    parts: dict[str, Any] = {"tokenizer_training.start_from": "x"}
    prior, decoder, whole = (
        make_plan(tiny.changed({**parts, "tokenizer_training.trains": trains}), images)
        for trains in ("nothing", "decoder", "everything")
    )
    count = whole["parameters"]
    memory = decoder["memory_per_device"]["tokenizer"]
    assert memory["gradients"] == 4 * (count["decoder"] + count["discriminator"])
    assert memory["adam"] == 8 * (count["decoder"] + count["discriminator"])
    assert memory["weights"] == 4 * (count["encoder"] + count["decoder"] + count["discriminator"])
    assert memory["activations"] < whole["memory_per_device"]["tokenizer"]["activations"]
    spared = whole["checkpoints"]["tokenizer_resume"] - decoder["checkpoints"]["tokenizer_resume"]
    assert spared == 8 * count["encoder"]  # no moments of what is frozen
    steps = [plan["flops_per_image"]["tokenizer_step"] for plan in (prior, decoder, whole)]
    assert steps[0] == 0
    assert steps[2] - steps[1] == 2 * whole["flops_per_image"]["encode"]
    assert prior["stages"]["tokenizer"]["steps"] == 0
    assert prior["memory_per_device"]["tokenizer"] is None
    assert prior["checkpoints"]["tokenizer_resume"] == 0
    assert prior["stages"]["prior"] == whole["stages"]["prior"]


def test_a_loaded_prior_is_the_trained_one(old: RunDirectory, zoo: Path, tmp_path: Path) -> None:
    """With one step of rate zero a run's prior is the one that it started from, class by class."""
    still = {f"prior_training__optimizer__{name}": 0.0 for name in ("learning_rate", "learning_rate_min")}
    run = run_to(tuned(old, zoo, "nothing", prior_training__steps=1, **still), tmp_path / "run")
    before, after = load_prior(old.root), load_prior(run.root)
    sequence = before.layout.to_sequence(torch.zeros(1, before.layout.length, dtype=torch.long))
    for label, same in ((0, 1), (1, 2), (2, 2), (3, 2)):  # dog; fox, owl and none like none
        assert torch.equal(after(sequence, torch.tensor([label])), before(sequence, torch.tensor([same])))
