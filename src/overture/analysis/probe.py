"""Linear probe: how much of the class the first n tokens tell.

Logistic regression on the first n tokens of training images, tested on held-out ones, as in "Prologue" (arXiv
2605.06137): on their code vectors, and on one-hot ids as a cross-check that no codebook geometry can flatter. It is
fitted to the optimum by L-BFGS over all rows; the weight decay is chosen on a tenth of the training rows.

Shapes: N rows, B rows of a chunk, T tokens, Z channels of a code, F features, C classes, P positions looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from overture.errors import OvertureError, UsageError
from overture.layout import Layout

__all__ = ["ProbeData", "ProbeResult", "fit_linear", "prefix_lengths", "probe", "wilson_interval"]

CHUNK = 8192
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LARGEST_TABLE = 200_000_000
Kind = Literal["codes", "ids"]


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Local ids ``[N, T]`` and labels ``[N]`` of training and of test images."""

    layout: Layout
    train_ids: Tensor
    train_labels: Tensor
    test_ids: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        for part, ids, labels in (
            ("training", self.train_ids, self.train_labels),
            ("test", self.test_ids, self.test_labels),
        ):
            if len(ids) != len(labels) or len(ids) == 0:
                raise OvertureError(f"probe: {len(ids)} {part} rows and {len(labels)} labels")
        if len(self.train_ids) < 20:
            raise OvertureError(f"probe: {len(self.train_ids)} training rows, needs at least 20")

    @property
    def classes(self) -> int:
        """C."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1


@dataclass(frozen=True)
class ProbeResult:
    """How often the probe names the class of a test image."""

    segment: str
    """Whose first tokens these are; ``all`` counts from the first token of the sequence."""
    tokens: int
    features: Kind
    top1: float
    top5: float | None
    """None for five classes or fewer, where it is always right."""
    interval: tuple[float, float]
    """95 % interval of ``top1`` (Wilson's), for the number of test images; other seeds of the tokenizer vary more."""
    train_top1: float
    images: int
    decay: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"interval": list(self.interval)}


def prefix_lengths(positions: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all of them."""
    doubled = [2**power for power in range(positions.bit_length()) if 2**power < positions]
    return (*doubled, positions)


def probe(
    data: ProbeData,
    lengths: Sequence[int] = (),
    *,
    codes: Callable[[Tensor], Tensor] | None = None,
    kinds: Sequence[Kind] = ("codes", "ids"),
    segments: Sequence[str] = (),
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[ProbeResult]:
    """Probe the first n tokens for every n of ``lengths`` (default: 1, 2, 4, ... all).

    ``codes`` gives the code vectors ``[B, T, Z]`` of ids ``[B, T]``. ``segments`` are probed by themselves; by default
    the whole sequence, and every segment where there are several. Lengths beyond a segment's end are left out.
    """
    names = ("all", *(data.layout.names if len(data.layout.names) > 1 else ()))
    chosen = tuple(segments) or names
    for name in chosen:
        if name not in ("all", *data.layout.names):
            raise UsageError(f"probe: no segment '{name}' (valid: {', '.join(dict.fromkeys(names))})")
    if "codes" in kinds and codes is None:
        raise UsageError("probe: code vectors need the tokenizer")
    for length in lengths:
        if not 1 <= length <= data.layout.length:
            raise UsageError(f"probe: {length} tokens, the layout has 1 to {data.layout.length}")
    work = []
    for name in chosen:
        whole = range(data.layout.length)
        places = whole if name == "all" else whole[data.layout.slice(name)]
        for length in lengths or prefix_lengths(len(places)):
            if length <= len(places):
                work += [(name, places[:length], kind) for kind in kinds]
    results = []
    for name, places, kind in tqdm(work, desc="probe", unit="fit", disable=not progress):
        results.append(_probe_one(data, name, places, kind, codes, torch.device(device)))
    return results


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


class LinearHead(nn.Module):
    """Logits ``[B, C]`` of ids ``[B, T]`` from code vectors (standardised) or one-hot ids of some positions."""

    def __init__(self, layout: Layout, places: range, classes: int, codes: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.places, self.codes = places, codes
        self.mean = self.deviation = torch.zeros(0)
        sizes = [layout.sizes[place] for place in places]
        if codes is None:
            if sum(sizes) * classes > LARGEST_TABLE:
                raise UsageError(
                    f"probe: one-hot ids of {len(places)} tokens and {classes} classes need {sum(sizes) * classes:,} "
                    f"weights, more than {LARGEST_TABLE:,}; probe fewer tokens, or code vectors alone"
                )
            self.starts = torch.tensor([sum(sizes[:place]) for place in range(len(sizes))])
            self.weight = nn.Parameter(torch.zeros(sum(sizes), classes))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.classes = classes

    def prepare(self, ids_NT: Tensor, device: torch.device) -> None:
        """Learn mean and deviation of the code vectors, and make the weights."""
        self.to(device)
        if self.codes is None:
            self.starts = self.starts.to(device)
            return
        total, squares, count = 0.0, 0.0, len(ids_NT)
        for ids_BT in ids_NT.split(CHUNK):
            x_BF = self._vectors(ids_BT.to(device)).double()
            total, squares = total + x_BF.sum(dim=0), squares + x_BF.square().sum(dim=0)
        mean_F = total / count  # type: ignore[operator]
        variance_F = (squares / count - mean_F.square()).clamp(min=0)  # type: ignore[operator]
        self.mean = mean_F.float()
        self.deviation = torch.where(variance_F > 1e-12, variance_F.sqrt(), torch.ones_like(variance_F)).float()
        self.weight = nn.Parameter(torch.zeros(len(mean_F), self.classes, device=device))

    def forward(self, ids_BT: Tensor) -> Tensor:
        if self.codes is None:
            ids_BP = ids_BT[:, self.places.start : self.places.stop] + self.starts
            return F.embedding_bag(ids_BP, self.weight, mode="sum") + self.bias
        return (self._vectors(ids_BT) - self.mean) / self.deviation @ self.weight + self.bias

    def _vectors(self, ids_BT: Tensor) -> Tensor:
        assert self.codes is not None
        return self.codes(ids_BT)[:, self.places.start : self.places.stop].flatten(1).float()


def fit_linear(head: LinearHead, ids_NT: Tensor, labels_N: Tensor, decay: float, device: torch.device) -> float:
    """Minimise mean cross-entropy + decay / 2 |W|^2 over all rows; returns its value."""
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=200, history_size=20, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = decay / 2 * head.weight.square().sum()
        penalty.backward()
        total = penalty.detach()
        for ids_BT, labels_B in zip(ids_NT.split(CHUNK), labels_N.split(CHUNK), strict=True):
            logits_BC = head(ids_BT.to(device))
            loss = F.cross_entropy(logits_BC, labels_B.to(device), reduction="sum") / len(ids_NT)
            loss.backward()
            total = total + loss.detach()
        return total

    return float(optimizer.step(closure))


def _probe_one(
    data: ProbeData,
    name: str,
    places: range,
    kind: Kind,
    codes: Callable[[Tensor], Tensor] | None,
    device: torch.device,
) -> ProbeResult:
    head = LinearHead(data.layout, places, data.classes, codes if kind == "codes" else None)
    head.prepare(data.train_ids, device)
    held = torch.randperm(len(data.train_ids), generator=torch.Generator().manual_seed(0))
    cut = max(len(held) // 10, 1)
    chosen, rest = held[:cut], held[cut:]
    scores = {}
    for decay in DECAYS:
        fit_linear(head, data.train_ids[rest], data.train_labels[rest], decay, device)
        scores[decay] = _right(head, data.train_ids[chosen], data.train_labels[chosen], device)[0]
    best = max(reversed(DECAYS), key=lambda decay: scores[decay])  # of equals, the most decay
    fit_linear(head, data.train_ids, data.train_labels, best, device)
    top1, top5 = _right(head, data.test_ids, data.test_labels, device)
    train_top1, _ = _right(head, data.train_ids, data.train_labels, device)
    count = len(data.test_ids)
    return ProbeResult(
        segment=name,
        tokens=len(places),
        features=kind,
        top1=top1 / count,
        top5=top5 / count if data.classes > 5 else None,
        interval=wilson_interval(top1, count),
        train_top1=train_top1 / len(data.train_ids),
        images=count,
        decay=best,
    )


@torch.no_grad()
def _right(head: LinearHead, ids_NT: Tensor, labels_N: Tensor, device: torch.device) -> tuple[int, int]:
    """How many rows have their label first, and among the first five."""
    first = five = 0
    for ids_BT, labels_B in zip(ids_NT.split(CHUNK), labels_N.split(CHUNK), strict=True):
        logits_BC = head(ids_BT.to(device))
        best = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices == labels_B.to(device)[:, None]
        first, five = first + int(best[:, 0].sum()), five + int(best.any(dim=1).sum())
    return first, five
