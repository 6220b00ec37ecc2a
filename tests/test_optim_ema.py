"""The learning rate, parameter groups, gradient repair and weight averages."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from overture.errors import OvertureError, UsageError
from overture.nn.transformer import OutputHead, TransformerConfig
from overture.training.ema import EMA
from overture.training.optim import (
    LearningRateSchedule,
    OptimizerConfig,
    decays,
    set_learning_rate,
)

# -- schedule -----------------------------------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> LearningRateSchedule:
    peak = draw(st.floats(1e-6, 1.0))
    return LearningRateSchedule(
        peak=peak,
        minimum=peak * draw(st.floats(0, 1)),
        warmup=(warmup := draw(st.integers(0, 40))),
        flat=(flat := draw(st.integers(0, 40))),
        total=warmup + flat + draw(st.integers(1, 60)),
    )


@given(schedules())
def test_rises_stays_falls_and_ends_at_the_minimum(schedule: LearningRateSchedule) -> None:
    rates = [schedule.learning_rate(step) for step in range(schedule.total + 5)]
    top = schedule.peak * (1 + 1e-12)
    assert all(0 <= rate <= top for rate in rates)
    assert all(rate >= schedule.minimum * (1 - 1e-12) for rate in rates[schedule.warmup :])
    rising, end = rates[: schedule.warmup], schedule.warmup + schedule.flat
    assert rising == sorted(rising)
    assert all(rate == schedule.peak for rate in rates[max(schedule.warmup - 1, 0) : end])
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(rates[end:]))
    assert rates[schedule.total - 1 :] == [schedule.minimum] * 6


@given(schedules())
def test_continuous(schedule: LearningRateSchedule) -> None:
    """No jump is larger than the steeper of the two ramps."""
    ramps = schedule.peak / max(schedule.warmup, 1), schedule.peak / (schedule.total - schedule.warmup - schedule.flat)
    rates = [schedule.learning_rate(step) for step in range(schedule.total + 5)]
    assert all(abs(b - a) <= max(ramps) * (1 + 1e-9) for a, b in itertools.pairwise(rates))


def test_released_schedule() -> None:
    schedule = OptimizerConfig().schedule(750_000)
    assert schedule.learning_rate(0) == pytest.approx(1e-4 / 20_000)
    assert schedule.learning_rate(9_999) == pytest.approx(0.5e-4)
    assert schedule.learning_rate(19_999) == schedule.learning_rate(119_999) == 1e-4
    assert schedule.learning_rate(119_999 + 315_000) == pytest.approx(5.5e-5)
    assert schedule.learning_rate(749_999) == 1e-5


def test_a_run_too_short_for_its_schedule() -> None:
    with pytest.raises(UsageError, match="leave no decay in 300 steps"):
        OptimizerConfig(warmup=100, flat=200).schedule(300)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 1e-6},
        {"learning_rate_min": -1.0},
        {"weight_decay": -0.1},
        {"warmup": -1},
        {"clip": -1.0},
        {"betas": (0.9, 1.0)},
    ],
)
def test_impossible_values(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        OptimizerConfig(**bad)  # type: ignore[arg-type]


# -- groups -------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = TransformerConfig(dim=8, depth=1, heads=2, condition_dim=4)
        self.embedding = nn.Embedding(5, 8)
        self.transformer = config.build(3, bias=True)
        self.head = OutputHead(config, 5, bias=False)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_only_matrices_outside_norms_decay() -> None:
    model = Model()
    optimizer, _ = OptimizerConfig(weight_decay=0.03).build(model.named_parameters(), 200_000)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    block = "transformer.blocks.0"
    assert groups[0.03] == {
        "embedding.weight",
        "transformer.condition.classes.weight",
        f"{block}.attention.query.weight",
        f"{block}.attention.key_value.weight",
        f"{block}.attention.output.weight",
        f"{block}.attention_gate.weight",
        f"{block}.feed_forward.input.weight",
        f"{block}.feed_forward.output.weight",
        f"{block}.feed_forward_gate.weight",
        "head.projection.weight",
    }
    assert groups[0.03] | groups[0.0] == {name for name in names.values() if not name.startswith("frozen")}
    assert "head.norm.weight" in groups[0.0]
    assert decays("conv", torch.zeros(2, 2, 4, 4))


def test_one_step_is_adamw_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    config = OptimizerConfig(1e-2, 1e-3, betas=(0.0, 0.99), weight_decay=0.5, warmup=4, flat=0)
    optimizer, schedule = config.build([("weight", weight)], 10)
    set_learning_rate(optimizer, schedule.learning_rate(1))
    weight.grad = torch.tensor([[0.5, -3.0]])
    optimizer.step()
    # With one gradient g, the bias-corrected ratio is g / (|g| + eps): a step of the rate in its sign.
    rate = 1e-2 * 2 / 4
    expected = [2.0 * (1 - rate * 0.5) - rate, -1.0 * (1 - rate * 0.5) + rate]
    assert weight.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_nothing_to_train() -> None:
    with pytest.raises(UsageError, match="no parameters"):
        OptimizerConfig().build([("weight", nn.Parameter(torch.zeros(2), requires_grad=False))], 200_000)


# -- moving average -----------------------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Two parameters, a saved buffer and one that is not saved."""

    saved: torch.Tensor
    unsaved: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 2))
        self.b = nn.Parameter(torch.randn(4))
        self.register_buffer("saved", torch.zeros((), dtype=torch.long))
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)


@pytest.mark.parametrize("half_life", [0.5, 3, 1000])
def test_average_against_the_closed_formula(half_life: float) -> None:
    torch.manual_seed(0)
    module = Counter()
    average = EMA(module, half_life)
    history = [module.a.detach().clone()]
    for step in range(1, 13):
        with torch.no_grad():
            module.a.normal_()
            module.saved.fill_(step)
        history.append(module.a.detach().clone())
        average.update(module)
    decay = 0.5 ** (1 / half_life)
    expected = decay**12 * history[0].double()
    for step in range(1, 13):
        expected += (1 - decay) * decay ** (12 - step) * history[step].double()
    state = average.state_dict()
    assert set(state) == {"a", "b", "saved"}
    assert torch.allclose(state["a"].double(), expected, atol=1e-6)
    assert torch.equal(state["b"], module.b)
    assert state["saved"] == 12


def test_half_life() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    average = EMA(module, half_life=10)
    nn.init.zeros_(module.weight)
    for _ in range(10):
        average.update(module)
    assert average.state_dict()["weight"].item() == pytest.approx(0.5, rel=1e-5)


def test_average_saves_loads_and_copies() -> None:
    torch.manual_seed(0)
    first, second = Counter(), Counter()
    average, restored = EMA(first, 3), EMA(second, 3)
    with torch.no_grad():
        first.a.zero_()
        first.saved.fill_(7)
    average.update(first)
    restored.load_state_dict({name: tensor.clone() for name, tensor in average.state_dict().items()})
    assert torch.equal(restored.state_dict()["a"], average.state_dict()["a"])
    assert not torch.equal(restored.state_dict()["a"], first.a)
    assert restored.state_dict()["saved"] == 7
    average.update(first)
    restored.update(first)
    assert all(torch.equal(restored.state_dict()[name], tensor) for name, tensor in average.state_dict().items())


def test_average_in_low_precision_does_not_stall() -> None:
    module = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(module.weight)
    average = EMA(module, half_life=1000)
    nn.init.constant_(module.weight, 2.0)
    for _ in range(1000):
        average.update(module)
    assert average.state_dict()["weight"].dtype == torch.float32
    assert average.state_dict()["weight"].item() == pytest.approx(1.5, abs=1e-3)
    module.load_state_dict(average.state_dict())
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.item() == 1.5


def test_average_refuses_another_model() -> None:
    average = EMA(nn.Linear(2, 3), 10)
    with pytest.raises(OvertureError, match="'bias' has no average"):
        average.load_state_dict({"weight": torch.zeros(3, 2)})
    with pytest.raises(OvertureError, match="average of 'scale' which the model lacks"):
        average.load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "scale": torch.zeros(1)})
    with pytest.raises(OvertureError, match="another model"):
        average.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})
    with pytest.raises(UsageError, match="half-life"):
        EMA(nn.Linear(1, 1), 0)
