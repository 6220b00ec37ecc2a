"""The optimiser's step inside the backward pass, and early backward passes: the same numbers as the plain ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.data.stream import TrainingStream
from overture.errors import OvertureError
from overture.losses.perceptual import NoPerceptual
from overture.recipes import load_recipe
from overture.runs.config import RunConfig
from overture.training import checkpoint, descent
from overture.training.descent import Leaf, descend
from overture.training.distributed import World
from overture.training.optim import OptimizerConfig, set_learning_rate, zero_nonfinite_gradients
from overture.training.tokenizer import TokenizerTrainer
from test_training import equal_states

CONFIG = OptimizerConfig(1e-2, 1e-3, betas=(0.9, 0.99), weight_decay=0.1, warmup=2, flat=1)


def ordinary(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, *, world: World, clip: float = 0.0) -> None:
    """All gradients, then one step: what :func:`descend` has to equal."""
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    zero_nonfinite_gradients(parameters)
    if clip:
        nn.utils.clip_grad_norm_(parameters, clip)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))


# -- the whole of stage 1 -----------------------------------------------------------------------------------------------


def stage_one() -> RunConfig:
    """A tiny Prologue with a joint prior: schedules that move, weight decay, R1 on some steps."""
    config = load_recipe("prologue-fashion-mnist")(tiny=True)[1].resolve(10)
    training = config.tokenizer_training
    assert training.joint is not None
    adversarial = replace(training.adversarial, start=1, r1_every=2)
    rate = {"learning_rate": 1e-2, "learning_rate_min": 1e-3, "warmup": 2, "flat": 1}
    training = replace(
        training, steps=6, batch_size=4, perceptual=NoPerceptual(), adversarial=adversarial,
        optimizer=replace(training.optimizer, weight_decay=0.1, **rate),
        discriminator_optimizer=replace(training.discriminator_optimizer, **rate),
        joint=replace(training.joint, optimizer=replace(training.joint.optimizer, **rate)),
    )  # fmt: skip
    return replace(config, tokenizer_training=training)


def run(
    config: RunConfig, steps: int, inside: bool, monkeypatch: pytest.MonkeyPatch, state: Any = None
) -> TokenizerTrainer:
    """Train up to ``steps``, stepping inside the backward pass or after it, from the start or a saved state."""
    for module in ("tokenizer", "joint"):
        monkeypatch.setattr(f"overture.training.{module}.descend", descend if inside else ordinary)
    trainer = TokenizerTrainer(config.tokenizer, config.tokenizer_training, seed=0, world=World())
    if state:
        trainer.load_state_dict(state)
    stream = TrainingStream(config.data.build().train, config.data, 4, 0).batches(trainer.step)
    while trainer.step < steps:
        trainer.train_batch(next(stream))
    return trainer


def test_steps_inside_the_backward_pass_are_bit_for_bit_the_ordinary_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage_one()
    expected = run(config, 6, False, monkeypatch).state_dict()
    assert equal_states(run(config, 6, True, monkeypatch).state_dict(), expected)
    for first in (True, False):  # a checkpoint of either is gone on with by the other
        half = run(config, 3, first, monkeypatch)
        checkpoint.save_state(tmp_path, 3, half.state_dict())
        state = checkpoint.load_state(tmp_path, 3)
        assert equal_states(run(config, 6, not first, monkeypatch, state).state_dict(), expected)


def test_a_step_broken_off_half_way_is_never_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    config = stage_one()
    trainer = run(config, 2, True, monkeypatch)
    good = {name: value.clone() for name, value in trainer.tokenizer.state_dict().items()}
    state = trainer.state_dict()
    saved = {name: state[name] for name in state if name != "tokenizer"} | {"tokenizer": good}
    calls = 0

    def interrupt(parameters: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(descent, "zero_nonfinite_gradients", interrupt)
    batch = next(TrainingStream(config.data.build().train, config.data, 4, 0).batches(2))
    with pytest.raises(KeyboardInterrupt):
        trainer.train_batch(batch)
    moved = [name for name, value in trainer.tokenizer.state_dict().items() if not torch.equal(value, good[name])]
    assert 0 < len(moved) < len(good)
    with pytest.raises(OvertureError, match="step 2 was broken off half way"):
        trainer.state_dict()
    trainer.load_state_dict(saved)
    assert equal_states(trainer.state_dict()["tokenizer"], good)


# -- one step -----------------------------------------------------------------------------------------------------------


def test_no_two_gradients_are_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer, _ = CONFIG.build(model.named_parameters(), 10)
    seen = []
    monkeypatch.setattr(
        descent,
        "zero_nonfinite_gradients",
        lambda parameters: seen.append(sum(parameter.grad is not None for parameter in model.parameters())),
    )
    descend(model(torch.randn(3, 4)).square().mean(), optimizer, 0.1, world=World())
    assert seen == [1] * len(list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_clipped_or_not_the_step_is_the_ordinary_one(clip: float) -> None:
    models = [network(), network()]
    for model, step in zip(models, (descend, ordinary), strict=True):
        optimizer, schedule = CONFIG.build(model.named_parameters(), 10)
        for number in range(4):
            inputs = torch.full((3, 4), 0.5 + number)
            step(model(inputs).square().mean(), optimizer, schedule.learning_rate(number), world=World(), clip=clip)
    assert equal_states(models[0].state_dict(), models[1].state_dict())
    assert not equal_states(models[0].state_dict(), network().state_dict())


def test_gradients_are_made_finite_inside_too() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer, _ = CONFIG.build([("weight", weight)], 10)
    descend((weight * torch.tensor([math.nan, math.inf, 1.0])).sum(), optimizer, 0.1, world=World())
    assert weight.isfinite().all()
    assert weight[0] == 1
    assert (weight[1:] < 1).all()


def test_no_trace_is_left_after_an_exception() -> None:
    model = network()
    optimizer, _ = CONFIG.build(model.named_parameters(), 10)
    groups = optimizer.param_groups

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("in the middle")

    handle = model[2].bias.register_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        descend(model(torch.randn(3, 4)).square().mean(), optimizer, 0.1, world=World())
    handle.remove()
    assert optimizer.param_groups is groups
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(3, 4)).square().mean().backward()
    assert equal_states(before, model.state_dict())
    assert all(parameter.grad is not None for parameter in model.parameters())


# -- early backward passes ----------------------------------------------------------------------------------------------


def test_a_leaf_hands_on_the_gradient_of_all_its_losses() -> None:
    near, far = network(), nn.Linear(2, 5)
    inputs = torch.randn(3, 4)

    def losses(output: Tensor) -> list[Tensor]:
        return [output.abs().mean(), 0.3 * far(output).square().mean()]

    torch.stack(losses(near(inputs))).sum().backward()
    expected = [parameter.grad.clone() for parameter in near.parameters() if parameter.grad is not None]
    far.zero_grad()
    near.zero_grad()
    leaf = Leaf(near(inputs))
    values = [leaf.descend_from(loss) for loss in losses(leaf.tensor)]
    assert leaf.owed.item() == 0
    leaf.owed.backward()
    for parameter, gradient in zip(near.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.grad is None for parameter in far.parameters())
    torch.testing.assert_close(values, [loss.detach() for loss in losses(near(inputs))])


def test_a_leaf_of_a_constant_owes_nothing() -> None:
    leaf = Leaf(torch.randn(3))
    assert leaf.descend_from(leaf.tensor.sum()) == leaf.tensor.sum()
    assert not leaf.owed.requires_grad


def test_early_gradients_are_not_rounded_by_autocast() -> None:
    weight, x = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        leaf = Leaf(x)
        with torch.autocast("cpu", enabled=False):
            loss = F.linear(leaf.tensor, weight).square().sum()
        leaf.descend_from(loss)
    (expected,) = torch.autograd.grad(F.linear(x, weight).square().sum(), x)
    assert torch.equal(leaf.tensor.grad, expected)  # type: ignore[arg-type]


def test_frozen_parameters_of_the_optimiser_stay_where_they_are() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    frozen = model[0].weight
    frozen.requires_grad_(False)
    before = frozen.clone()
    descend(model(torch.ones(3, 4)).sum(), optimizer, 0.1, world=World())
    assert torch.equal(frozen, before)
    moved = model[4].weight.clone()
    model(torch.ones(3, 4)).sum().backward()  # no hook is left to take a step
    assert torch.equal(model[4].weight, moved)


def test_what_a_leaf_owes_is_worth_nothing_even_when_the_gradient_is_not_finite() -> None:
    x = torch.ones(3, requires_grad=True)
    leaf = Leaf(x * 2)
    leaf.descend_from((leaf.tensor * torch.tensor([1.0, torch.inf, 2.0])).sum())
    owed = leaf.owed
    assert owed.item() == 0
    owed.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, math.inf, 4.0]
