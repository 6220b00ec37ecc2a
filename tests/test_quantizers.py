"""Quantizers against dense formulas, and what holds for all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overture.config import changed, from_dict, to_dict
from overture.errors import UsageError
from overture.nn.transformer import TransformerConfig
from overture.processes import Processes
from overture.quantizers import (
    FiniteScalarConfig,
    LookupFreeConfig,
    Quantized,
    Quantizer,
    QuantizerConfig,
    SoftConfig,
    VectorConfig,
    code_search,
)
from overture.quantizers.code_search import (
    Group,
    _SoftLookup,
    group_by_size,
    group_within_twice,
    groups_for,
    nearest_codes,
    soft_lookup,
)
from overture.quantizers.vector import VectorQuantizer
from overture.schedules import CodebookConfig, Schedule
from overture.tokenizers import SegmentConfig, TokenizerConfig
from together import together

CASES: dict[str, tuple[QuantizerConfig, tuple[int, ...]]] = {
    "vector": (VectorConfig(6), (16,) * 5),
    "vector vcq": (VectorConfig(6), (1, 2, 5, 9, 16)),
    "soft": (SoftConfig(6), (16,) * 5),
    "soft vcq": (SoftConfig(6), (2, 2, 5, 9, 16)),
    "lookup-free": (LookupFreeConfig(), (16,) * 5),
    "lookup-free vcq": (LookupFreeConfig(), (2, 4, 4, 8, 16)),
    "finite-scalar": (FiniteScalarConfig((4, 3, 5)), (60,) * 5),
    "finite-scalar vcq": (FiniteScalarConfig((4, 3, 5)), (4, 4, 12, 12, 60)),
}


def build(name: str, dim: int = 10) -> Quantizer:
    torch.manual_seed(0)
    config, sizes = CASES[name]
    quantizer = config.build(dim, sizes)
    torch.nn.init.normal_(quantizer.projection.weight)
    return quantizer


def dense_scores(z: Tensor, codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """All scores ``[B, L, K]``, -inf from the ``sizes[l]``-th on."""
    mask = torch.arange(len(codes)) >= torch.tensor(sizes)[:, None]
    return (z @ codes.t()).masked_fill(mask, -torch.inf)


# -- what holds for all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_ids_codes_ids(name: str) -> None:
    quantizer, features = build(name), torch.randn(200, 5, 10)
    out = quantizer(features)
    assert out.ids.shape == (200, 5)
    assert out.ids.dtype == torch.long
    assert (out.ids >= 0).all()
    assert (out.ids < torch.tensor(quantizer.sizes)).all()
    assert (out.ids.amax(dim=0) + 1 >= torch.tensor(quantizer.sizes) / 2).all()  # and they are used
    assert torch.equal(quantizer.encode(features), out.ids)
    assert out.codes.shape == (200, 5, quantizer.z_dim)
    assert torch.allclose(quantizer.codes(out.ids), out.codes, atol=1e-6)
    assert out.loss.shape == ()


@pytest.mark.parametrize("name", ["vector vcq", "soft vcq"])
def test_positions_share_one_codebook(name: str) -> None:
    """A code of id i is the same vector at every position that can hold i."""
    quantizer = build(name)
    for low in range(min(quantizer.sizes)):
        vectors = quantizer.codes(torch.full((1, 5), low))[0]
        assert torch.equal(vectors, vectors[:1].expand(5, -1))


@pytest.mark.parametrize("name", CASES)
def test_float32_inside_autocast(name: str) -> None:
    quantizer, features = build(name), torch.randn(50, 5, 10)
    expected = quantizer(features)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(features)
        ids, codes = quantizer.encode(features), quantizer.codes(expected.ids)
    assert out.codes.dtype == out.loss.dtype == codes.dtype == torch.float32
    assert torch.equal(out.ids, expected.ids)
    assert torch.equal(ids, expected.ids)
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.loss, expected.loss)


@pytest.mark.parametrize("name", CASES)
def test_gradient_reaches_the_encoder(name: str) -> None:
    quantizer, features = build(name), torch.randn(8, 5, 10, requires_grad=True)
    out = quantizer(features)
    ((out.codes * torch.randn_like(out.codes)).sum() + out.loss).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad[:, -1].abs().sum() > 0


def test_no_positions() -> None:
    with pytest.raises(UsageError, match="at least one position"):
        VectorConfig().build(4, ())


# -- search -------------------------------------------------------------------------------------------------------------

GROUPINGS = {"by size": group_by_size, "within twice": group_within_twice}


def grouped_so(patch: pytest.MonkeyPatch, grouping: str) -> None:
    """Search in the groups of a CPU or of an accelerator, wherever we are; small sizes are not all put together."""
    patch.setattr(code_search, "groups_for", lambda device, sizes: GROUPINGS[grouping](sizes))
    patch.setattr(code_search, "_ALL_TOGETHER", 4)


@pytest.mark.parametrize("grouping", GROUPINGS)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    batch=st.integers(0, 9),
    channels=st.integers(1, 6),
    scores=st.sampled_from([1, 7, 64, 2**19]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_search_is_the_dense_argmax(
    grouping: str, sizes: list[int], batch: int, channels: int, scores: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Small integers: scores are exact and ties are frequent, the first code wins them.
    z = torch.randint(-3, 4, (batch, len(sizes), channels), generator=generator).float()
    codes = torch.randint(-3, 4, (max(sizes), channels), generator=generator).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_search, "_CPU_SCORES", scores)
        grouped_so(patch, grouping)
        found = nearest_codes(z, codes, sizes)
    expected = dense_scores(z, codes, tuple(sizes)).argmax(dim=-1)
    assert torch.equal(found, expected)


def test_groups() -> None:
    assert group_by_size((4, 2, 4, 4, 3)) == [
        Group([0, 2, 3], [4, 4, 4]), Group([1], [2]), Group([4], [3])
    ]  # fmt: skip
    assert groups_for(torch.device("cpu"), (4, 2, 4)) == group_by_size((4, 2, 4))
    assert groups_for(torch.device("cuda"), (4, 2, 4)) == group_within_twice((4, 2, 4))


@pytest.mark.parametrize("name", ["linear", "geometric", "uniform"])
def test_an_accelerator_searches_in_few_groups_and_at_most_twice_the_work(name: str) -> None:
    sizes = {
        "linear": Schedule.linear(256, 2, 16384), "geometric": Schedule.geometric(256, 2, 16384),
        "uniform": Schedule.uniform(256, 16384),
    }[name].sizes  # fmt: skip
    groups = group_within_twice(sizes)
    assert sorted(position for group in groups for position in group.positions) == list(range(256))
    assert all(sizes[at] == size for group in groups for at, size in zip(*group, strict=True))
    assert len(groups) <= 7
    worked = sum(len(group.positions) * group.size for group in groups if group.size > 256)
    assert worked < 2 * sum(size for size in sizes if size > 256)
    launches = {grouping: launched(sizes, grouping) for grouping in GROUPINGS}
    assert launches["within twice"] <= 9 * len(groups) + 6
    if name == "linear":  # 256 sizes
        assert launches["by size"] > 256 * 4 > 15 * launches["within twice"]


def launched(sizes: Sequence[int], grouping: str) -> int:
    """How many operations a search hands to the device; views and memory cost no launch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    free = ("empty", "view", "_unsafe_view", "slice", "select", "t", "detach", "unsqueeze", "alias", "lift_fresh")
    names: list[str] = []

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with pytest.MonkeyPatch.context() as patch, Launches():
        patch.setattr(code_search, "groups_for", lambda device, sizes: GROUPINGS[grouping](sizes))
        patch.setattr(code_search, "_CPU_SCORES", 2**26)
        nearest_codes(torch.randn(1, len(sizes), 2), torch.randn(max(sizes), 2), sizes)
    return sum(name not in free for name in names)


def test_work_is_the_sum_of_sizes() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    z, counts = F.normalize(torch.randn(2, 64, 8), dim=-1), {}
    for schedule in (Schedule.uniform(64, 512), Schedule.geometric(64, 2, 512)):
        counter = FlopCounterMode(display=False)
        with counter:
            nearest_codes(z, torch.randn(512, 8), schedule.sizes)
        counts[schedule.name] = counter.get_total_flops()
        assert counts[schedule.name] == 2 * 2 * 8 * sum(schedule.sizes)
    assert counts["geometric"] < 0.2 * counts["uniform"]


def test_no_table_is_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the search or of its backward pass has more elements than a block, the inputs or the codes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    monkeypatch.setattr(code_search, "_CPU_SCORES", 4096)
    features = torch.randn(64, 16, 4, requires_grad=True)
    for config in (VectorConfig(4), SoftConfig(4)):
        largest = 0
        quantizer = config.build(4, Schedule.linear(16, 2, 1024).sizes)
        with Largest():
            out = quantizer(features)
            (out.codes.square().sum() + out.loss).backward()
        assert largest == 4096  # 64 * 16 * 4 inputs, 1024 * 4 codes, blocks; the table would be a million


# -- straight-through ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vector", "vector vcq"])
def test_straight_through_against_dense_autograd(name: str) -> None:
    quantizer = build(name)
    assert isinstance(quantizer, VectorQuantizer)
    features, direction = torch.randn(7, 5, 10, requires_grad=True), torch.randn(7, 5, 6)
    leaves = [features, *quantizer.parameters()]
    out = quantizer(features)
    ours = torch.autograd.grad((out.codes * direction).sum() + out.loss, leaves)

    z = F.linear(features, quantizer.projection.weight, quantizer.projection.bias)
    z = z / z.norm(dim=-1, keepdim=True)
    codes = quantizer.codebook / quantizer.codebook.norm(dim=-1, keepdim=True)
    one_hot = F.one_hot(dense_scores(z, codes, quantizer.sizes).argmax(dim=-1), 16).float()
    chosen = one_hot @ codes
    loss = 0.25 * (chosen.detach() - z).square().mean() + (chosen - z.detach()).square().mean()
    theirs = torch.autograd.grad(((z + (chosen - z).detach()) * direction).sum() + loss, leaves)
    assert torch.equal(out.ids, one_hot.argmax(dim=-1))
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * b.abs().max().item())


def test_codes_beyond_a_position_get_no_gradient() -> None:
    quantizer = VectorConfig(6).build(10, (3, 5))
    quantizer.codebook = torch.nn.Parameter(torch.randn(9, 6))
    quantizer(torch.randn(100, 2, 10)).loss.backward()
    assert quantizer.codebook.grad is not None
    assert quantizer.codebook.grad[5:].abs().max() == 0
    assert quantizer.codebook.grad[:5].abs().sum() > 0


# -- soft backward ------------------------------------------------------------------------------------------------------


def dense_soft(z: Tensor, codes: Tensor, rows: Tensor, sizes: tuple[int, ...], temperature: float) -> Tensor:
    scores = dense_scores(z, codes, sizes)
    soft = (scores / temperature).softmax(dim=-1)
    hard = F.one_hot(scores.argmax(dim=-1), len(codes)).to(soft.dtype)
    return (soft + (hard - soft).detach()) @ rows


@pytest.mark.parametrize("grouping", GROUPINGS)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    temperature=st.sampled_from([0.1, 1.0]),
    scores=st.sampled_from([1, 10, 2**19]),
)
@settings(max_examples=25, deadline=None)
def test_soft_backward_is_dense_autograd_in_double(
    grouping: str, sizes: list[int], temperature: float, scores: int
) -> None:
    torch.manual_seed(0)
    k = max(sizes)
    leaves = [
        torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in ((3, len(sizes), 4), (k, 4), (k, 7))
    ]
    z, codes, rows = leaves
    direction = torch.randn(3, len(sizes), 7, dtype=torch.double)
    ids = dense_scores(z, codes, tuple(sizes)).argmax(dim=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_search, "_CPU_SCORES", scores)
        grouped_so(patch, grouping)
        out = _SoftLookup.apply(z, codes, rows, ids, tuple(sizes), temperature)
        ours = torch.autograd.grad((out * direction).sum(), leaves)
    expected = dense_soft(z, codes, rows, tuple(sizes), temperature)
    theirs = torch.autograd.grad((expected * direction).sum(), leaves)
    assert torch.allclose(out, expected, atol=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_soft_lookup_with_codes_as_their_own_rows() -> None:
    """The codes then have gradient on both ways."""
    quantizer = build("soft vcq")
    features, direction = torch.randn(4, 5, 10, requires_grad=True), torch.randn(4, 5, 6)
    leaves = [features, *quantizer.parameters()]
    ours = torch.autograd.grad((quantizer(features).codes * direction).sum(), leaves)
    z, codes = quantizer.project(features), quantizer.unit_codes()  # type: ignore[operator]
    theirs = torch.autograd.grad((dense_soft(z, codes, codes, quantizer.sizes, 0.1) * direction).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("name", ["soft", "soft vcq", "vector vcq", "lookup-free vcq", "finite-scalar vcq"])
def test_embeddings_are_the_rows_of_the_ids(name: str) -> None:
    """And only a soft quantizer hands their gradient on to the encoder."""
    quantizer, features = build(name), torch.randn(4, 5, 10, requires_grad=True)
    rows, ids = torch.randn(max(quantizer.sizes), 3), quantizer.encode(features)
    out = quantizer.embed(features, ids, rows)
    assert torch.equal(out, rows[ids])
    assert out.requires_grad == name.startswith("soft")
    if out.requires_grad:
        (ours,) = torch.autograd.grad(out.square().sum(), features)
        z, codes = quantizer.project(features), quantizer.unit_codes()  # type: ignore[operator]
        (theirs,) = torch.autograd.grad(dense_soft(z, codes, rows, quantizer.sizes, 0.1).square().sum(), features)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_soft_lookup_needs_no_gradient_of_the_rows() -> None:
    quantizer, rows, features = build("soft"), torch.randn(16, 3), torch.randn(4, 5, 10, requires_grad=True)
    z, codes = quantizer.project(features), quantizer.unit_codes()  # type: ignore[operator]
    ids = nearest_codes(z, codes, quantizer.sizes)
    out = soft_lookup(z, codes, rows, ids, quantizer.sizes, 0.1)
    assert torch.equal(ids, quantizer.encode(features))
    out.sum().backward()
    assert features.grad is not None
    assert rows.grad is None


# -- lookup-free and finite scalar --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lookup-free", "lookup-free vcq", "finite-scalar", "finite-scalar vcq"])
def test_every_id_has_its_own_code(name: str) -> None:
    quantizer = build(name)
    for position, size in enumerate(quantizer.sizes):
        ids = torch.zeros(size, 5, dtype=torch.long)
        ids[:, position] = torch.arange(size)
        codes = quantizer.codes(ids)[:, position]
        assert len(codes.unique(dim=0)) == size
        assert (codes.abs() <= 1).all()


def test_lookup_free_by_hand() -> None:
    quantizer = LookupFreeConfig(commitment=0.5, entropy=0.0).build(3, (4, 8))
    with torch.no_grad():
        quantizer.projection.weight.copy_(torch.eye(3))
    features = torch.tensor([[[0.3, -2.0, 5.0], [-0.1, 0.2, 0.4]]])
    out, unit = quantizer(features), 1 / math.sqrt(3)
    assert out.ids.tolist() == [[1, 6]]  # bits from the first channel up; the third is not used at position 0
    expected = torch.tensor([[[unit, -unit, 0.0], [-unit, unit, unit]]])
    assert torch.allclose(out.codes, expected)
    z = torch.tensor([[[0.3, -2.0, 0.0], [-0.1, 0.2, 0.4]]])
    assert out.loss.item() == pytest.approx(0.5 * (z - expected).square().mean().item())


def test_lookup_free_entropy_prefers_decided_and_even_bits() -> None:
    quantizer = LookupFreeConfig(commitment=0.0, entropy=1.0).build(1, (2,))
    with torch.no_grad():
        quantizer.projection.weight.fill_(1.0)

    def loss(*values: float) -> float:
        return quantizer(torch.tensor(values).view(-1, 1, 1)).loss.item()

    assert loss(9, -9) == pytest.approx(-math.log(2), abs=1e-3)  # decided, even
    assert loss(9, 9) == pytest.approx(0, abs=1e-3)  # decided, always the same
    assert loss(0, 0) == pytest.approx(0, abs=1e-3)  # undecided


def test_finite_scalar_by_hand() -> None:
    quantizer = FiniteScalarConfig((3, 5)).build(2, (3, 15))
    with torch.no_grad():
        quantizer.projection.weight.copy_(torch.eye(2))
    big = torch.tensor([[[99.0, 99.0], [99.0, 99.0]], [[-99.0, 0.0], [-99.0, 0.0]]])
    out = quantizer(big)
    assert out.ids.tolist() == [[2, 14], [0, 6]]  # digits (2, 4) and (0, 2), first channel least significant
    assert torch.equal(out.codes, torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[-1.0, 0.0], [-1.0, 0.0]]]))
    assert out.loss == 0


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
def test_finite_scalar_reaches_every_level(levels: int) -> None:
    quantizer = FiniteScalarConfig((levels,)).build(1, (levels,))
    with torch.no_grad():
        quantizer.projection.weight.fill_(1.0)
    ids = quantizer.encode(torch.linspace(-20, 20, 2001).view(-1, 1, 1)).flatten()
    assert ids.unique().tolist() == list(range(levels))
    assert (ids.diff() >= 0).all()


def test_two_levels_start_between_them() -> None:
    """Fresh weights use all codes, and give the encoder a gradient of the size that three levels give."""

    def start(levels: int) -> tuple[int, float]:
        torch.manual_seed(0)
        quantizer = FiniteScalarConfig(levels=(levels,) * 4).build(64, (levels**4,) * 5)
        features = torch.randn(400, 5, 64, requires_grad=True)
        out = quantizer(features)
        out.codes.sum().backward()
        assert features.grad is not None
        return len(out.ids.unique()), features.grad.norm().item()

    (codes, gradient), (_, ordinary) = start(2), start(3)
    assert codes == 2**4
    assert 0.25 * ordinary < gradient < 4 * ordinary


@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        (LookupFreeConfig(), (4, 6), "6 is not a power of two"),
        (LookupFreeConfig(), (1,), "1 is not a power of two"),
        (FiniteScalarConfig((4, 3)), (4, 6), r"possible: 4, 12"),
        (FiniteScalarConfig((4, 1)), (4,), "at least 2"),
        (FiniteScalarConfig(()), (4,), "at least 2"),
    ],
)
def test_impossible_sizes(config: QuantizerConfig, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.build(8, sizes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorConfig(z_dim=0),
        lambda: VectorConfig(commitment=-1.0),
        lambda: VectorConfig(revive_after=-1),
        lambda: SoftConfig(temperature=0.0),
    ],
)
def test_impossible_configs(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="quantizer: needs"):
        make()


# -- reviving dead codes ------------------------------------------------------------------------------------------------

REVIVAL_SIZES = (2, 8, 64)


def revive(features: Tensor, steps: int, processes: Processes = Processes()) -> tuple[VectorQuantizer, list[int]]:
    """A quantizer after some training steps without an optimizer; ``features`` are ``[steps, B, 3, 4]``."""
    torch.manual_seed(0)
    quantizer = VectorConfig(4, revive_after=2).build(4, REVIVAL_SIZES).train()
    moved = []
    for step in range(steps):
        quantizer(features[step])
        moved.append(quantizer.maintain(5, step, processes))
    return quantizer, moved


def test_dead_codes_move_onto_outputs_of_positions_that_reach_them() -> None:
    features = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    start = VectorConfig(4).build(4, REVIVAL_SIZES).codebook.detach().clone()
    quantizer, moved = revive(features, 2)
    changed = (quantizer.codebook != start).any(dim=1)
    assert moved[0] == 0
    assert moved[1] == changed.sum() > 20
    outputs = quantizer.project(features[1]).detach()
    for code in changed.nonzero().flatten().tolist():
        reaching = [position for position, size in enumerate(REVIVAL_SIZES) if size > code]
        distance = (outputs[:, reaching].reshape(-1, 4) - quantizer.codebook[code]).abs().amax(dim=1)
        assert distance.min() < 1e-6
    assert (quantizer.idle[changed] == 0).all()


def test_codes_in_use_stay() -> None:
    features = torch.randn(1, 6, 3, 4, generator=torch.Generator().manual_seed(1)).expand(5, -1, -1, -1)
    torch.manual_seed(0)
    fresh = VectorConfig(4, revive_after=2).build(4, REVIVAL_SIZES)
    used = fresh.encode(features[0]).unique()
    before = fresh.codebook[used].detach().clone()
    quantizer, _ = revive(features, 2)
    assert torch.equal(quantizer.codebook[used], before)


def test_no_revival_unless_asked_or_in_evaluation() -> None:
    quantizer = VectorConfig(4).build(4, REVIVAL_SIZES).train()
    quantizer(torch.randn(2, 3, 4))
    assert quantizer.maintain(0, 0, Processes()) == 0
    assert "idle" not in quantizer.state_dict()
    quantizer = VectorConfig(4, revive_after=1).build(4, REVIVAL_SIZES).eval()
    quantizer(torch.randn(2, 3, 4))
    assert quantizer.maintain(0, 0, Processes()) == 0
    assert "idle" in quantizer.state_dict()


def _revive_in_a_process(processes: Processes, features: Tensor, directory: Path) -> None:
    share, rank = features.shape[1] // 2, processes.rank
    quantizer, moved = revive(features[:, rank * share : (rank + 1) * share], len(features), processes)
    state = {"codebook": quantizer.codebook.detach(), "idle": quantizer.idle, "moved": moved}
    torch.save(state, directory / f"{rank}.pt")


def test_two_processes_revive_as_one(tmp_path: Path) -> None:
    features = torch.randn(4, 6, 3, 4, generator=torch.Generator().manual_seed(2))
    alone, moved = revive(features, 4)
    assert sum(moved) > 0
    together(_revive_in_a_process, 2, tmp_path, features, tmp_path)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert state["moved"] == moved
        assert torch.allclose(state["codebook"], alone.codebook, atol=1e-6)
        assert torch.equal(state["idle"], alone.idle)


# -- a quantizer of somebody else ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RingConfig(QuantizerConfig):
    """Codes are points on a circle, as many as the position has, id 0 at angle 0."""

    radius: float = 1.0

    def build(self, dim: int, sizes: Sequence[int]) -> Ring:
        return Ring(self, dim, sizes)


class Ring(Quantizer):
    """Straight-through to the angle that is next."""

    def __init__(self, config: RingConfig, dim: int, sizes: Sequence[int]) -> None:
        super().__init__(dim, 2, sizes)
        self.radius = config.radius
        self.register_buffer("step_L", 2 * math.pi / torch.tensor(sizes), persistent=False)

    def forward(self, features_BLD: Tensor) -> Quantized:
        z_BLZ = self.project(features_BLD)
        angle_BL = torch.atan2(z_BLZ[..., 1], z_BLZ[..., 0])
        ids_BL = (angle_BL / self.step_L).round().long() % torch.tensor(self.sizes)  # type: ignore[operator]
        codes_BLZ = self.codes(ids_BL)
        return Quantized(ids_BL, z_BLZ + (codes_BLZ - z_BLZ).detach(), (z_BLZ - codes_BLZ).square().mean())

    def codes(self, ids_BL: Tensor) -> Tensor:
        angle_BL = ids_BL * self.step_L  # type: ignore[operator]
        return self.radius * torch.stack([angle_BL.cos(), angle_BL.sin()], dim=-1)


def ring_tokenizer() -> TokenizerConfig:
    size = TransformerConfig(dim=16, depth=1, heads=1, condition_dim=8)
    segment = SegmentConfig("visual", "queries", 5, CodebookConfig("linear", k_min=2, k_max=12), RingConfig(2.0))
    return TokenizerConfig(8, 1, 4, 3, size, size, segments=(segment,))


def test_a_quantizer_of_somebody_else_goes_through_json() -> None:
    config = ring_tokenizer()
    data = json.loads(json.dumps(to_dict(config)))
    assert data["segments"][0]["quantizer"] == {"kind": f"{__name__}:RingConfig", "radius": 2.0}
    assert from_dict(TokenizerConfig, data) == config
    ours = replace(config, segments=(replace(config.segments[0], quantizer=VectorConfig()),))
    for value in (f"{__name__}:RingConfig", {"kind": f"{__name__}:RingConfig", "radius": 1.0}, RingConfig()):
        named = changed(ours, {"segments.0.quantizer": value})
        assert named == changed(config, {"segments.0.quantizer.radius": 1.0})


def test_a_quantizer_of_somebody_else_makes_a_tokenizer() -> None:
    torch.manual_seed(0)
    tokenizer = from_dict(TokenizerConfig, to_dict(ring_tokenizer())).build()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    encoded = tokenizer.encode_for_training(images)
    ids = tokenizer.encode(images)
    assert torch.equal(encoded.ids, ids)
    tokenizer.layout.check(ids)
    assert len(ids.unique()) > 2
    torch.testing.assert_close(tokenizer.decode(ids), tokenizer.reconstruct(encoded))
    assert torch.equal(encoded.quantizer_loss, encoded.quantized["visual"].loss)
    (tokenizer.reconstruct(encoded).square().mean() + encoded.quantizer_loss).backward()
    assert tokenizer.encoder.patches.weight.grad is not None
    assert tokenizer.encoder.patches.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vectr", "unknown quantizer 'vectr'.*did you mean 'vector'"),
        (f"{__name__}:RingConfg", "has no 'RingConfg'.*did you mean 'RingConfig'"),
        (f"{__name__}:Ring", "is no quantizer, it needs to be a overture.quantizers.quantizer.QuantizerConfig"),
        ("no_such_module:Config", "no module 'no_such_module'"),
    ],
)
def test_kinds_that_are_no_quantizer(kind: str, message: str) -> None:
    data = to_dict(ring_tokenizer())
    data["segments"][0]["quantizer"] = {"kind": kind}
    with pytest.raises(UsageError, match=message) as error:
        from_dict(TokenizerConfig, data)
    assert str(error.value).startswith("config.segments[0].quantizer: ")
    assert "\n" not in str(error.value)
