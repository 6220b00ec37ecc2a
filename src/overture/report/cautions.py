"""What a reader has to know before any number of a run: it is tiny, it has collapsed, a part of it failed."""

from __future__ import annotations

from collections.abc import Sequence

from overture.analysis.entropy import has_collapsed
from overture.report.records import Record

__all__ = ["cautions"]


def cautions(records: Sequence[Record]) -> list[str]:
    """Sentences for the head of the page; none of a run that is as it should be."""
    found: list[str] = []
    for record in records:
        run = f"{record.name}: " if len(records) > 1 else ""
        found += [run + sentence for sentence in (*_tiny(record), *_collapsed(record), *_failed(record))]
    return list(dict.fromkeys(found))


def _tiny(record: Record) -> list[str]:
    if not record.config.get("tiny"):
        return []
    return [
        "This is a tiny run, trained for seconds (--tiny): it shows that everything works, and its pictures and numbers "
        "say nothing of the method."
    ]


def _collapsed(record: Record) -> list[str]:
    entropy = record.entropy
    if not entropy or not has_collapsed(entropy["total_bits"], entropy["log2_n"]):
        return []
    return [
        f"The tokenizer has collapsed: its tokens hold {entropy['total_bits']:.1f} of the {entropy['log2_n']:.1f} bits that "
        "tell the training images apart, so the cliff, the prior and the samples below mean nothing. Train it longer, or "
        "with a lower learning rate."
    ]


def _failed(record: Record) -> list[str]:
    return [f"{part} could not be measured: {reason}." for part, reason in record.results.failed.items()]
