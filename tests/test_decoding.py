"""Steps of static shape, compiled, captured and split: the same ids as passes that take positions as they come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from overture.errors import OvertureError, UsageError
from overture.nn.kv_cache import KVCache, attend_bucket
from overture.priors import Guidance, Prior, Sampling, batch_memory, decoding
from overture.priors.batch_memory import cache_bytes, image_bytes
from overture.priors.decoding import Decoding, Execution, Snapshot
from overture.priors.sampler import Sampler, generate, keep_segments
from tiny_priors import LAYOUTS, SPLIT, greedy, prior, random_sequences, reference_logits

ALTERNATING = "prologue: cosine 2.5, visual: 1"


class Operations:
    """A graph as an accelerator has one: the operations on tensors of one run, without the Python around them."""

    def __init__(self, function: Callable[[], None]) -> None:
        function()
        # Traced with proxies: a number that is read back to the host is an error.
        self.module = make_fx(function)()
        self.replays = 0

    def replay(self) -> None:
        self.module()
        self.replays += 1


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several buckets in sequences of a few positions."""
    monkeypatch.setattr(decoding, "BUCKET", 4)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Operations]:
    """Steps are captured; the graphs."""
    graphs: list[Operations] = []

    def capture(function: Callable[[], None]) -> Operations:
        graphs.append(Operations(function))
        return graphs[-1]

    monkeypatch.setattr(decoding, "graph_capture", lambda device: capture)
    return graphs


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """(both halves or one, length of the bucket) of every step that was run."""
    calls: list[tuple[bool, int]] = []
    original = Decoding._step

    def record(self: Decoding, both: bool, length: int, outputs: slice) -> None:
        calls.append((both, length))
        original(self, both, length, outputs)

    monkeypatch.setattr(Decoding, "_step", record)
    return calls


def is_greedy(model: Prior, sequence: Tensor, guidance: Guidance) -> bool:
    return torch.equal(reference_logits(model, sequence, torch.arange(len(sequence)), guidance).argmax(-1), sequence)


# -- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("guided", [True, False])
def test_static_steps_choose_what_the_full_forward_does(name: str, guided: bool) -> None:
    guidance = SPLIT[name] if guided else Guidance.none()
    sequence = greedy(prior(name), torch.arange(5), guidance, execution="static")
    assert is_greedy(prior(name), sequence, guidance)


def test_a_step_reads_its_bucket_and_needed_halves_alone(steps: list[tuple[bool, int]]) -> None:
    guidance = Guidance.split(prologue=1.0, visual=2.0)
    sequence = greedy(prior("prologue"), torch.arange(2), guidance, execution="static")
    # Position 0 has no token before it. The separator, 4, is not sampled: 5 takes two positions, and the other half six.
    assert steps == [(False, 4)] * 3 + [(True, 8)] * 2 + [(True, 11)] * 3
    assert is_greedy(prior("prologue"), sequence, guidance)


@pytest.mark.parametrize("name", ["prologue", "vcq", "tiles"])
def test_captured_operations_serve_all_positions_of_a_bucket(name: str, captured: list[Operations]) -> None:
    model = prior(name)
    sampler = Sampler(model, Sampling(SPLIT[name], top_k=1), execution="static")
    first = sampler([0, 1, 2])
    assert is_greedy(model, first, SPLIT[name])
    count = len(captured)
    assert torch.equal(sampler([2, 0, 1]), greedy(model, [2, 0, 1], SPLIT[name]))  # other classes, the same graphs
    assert len(captured) == count
    assert all(graph.replays for graph in captured)


def test_captured_draws(captured: list[Operations]) -> None:
    sampling = Sampling.parse("cosine 3", 1.3, top_k=9, top_p=0.9)
    classes = torch.arange(40) % 5
    expected = generate(prior("vcq"), classes, sampling, seed=3, first=7)
    assert torch.equal(generate(prior("vcq"), classes, sampling, seed=3, first=7, execution="static"), expected)
    assert captured
    assert len(expected.unique(dim=0)) > 20


@pytest.mark.parametrize("guidance", ["none", "2.5", ALTERNATING])
def test_compiled_steps_choose_the_same(guidance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and functionalised as for inductor, whose own code ``benchmarks/sampler.py`` compares."""
    monkeypatch.setattr("overture.nn.packed.BACKEND", "aot_eager")
    torch._dynamo.utils.counters.clear()
    model = prior("prologue")
    compiled = greedy(model, torch.arange(3), guidance, execution="compiled")
    assert torch.equal(compiled, greedy(model, torch.arange(3), guidance))
    # All blocks are one graph; it is made anew for other rows and, once, for other buckets.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("execution", ["static", "compiled"])
@pytest.mark.parametrize("guidance", ["none", "2", ALTERNATING])
def test_prefix_and_kept_ids_in_steps(execution: Execution, guidance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overture.nn.packed.BACKEND", "eager")
    model, sampling = prior("prologue"), Sampling.parse(guidance, top_k=1)
    ids = random_sequences(model.layout, 3, seed=5)
    for length in (1, 4, 7, 11):
        expected = generate(model, [0, 1, 2], sampling, prefix=ids[:, :length])
        assert torch.equal(generate(model, [0, 1, 2], sampling, prefix=ids[:, :length], execution=execution), expected)
    fixed = keep_segments(model.layout, model.layout.from_sequence(ids), {"prologue": [1], "visual": [0, 3]})
    fixed[1] = -1  # one image keeps nothing
    expected = generate(model, [0, 1, 2], sampling, fixed=fixed)
    assert torch.equal(generate(model, [0, 1, 2], sampling, fixed=fixed, execution=execution), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("start", [0, 3, 7])
def test_attention_over_a_bucket(dtype: torch.dtype, start: int) -> None:
    torch.manual_seed(0)
    cache = KVCache(1, 3, 2, 11, 8, dtype=dtype, device=torch.device("cpu"))
    cache.data.normal_()
    other = KVCache(1, 3, 2, 11, 8, dtype=dtype, device=torch.device("cpu"))
    other.data.copy_(cache.data)
    other.data[:, :, :, 8:] = torch.nan  # beyond the bucket
    query, key, value = torch.randn(3, 3, 1, 2, 8)
    expected = cache.attend(0, slice(0, 3), start, query, key, value)
    bucket = other.data[0, :, :, :8]
    found = attend_bucket(bucket[0], bucket[1], torch.arange(8) <= start, torch.tensor([start]), query, key, value)
    assert torch.allclose(found.float(), expected.float(), atol=1e-5 if dtype == torch.float32 else 5e-2)
    assert torch.equal(other.data[..., :8, :, :], cache.data[..., :8, :, :])


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["growing", "static"])
def test_one_sampler_for_batches_of_any_size(execution: Execution) -> None:
    model, sampling = prior("prologue"), Sampling.parse(1.5)
    classes = torch.arange(20) % 5
    expected = generate(model, classes, sampling, seed=2)
    sampler, start = Sampler(model, sampling, execution=execution), 0
    for size in (6, 6, 4, 1, 3):
        part = slice(start, start + size)
        assert torch.equal(sampler(classes[part], seed=2, first=start), expected[part])
        start += size
    assert sampler([]).shape == (0, 11)


@pytest.mark.parametrize("execution", ["growing", "static"])
@pytest.mark.parametrize("fit", [1, 3, 4, 9, 10])
def test_a_batch_that_does_not_fit_is_split(execution: Execution, fit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sampling, classes = prior("prologue"), Sampling.parse("visual: 2", 1.2), torch.arange(10) % 5
    fixed = torch.where(torch.rand(10, 11) < 0.3, random_sequences(model.layout, 10), -1)
    expected = generate(model, classes, sampling, seed=1, fixed=fixed)
    sizes: list[int] = []
    original = Decoding.begin

    def record(self: Decoding, classes_B: Tensor, fixed_BL: Tensor, draws_BL: Tensor) -> None:
        sizes.append(len(classes_B))
        original(self, classes_B, fixed_BL, draws_BL)

    monkeypatch.setattr(Decoding, "begin", record)
    need = image_bytes(model, guided=True, dtype=torch.float32)
    monkeypatch.setattr(batch_memory, "available_bytes", lambda device: fit * need + need - 1)
    assert torch.equal(generate(model, classes, sampling, seed=1, fixed=fixed, execution=execution), expected)
    assert max(sizes) <= fit
    assert len(sizes) == -(-10 // fit)


def test_memory_for_less_than_an_image_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_memory, "available_bytes", lambda device: 10)
    with pytest.raises(OvertureError, match=r"one image needs 1 MB and cpu has 0 MB to give; .* bfloat16"):
        generate(prior("prologue"), [0])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_needs_at_least_its_state(guidance: float, dtype: torch.dtype) -> None:
    model = prior("tiles")
    state = Decoding(Snapshot(model, Sampling.parse(guidance), dtype, "static"), 3)
    assert state.cache.data.nbytes == len(state.classes) * cache_bytes(model, dtype)
    held = sum(part.nbytes for part in (state.cache.data, state.sequence, state.fixed, state.draws))
    assert held < 3 * image_bytes(model, guided=guidance != 1, dtype=dtype)


def test_free_memory_of_this_machine() -> None:
    free = batch_memory.available_bytes(torch.device("cpu"))
    assert free is None or 10**6 < free < 10**15
    assert batch_memory.available_bytes(torch.device("meta")) is None


def test_a_sampler_works_again_after_logits_that_are_not_finite() -> None:
    model = prior("plain")
    sampler = Sampler(model, Sampling(top_k=1), execution="static")
    expected = sampler([0, 1])
    weight = model.class_embedding.weight.data
    kept = weight.clone()
    weight[0] = torch.nan
    try:
        with pytest.raises(OvertureError, match="logits are not finite"):
            sampler([0, 1])
    finally:
        weight.copy_(kept)
    assert torch.equal(sampler([0, 1]), expected)


def test_unknown_execution() -> None:
    with pytest.raises(UsageError, match=r"no execution 'eager'.*compiled, growing, static"):
        generate(prior("plain"), [0], execution="eager")  # type: ignore[arg-type]
