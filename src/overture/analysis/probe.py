"""Linear probe: how much of the class the first n tokens tell.

Logistic regression on the first n tokens of training images, tested on held-out ones, as in "Prologue" (arXiv
2605.06137): on their code vectors, and on one-hot ids as a cross-check that no codebook geometry can flatter. It is
fitted to the optimum by L-BFGS over all rows, in coordinates in which the features are alike (code vectors of small
codebooks lie on few axes, and plain L-BFGS stops far from their optimum); the weight decay is chosen on a tenth of the
training rows.

Shapes: N rows, B rows of a chunk, T tokens, Z channels of a code, F features, C classes, P positions looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.analysis.entries import ReportEntry
from overture.analysis.style import curve_style, dress, legend, new_figure, token_axis
from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.processes import widest_float
from overture.progress import each_with_progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ProbeData", "ProbeResult", "ProbeStudy", "fit_linear", "prefix_lengths", "study", "wilson_interval"]

CHUNK = 8192
DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
CONVERGED = 1e-4
"""Largest element of the gradient at which a fit counts as the optimum."""
LARGEST_TABLE = 200_000_000
LARGEST_TURN = 3000  # features whose principal axes are worth their time
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
    """The weight decay, chosen on a tenth of the training rows."""
    converged: bool = True
    """Whether the fit reached its optimum."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"interval": list(self.interval)}


@dataclass(frozen=True)
class ProbeStudy:
    """Every probe that was fitted."""

    results: tuple[ProbeResult, ...]
    train_images: int
    test_images: int
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = {"train_images": self.train_images, "test_images": self.test_images, "classes": self.classes}
        return {**counts, "results": [result.to_dict() for result in self.results]}

    def describe(self) -> str:
        """A table."""
        lines = [
            f"{self.train_images:,} training and {self.test_images:,} test images, {self.classes} classes",
            "",
            f"{'segment':<12} {'tokens':>6}  {'features':<8} {'top-1':>7}  {'95 % interval':>15}  {'top-5':>7}  {'training':>8}",
        ]
        for result in self.results:
            low, high = result.interval
            top5 = "-" if result.top5 is None else f"{result.top5:.2%}"
            lines.append(
                f"{result.segment:<12} {result.tokens:>6}  {result.features:<8} {result.top1:>7.2%}  "
                f"{f'{low:.2%} .. {high:.2%}':>15}  {top5:>7}  {result.train_top1:>8.2%}"
            )
        if any(not result.converged for result in self.results):
            names = [f"{r.segment} {r.tokens} {r.features}" for r in self.results if not r.converged]
            lines += ["", f"not converged, the optimum may be higher: {', '.join(names)}"]
        return "\n".join(lines)

    def entries(self) -> list[ReportEntry]:
        """The accuracies against n."""
        caption = (
            f"Logistic regression on the first n tokens of {self.train_images:,} training images, tested on "
            f"{self.test_images:,} held-out ones, {self.classes} classes. Bands: 95 % intervals for the number of test "
            "images."
        )
        return [ReportEntry("probe", "Linear probe", caption, _figure(self.results), self.to_dict())]


def prefix_lengths(positions: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all of them."""
    doubled = [2**power for power in range(positions.bit_length()) if 2**power < positions]
    return (*doubled, positions)


def study(
    data: ProbeData,
    lengths: Sequence[int] = (),
    *,
    codes: Callable[[Tensor], Tensor] | None = None,
    kinds: Sequence[Kind] = ("codes", "ids"),
    segments: Sequence[str] = (),
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> ProbeStudy:
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
    known: dict[tuple[range, Kind], ProbeResult] = {}  # the first segment's tokens are the sequence's first ones
    results = []
    for name, places, kind in each_with_progress(work, "probe", "fit", shown=progress):
        if (places, kind) not in known:
            known[places, kind] = _probe_one(data, name, places, kind, codes, torch.device(device))
        results.append(replace(known[places, kind], segment=name))
    return ProbeStudy(tuple(results), len(data.train_ids), len(data.test_ids), data.classes)


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


class LinearHead(nn.Module):
    """Logits ``[B, C]`` of rows of features: standardised code vectors, or ids taken as one-hot.

    What is trained are the weights in other coordinates (:meth:`precondition`): along the principal axes of the features,
    each scaled so that the loss curves alike in all of them. The optimum is the same, and is reached in few iterations.
    """

    def __init__(self, rows: Tensor, sizes: Sequence[int] | None, classes: int) -> None:
        """``rows`` are the training features ``[N, F]``; with ``sizes``, ids ``[N, P]`` below them."""
        super().__init__()
        self.starts: Tensor | None = None
        width = rows.shape[1]
        if sizes is not None:
            width = sum(sizes)
            if width * classes > LARGEST_TABLE:
                raise UsageError(
                    f"probe: one-hot ids of {len(sizes)} tokens and {classes} classes need {width * classes:,} "
                    f"weights, more than {LARGEST_TABLE:,}; probe fewer tokens, or code vectors alone"
                )
            self.starts = torch.tensor([sum(sizes[:place]) for place in range(len(sizes))], device=rows.device)
            counts_F = torch.bincount((rows + self.starts).flatten(), minlength=width)
            self.axes_FF, self.spread_F = None, counts_F / len(rows)
        else:
            variance_F, self.mean = torch.var_mean(rows, dim=0, correction=0)
            self.deviation = torch.where(variance_F > 1e-12, variance_F.sqrt(), torch.ones_like(variance_F))
            self.spread_F, self.axes_FF = self._principal_axes(rows)
        self.scale_F = torch.ones(width, device=rows.device)
        self.turned = nn.Parameter(torch.zeros(width, classes, device=rows.device))
        self.bias = nn.Parameter(torch.zeros(classes, device=rows.device))

    def _principal_axes(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Variances along the principal axes of the standardised features, and the axes; of very many, along each alone."""
        width = rows.shape[1]
        if width > LARGEST_TURN:
            return torch.ones(width, device=rows.device), None
        wide = widest_float(rows.device)
        covariance_FF = torch.zeros(width, width, dtype=wide, device=rows.device)
        for rows_B in rows.split(CHUNK):
            standard_BF = ((rows_B - self.mean) / self.deviation).to(wide)
            covariance_FF += standard_BF.T @ standard_BF / len(rows)
        spread_F, axes_FF = torch.linalg.eigh(covariance_FF)
        return spread_F.clamp(min=0).float(), axes_FF.float()

    @property
    def weight(self) -> Tensor:
        """``[F, C]``, for the standardised features."""
        scaled_FC = self.scale_F[:, None] * self.turned
        return scaled_FC if self.axes_FF is None else self.axes_FF @ scaled_FC

    @torch.no_grad()
    def precondition(self, decay: float) -> None:
        """Choose the coordinates for a weight decay; the weights stay as they are."""
        wanted_F = (self.spread_F / len(self.bias) + decay).rsqrt()  # a softmax of C classes curves by about 1 / C
        self.turned.mul_((self.scale_F / wanted_F)[:, None])
        self.scale_F = wanted_F

    def forward(self, rows: Tensor) -> Tensor:
        if self.starts is not None:
            return F.embedding_bag(rows + self.starts, self.weight, mode="sum") + self.bias
        return (rows - self.mean) / self.deviation @ self.weight + self.bias


def fit_linear(head: LinearHead, rows: Tensor, labels_N: Tensor, decay: float) -> tuple[float, bool]:
    """Minimise mean cross-entropy + decay / 2 |W|^2 over all rows, from where the head is.

    Returns the value, and whether it is the optimum.
    """
    head.precondition(decay)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=300, history_size=20, tolerance_grad=CONVERGED / 10, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = decay / 2 * (head.scale_F[:, None] * head.turned).square().sum()  # turning keeps lengths
        penalty.backward()
        total = penalty.detach()
        for rows_B, labels_B in zip(rows.split(CHUNK), labels_N.split(CHUNK), strict=True):
            loss = F.cross_entropy(head(rows_B), labels_B, reduction="sum") / len(rows)
            loss.backward()
            total = total + loss.detach()
        return total

    optimizer.step(closure)  # type: ignore[arg-type]
    value = float(closure())
    gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    return value, max(float(gradient.abs().max()) for gradient in gradients) <= CONVERGED


@torch.no_grad()
def _features(ids_NT: Tensor, codes: Callable[[Tensor], Tensor] | None, places: range, device: torch.device) -> Tensor:
    """What a head takes: the code vectors ``[N, F]`` of some positions, or their ids ``[N, P]``."""
    if codes is None:
        return ids_NT[:, places.start : places.stop].to(device)
    parts = [codes(part.to(device))[:, places.start : places.stop].flatten(1).float() for part in ids_NT.split(CHUNK)]
    return torch.cat(parts)


def _probe_one(
    data: ProbeData,
    name: str,
    places: range,
    kind: Kind,
    codes: Callable[[Tensor], Tensor] | None,
    device: torch.device,
) -> ProbeResult:
    vectors = codes if kind == "codes" else None
    train, test = (_features(ids, vectors, places, device) for ids in (data.train_ids, data.test_ids))
    train_labels, test_labels = data.train_labels.to(device), data.test_labels.to(device)
    sizes = None if vectors else [data.layout.sizes[place] for place in places]
    held = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).to(device)
    cut = max(len(held) // 10, 1)
    chosen, rest = held[:cut], held[cut:]
    head = LinearHead(train, sizes, data.classes)
    scores = {}
    for decay in DECAYS:  # from much to little, each from where the last one ended
        fit_linear(head, train[rest], train_labels[rest], decay)
        scores[decay] = _right(head, train[chosen], train_labels[chosen])[0]
    best = max(DECAYS, key=lambda decay: scores[decay])  # of equals, the most decay
    head = LinearHead(train, sizes, data.classes)
    _, converged = fit_linear(head, train, train_labels, best)
    top1, top5 = _right(head, test, test_labels)
    train_top1, _ = _right(head, train, train_labels)
    count = len(test)
    return ProbeResult(
        segment=name,
        tokens=len(places),
        features=kind,
        top1=top1 / count,
        top5=top5 / count if data.classes > 5 else None,
        interval=wilson_interval(top1, count),
        train_top1=train_top1 / len(train),
        images=count,
        decay=best,
        converged=converged,
    )


@torch.no_grad()
def _right(head: LinearHead, rows: Tensor, labels_N: Tensor) -> tuple[int, int]:
    """How many rows have their label first, and among the first five."""
    first = five = 0
    for rows_B, labels_B in zip(rows.split(CHUNK), labels_N.split(CHUNK), strict=True):
        logits_BC = head(rows_B)
        best = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices == labels_B[:, None]
        first, five = first + int(best[:, 0].sum()), five + int(best.any(dim=1).sum())
    return first, five


def _figure(results: Sequence[ProbeResult]) -> Figure:
    """Top-1 accuracy of the probes against n, one curve for each segment and kind of features."""
    curves: dict[tuple[str, str], list[ProbeResult]] = {}
    for result in results:
        curves.setdefault((result.segment, result.features), []).append(result)
    figure, (axes,) = new_figure(1)
    for place, ((segment, features), points) in enumerate(curves.items()):
        where = "first tokens" if segment == "all" else segment
        label = f"{where}, {'code vectors' if features == 'codes' else 'one-hot ids'}"
        lengths = [point.tokens for point in points]
        style = curve_style(place)
        axes.plot(lengths, [100 * point.top1 for point in points], label=label, **style)
        low, high = ([100 * point.interval[side] for point in points] for side in (0, 1))
        axes.fill_between(lengths, low, high, color=style["color"], alpha=0.15, linewidth=0)
    token_axis(axes, [result.tokens for result in results])
    dress(axes, "Linear probe", "tokens n", "top-1 accuracy, percent")
    legend(axes)
    return figure
