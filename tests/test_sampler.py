"""The sampler against the full forward pass, brute force and the layout's rules."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.nn.packed import PackedLinear, PackedTransformer
from overture.priors import Guidance, Prior, PriorConfig, Sampling
from overture.priors.decoding import Decoding, Snapshot
from overture.priors.draws import draw, image_draws, restrict
from overture.priors.sampler import generate, keep_segments
from tiny_priors import LAYOUTS, SPLIT, greedy, prior, random_sequences, reference_logits


def logits_of(
    model: Prior, sequence: Tensor, classes: Tensor, guidance: Guidance, dtype: torch.dtype = torch.float32
) -> dict[int, Tensor]:
    """The sampler's guided logits of every position that has a choice, were ``sequence`` what it chose."""
    with torch.inference_mode():
        decoding = Decoding(Snapshot(model, Sampling(guidance), dtype, "growing"), len(classes))
        decoding.begin(classes, torch.full_like(sequence, -1), torch.zeros(sequence.shape))
        decoding.sequence.copy_(sequence)
        return {
            step: decoding.logits(decoding.passed(step), torch.tensor([step]), slice(position.low, position.high))
            for step, position in enumerate(model.layout.positions)
            if position.high - position.low > 1
        }


@pytest.fixture
def advances(monkeypatch: pytest.MonkeyPatch) -> list[tuple[slice, int, int]]:
    """Records (rows, first position, positions) of every call of the transformer."""
    calls: list[tuple[slice, int, int]] = []
    original = PackedTransformer.__call__

    def record(self, x, cache, rows, start):  # type: ignore[no-untyped-def]
        calls.append((rows, start, x.shape[1]))
        return original(self, x, cache, rows, start)

    monkeypatch.setattr(PackedTransformer, "__call__", record)
    return calls


# -- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["none", "constant", "split"])
def test_cached_logits_are_those_of_the_full_forward(name: str, kind: str) -> None:
    model, classes = prior(name), torch.tensor([0, 4, 2])
    guidance = {"none": Guidance.none(), "constant": Guidance.constant(2.5), "split": SPLIT[name]}[kind]
    sequence = random_sequences(model.layout, 3)
    expected = reference_logits(model, sequence, classes, guidance)
    for step, ours in logits_of(model, sequence, classes, guidance).items():
        position = model.layout.positions[step]
        assert ours.shape == (3, position.high - position.low)
        theirs = expected[:, step, position.low : position.high]
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * expected[expected.isfinite()].abs().max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_greedy_tokens_are_the_argmax_of_the_full_forward(name: str) -> None:
    model, classes = prior(name), torch.arange(5)
    sequence = greedy(model, classes, SPLIT[name])
    assert torch.equal(reference_logits(model, sequence, classes, SPLIT[name]).argmax(dim=-1), sequence)


def test_bfloat16_is_close() -> None:
    model = prior("prologue")
    sequence = random_sequences(model.layout, 2)
    logits = {
        dtype: torch.cat(list(logits_of(model, sequence, torch.tensor([1, 2]), Guidance.none(), dtype).values()), dim=1)
        for dtype in (torch.float32, torch.bfloat16)
    }
    error = (logits[torch.bfloat16] - logits[torch.float32]).abs().max() / logits[torch.float32].abs().max()
    assert 0 < error < 0.05
    assert logits[torch.bfloat16].dtype == torch.float32


def test_unpacked_matrices_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prior("tiles")
    packed = greedy(model, [0, 1], 2.0)
    monkeypatch.setattr("overture.nn.packed.can_pack", lambda weight: False)
    assert torch.equal(greedy(model, [0, 1], 2.0), packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@given(rows=st.integers(1, 9), inputs=st.integers(1, 70), outputs=st.integers(1, 70))
@settings(max_examples=15, deadline=None)
def test_packed_linear(dtype: torch.dtype, bias: bool, rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(rows * 10_000 + inputs * 100 + outputs)
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    packed = PackedLinear(layer.weight, layer.bias, dtype=dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float64: 1e-12}[dtype]
    for shape in ((rows, 1), (rows, 2), (rows + 1, 1)):  # packed, as it is, packed again
        x = torch.randn(*shape, inputs)
        with torch.no_grad():
            ours = packed(x)
            theirs = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
        assert ours.dtype == dtype
        assert torch.allclose(ours.double(), theirs, atol=tolerance, rtol=tolerance)


def test_changed_weights_change_the_samples() -> None:
    """Nothing of a generation outlives it."""
    torch.manual_seed(1)
    model = PriorConfig(32, 2, 2, 2.0, 8, 5, rope_axes=(8, 4, 4)).build(LAYOUTS["plain"]).eval()
    sequences = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)  # .data: leaves no trace in the version counter
        sequences.append(greedy(model, [0, 1, 2]))
        assert torch.equal(
            reference_logits(model, sequences[-1], torch.arange(3), Guidance.none()).argmax(-1), sequences[-1]
        )
    assert not torch.equal(*sequences)


def test_training_mode_does_not_matter() -> None:
    model = prior("prologue")
    expected = greedy(model, [0, 3], 2.0)
    model.train()
    try:
        assert torch.equal(greedy(model, [0, 3], 2.0), expected)
        assert model.training
    finally:
        model.eval()


# -- batches and halves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prologue", "vcq"])
def test_tokens_do_not_depend_on_the_batch(name: str) -> None:
    model = prior(name)
    together = greedy(model, list(range(5)), SPLIT[name])
    alone = torch.cat([greedy(model, [c], SPLIT[name]) for c in range(5)])
    assert torch.equal(together, alone)


def test_without_guidance_only_the_conditional_half_runs(advances: list[tuple[slice, int, int]]) -> None:
    model = prior("prologue")
    greedy(model, [0, 1, 2], 1.0)
    assert {(rows.start, rows.stop) for rows, _, _ in advances} == {(0, 3)}
    # The separator is not sampled: the step after it takes both positions.
    assert [(start, count) for _, start, count in advances] == [(i, 1) for i in range(4)] + [(4, 2)] + [
        (i, 1) for i in range(6, 11)
    ]


def test_unconditional_half_catches_up_once(advances: list[tuple[slice, int, int]]) -> None:
    model = prior("prologue")
    sequence = greedy(model, [0, 1], Guidance.split(prologue=1.0, visual=2.0))
    halves = [(rows.start, rows.stop, start, count) for rows, start, count in advances]
    assert halves[4:7] == [(0, 2, 4, 2), (2, 4, 0, 6), (0, 4, 6, 1)]
    assert all(half[:2] == (0, 2) for half in halves[:4])
    expected = reference_logits(model, sequence, torch.arange(2), Guidance.split(prologue=1.0, visual=2.0))
    assert torch.equal(expected.argmax(dim=-1), sequence)


def test_halves_that_part_again() -> None:
    """Guided, then not, then guided: the half that lags catches up a second time."""
    layout = Layout((Segment("a", (9,) * 3), Segment("b", (9,) * 3), Segment("c", (9,) * 3)))
    torch.manual_seed(0)
    model = PriorConfig(32, 2, 2, 2.0, 8, 5, rope_axes=(8, 4, 4)).build(layout).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    guidance = Guidance.split(a=2.0, b=1.0, c=3.0)
    sequence = greedy(model, torch.arange(5), guidance)
    assert torch.equal(reference_logits(model, sequence, torch.arange(5), guidance).argmax(dim=-1), sequence)


def test_empty_batch() -> None:
    assert generate(prior("prologue"), [], Sampling.parse(2.0)).shape == (0, 11)
    assert generate(prior("prologue"), torch.empty(0)).shape == (0, 11)


def test_result_is_an_ordinary_tensor() -> None:
    model = prior("plain")
    sequence = generate(model, [0, 1])
    model(sequence, torch.tensor([0, 1])).sum().backward()
    assert model.token_embedding.weight.grad is not None
    model.zero_grad()


# -- prefixes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prologue", "vcq", "fixed"])
@pytest.mark.parametrize("guided", [True, False])
def test_prefix_is_kept_and_continued(name: str, guided: bool) -> None:
    model, classes = prior(name), torch.tensor([3, 1])
    guidance = SPLIT[name] if guided else Guidance.none()
    given_ids = random_sequences(model.layout, 2, seed=3)
    for length in range(model.layout.sequence_length + 1):
        sequence = greedy(model, classes, guidance, prefix=given_ids[:, :length])
        assert torch.equal(sequence[:, :length], given_ids[:, :length])
        best = reference_logits(model, sequence, classes, guidance).argmax(dim=-1)
        assert torch.equal(sequence[:, length:], best[:, length:])


def test_one_prefix_for_all() -> None:
    model = prior("prologue")
    ids = random_sequences(model.layout, 1)[0, :5]
    each = greedy(model, [0, 1, 2], prefix=ids.expand(3, -1))
    assert torch.equal(greedy(model, [0, 1, 2], prefix=ids), each)
    assert torch.equal(greedy(model, [0, 1, 2], prefix=each[0]), each[0].expand(3, -1))


def test_own_tokens_as_prefix_change_nothing() -> None:
    model = prior("prologue")
    whole = greedy(model, [0, 1], 2.0)
    for length in range(12):
        assert torch.equal(greedy(model, [0, 1], 2.0, prefix=whole[:, :length]), whole)


# -- sampling ---------------------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    count = draw(st.integers(1, 3))
    segments = []
    for place in range(count):
        sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
        segments.append(Segment(f"s{place}", tuple(sizes), place < count - 1 and draw(st.booleans())))
    return Layout(tuple(segments))


@given(layouts(), st.sampled_from([0.7, 1.0, 3.0]), st.sampled_from([0, 1, 3]), st.sampled_from([0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_samples_respect_the_layout(layout: Layout, scale: float, top_k: int, top_p: float) -> None:
    torch.manual_seed(0)
    model = PriorConfig(16, 1, 2, 2.0, 4, 3, rope_axes=(4, 2, 2)).build(layout)
    sequence = generate(model, [0, 1, 3], Sampling.parse(scale, 3.0, top_k, top_p))
    assert sequence.dtype == torch.long
    ids = layout.from_sequence(sequence)
    layout.check(ids)
    assert torch.equal(layout.to_sequence(ids), sequence)  # separators where they belong


def test_the_seed_makes_it_reproducible() -> None:
    model = prior("prologue")

    def sample(seed: int) -> Tensor:
        return generate(model, [0] * 6, Sampling.parse(1.5), seed=seed)

    torch.manual_seed(1)
    first = sample(0)
    torch.manual_seed(2)
    assert torch.equal(sample(0), first)
    assert not torch.equal(sample(1), first)
    state = torch.get_rng_state()
    sample(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_follow_the_probabilities() -> None:
    layout = Layout.single((4,))
    torch.manual_seed(0)
    model = PriorConfig(16, 1, 2, 2.0, 4, 3, rope_axes=(4, 2, 2)).build(layout).eval()
    torch.nn.init.normal_(model.head.projection.weight, std=0.3)
    sequence = generate(model, [1] * 20_000, Sampling.parse(temperature=0.8))
    found = torch.bincount(sequence[:, 0], minlength=4) / 20_000
    expected = (model(torch.zeros(1, 1, dtype=torch.long), torch.tensor([1]))[0, 0] / 0.8).softmax(dim=-1)
    assert expected.max() > 1.3 * expected.min()
    assert torch.allclose(found, expected, atol=0.015)  # 4 standard deviations


def brute_force_restrict(logits: list[float], top_k: int, top_p: float) -> set[int]:
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = order[:top_k] if top_k else order
    weights = torch.tensor([logits[i] for i in kept], dtype=torch.double).softmax(dim=0).tolist()
    nucleus, total = set(), 0.0
    for index, weight in zip(kept, weights, strict=True):
        if total >= top_p:
            break
        nucleus.add(index)
        total += weight
    return nucleus


@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    st.integers(0, 14),
    st.floats(0.05, 0.97),
)
@settings(max_examples=100, deadline=None)
def test_restrict_against_brute_force(values: list[int], top_k: int, top_p: float) -> None:
    logits = [value / 7 for value in values]
    out = restrict(torch.tensor([logits, logits[::-1]]), top_k, top_p)
    for row, source in zip(out, (logits, logits[::-1]), strict=True):
        kept = {i for i, value in enumerate(row.tolist()) if value > -torch.inf}
        assert kept == brute_force_restrict(source, top_k, top_p)
        assert all(row[i].item() == pytest.approx(source[i]) for i in kept)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_exactly_top_k_survive_a_tie(top_k: int) -> None:
    out = restrict(torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]), top_k, 1.0)
    kept = out[0].isfinite()
    assert kept.sum() == top_k
    assert kept[:3].sum() == min(top_k, 3)


def test_nucleus_of_equal_ids_takes_the_lower_ones() -> None:
    assert restrict(torch.zeros(1, 4), 0, 0.5).isfinite().tolist() == [[True, True, False, False]]
    assert torch.equal(restrict(torch.zeros(1, 4), 0, 1.0), torch.zeros(1, 4))


def test_temperature_per_segment() -> None:
    model = prior("prologue")
    cold = {"prologue": 1e-3, "visual": 1.0}
    sampled = generate(model, [2] * 4, Sampling.parse(temperature=cold))
    likeliest = greedy(model, [2] * 4)
    assert torch.equal(sampled[:, :4], likeliest[:, :4])  # cold is greedy, warm is not
    assert not torch.equal(sampled, likeliest)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_nucleus_of_nearly_nothing_is_greedy_and_greedy_needs_no_draws(name: str) -> None:
    model, classes = prior(name), torch.arange(5)
    likeliest = greedy(model, classes, SPLIT[name])
    smallest = Sampling.parse(SPLIT[name], top_p=1e-9)
    for seed in (0, 7):
        assert torch.equal(generate(model, classes, smallest, seed=seed), likeliest)
        one = Sampling.parse(SPLIT[name], temperature=5.0, top_k=1)
        assert torch.equal(generate(model, classes, one, seed=seed, first=3), likeliest)


# -- an image is a function of (seed, index) --------------------------------------------------------------------------

WAYS = {
    "plain": ("plain", Sampling()),
    "guided": ("plain", Sampling.parse("cosine 4 power 1.5")),
    "split": ("prologue", Sampling.parse("prologue: 0.7, visual: cosine 3 power 0.2", "prologue: 0.8, visual: 1.3")),
    "catches up": ("prologue", Sampling.parse("visual: 2", 0.9)),
    "top-k": ("plain", Sampling.parse(2.0, 1.5, top_k=5)),
    "top-p": ("vcq", Sampling.parse(temperature=2.0, top_p=0.8)),
    "prefix": ("prologue", Sampling.parse(1.5)),
    "fixed": ("vcq", Sampling.parse(1.5, top_k=9, top_p=0.9)),
}


def kept(way: str, count: int) -> dict[str, Tensor]:
    """What is given of every image of a way."""
    layout = LAYOUTS[WAYS[way][0]]
    if way == "prefix":
        return {"prefix": random_sequences(layout, count)[:, :6]}
    if way == "fixed":
        ids = layout.from_sequence(random_sequences(layout, count))
        fixed = keep_segments(layout, ids, {"prologue": [1], "visual": [0, 3]})
        fixed[::3] = -1  # some images keep nothing
        return {"fixed": fixed}
    return {}


@functools.cache
def whole_set(way: str) -> Tensor:
    """250 images in one batch."""
    name, sampling = WAYS[way]
    return generate(prior(name), torch.arange(250) % 5, sampling, seed=3, **kept(way, 250))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", [(1,) * 30 + (220,), (7,) * 36, (250,), (100, 3, 1, 146), (249, 1)])
def test_an_image_does_not_depend_on_its_batch(way: str, sizes: tuple[int, ...]) -> None:
    name, sampling = WAYS[way]
    classes, given_ids, whole = torch.arange(250) % 5, kept(way, 250), whole_set(way)
    assert len(whole.unique(dim=0)) > 200  # or there would be nothing to tell apart
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        rest = {key: ids[part] for key, ids in given_ids.items()}
        found = generate(prior(name), classes[part], sampling, seed=3, first=start, **rest)
        assert torch.equal(found, whole[part]), start
        start += size
    assert start >= 250


def test_images_are_other_ones_at_another_index_or_seed() -> None:
    model = prior("plain")
    one_class = [2] * 40
    first = generate(model, one_class, seed=0)
    assert len(first.unique(dim=0)) == 40
    assert torch.equal(generate(model, one_class, seed=0, first=15)[:25], first[15:])
    assert not (generate(model, one_class, seed=0, first=40)[:, None] == first).all(dim=-1).any()
    assert not (generate(model, one_class, seed=1)[:, None] == first).all(dim=-1).any()


def test_draws_are_a_function_of_seed_and_index() -> None:
    whole = image_draws(4, 0, 30, 50)
    assert whole.shape == (30, 50)
    assert ((whole >= 0) & (whole < 1)).all()
    np.testing.assert_array_equal(image_draws(4, 11, 6, 50), whole[11:17])
    np.testing.assert_array_equal(image_draws(4, 11, 6, 20), whole[11:17, :20])  # a longer sequence begins alike
    assert len(np.unique(np.concatenate([whole, image_draws(5, 0, 30, 50)]))) == 2 * 30 * 50
    assert image_draws(4, 0, 0, 50).shape == (0, 50)
    with pytest.raises(UsageError, match="seed is -1"):
        image_draws(-1, 0, 1, 1)


# -- the draw ---------------------------------------------------------------------------------------------------------


def test_the_frequencies_of_a_draw_are_the_probabilities() -> None:
    logits = torch.tensor([-torch.inf, 0.3, -1.0, -torch.inf, 2.0, 0.0, -4.0, -torch.inf])
    probability = logits.double().softmax(dim=0).numpy()
    count = 40_000
    spread = torch.arange(count, dtype=torch.double) / count  # evenly: every count is right to within one
    found = np.bincount(draw(logits.expand(count, -1), spread).numpy(), minlength=8)
    assert np.abs(found - count * probability).max() <= 1 + 1e-6
    drawn = torch.from_numpy(image_draws(0, 0, count, 1)[:, 0])
    found = np.bincount(draw(logits.expand(count, -1), drawn).numpy(), minlength=8)
    possible = probability > 0
    assert not found[~possible].any()
    expected = count * probability[possible]
    chi_square = ((found[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # mean and standard deviation of that distribution


@given(
    st.lists(st.sampled_from([-math.inf, -800.0, -40.0, -1.0, 0.0, 0.5, 30.0]), min_size=1, max_size=40),
    st.lists(st.floats(0, 1, exclude_max=True), max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_a_draw_against_its_definition(values: list[float], draws: list[float]) -> None:
    """The id whose part of [0, 1) the draw falls into; an id of probability 0 has none, also at the ends."""
    if max(values) == -math.inf:
        values = [*values, 0.0]
    draws = [*draws, 0.0, 5e-324, 0.5, math.nextafter(1, 0)]
    weights = [math.exp(value - max(values)) for value in values]
    total = math.fsum(weights)
    found = draw(torch.tensor([values] * len(draws)), torch.tensor(draws, dtype=torch.double)).tolist()
    for place, number in zip(found, draws, strict=True):
        assert 0 <= place < len(values)
        assert weights[place] > 0
        low, high = math.fsum(weights[:place]) / total, math.fsum(weights[: place + 1]) / total
        assert low - 1e-12 <= number <= high + 1e-12
    ordered = draw(torch.tensor([values] * 100), torch.arange(100).double() / 100)
    assert (ordered.diff() >= 0).all()


@pytest.mark.parametrize("ids", [1, 2, 1000, 16_384])
def test_ends_of_a_draw_over_many_ids(ids: int) -> None:
    """Sums of many probabilities round to a little less or more than 1."""
    logits = torch.randn(50, ids, generator=torch.Generator().manual_seed(ids))
    padded = torch.cat([torch.full((50, 3), -torch.inf), logits, torch.full((50, 3), -torch.inf)], dim=1)
    for number in (0.0, math.nextafter(1, 0)):
        chosen = draw(padded, torch.full((50,), number, dtype=torch.double))
        assert (chosen == (3 if number == 0 else 2 + ids)).all()


# -- wrong requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": {"visaul": 1.0}}, "visual"),
        ({"guidance": Guidance.split(visula=2.0)}, "visual"),
    ],
)
def test_sampling_of_another_layout(sampling: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(prior("prologue"), [0, 1], Sampling.parse(**sampling))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.long}, "floating-point"),
        ({"seed": -1}, "seed is -1"),
        ({"prefix": torch.zeros(3, 2, dtype=torch.long)}, r"\[3, 2\], needs \[2, at most 11\]"),
        ({"prefix": torch.zeros(2, 12, dtype=torch.long)}, r"\[2, 12\]"),
        ({"prefix": torch.tensor([30.0, 31.0])}, "integer ids"),
        ({"prefix": torch.tensor([30, 0])}, "position 1 holds an id outside 30..36"),
    ],
)
def test_wrong_requests(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(prior("prologue"), [0, 1], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("class_id", [-1, 6])
def test_unknown_class(class_id: int) -> None:
    with pytest.raises(UsageError, match=f"class {class_id} is out of range"):
        generate(prior("plain"), [0, class_id])
