"""One batch on its way through the sequence: what it holds, and how it gets from one position to the next.

The first position, a prefix, and a half that was left out are a *pass*: any number of positions, their shapes as they
come. Everything else can be a *step*: one position, shapes that stay those of a bucket of :data:`BUCKET` positions, and
every number that changes in a tensor. A step reads nothing back to the host, so an accelerator can repeat it as a
captured graph, without one launch for each of its small operations.

Shapes: B images, N rows (rows 0..B are conditional, rows B..2B unconditional), L sequence positions, D channels, S ids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from overture.nn.kv_cache import KVCache
from overture.nn.packed import TILE, PackedHead, PackedTransformer
from overture.priors.draws import draw, restrict
from overture.priors.model import Prior
from overture.priors.sampling import Sampling
from overture.processes import widest_float

__all__ = ["Decoding", "Execution", "Snapshot"]

Execution = Literal["growing", "static", "compiled"]
"""How positions follow each other: every one as a pass that reads what the cache holds; as a step; as a step whose
blocks are compiled. On a CUDA device steps are captured as graphs. The ids are the same, to float rounding."""

BUCKET = 32
"""Positions by which what a step reads of the cache grows: it reads 16 in vain on average."""


class Snapshot:
    """A prior and a way to sample as they are now, in the form in which they are sampled from."""

    def __init__(self, prior: Prior, sampling: Sampling, dtype: torch.dtype, execution: Execution) -> None:
        layout, device = prior.layout, prior.token_embedding.weight.device
        self.prior, self.sampling, self.dtype, self.execution, self.device = prior, sampling, dtype, execution, device
        compiled = execution == "compiled"
        self.transformer = PackedTransformer(prior.transformer, prior.rotary, dtype, compiled=compiled)
        self.head = PackedHead(prior.head, prior.transformer.condition.constant(), pack=not compiled)
        self.scales = sampling.guidance.scales(layout)
        self.guided = any(scale != 1 for scale in self.scales)
        # The same for all steps as tensors, where a step looks up its own.
        self.scale_L = torch.tensor(self.scales, device=device)
        self.rest_L = torch.tensor([1 - scale for scale in self.scales], device=device)
        self.temperature_L = torch.tensor(sampling.step_temperatures(layout), device=device)
        self.low_L = torch.tensor([position.low for position in layout.positions], device=device)
        self.high_L = torch.tensor([position.high for position in layout.positions], device=device)
        self.ids_V = torch.arange(layout.vocabulary_size, device=device)


class Decoding:
    """The state of a batch of ``batch`` images. It can be begun again: its tensors, and graphs of them, stay."""

    def __init__(self, snapshot: Snapshot, batch: int) -> None:
        prior, device = snapshot.prior, snapshot.device
        self.snapshot, self.batch = snapshot, batch
        length, size = prior.layout.sequence_length, prior.config.transformer
        self.sequence = torch.zeros(batch, length, dtype=torch.long, device=device)
        self.fixed = torch.full_like(self.sequence, -1)
        self.draws = torch.zeros(batch, length, dtype=widest_float(device), device=device)
        self.classes = torch.full((batch * (1 + snapshot.guided),), prior.unconditional, device=device)
        self.cache = KVCache(
            size.depth, len(self.classes), size.heads, length, size.head_dim, dtype=snapshot.dtype, device=device
        )
        self.places = torch.arange(length, device=device)
        self.position_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        """Whether all logits were finite; looked at once, for looking waits for an accelerator."""
        self.filled = [0, 0]
        """Positions in the cache of the conditional and of the unconditional half."""
        self.capture = graph_capture(device)
        self.graphs: dict[tuple[bool, int, int, int], Graph] = {}

    def begin(self, classes_B: Tensor, fixed_BL: Tensor, draws_BL: Tensor) -> None:
        """Take a batch: its classes, the ids to keep (-1 where to sample), its draws."""
        self.classes[: self.batch] = classes_B
        self.fixed.copy_(fixed_BL)
        self.draws.copy_(draws_BL)
        self.filled = [0, 0]

    def run(self) -> None:
        """Fill the sequence."""
        for _ in self.walk():
            pass

    def walk(self) -> Iterator[int]:
        """Fill the sequence position by position; gives how many are filled after each."""
        settled = (self.fixed >= 0).all(dim=0).tolist()
        for step, position in enumerate(self.snapshot.prior.layout.positions):
            if settled[step]:  # kept in every image: no logits are needed
                self.sequence[:, step] = self.fixed[:, step]
            elif position.high - position.low == 1:  # a separator, or a codebook of one code
                self.sequence[:, step] = position.low
            elif self.is_step(step):
                self.step(step)
            else:
                outputs = slice(position.low, position.high)
                self.choose(self.passed(step), self.places[step : step + 1], outputs)
            yield step + 1

    # -- a step -----------------------------------------------------------------------------------------------------

    def is_step(self, step: int) -> bool:
        """Whether position ``step`` can be a step: the halves it needs have come exactly so far."""
        halves = self.filled if self.snapshot.scales[step] != 1 else self.filled[:1]
        return self.snapshot.execution != "growing" and step > 0 and set(halves) == {step}

    def step(self, step: int) -> None:
        """Position ``step``, by a graph if there is one for its bucket, its halves and its tiles of outputs."""
        layout, both = self.snapshot.prior.layout, self.snapshot.scales[step] != 1
        position = layout.positions[step]
        length = min(-(-(step + 1) // BUCKET) * BUCKET, layout.sequence_length)
        first, last = position.low // TILE * TILE, min(-(-position.high // TILE) * TILE, layout.vocabulary_size)
        self.position_1.fill_(step)
        self.filled = [step + 1, step + 1 if both else self.filled[1]]
        function = functools.partial(self._step, both, length, slice(first, last))
        if self.capture is None:
            function()
        elif (both, length, first, last) in self.graphs:
            self.graphs[both, length, first, last].replay()
        else:
            self.graphs[both, length, first, last] = self.capture(function)

    def _step(self, both: bool, length: int, outputs: slice) -> None:
        """What is the same for all positions of a bucket. Doing it twice changes nothing."""
        token_B1 = self.sequence.index_select(1, self.position_1 - 1)
        x_N1D = self.snapshot.prior.token_embedding(token_B1).float().repeat(1 + both, 1, 1)
        rows = slice(0, len(x_N1D))
        x_N1D = self.snapshot.transformer.step(x_N1D, self.cache, rows, self.position_1, length)
        self.choose(x_N1D[:, 0], self.position_1, outputs)

    # -- a pass -----------------------------------------------------------------------------------------------------

    def passed(self, step: int) -> Tensor:
        """Run every half that is needed up to input position ``step``; its outputs there, ``[B or 2B, D]``."""
        if self.snapshot.scales[step] == 1:
            return self._pass(0, slice(0, self.batch), step)
        if self.filled[0] == self.filled[1]:  # both halves in one pass: the weights are read once
            self.filled[1] = step + 1
            return self._pass(0, slice(0, 2 * self.batch), step)
        # The unconditional half has been left out at some steps and catches up on them first.
        first = self._pass(0, slice(0, self.batch), step)
        return torch.cat([first, self._pass(1, slice(self.batch, 2 * self.batch), step)])

    def _pass(self, half: int, rows: slice, step: int) -> Tensor:
        start = self.filled[half]
        x_NLD = self.snapshot.transformer(self._embed(rows, start, step + 1), self.cache, rows, start)
        self.filled[half] = step + 1
        return x_NLD[:, -1]

    def _embed(self, rows: slice, start: int, end: int) -> Tensor:
        """Input embeddings of positions ``start`` to ``end``: the class at 0, then the tokens before each position."""
        prior, repeats = self.snapshot.prior, (rows.stop - rows.start) // self.batch
        tokens = prior.token_embedding(self.sequence[:, max(start - 1, 0) : end - 1].repeat(repeats, 1))
        if start == 0:
            tokens = torch.cat([prior.class_embedding(self.classes[rows])[:, None], tokens], dim=1)
        return tokens.float()

    # -- the choice -------------------------------------------------------------------------------------------------

    def logits(self, x_ND: Tensor, position_1: Tensor, outputs: slice) -> Tensor:
        """Guided logits of the ids ``outputs``, ``[B, S]`` float32, from the outputs of one half or both."""
        logits_NS = self.snapshot.head(x_ND, outputs)
        if len(logits_NS) == self.batch:
            return logits_NS
        conditional, unconditional = logits_NS.split(self.batch)
        scale_1, rest_1 = (table.index_select(0, position_1) for table in (self.snapshot.scale_L, self.snapshot.rest_L))
        return scale_1 * conditional + rest_1 * unconditional

    def choose(self, x_ND: Tensor, position_1: Tensor, outputs: slice) -> None:
        """Write the ids of a position, whose allowed ids are among ``outputs``."""
        snapshot, sampling = self.snapshot, self.snapshot.sampling
        temperature_1, low_1, high_1 = (
            table.index_select(0, position_1) for table in (snapshot.temperature_L, snapshot.low_L, snapshot.high_L)
        )
        logits_BS = self.logits(x_ND, position_1, outputs) / temperature_1
        ids_S = snapshot.ids_V[outputs]
        outside_S = (ids_S < low_1) | (ids_S >= high_1)
        self.finite.logical_and_((logits_BS.isfinite() | outside_S).all())
        logits_BS = logits_BS.masked_fill(outside_S, -torch.inf)
        if sampling.top_k == 1:
            choice_B = logits_BS.argmax(dim=-1)
        else:
            draws_B = self.draws.index_select(1, position_1)[:, 0]
            choice_B = draw(restrict(logits_BS, sampling.top_k, sampling.top_p), draws_B)
        ids_B1 = (choice_B + outputs.start).minimum(high_1 - 1)[:, None]  # NaN has no id, and is told at the end
        kept_B1 = self.fixed.index_select(1, position_1)
        self.sequence.index_copy_(1, position_1, torch.where(kept_B1 >= 0, kept_B1, ids_B1))


class Graph(Protocol):
    """A function without arguments, as the operations on tensors that it is made of."""

    def replay(self) -> None:
        """Do them again."""


def graph_capture(device: torch.device) -> Callable[[Callable[[], None]], Graph] | None:
    """What runs a function once and makes a graph of it, or None where a device has no graphs."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()  # one for all: what a graph computes on the way is not looked at later

    def capture(function: Callable[[], None]) -> Graph:
        # The run that counts; it also compiles and loads whatever must not be loaded while a graph is captured.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            function()
        return graph

    return capture
