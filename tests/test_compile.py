"""What training compiles is one graph, gives the same numbers, and is not compiled again for the next batch.

A graph that breaks would be slow and not wrong, so nobody would notice. ``fullgraph=True`` makes it an error. The backends
run the graph without making machine code of it: ``eager`` as it is, ``aot_eager`` with its backward pass traced too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from overture.nn.rope import index_positions, rotary
from overture.nn.transformer import TransformerConfig
from overture.priors import PriorConfig
from overture.recipes import recipe_configs
from overture.tokenizers.tokenizer import Encoded, Tokenizer
from overture.training.prior_pass import PriorPass

CONFIG = recipe_configs("vcq-prologue", tiny=True)[0].resolve(10)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No other test's graphs."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same(work: Callable[..., Tensor], inputs: Sequence[tuple[Any, ...]], module: nn.Module, backend: str) -> None:
    """``work`` compiled is one graph for all ``inputs``; results and gradients are those of ``work``."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(work, fullgraph=True, backend=counter)
    for given in inputs:
        outcomes = []
        for run in (work, compiled):
            module.zero_grad()
            torch.manual_seed(0)  # of dropout, which "eager" draws as uncompiled code does
            out = run(*given)
            out.square().mean().backward()
            gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            outcomes.append({"": out.detach(), **gradients})
        assert outcomes[0].keys() == outcomes[1].keys()
        for name, value in outcomes[0].items():
            assert torch.allclose(value, outcomes[1][name], rtol=1e-4, atol=1e-6 + 1e-5 * float(value.abs().max())), (
                name
            )
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_transformer_is_one_graph(causal: bool, backend: str) -> None:
    torch.manual_seed(0)
    size = TransformerConfig(dim=16, depth=2, heads=2, condition_dim=8, gate=0.5)
    transformer = size.build(10, bias=True, causal=causal)
    factors = rotary(index_positions(6, ("index",)), (8,), 100.0)
    inputs = [(torch.randn(3, 6, 16), factors) for _ in range(2)]
    same(transformer, inputs, transformer, backend)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_priors_pass_is_one_graph(dropout: float) -> None:
    """What ``--prior-training.compile`` compiles: the way from embeddings to what the output matrix is applied to."""
    torch.manual_seed(0)
    layout = CONFIG.tokenizer.layout
    prior = (
        PriorConfig(dim=16, depth=2, heads=2, condition_dim=8, num_classes=10, dropout=dropout).build(layout).train()
    )
    inputs = [(torch.randn(3, layout.sequence_length - 1, 16), torch.tensor([0, 4, 10])) for _ in range(2)]
    same(prior.hidden, inputs, prior, "eager")


def test_the_compiled_pass_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_of: list[Any] = []

    def compile_(work: Any) -> Any:
        compiled_of.append(work)
        return torch._dynamo.optimize("eager", nopython=True)(work)

    monkeypatch.setattr(torch, "compile", compile_)
    torch.manual_seed(0)
    layout = CONFIG.tokenizer.layout
    prior = PriorConfig(dim=16, depth=2, heads=2, condition_dim=8, num_classes=10, dropout=0.0).build(layout)
    sequence, classes = layout.to_sequence(torch.zeros(2, layout.length, dtype=torch.long)), torch.tensor([1, 10])
    losses = [
        PriorPass(prior, "float32", compiled=compiled)(sequence, sequence, classes, sequence.numel())
        for compiled in (False, True)
    ]
    assert compiled_of == [prior.hidden]
    assert torch.allclose(*losses)


def built() -> Tokenizer:
    torch.manual_seed(0)
    size = replace(CONFIG.tokenizer.encoder, gate=0.5)
    return replace(CONFIG.tokenizer, encoder=size, decoder=size).build().train()


def test_the_tokenizers_ways_are_one_graph_each() -> None:
    """What ``--tokenizer-training.compile`` compiles."""
    tokenizer = built()
    images = [torch.rand(2, 1, 28, 28) * 2 - 1 for _ in range(2)]

    def encode(x: Tensor) -> Tensor:
        encoded = tokenizer.encode_for_training(x)
        return torch.cat([part.codes.flatten() for part in encoded.quantized.values()]) + encoded.quantizer_loss

    same(encode, [(x,) for x in images], tokenizer, "eager")
    encoded: list[tuple[Encoded]] = [(tokenizer.encode_for_training(x),) for x in images]
    detached = [
        (Encoded(e.ids, {n: q._replace(codes=q.codes.detach()) for n, q in e.quantized.items()}, {}),)
        for (e,) in encoded
    ]
    same(tokenizer.reconstruct, detached, tokenizer, "eager")
