"""Small priors over layouts of every kind, and what their sampler is compared with."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from overture.layout import Layout, Segment
from overture.priors import Guidance, Prior, PriorConfig, Sampling
from overture.priors.decoding import Execution
from overture.priors.sampler import generate

LAYOUTS = {
    "plain": Layout.single((40,) * 9),
    "prologue": Layout((Segment("prologue", (7,) * 4, separator=True), Segment("visual", (30,) * 6))),
    "vcq": Layout((Segment("prologue", (2, 3, 5)), Segment("visual", (2, 3, 4, 8, 16, 33)))),
    "fixed": Layout((Segment("a", (1, 4), separator=True), Segment("b", (3, 1), separator=True), Segment("c", (6, 1)))),
    "tiles": Layout((Segment("prologue", (100, 1030)), Segment("visual", (3, 1500, 2500)))),
}
SPLIT = {
    "plain": Guidance.cosine(4.0, power=1.5),
    "prologue": Guidance.split(prologue=0.7, visual=Guidance.cosine(3.0, power=0.2)),
    "vcq": Guidance.split(visual=2.0),
    "fixed": Guidance.split(a=2.0, c=3.0),
    "tiles": Guidance.constant(1.5),
}


@functools.cache
def prior(name: str) -> Prior:
    torch.manual_seed(0)
    module = PriorConfig(32, 3, 2, 11 / 4, 8, 5, rope_axes=(8, 4, 4)).build(LAYOUTS[name]).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def greedy(
    model: Prior,
    classes: Tensor | list[int],
    guidance: Guidance | float | str = "none",
    prefix: Tensor | None = None,
    execution: Execution | None = None,
) -> Tensor:
    """The likeliest id at every position."""
    return generate(model, classes, Sampling.parse(guidance, top_k=1), prefix=prefix, execution=execution)


def reference_logits(model: Prior, sequence: Tensor, classes: Tensor, guidance: Guidance) -> Tensor:
    """Guided logits of every position by the full forward pass, -inf where the layout allows no id."""
    conditional = model(sequence, classes)
    unconditional = model(sequence, torch.full_like(classes, model.unconditional))
    scale = torch.tensor(guidance.scales(model.layout))[:, None]
    logits = scale * conditional + (1 - scale) * unconditional
    allowed = torch.full(logits.shape[1:], -torch.inf)
    for step, position in enumerate(model.layout.positions):
        allowed[step, position.low : position.high] = 0
    return (logits + allowed).detach()


def random_sequences(layout: Layout, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (count,), generator=generator) for size in layout.sizes]
    return layout.to_sequence(torch.stack(columns, dim=1))
