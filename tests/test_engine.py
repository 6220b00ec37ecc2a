"""The same global batch on one process and on several, replicated and sharded, whole and in micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overture.data.stream import Batch
from overture.data.token_files import TokenBatch
from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.losses.perceptual import NoPerceptual
from overture.model_files import read_weights
from overture.priors.model import PriorConfig
from overture.processes import Processes
from overture.recipes import recipe_configs
from overture.runs.config import RunConfig
from overture.training.checkpoint import load_state, save_state
from overture.training.optim import OptimizerConfig
from overture.training.train_prior import EngineConfig, PriorTrainer, PriorTrainingConfig
from overture.training.train_tokenizer import TokenizerTrainer
from together import together

LAYOUT = Layout((Segment("visual", (2, 5, 9, 16, 16)),))
PRIOR = PriorConfig(dim=24, depth=2, heads=2, condition_dim=8, num_classes=3, dropout=0.0)
TRAINING = PriorTrainingConfig(
    steps=8,
    batch_size=8,
    optimizer=OptimizerConfig(1e-2, 1e-3, betas=(0.9, 0.96), weight_decay=0.03, warmup=2, flat=1, clip=1.0),
    label_drop=0.4,
    ema_half_life=3.0,
    precision="float32",
)
ENGINES = {
    "whole": EngineConfig(),
    "parts": EngineConfig(micro_batch=1),
    "sharded": EngineConfig(shard=True),
    "sharded-parts": EngineConfig(micro_batch=2, shard=True),
}


def batch(step: int) -> TokenBatch:
    """The global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    ids = (torch.rand(8, LAYOUT.length, generator=generator) * torch.tensor(LAYOUT.sizes)).long()
    return TokenBatch(ids, torch.arange(8) % 3, torch.arange(8))


def trainer_of(processes: Processes, engine: EngineConfig) -> PriorTrainer:
    return PriorTrainer(PRIOR, TRAINING, LAYOUT, seed=3, processes=processes, engine=engine)


def steps(trainer: PriorTrainer, count: int) -> list[float]:
    """Train, and return the losses: means over processes."""
    losses = []
    processes = trainer.processes
    for _ in range(count):
        whole = batch(trainer.step)
        share = processes.share_out(len(whole.ids))
        rows = slice(share.start, share.stop)
        mine = TokenBatch(whole.ids[rows], whole.labels[rows], whole.indices[rows])
        losses.append(float(processes.mean(trainer.train_batch(mine)["bits_per_image"])))
    return losses


def saved(trainer: PriorTrainer, folder: Path) -> None:
    """The state and the model, as a run writes them; all processes take part."""
    state = trainer.state_dict()
    if trainer.processes.is_main:
        save_state(folder, trainer.step, state)
    trainer.save(folder / "prior" / "model.safetensors", {})
    trainer.processes.barrier()


def take_steps(trainer: TokenizerTrainer, steps: int, processes: Processes) -> None:
    """On this process's share of made-up batches."""
    for step in range(steps):
        pixels = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(step)) * 255
        share = processes.share_out(8)
        rows = slice(share.start, share.stop)
        indices = torch.arange(8)[rows]
        trainer.train_batch(Batch(pixels.byte()[rows], indices % 10, indices))


def joint_steps(processes: Processes) -> dict[str, Any]:
    """The state of a Prologue's tokenizer, discriminator and joint prior after four steps; inputs are dropped."""
    config = recipe_configs("prologue-fashion-mnist", tiny=True)[1].resolve(10)
    rates: dict[str, Any] = {}
    for part in ("optimizer", "discriminator_optimizer", "joint.optimizer"):  # the papers' rate
        rates |= {f"{part}.warmup": 0, f"{part}.learning_rate": 1e-4, f"{part}.learning_rate_min": 1e-5}
    changes = {"perceptual": NoPerceptual(), "adversarial.start": 1, "joint.label_drop": 0.5, **rates}
    config = config.changed({f"tokenizer_training.{name}": value for name, value in changes.items()})
    assert config.tokenizer_training.joint is not None
    assert config.tokenizer_training.joint.input_dropout == 0.5
    trainer = TokenizerTrainer(config.tokenizer, config.tokenizer_training, seed=2, processes=processes)
    take_steps(trainer, 4, processes)
    return trainer.state_dict()


def revived() -> RunConfig:
    """A tiny VCQ tokenizer whose idle codes are revived after every step that trains them."""
    changes = {"tokenizer.segments.0.quantizer.revive_after": 1, "tokenizer_training.perceptual": NoPerceptual()}
    return recipe_configs("quickstart", tiny=True)[1].resolve(10).changed(changes)


def decoder_steps(processes: Processes, start: Path) -> dict[str, Tensor]:
    """A tokenizer after three steps of its decoder alone."""
    config = revived()
    alone = {"start_from": str(start), "trains": "decoder", "adversarial.start": 1}
    rates = {"optimizer.learning_rate": 1e-4, "optimizer.learning_rate_min": 1e-5}
    config = config.changed({f"tokenizer_training.{name}": value for name, value in {**alone, **rates}.items()})
    trainer = TokenizerTrainer(config.tokenizer, config.tokenizer_training, seed=2, processes=processes)
    take_steps(trainer, 3, processes)
    return trainer.tokenizer.state_dict()


def _process(processes: Processes, folder: Path) -> None:
    joint, tuned = joint_steps(processes), decoder_steps(processes, folder / "start.safetensors")
    if processes.is_main:
        torch.save(joint, folder / "joint.pt")
        torch.save(tuned, folder / "tuned.pt")
    for name, engine in ENGINES.items():
        trainer = trainer_of(processes, engine)
        losses = steps(trainer, 3)
        bits = trainer.whole_prior()(LAYOUT.to_sequence(batch(9).ids), batch(9).labels)
        saved(trainer, folder / name)
        if processes.is_main:
            torch.save({"losses": losses, "logits": bits.detach()}, folder / name / "seen.pt")
        # One process wrote a state: these go on from it.
        resumed = trainer_of(processes, engine)
        resumed.load_state_dict(load_state(folder / "alone", 3))
        steps(resumed, 2)
        saved(resumed, folder / name)


@pytest.fixture(scope="module", params=[2, 4])
def several(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What several processes leave, and beside it ``alone``: one process after three steps and after five."""
    folder = tmp_path_factory.mktemp("engine")
    trainer = trainer_of(Processes(), EngineConfig())
    losses = steps(trainer, 3)
    saved(trainer, folder / "alone")
    logits = trainer.prior(LAYOUT.to_sequence(batch(9).ids), batch(9).labels).detach()
    torch.save({"losses": losses, "logits": logits}, folder / "alone" / "seen.pt")
    state = load_state(folder / "alone", 3)
    steps(trainer, 2)
    saved(trainer, folder / "alone" / "later")
    assert state["step"] == 3
    config = revived()
    start = TokenizerTrainer(config.tokenizer, config.tokenizer_training, seed=2, processes=Processes())
    start.save(folder / "start.safetensors", {})
    together(_process, request.param, folder, folder)
    return folder


def largest(a: Any, b: Any) -> float:
    """The largest difference of two nested states, which have to be of one form."""
    if isinstance(a, Tensor):
        assert a.shape == b.shape
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((largest(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list):
        assert len(a) == len(b)
        return max((largest(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    assert a == b
    return 0.0


@pytest.mark.parametrize("name", ENGINES)
def test_any_number_of_processes_takes_the_steps_of_one(several: Path, name: str) -> None:
    alone, found = (torch.load(several / which / "seen.pt") for which in ("alone", name))
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert largest(found["logits"], alone["logits"]) < 1e-4
    # A state that one process wrote goes on here, and what is written here is whole again.
    assert largest(load_state(several / name, 5), load_state(several / "alone" / "later", 5)) < 1e-4
    models = [several / which / "prior" / "model.safetensors" for which in ("alone/later", name)]
    for weights in ("raw", "ema"):
        first, second = (read_weights(model, weights) for model in models)
        assert largest(dict(first), dict(second)) < 1e-4


def test_a_tokenizer_with_a_joint_prior_and_an_adversary(several: Path) -> None:
    """Which images lose their inputs or labels does not hang on how many processes there are."""
    alone, found = joint_steps(Processes()), torch.load(several / "joint.pt")
    for part in ("tokenizer", "adversarial"):
        assert largest(dict(found[part]), dict(alone[part])) < 1e-4
    assert largest(dict(found["joint"]["prior"]), dict(alone["joint"]["prior"])) < 1e-4


def test_a_decoder_alone(several: Path) -> None:
    """What is frozen stays so to the last bit; what is not is trained as in one process."""
    start = several / "start.safetensors"
    given, found, alone = (
        read_weights(start, "ema"),
        torch.load(several / "tuned.pt"),
        decoder_steps(Processes(), start),
    )
    for name, value in found.items():
        if name.startswith("decoder."):
            assert torch.allclose(value, alone[name], atol=1e-5), name
        else:
            assert torch.equal(value, given[name]), name
    assert not torch.equal(found["decoder.head.projection.weight"], given["decoder.head.projection.weight"])


@pytest.mark.parametrize("name", ENGINES)
def test_what_several_processes_saved_goes_on_in_one(several: Path, name: str) -> None:
    trainer = trainer_of(Processes(), EngineConfig())
    trainer.load_state_dict(load_state(several / name, 5))
    steps(trainer, 2)
    whole = trainer_of(Processes(), EngineConfig(micro_batch=3))
    whole.load_state_dict(load_state(several / "alone" / "later", 5))
    steps(whole, 2)
    assert largest(trainer.state_dict(), whole.state_dict()) < 1e-4


def test_draws_are_those_of_the_whole_batch() -> None:
    alone = Processes()
    alone.seed(3, "prior", 7)
    first, second = alone.uniform(12), alone.uniform(12)
    assert not torch.equal(first, second)
    for size in (2, 3, 4):
        parts: list[list[Tensor]] = [[], []]
        for rank in range(size):
            one = Processes(rank, size)
            one.seed(3, "prior", 7)
            for part in parts:
                part.append(one.uniform(12 // size))
        assert torch.equal(torch.cat(parts[0]), first)
        assert torch.equal(torch.cat(parts[1]), second)


def test_micro_batches_of_one_process() -> None:
    whole, parts = (trainer_of(Processes(), engine) for engine in (EngineConfig(), EngineConfig(micro_batch=3)))
    assert steps(parts, 3) == pytest.approx(steps(whole, 3), abs=1e-5)
    assert largest(parts.state_dict(), whole.state_dict()) < 1e-5


def test_micro_batches_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="micro-batch is -1, needs >= 0"):
        EngineConfig(micro_batch=-1)
