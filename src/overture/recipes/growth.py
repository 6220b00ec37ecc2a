"""The growth law of a recipe's codebooks in one option: ``--growth "power 2 2..4096"``.

A law is written as :meth:`overture.schedules.CodebookConfig.grown` reads it. Alone it is for every segment whose codebook
grows, so that the uniform runs of a comparison stay what they are. ``"prologue: linear 2..64, visual: power 3"`` names
segments, which may have been uniform.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from overture.errors import UsageError, nearest
from overture.runs.config import RunConfig

__all__ = ["with_growth"]

_NAMED = re.compile(r"\s*(\w+):\s+(.*\S)\s*")
"""``visual: law``. The space tells it from ``module:name``, which is a law of anyone's."""


def with_growth(configs: Sequence[RunConfig], text: str) -> tuple[RunConfig, ...]:
    """The runs of a recipe under another growth law.

    Refused in one line: a law that cannot be read or built, a segment that no run has, and a law without a segment where
    no codebook grows.
    """
    laws = _laws(text)
    found = [known for config in configs for known in _segments(config)]
    names = {name for _, name, _ in found}
    for name in laws:
        if name and name not in names:
            raise UsageError(f"--growth {text}: this recipe has no segment '{name}'{nearest(name, names)}")
    if "" in laws and not any(grows for _, _, grows in found):
        raise UsageError(
            f"--growth {text}: no codebook of this recipe grows; name its segment: '{found[-1][1]}: {text}'"
        )
    return tuple(_with_laws(config, laws) for config in configs)


def _laws(text: str) -> dict[str, str]:
    """The law of each segment by name; of all that grow under the empty name."""
    parts = text.split(",")
    named = [_NAMED.fullmatch(part) for part in parts]
    if not any(named) and len(parts) == 1:
        return {"": text}
    if not all(named):
        raise UsageError(f"--growth {text}: write LAW, or SEGMENT: LAW, SEGMENT: LAW")
    return {match[1]: match[2] for match in named if match}


def _segments(config: RunConfig) -> Iterator[tuple[int, str, bool]]:
    """Place and name of each segment, and whether its codebook grows."""
    for place, segment in enumerate(config.tokenizer.layout.segments):
        yield place, segment.name, len(set(segment.sizes)) > 1


def _with_laws(config: RunConfig, laws: dict[str, str]) -> RunConfig:
    changes = {}
    for place, name, grows in _segments(config):
        law = laws.get(name, laws.get("") if grows else None)
        if law is not None:
            changes[f"tokenizer.segments.{place}.codebook"] = config.tokenizer.segments[place].codebook.grown(law)
    changed = config.changed(changes)
    _ = changed.tokenizer.layout  # sizes that cannot be are told here
    return changed
