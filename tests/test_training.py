"""Stages 1 and 3: exact resume, many processes = one, NaN, and what is written."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import overture
from overture.config import from_dict, to_dict
from overture.data.order import some_of
from overture.data.sources import subset
from overture.data.stream import TrainingStream
from overture.data.token_files import TokenBatch, TokenFile, TokenStream
from overture.errors import OvertureError
from overture.files import read_json_lines
from overture.losses.perceptual import NoPerceptual
from overture.model_files import save_model
from overture.priors.likelihood import measure_likelihood
from overture.processes import Processes
from overture.progress import Interrupted, SilentProgress
from overture.recipes import RECIPES, recipe_configs
from overture.runs.config import RunConfig
from overture.training import checkpoint
from overture.training.loop import train
from overture.training.metric_log import MetricLog
from overture.training.train_prior import PriorTrainer, bits_of_files
from overture.training.train_tokenizer import TokenizerTrainer
from overture.training.write_tokens import write_tokens
from together import together


def tiny_config() -> RunConfig:
    """The tiny quickstart without a perceptual network, eight steps a stage, dropout on."""
    config = recipe_configs("quickstart", tiny=True)[1].resolve(10)
    rate = {"learning_rate": 2e-3, "warmup": 2, "flat": 2}
    tokenizer = {
        "steps": 8, "batch_size": 8, "perceptual": NoPerceptual(), "log_every": 1,
        "adversarial.start": 2, "adversarial.r1_every": 3,
        **{f"optimizer.{name}": value for name, value in rate.items()},
        **{f"discriminator_optimizer.{name}": value for name, value in rate.items()},
    }  # fmt: skip
    prior = {
        "steps": 8, "batch_size": 8, "evaluate_every": 4, "evaluate_rows": 20, "log_every": 1, "optimizer.warmup": 2
    }  # fmt: skip
    return config.changed(
        {
            **{f"tokenizer_training.{name}": value for name, value in tokenizer.items()},
            **{f"prior_training.{name}": value for name, value in prior.items()},
            "tokenizer.segments.0.quantizer.revive_after": 3,
        }
    )


class StopAfter(SilentProgress):
    """Asks for a stop once so many steps are done."""

    def __init__(self, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = steps
        monkeypatch.setattr("overture.training.loop.stop_requested", lambda: self.left <= 0)

    def advance(self, count: int = 1, **shown: float) -> None:
        self.left -= count


def equal_states(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal_states, a, b))
    return a == b


def tokenizer_trainer(config: RunConfig, processes: Processes = Processes()) -> TokenizerTrainer:
    return TokenizerTrainer(config.tokenizer, config.tokenizer_training, seed=3, processes=processes)


def train_tokenizer(config: RunConfig, root: Path, progress: SilentProgress) -> TokenizerTrainer:
    trainer = tokenizer_trainer(config)
    stream = TrainingStream(config.data.build().train, config.data, config.tokenizer_training.batch_size, 3)
    train(trainer, stream.batches, root / "tokenizer", root / "metrics.jsonl", progress)
    return trainer


def test_interrupted_tokenizer_training_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    whole = train_tokenizer(config, tmp_path / "whole", SilentProgress())
    for stop in (3, 2):  # stops at step 3, goes on, stops at step 5, goes on
        with pytest.raises(Interrupted, match="step"):
            train_tokenizer(config, tmp_path / "parts", StopAfter(stop, monkeypatch))
    monkeypatch.setattr("overture.training.loop.stop_requested", lambda: False)
    parts = train_tokenizer(config, tmp_path / "parts", SilentProgress())
    assert equal_states(whole.state_dict(), parts.state_dict())
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "parts/metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def token_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenFile, TokenFile]:
    """Tokens of a few images under an untrained tokenizer."""
    config, root = tiny_config(), tmp_path_factory.mktemp("tokens")
    tokenizer = tokenizer_trainer(config).tokenizer.eval()
    data = config.data.build()
    files = [
        write_tokens(
            tokenizer,
            "hash",
            subset(source, range(30)),
            config.data,
            config.tokens,
            root / f"{name}.tokens",
            processes=Processes(),
            progress=SilentProgress(),
        )
        for name, source in (("train", data.train), ("held_out", data.held_out))
    ]
    return files[0], files[1]


def prior_trainer(config: RunConfig) -> PriorTrainer:
    return PriorTrainer(config.prior, config.prior_training, config.tokenizer.layout, seed=3, processes=Processes())


def test_interrupted_prior_training_is_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_files: tuple[TokenFile, TokenFile]
) -> None:
    config = tiny_config()

    def train_prior(root: Path, progress: SilentProgress) -> PriorTrainer:
        trainer = prior_trainer(config)
        batches = TokenStream(token_files[0], config.prior_training.batch_size, 3).batches
        measure = bits_of_files(trainer, dict(zip(("train", "held_out"), token_files, strict=True)))
        train(trainer, batches, root / "prior", root / "metrics.jsonl", progress, measure=measure)
        return trainer

    whole = train_prior(tmp_path / "whole", SilentProgress())
    with pytest.raises(Interrupted):
        train_prior(tmp_path / "parts", StopAfter(5, monkeypatch))
    monkeypatch.setattr("overture.training.loop.stop_requested", lambda: False)
    parts = train_prior(tmp_path / "parts", SilentProgress())
    assert equal_states(whole.state_dict(), parts.state_dict())
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "parts/metrics.jsonl").read_text()


def _train_some(processes: Processes, config: RunConfig, path: str) -> None:
    trainer = tokenizer_trainer(config, processes)
    stream = TrainingStream(config.data.build().train, config.data, 8, 3, processes.rank, processes.size)
    batches = stream.batches(0)
    for _ in range(5):
        trainer.train_batch(next(batches))
    if processes.is_main:
        checkpoint.save_state(Path(path), 1, trainer.state_dict())


def test_two_processes_train_the_same_tokenizer_as_one(tmp_path: Path) -> None:
    config = tiny_config()
    _train_some(Processes(), config, str(tmp_path / "one"))
    together(_train_some, 2, tmp_path, config, str(tmp_path / "two"))
    one, two = (checkpoint.load_state(tmp_path / name, 1) for name in ("one", "two"))
    for name, tensor in one["tokenizer"].items():
        assert torch.allclose(tensor.float(), two["tokenizer"][name].float(), atol=2e-4), name
    for name, tensor in one["adversarial"].items():
        assert torch.allclose(tensor.float(), two["adversarial"][name].float(), atol=2e-4), name


def test_a_nan_names_its_term_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config().changed({"tokenizer_training.steps": 20, "tokenizer_training.log_every": 5})
    with pytest.raises(Interrupted):
        train_tokenizer(config, tmp_path, StopAfter(3, monkeypatch))
    monkeypatch.setattr("overture.training.loop.stop_requested", lambda: False)
    monkeypatch.setattr(
        "overture.losses.adversarial.Adversarial.generator_loss", lambda self, images: images.sum() * float("nan")
    )
    with pytest.raises(OvertureError, match="tokenizer: 'adversarial' is NaN or infinite from step 5 on"):
        train_tokenizer(config, tmp_path, SilentProgress())
    assert checkpoint.latest_step(tmp_path / "tokenizer") == 3
    checkpoint.load_state(tmp_path / "tokenizer", 3)


def test_saved_models_load_and_give_the_same_ids(tmp_path: Path) -> None:
    config = tiny_config()
    trainer = tokenizer_trainer(config)
    batches = TrainingStream(config.data.build().train, config.data, 8, 0).batches(0)
    batch = next(batches)
    trainer.train_batch(batch)
    trainer.save(tmp_path / "run/tokenizer/model.safetensors", {})
    images = batch.images.float() / 127.5 - 1
    for weights in ("raw", "ema"):
        loaded = overture.load_tokenizer(tmp_path / "run", weights)  # type: ignore[arg-type]
        expected = trainer.tokenizer.eval()
        if weights == "ema":
            assert trainer.generator.ema is not None
            expected.load_state_dict(trainer.generator.ema.state_dict())
        assert torch.equal(loaded.encode(images), expected.encode(images))
        assert loaded.layout == config.tokenizer.layout
    with safe_open(tmp_path / "run/tokenizer/model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"]) == to_dict(config.tokenizer)


@pytest.mark.parametrize("damage", ["missing", "garbage", "other kind", "truncated"])
def test_bad_model_files_are_one_line_errors(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, "prior", {"raw": {"a": torch.zeros(1000)}}, {"config": {}})
    if damage == "missing":
        path = tmp_path / "no/model.safetensors"
    elif damage == "garbage":
        path.write_bytes(b"\x80\x04pickle?" * 100)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OvertureError) as error:
        overture.load_tokenizer(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


FULL = "No space left on device"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, FULL), SafetensorError(f"I/O error: {FULL} (os error 28)")])
def test_a_full_disk_is_one_line_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    checkpoint.save_state(tmp_path, 1, {"step": 1, "weights": {0: torch.arange(3)}})

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OvertureError, match="the disk is full") as caught:
        checkpoint.save_state(tmp_path, 2, {"step": 2, "weights": {0: torch.arange(3)}})
    assert "\n" not in str(caught.value)
    assert checkpoint.latest_step(tmp_path) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000001"]


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"a": {0: torch.arange(3), 1: [torch.ones(2, 2), None, 1.5]}, "b": {"x": "text", "y": True}, "step": 4}
    checkpoint.save_state(tmp_path, 4, state)
    assert equal_states(checkpoint.load_state(tmp_path, 4), state)
    checkpoint.save_state(tmp_path, 9, state)
    assert checkpoint.latest_step(tmp_path) == 9
    assert not (tmp_path / "step-00000004").exists()


def test_metrics_are_cut_back_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, "tokenizer")
    for step in (1, 2, 3):
        log.write(step, {"l1": step, "bad": float("nan")})
    MetricLog(path, "prior").write(2, {"bits": 1.0})
    path.write_text(path.read_text() + '{"stage": "tok')  # a crash in the middle of a line
    MetricLog(path, "tokenizer", start_step=2).write(3, {"l1": 30.0})
    assert [(r["stage"], r["step"]) for r in read_json_lines(path)] == [
        ("tokenizer", 1), ("tokenizer", 2), ("prior", 2), ("tokenizer", 3),
    ]  # fmt: skip
    assert "bad" not in read_json_lines(path)[0]


def test_bits_per_image_is_the_mean_cross_entropy(token_files: tuple[TokenFile, TokenFile]) -> None:
    trainer = prior_trainer(tiny_config())
    prior, file = trainer.prior.eval(), token_files[0]
    ids, labels = torch.as_tensor(file.ids(slice(0, 30), 0)), torch.as_tensor(file.labels[:30].astype("int64"))
    with torch.no_grad():
        log_probability = prior(ids, labels).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    bits = -log_probability.double() / math.log(2)
    found = measure_likelihood(prior, file.parts(7))
    assert torch.allclose(found.vocabulary, bits.mean(0), atol=1e-5)
    assert (found.allowed <= found.vocabulary + 1e-6).all()

    measure, rows = bits_of_files(trainer, {"train": file, "held_out": token_files[1]}), some_of(30, 20)
    assert [step for step in range(1, 9) if measure(step)] == [4, 8]
    measured = measure(4)
    assert list(measured) == ["train_bits_per_image", "held_out_bits_per_image"]
    assert measured["train_bits_per_image"] == pytest.approx(bits[rows].sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_parses_and_its_configs_survive_json(name: str) -> None:
    for tiny in (False, True):
        for config in recipe_configs(name, tiny=tiny):
            assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
            assert config.tokenizer_training.optimizer.schedule(config.tokenizer_training.steps).learning_rate(0) > 0
            assert config.prior_training.optimizer.schedule(config.prior_training.steps).learning_rate(0) > 0


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_tiny_recipe_trains_one_step(name: str) -> None:
    for config in recipe_configs(name, tiny=True):
        data = config.data.build()
        config = config.resolve(data.num_classes)
        training = replace(config.tokenizer_training, perceptual=NoPerceptual())
        trainer = TokenizerTrainer(config.tokenizer, training, seed=0, processes=Processes())
        batch = next(TrainingStream(data.train, config.data, training.batch_size, 0).batches(0))
        before = {name: value.clone() for name, value in trainer.tokenizer.state_dict().items()}
        terms = trainer.train_batch(batch)
        assert torch.isfinite(terms["loss"])
        after = trainer.tokenizer.state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before)
        layout = config.tokenizer.layout
        prior = PriorTrainer(config.prior, config.prior_training, layout, seed=0, processes=Processes())
        ids = trainer.tokenizer.eval().encode(batch.images.float() / 127.5 - 1)
        tokens = TokenBatch(ids, batch.labels, batch.indices)
        assert torch.isfinite(prior.train_batch(tokens)["bits_per_image"])


def test_recomputing_blocks_changes_no_number() -> None:
    """Stage 1 of a Prologue, joint prior and all, with and without the activations kept."""
    config = recipe_configs("prologue-fashion-mnist", tiny=True)[1].resolve(10)
    states = []
    for recompute in ("nothing", "elementwise", "blocks"):
        training = replace(config.tokenizer_training, perceptual=NoPerceptual(), recompute=recompute, batch_size=4)
        trainer = TokenizerTrainer(config.tokenizer, training, seed=0, processes=Processes())
        batches = TrainingStream(config.data.build().train, config.data, 4, 0).batches(0)
        terms = [trainer.train_batch(next(batches)) for _ in range(2)]
        assert {"ce_prologue", "ce_separator", "ce_visual", "joint_prior"} <= set(terms[-1])
        states.append(trainer.state_dict())
    assert all(equal_states(states[0], other) for other in states[1:])
