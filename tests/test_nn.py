"""Norms, rotary positions, attention and the transformer's start."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from overture.errors import UsageError
from overture.nn.attention import Attention
from overture.nn.kv_cache import KVCache
from overture.nn.norm import ConditionalScale, RMSNorm, rms_normalize
from overture.nn.packed import PackedHead
from overture.nn.rope import Rotary, concatenate, grid_positions, index_positions, rotary
from overture.nn.transformer import OutputHead, Transformer, TransformerConfig, fresh_queries

AXES = ("row", "column", "index")

# -- norm ---------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_norm_formula(dim: int, size: float) -> None:
    torch.manual_seed(dim)
    x, scale = torch.randn(3, 4, dim) * size, torch.randn(dim)
    expected = x.double() / x.double().norm(dim=-1, keepdim=True) * math.sqrt(dim) * (1 + scale.double())
    assert torch.allclose(rms_normalize(x, scale).double(), expected, rtol=1e-5, atol=1e-6)
    per_sample = scale.expand(3, 1, dim)
    assert torch.allclose(rms_normalize(x, per_sample).double(), expected, rtol=1e-5, atol=1e-6)


def test_norm_of_zeros_and_types() -> None:
    norm = RMSNorm(8)
    assert norm.weight.abs().max() == 0
    x = torch.zeros(2, 8, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.abs().max() == 0
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert norm(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16


def test_conditional_scale_ignores_autocast() -> None:
    torch.manual_seed(0)
    scale, condition = ConditionalScale(4, 8), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = scale(condition.bfloat16())
    assert out.dtype == torch.float32
    assert torch.equal(out, scale(condition.bfloat16().float()))


# -- rotary -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
@settings(deadline=None)
def test_products_depend_on_the_difference_of_positions_only(a: int, b: int, shift: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 16, dtype=torch.float32).unsqueeze(1).unbind(0)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotary(torch.tensor([[position, 2 * position]]), (10, 6), 100.0).apply(x)

    here = (turned(query, a) * turned(key, b)).sum()
    there = (turned(query, a + shift) * turned(key, b + shift)).sum()
    assert here.item() == pytest.approx(there.item(), abs=1e-4)
    assert turned(query, a).norm().item() == pytest.approx(query.norm().item(), rel=1e-5)


def test_turns_by_hand() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    out = rotary(torch.tensor([[3]]), (4,), 100.0).apply(x).flatten().tolist()
    # pair 0 turns by 3, pair 1 by 3 * 100^(-2/4) = 0.3
    assert out == pytest.approx([math.cos(3), math.sin(3), -math.sin(0.3), math.cos(0.3)], abs=1e-6)


def test_an_axis_at_zero_does_not_turn() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 16)
    out = rotary(index_positions(5, AXES), (4, 4, 8), 10_000.0).apply(x)
    assert torch.equal(out[..., :8], x[..., :8])
    assert not torch.allclose(out[:, :, 1:, 8:], x[:, :, 1:, 8:])
    assert torch.equal(out[:, :, 0], x[:, :, 0])
    assert rotary(index_positions(5, AXES), (0, 0, 16), 10.0).cos.shape == (5, 8)


def test_positions() -> None:
    assert grid_positions(2, 3, AXES).tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 0, 0], [1, 1, 0], [1, 2, 0]]
    assert index_positions(3, AXES).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    both = concatenate(
        [rotary(grid_positions(2, 2, AXES), (4, 4, 8), 20.0), rotary(index_positions(3, AXES), (4, 4, 8), 9.0)]
    )
    assert both.cos.shape == both.sin.shape == (7, 8)
    assert torch.equal(both.cos[4:], rotary(index_positions(3, AXES), (4, 4, 8), 9.0).cos)


@pytest.mark.parametrize("axes", [(4, 4), (3, 5, 8), (-2, 10, 8)])
def test_impossible_axes(axes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="rotary axes"):
        rotary(index_positions(3, AXES), axes, 10.0)


# -- attention ----------------------------------------------------------------------------------------------------------


def attention_by_hand(attention: Attention, x: torch.Tensor, factors: Rotary, *, causal: bool) -> torch.Tensor:
    """One head and one query at a time."""
    batch, length, dim = x.shape
    size = dim // attention.heads
    query = attention.query(x)
    key, value = attention.key_value(x).split(dim, dim=-1)
    out = torch.zeros_like(x)
    for b in range(batch):
        for h in range(attention.heads):
            part = slice(h * size, (h + 1) * size)
            q = factors.apply(attention.query_norm(query[b, :, part])[None, None])[0, 0]
            k = factors.apply(attention.key_norm(key[b, :, part])[None, None])[0, 0]
            for i in range(length):
                seen = i + 1 if causal else length
                weight = (k[:seen] @ q[i] / math.sqrt(size)).softmax(dim=0)
                out[b, i, part] = weight @ value[b, :seen, part]
    return attention.output(out)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_against_loops(causal: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(24, 3, bias=True, causal=causal)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, factors = torch.randn(2, 6, 24), rotary(index_positions(6, ("index",)), (8,), 50.0)
    expected = attention_by_hand(attention, x, factors, causal=causal)
    assert torch.allclose(attention(x, factors), expected, atol=1e-5)


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    second_half=st.booleans(),
    batch=st.sampled_from([1, 2, 8, 19]),
)
@settings(max_examples=40, deadline=None)
def test_cache_is_causal_attention_in_pieces(
    counts: list[int], dtype: torch.dtype, second_half: bool, batch: int
) -> None:
    torch.manual_seed(0)
    length, heads, size = sum(counts), 3, 8
    query, key, value = torch.randn(3, batch, length, heads, size)
    expected = nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
    ).transpose(1, 2)
    cache = KVCache(2, 2 * batch, heads, length + 2, size, dtype=dtype, device=torch.device("cpu"))
    cache.data.fill_(math.nan)  # nothing that was not stored may be looked at
    halves = [slice(0, batch), slice(batch, 2 * batch)]
    rows, start = halves[second_half], 0
    for count in counts:
        part = slice(start, start + count)
        out = cache.attend(1, rows, start, query[:, part], key[:, part], value[:, part])
        tolerance = 1e-5 if dtype == torch.float32 else 5e-2
        assert torch.allclose(out.float(), expected[:, part], atol=tolerance)
        start += count
    assert cache.data[0].isnan().all()
    assert cache.data[1][:, halves[not second_half]].isnan().all()


# -- transformer --------------------------------------------------------------------------------------------------------


def build(**overrides: object) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=64, depth=2, heads=4, ratio=2.0, condition_dim=16)
    return config.build(10, **{"bias": True, "causal": True, **overrides})  # type: ignore[arg-type]


def test_start() -> None:
    for name, parameter in build().named_parameters():
        if name.endswith("bias") or ("norm.weight" in name and parameter.ndim == 1):
            assert parameter.abs().max() == 0, name
        elif "gate" in name or "_norm" in name:
            assert 0.1e-7 < parameter.std() < 4e-7, name
        else:
            assert 0.015 < parameter.std() < 0.025, name
            assert parameter.abs().max() <= 2.0


def test_a_start_that_fits_the_width() -> None:
    """Products of unit inputs have unit deviation, whatever the width, and queries stand beside them as equals."""
    torch.manual_seed(0)
    size = TransformerConfig(dim=64, depth=2, heads=4, ratio=2.0, condition_dim=16, init="fan-in")
    for name, part in size.build(10, bias=True).named_modules():
        if isinstance(part, ConditionalScale):
            assert part.weight.std() < 4e-7, name
        elif isinstance(part, nn.Linear):
            assert part(torch.randn(500, part.in_features)).std().item() == pytest.approx(1, rel=0.15), name
    assert fresh_queries(500, size).std().item() == pytest.approx(1, rel=0.02)
    assert fresh_queries(500, TransformerConfig()).std().item() == pytest.approx(0.02, rel=0.02)


def test_a_fresh_transformer_changes_nothing_much() -> None:
    transformer, x = build(), torch.randn(2, 5, 64)
    out = transformer(x, rotary(index_positions(5, ("index",)), (16,), 100.0))
    assert 0 < (out - x).abs().max() < 1e-4


def test_open_gates_make_fresh_queries_depend_on_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 64)
    x[1, -1] = x[0, -1]  # a query, the same for both images
    positions = rotary(index_positions(5, ("index",)), (16,), 100.0)
    for gate, differs in ((0.0, False), (1.0, True)):
        transformer = TransformerConfig(dim=64, depth=2, heads=4, condition_dim=16, gate=gate).build(10, bias=True)
        out = transformer(x, positions)
        assert ((out[0, -1] - out[1, -1]).abs().max() > 1e-2) == differs
    with pytest.raises(UsageError, match=r"gates that start at .* need bias"):
        TransformerConfig(dim=64, depth=1, heads=4, gate=1.0).build(10, bias=False)


def test_output_head_start() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(dim=64, depth=1, heads=4, condition_dim=16)
    head = OutputHead(config, 100, bias=True, weight_scale=1e-5)
    assert 1e-7 < head.projection.weight.std() < 3e-7
    assert 0.015 < OutputHead(config, 100, bias=True).projection.weight.std() < 0.025


def test_output_head_stays_float32_and_its_packed_form_slices() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(dim=8, depth=1, heads=2, condition_dim=4)
    head, condition, x = OutputHead(config, 12, bias=True), torch.randn(4), torch.randn(2, 3, 8)
    nn.init.normal_(head.projection.bias)
    whole = head(x, condition)
    assert torch.equal(head.project(head.normalize(x, condition)), whole)
    assert torch.allclose(PackedHead(head, condition)(x[:, 0], slice(3, 7)), whole[:, 0, 3:7], atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x, condition), whole)


def test_causal_positions_do_not_see_the_future() -> None:
    transformer = build()
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.2)
    factors, x = rotary(index_positions(6, ("index",)), (16,), 100.0), torch.randn(1, 6, 64)
    changed = x.clone()
    changed[:, 4:] += 1
    before, after = transformer(x, factors), transformer(changed, factors)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-2)


def test_dropout_only_in_training_and_per_sample() -> None:
    transformer = build(dropout=0.5)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.2)
    factors, x = rotary(index_positions(3, ("index",)), (16,), 100.0), torch.randn(1, 3, 64).expand(2, -1, -1)
    assert transformer.condition(2).shape == (2, 1, 16)
    assert not torch.equal(*transformer.condition(2))
    assert not torch.allclose(*transformer(x, factors))
    transformer.eval()
    assert torch.equal(transformer.condition(2), transformer.condition.constant())
    assert torch.equal(transformer(x, factors), transformer(x, factors))


def test_condition_formula() -> None:
    transformer = build()
    nn.init.normal_(transformer.condition.classes.bias)
    nn.init.normal_(transformer.condition.norm.weight)
    one_hot = torch.zeros(11)
    one_hot[10] = 1
    projected = transformer.condition.classes(one_hot)
    normed = projected / projected.norm() * 4 * (1 + transformer.condition.norm.weight)
    expected = 0.5 * normed * (1 + torch.tanh(math.sqrt(2 / math.pi) * (normed + 0.044715 * normed**3)))
    assert torch.allclose(transformer.condition(3), expected, atol=1e-5)


@pytest.mark.parametrize("bad", [{"dim": 0}, {"depth": 0}, {"dim": 10, "heads": 3}, {"dim": 9, "heads": 3}])
def test_impossible_sizes(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="transformer"):
        TransformerConfig(**bad)
