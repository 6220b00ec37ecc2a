"""What the first n tokens hold: keep them and let the prior write the rest, or take the rest of another image.

If the first tokens carry the meaning, images that share them stay of one class and one look. Measured under a judge
(a network with classes): the share of resampled images that keep the class, and how near they stay in feature space.
The prior is not told the class unless asked to, so that what is kept is all it knows.

Shapes: N images, B batch, T tokens, L sequence positions, C H W image, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from overture.data.transforms import to_uint8
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import FeatureNetwork
from overture.layout import Layout
from overture.pipeline import Pipeline

__all__ = ["PrefixResult", "PrefixStudy", "keep_prefix", "sequence_prefix", "study_prefixes", "swap_prefix"]


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


def sequence_prefix(layout: Layout, ids_BT: Tensor, tokens: int) -> Tensor:
    """The sequence up to and with the first ``tokens`` local tokens, ``[B, P]``."""
    if not 0 <= tokens <= layout.length:
        raise UsageError(f"prefix: {tokens} tokens, the layout has 0 to {layout.length}")
    places = [place for place, position in enumerate(layout.positions) if not position.is_separator]
    end = places[tokens - 1] + 1 if tokens else 0
    return layout.to_sequence(ids_BT)[:, :end]


def keep_prefix(pipe: Pipeline, ids_BT: Tensor, classes: Tensor, tokens: int, *, seed: int, **sampling: Any) -> Tensor:
    """Images uint8 ``[B, C, H, W]`` of the first tokens of ``ids_BT`` with all others sampled again."""
    layout = pipe.prior.layout
    ids_BT = ids_BT.to(pipe.prior.token_embedding.weight.device)
    if tokens < layout.length:
        generator = torch.Generator(ids_BT.device).manual_seed(seed)
        prefix = sequence_prefix(layout, ids_BT, tokens)
        sequence = pipe.prior.generate(classes, prefix=prefix, generator=generator, **sampling)
        ids_BT = layout.from_sequence(sequence)
    return _decode(pipe, ids_BT)


def swap_prefix(pipe: Pipeline, first_BT: Tensor, other_BT: Tensor, tokens: int) -> Tensor:
    """Images uint8 ``[B, C, H, W]`` of the first tokens of the one and the rest of the other."""
    return _decode(pipe, torch.cat([first_BT[:, :tokens], other_BT[:, tokens:]], dim=1))


@torch.inference_mode()
def study_prefixes(
    pipe: Pipeline,
    ids_NT: Tensor,
    labels_N: Tensor,
    lengths: Sequence[int],
    judge: FeatureNetwork,
    *,
    pictures: int = 6,
    conditional: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    **sampling: Any,
) -> PrefixStudy:
    """Numbers and pictures for every n of ``lengths``, over all rows of ``ids_NT``.

    Every image is paired with one of another class for the mixtures. ``sampling`` goes to ``Prior.generate``.
    """
    if "logits" not in judge.offers:
        raise OvertureError(f"prefix: {judge.name} has no classes; give a judge that has, such as domain:FILE")
    if len(ids_NT) < 2:
        raise OvertureError(f"prefix: {len(ids_NT)} images, needs at least 2")
    for length in lengths:
        if not 0 <= length <= pipe.prior.layout.length:
            raise UsageError(f"prefix: {length} tokens, the layout has 0 to {pipe.prior.layout.length}")
    partner_N = partners(labels_N)
    classes_N = labels_N if conditional else torch.full_like(labels_N, pipe.prior.unconditional)
    batches = torch.arange(len(ids_NT)).split(batch_size)
    with tqdm(total=len(ids_NT) * (len(lengths) + 1), desc="prefixes", unit="image", disable=not progress) as bar:
        originals: list[Tensor] = []
        seen, features_ND = 0, []
        for rows in batches:
            images = _decode(pipe, ids_NT[rows])
            outputs = judge.outputs(images)
            features_ND.append(outputs.features.cpu().double())
            seen += int((_named(outputs.logits) == labels_N[rows]).sum())
            originals.append(images[: max(pictures - len(originals) * batch_size, 0)])
            bar.update(len(rows))
        original_ND = torch.cat(features_ND)
        apart = float((original_ND - original_ND[partner_N]).norm(dim=1).mean())
        if apart == 0:
            raise OvertureError(
                f"prefix: the reconstructions of all {len(ids_NT)} images are alike to {judge.name}, so that no distance can "
                "be told relative to theirs; take a tokenizer that has learned more"
            )
        shown = torch.cat(originals)[:pictures]
        rows_of_pictures, rows_of_mixtures = [shown], [shown, shown_partners(pipe, ids_NT, partner_N, len(shown))]
        results = []
        for length in lengths:
            kept = first = other = 0
            distance = 0.0
            for number, rows in enumerate(batches):
                images = keep_prefix(
                    pipe, ids_NT[rows], classes_N[rows], length, seed=seed * 1_000_003 + number, **sampling
                )
                outputs = judge.outputs(images)
                kept += int((_named(outputs.logits) == labels_N[rows]).sum())
                distance += float((outputs.features.cpu().double() - original_ND[rows]).norm(dim=1).sum())
                mixed = swap_prefix(pipe, ids_NT[rows], ids_NT[partner_N[rows]], length)
                named = _named(judge.outputs(mixed).logits)
                first += int((named == labels_N[rows]).sum())
                other += int((named == labels_N[partner_N[rows]]).sum())
                if number == 0:
                    rows_of_pictures.append(images[: len(shown)])
                    rows_of_mixtures.append(mixed[: len(shown)])
                bar.update(len(rows))
            count = len(ids_NT)
            results.append(PrefixResult(length, kept / count, distance / count / apart, first / count, other / count))
    return PrefixStudy(
        tuple(results),
        seen / len(ids_NT),
        len(ids_NT),
        torch.stack([row[: _rows(rows_of_pictures)] for row in rows_of_pictures], dim=1),
        torch.stack([row[: _rows(rows_of_mixtures)] for row in rows_of_mixtures], dim=1),
    )


def partners(labels_N: Tensor) -> Tensor:
    """For every image the place of one of another class, the next ones in turn; an error when there is one class."""
    if int(labels_N.unique().numel()) < 2:
        raise OvertureError("prefix: all images are of one class; the mixtures need two")
    count = len(labels_N)
    partner_N = torch.full((count,), -1)
    for step in range(1, count):
        candidate_N = (torch.arange(count) + step) % count
        fits_N = (partner_N < 0) & (labels_N != labels_N[candidate_N])
        partner_N = torch.where(fits_N, candidate_N, partner_N)
        if bool((partner_N >= 0).all()):
            break
    return partner_N


def shown_partners(pipe: Pipeline, ids_NT: Tensor, partner_N: Tensor, count: int) -> Tensor:
    """The other images of the first few mixtures."""
    return _decode(pipe, ids_NT[partner_N[:count]])


def _decode(pipe: Pipeline, ids_BT: Tensor) -> Tensor:
    device = next(pipe.tokenizer.parameters()).device
    with torch.inference_mode():
        return to_uint8(pipe.tokenizer.decode(ids_BT.to(device))).cpu()


def _named(logits_BC: Tensor | None) -> Tensor:
    assert logits_BC is not None
    return logits_BC.argmax(dim=1).cpu()


def _rows(parts: Sequence[Tensor]) -> int:
    return min(len(part) for part in parts)
