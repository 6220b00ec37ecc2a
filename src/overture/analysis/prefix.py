"""What the first n tokens hold: keep them and let the prior write the rest, or take the rest of another image.

If the first tokens carry the meaning, images that share them stay of one class and one look. Measured under a judge
(a network with classes): the share of resampled images that keep the class, and how near they stay in feature space.
The prior is not told the class unless asked to, so that what is kept is all it knows.

Shapes: N images, B batch, T tokens, L sequence positions, C H W image, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from overture.analysis.entries import ReportEntry
from overture.analysis.probe import prefix_lengths
from overture.analysis.style import MUTED, curve_style, dress, legend, new_figure, token_axis
from overture.data.order import generator
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import FeatureNetwork
from overture.layout import Layout
from overture.pictures import picture_grid
from overture.pipeline import Pipeline
from overture.priors.sampling import Sampling
from overture.progress import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PrefixResult", "PrefixStudy", "sequence_prefix", "study"]


@dataclass(frozen=True)
class PrefixResult:
    """What is left of N images when only their first ``tokens`` tokens are kept."""

    tokens: int
    accuracy: float
    """Share of the images, their other tokens resampled, that the judge puts into the class they come from."""
    relative_distance: float
    """Mean feature distance to the image they come from, over that between two images of the set."""
    swapped_first: float
    """With the other tokens of another image of another class: share in the class of the first tokens' image ..."""
    swapped_other: float
    """... and in the class of the other image."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PrefixStudy:
    """Numbers for every n, and pictures of the first few images."""

    results: tuple[PrefixResult, ...]
    reconstruction_accuracy: float
    """Share of the reconstructions that the judge puts into their class: the ceiling."""
    images: int
    resampled: Tensor
    """uint8 ``[rows, 1 + lengths, C, H, W]``: the reconstruction, then one image for every n."""
    swapped: Tensor
    """uint8 ``[rows, 2 + lengths, C, H, W]``: both images, then the mixture for every n."""
    settings: dict[str, Any]
    """How it was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "images": self.images,
            **self.settings,
            "reconstruction_accuracy": self.reconstruction_accuracy,
            "results": [result.to_dict() for result in self.results],
        }

    def describe(self) -> str:
        """A table."""
        lines = [
            f"{self.images:,} images; the judge names the class of {self.reconstruction_accuracy:.1%} of their "
            "reconstructions",
            "",
            f"{'':>6}  {'rest resampled':^28}  {'rest of another image':^24}",
            f"{'kept':>6}  {'class kept':>10}  {'distance (relative)':>16}  {'class of first':>12}  {'of other':>8}",
        ]
        for result in self.results:
            lines.append(
                f"{result.tokens:>6}  {result.accuracy:>10.1%}  {result.relative_distance:>19.3f}  "
                f"{result.swapped_first:>14.1%}  {result.swapped_other:>8.1%}"
            )
        return "\n".join(lines)

    def entries(self) -> list[ReportEntry]:
        """The curves, and both pictures."""
        kept = ", ".join(str(result.tokens) for result in self.results)
        told = "told the class" if self.settings["conditional"] else "not told the class"
        caption = (
            f"{self.images:,} held-out images, their first n tokens kept. The prior was {told}; guidance "
            f"{self.settings['guidance']}, temperature {self.settings['temperature']}. Judge: {self.settings['judge']}."
        )
        pictures = [picture_grid(rows.flatten(0, 1), rows.shape[1]) for rows in (self.resampled, self.swapped)]
        return [
            ReportEntry("prefix", "What the first n tokens hold", caption, self._figure(), self.to_dict()),
            ReportEntry(
                "prefix-resampled",
                "Keep the first n tokens, resample the rest",
                f"Left: the image decoded from all of its tokens. Then n = {kept}.",
                pictures[0],
            ),
            ReportEntry(
                "prefix-swapped",
                "The first n tokens of one image, the rest of another",
                f"Left: the image that gives the first tokens, and the one that gives the rest. Then n = {kept}.",
                pictures[1],
            ),
        ]

    def _figure(self) -> Figure:
        """Class accuracy and distance to the original against the tokens kept."""
        results = self.results
        lengths = [result.tokens for result in results]
        figure, (left, right) = new_figure(2)
        curves: Mapping[str, list[float]] = {
            "rest resampled by the prior": [result.accuracy for result in results],
            "rest of another image: class of the first": [result.swapped_first for result in results],
            "rest of another image: class of the other": [result.swapped_other for result in results],
        }
        for place, (label, values) in enumerate(curves.items()):
            left.plot(lengths, [100 * value for value in values], label=label, **curve_style(place))
        left.axhline(100 * self.reconstruction_accuracy, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        left.set_ylim(0, 100)
        token_axis(left, lengths)
        dress(left, "Class under the judge (dashed: all tokens)", "tokens kept", "images of that class, percent")
        legend(left)
        right.plot(lengths, [result.relative_distance for result in results], **curve_style(0))
        right.set_ylim(bottom=0)
        token_axis(right, lengths)
        dress(right, "Distance to the image they come from", "tokens kept", "relative to two images of the set")
        return figure


def study(
    pipe: Pipeline,
    ids_NT: Tensor,
    labels_N: Tensor,
    judge: FeatureNetwork,
    lengths: Sequence[int] = (),
    *,
    sampling: Sampling = Sampling(),
    conditional: bool = False,
    pictures: int = 6,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> PrefixStudy:
    """Numbers and pictures for every n of ``lengths`` (0, 1, 2, 4, ... all), over all rows of local ids ``[N, T]``.

    Every image is paired with one of another class for the mixtures. ``conditional`` tells the prior the class.
    """
    lengths = tuple(lengths) or (0, *prefix_lengths(pipe.layout.length))
    _check(pipe, ids_NT, judge, lengths, pictures)
    partner_N = partners(labels_N)
    original = _Judged(judge)
    resampled: dict[int, _Judged] = {length: _Judged(judge) for length in lengths}
    swapped: dict[int, _Judged] = {length: _Judged(judge) for length in lengths}
    classes_N = labels_N if conditional else torch.full_like(labels_N, pipe.prior.unconditional)
    with progress_bar("prefixes", len(ids_NT) * (2 * len(lengths) + 1), shown=progress) as bar:
        for rows in torch.arange(len(ids_NT)).split(batch_size):
            original.see(pipe.decode(ids_NT[rows]), pictures, bar)
        for length in lengths:
            for images in _resampled(pipe, ids_NT, classes_N, length, sampling, seed, batch_size):
                resampled[length].see(images, pictures, bar)
            mixed_NT = torch.cat([ids_NT[:, :length], ids_NT[partner_N][:, length:]], dim=1)
            for part in mixed_NT.split(batch_size):
                swapped[length].see(pipe.decode(part), pictures, bar)
    results = _results(original, resampled, swapped, labels_N, partner_N)
    partner_pictures = pipe.decode(ids_NT[partner_N[: len(original.shown)]])
    settings = {
        "conditional": conditional, **sampling.to_dict(), "seed": seed, "judge": judge.name,
        "judge_hash": judge.weights_hash,
    }  # fmt: skip
    return PrefixStudy(
        results,
        original.share(labels_N),
        len(ids_NT),
        torch.stack([original.shown, *(resampled[length].shown for length in lengths)], dim=1),
        torch.stack([original.shown, partner_pictures, *(swapped[length].shown for length in lengths)], dim=1),
        settings,
    )


def _results(
    original: _Judged, resampled: dict[int, _Judged], swapped: dict[int, _Judged], labels_N: Tensor, partner_N: Tensor
) -> tuple[PrefixResult, ...]:
    """The numbers of every length; distances relative to those of two images of the set."""
    apart = float((original.features - original.features[partner_N]).norm(dim=1).mean())
    if apart == 0:
        raise OvertureError(
            f"prefix: the reconstructions of all {len(labels_N)} images are alike to {original.judge.name}, so that no "
            "distance can be told relative to theirs; take a tokenizer that has learned more"
        )
    return tuple(
        PrefixResult(
            length,
            resampled[length].share(labels_N),
            float((resampled[length].features - original.features).norm(dim=1).mean()) / apart,
            swapped[length].share(labels_N),
            swapped[length].share(labels_N[partner_N]),
        )
        for length in resampled
    )


class _Judged:
    """What a judge says of images that come batch by batch, and the first few of them."""

    def __init__(self, judge: FeatureNetwork) -> None:
        self.judge = judge
        self._features: list[Tensor] = []
        self._named: list[Tensor] = []
        self._shown: list[Tensor] = []

    def see(self, images: Tensor, pictures: int, bar: Any) -> None:
        outputs = self.judge.outputs(images)
        assert outputs.logits is not None
        self._features.append(outputs.features.cpu().double())
        self._named.append(outputs.logits.argmax(dim=1).cpu())
        self._shown.append(images[: max(pictures - sum(map(len, self._shown)), 0)])
        bar.update(len(images))

    @property
    def features(self) -> Tensor:
        return torch.cat(self._features)

    @property
    def shown(self) -> Tensor:
        return torch.cat(self._shown)

    def share(self, labels_N: Tensor) -> float:
        """Of the images that are named as in ``labels_N``."""
        return float((torch.cat(self._named) == labels_N).double().mean())


def _check(pipe: Pipeline, ids_NT: Tensor, judge: FeatureNetwork, lengths: Sequence[int], pictures: int) -> None:
    if "logits" not in judge.offers:
        raise OvertureError(f"prefix: {judge.name} has no classes; give a judge that has, such as domain:FILE")
    if len(ids_NT) < 2 or pictures < 1:
        raise UsageError(f"prefix: {len(ids_NT)} images and {pictures} pictures, needs at least 2 and 1")
    for length in lengths:
        if not 0 <= length <= pipe.layout.length:
            raise UsageError(f"prefix: {length} tokens, the layout has 0 to {pipe.layout.length}")


def _resampled(
    pipe: Pipeline, ids_NT: Tensor, classes_N: Tensor, length: int, sampling: Sampling, seed: int, batch_size: int
) -> Iterator[Tensor]:
    """Images with the first ``length`` tokens of each row and all others sampled again."""
    if length == pipe.layout.length:
        return (pipe.decode(part) for part in ids_NT.split(batch_size))
    prefix = sequence_prefix(pipe.layout, ids_NT, length)
    return pipe.sample(classes_N, sampling, seed=seed, batch_size=batch_size, prefix=prefix)


def sequence_prefix(layout: Layout, ids_BT: Tensor, tokens: int) -> Tensor:
    """The sequence up to and with the first ``tokens`` local tokens, ``[B, P]``."""
    places = [place for place, position in enumerate(layout.positions) if not position.is_separator]
    end = places[tokens - 1] + 1 if tokens else 0
    return layout.to_sequence(ids_BT)[:, :end]


def partners(labels_N: Tensor) -> Tensor:
    """For every image the place of one of another class, drawn; an error when there is one class."""
    if int(labels_N.unique().numel()) < 2:
        raise OvertureError("prefix: all images are of one class; the mixtures need two")
    draws_N = torch.from_numpy(generator("choice", 0).random(len(labels_N)))
    partner_N = torch.empty_like(labels_N)
    for label in labels_N.unique():
        own_N = labels_N == label
        others = (~own_N).nonzero()[:, 0]
        partner_N[own_N] = others[(draws_N[own_N] * len(others)).long()]
    return partner_N
