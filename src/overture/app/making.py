"""Makes pictures of records: token by token, with a picture of what is there so far.

Legend: T local tokens, P sequence positions of a prefix, L of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image

from overture.analysis.prefix import sequence_prefix
from overture.app.opened_run import Ids, OpenedRun, as_ids
from overture.app.picture_record import PictureRecord
from overture.errors import UsageError
from overture.priors.sampler import Sampler
from overture.priors.sampling import Sampling

__all__ = ["Made", "blended", "decoded", "edited", "grow", "make", "plan_of"]

GLIMPSES = 12
"""Pictures that are decoded while one grows; more would take longer than the tokens."""


@dataclass(frozen=True)
class Made:
    """A picture, its tokens, and how it is made again. ``filled`` of its tokens are there, others are a grey picture's."""

    record: PictureRecord
    ids: Ids
    image: Image.Image
    filled: int

    @property
    def finished(self) -> bool:
        """Whether all tokens are there."""
        return self.filled == len(self.ids)


def plan_of(
    run: OpenedRun, class_id: int, seed: int, sampling: Sampling, kept: Ids = (), words: str = ""
) -> PictureRecord:
    """The record of a picture that is to be drawn; what cannot be drawn is refused.

    ``kept`` are the first tokens of another picture: keep the first n, resample the rest.
    """
    prior = run.needs_prior()
    if seed < 0:
        raise UsageError(f"seed is {seed}, needs >= 0")
    if not 0 <= class_id < len(run.classes):
        raise UsageError(f"class {class_id} is out of range, the model knows 0..{prior.config.num_classes - 1}")
    sampling.check(run.layout)
    settings = sampling.to_dict()
    return PictureRecord(
        run.tokenizer_hash, kept, run.prior_hash, class_id, run.classes[class_id], seed, made=words, **settings
    )


def grow(run: OpenedRun, record: PictureRecord) -> Iterator[Made]:
    """The picture of a record while its tokens arrive, and at last the whole one.

    One picture at a time, one position after the other: the same record gives the same bytes, and what comes before the
    last picture is decoded with a plain grey picture's tokens where there are none yet.
    """
    layout = run.layout
    if len(record.kept) == layout.length:
        yield decoded(run, record.kept, record)
        return
    sampler = Sampler(run.needs_prior(), record.sampling, execution="growing")
    first_1T = torch.tensor([record.kept + run.nothing[len(record.kept) :]])
    layout.check(first_1T.numpy(), "kept tokens")
    prefix_1P = sequence_prefix(layout, first_1T, len(record.kept))
    rest_1L = layout.to_sequence(torch.tensor([run.nothing]))
    every = -(-layout.sequence_length // GLIMPSES)
    for ids_1l in sampler.growing([record.class_id], seed=record.seed, prefix=prefix_1P):
        length = ids_1l.shape[1]
        news = length > prefix_1P.shape[1] and not layout.positions[length - 1].is_separator
        if length == layout.sequence_length or (news and length % every == 0):
            whole_1L = torch.cat([ids_1l.cpu(), rest_1L[:, length:]], dim=1)
            ids = as_ids(layout.from_sequence(whole_1L))
            filled = sum(not position.is_separator for position in layout.positions[:length])
            yield Made(record, ids, run.decode(ids), filled)


def make(run: OpenedRun, record: PictureRecord) -> Made:
    """The whole picture of a record."""
    *_, last = grow(run, record)
    return last


def decoded(run: OpenedRun, ids: Ids, record: PictureRecord | None = None, words: str = "") -> Made:
    """The picture of given tokens, all of them kept."""
    record = record or PictureRecord(run.tokenizer_hash, ids, made=words)
    return Made(record, ids, run.decode(ids), len(ids))


def edited(run: OpenedRun, ids: Ids, place: int, new: int) -> Made:
    """The picture with another id at ``place``, counted from 0 over all segments."""
    if not 0 <= place < len(ids):
        raise UsageError(f"token {place} is out of range, a picture has the tokens 0..{len(ids) - 1}")
    size = run.layout.sizes[place]
    if not 0 <= new < size:
        raise UsageError(f"token {place} can be 0..{size - 1}, not {new}")
    changed = (*ids[:place], new, *ids[place + 1 :])
    return decoded(run, changed, words=f"token {place} set from {ids[place]} to {new}")


def blended(run: OpenedRun, one: Ids, other: Ids, first: int) -> Made:
    """The first tokens of ``one`` and the rest of ``other``."""
    if not 0 <= first <= len(one):
        raise UsageError(f"the first {first} tokens are out of range, a picture has {len(one)}")
    words = f"the first {first} tokens of one picture, the other {len(one) - first} of another"
    return decoded(run, one[:first] + other[first:], words=words)


def like(run: OpenedRun, text: str, where: str) -> Made:
    """The picture whose record is ``text``, made again; refused if it is of other models."""
    record = PictureRecord.from_text(text, where)
    record.check(run.layout, run.tokenizer_hash, run.prior_hash, where)
    if len(record.kept) < run.layout.length:
        again = plan_of(run, record.class_id, record.seed, record.sampling, record.kept)
        record = replace(again, made=record.made)
    return make(run, record)
