"""The form of JSON that people may have changed by hand: what has to be where, and of which kind. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from overture.errors import OvertureError

__all__ = ["CONFIG", "DATA", "RESULTS", "Each", "Maybe", "check_form", "check_lengths", "number"]


def number(value: Any) -> bool:
    """A finite number, and not one beyond all measure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e15  # NaN is not


def count(value: Any) -> bool:
    """A whole number from 0."""
    return number(value) and isinstance(value, int) and value >= 0


def size(value: Any) -> bool:
    """A whole number from 1."""
    return count(value) and value > 0


def text(value: Any) -> bool:
    """A text that can be written."""
    return isinstance(value, str) and value.isprintable()


def number_or_null(value: Any) -> bool:
    """A number, or null where there is none."""
    return value is None or number(value)


def size_or_null(value: Any) -> bool:
    """A whole number from 1, or null where there is none."""
    return value is None or size(value)


@dataclass(frozen=True)
class Maybe:
    """What may be missing."""

    form: Any


@dataclass(frozen=True)
class Each:
    """An object whose values are of one form, whatever they are called."""

    form: Any


def check_form(value: Any, form: Any, where: str) -> None:
    """Refuse what is not of this form.

    A form is an object of forms (more keys may be there), a list that holds the form of every item (of which there is
    at least one), a :class:`Maybe`, an :class:`Each`, or a function that says whether a value will do.
    """
    if isinstance(form, Each | dict):
        if not isinstance(value, dict):
            raise _refused(value, "an object", where)
        forms = form if isinstance(form, dict) else dict.fromkeys(value, form.form)
        for key, inner in forms.items():
            if key in value:
                check_form(value[key], inner.form if isinstance(inner, Maybe) else inner, f"{where}.{key}")
            elif not isinstance(inner, Maybe):
                raise OvertureError(f"{where}.{key} is missing")
    elif isinstance(form, list):
        if not isinstance(value, list) or not value:
            raise _refused(value, "a list", where)
        for place, item in enumerate(value):
            check_form(item, form[0], f"{where}[{place}]")
    elif not form(value):
        raise _refused(value, _wanted(form), where)


def check_lengths(where: str, *lists: list[Any]) -> None:
    """Refuse lists that should have one value for each position and have not."""
    if len({len(values) for values in lists}) > 1:
        raise OvertureError(f"{where}: its lists have {', '.join(str(len(values)) for values in lists)} positions")


def _wanted(form: Callable[[Any], bool]) -> str:
    return (form.__doc__ or "another value").rstrip(".").lower()


def _refused(value: Any, wanted: str, where: str) -> OvertureError:
    return OvertureError(f"{where} is {repr(value)[:40]}, needs {wanted}")


_PART = {"bits_per_position": [number], "bits_per_image": number, "images": count}
_DISTANCES = {"ratio": number_or_null}

RESULTS: dict[str, Any] = {
    "models": Each(text),
    "seconds": Each(number),
    "failed": Each(text),
    "entropy": {
        "rows": size, "positions": size, "conditional_entropy_bits": [number], "cumulative_bits": [number],
        "total_bits": number, "log2_n": number, "unique_share": [number], "cliff": size, "predicted_cliff": size_or_null,
        "sizes": [size], "cliffs": Maybe(Each(size)),
    },
    "likelihood": {f"{part}_{over}": _PART for part in ("train", "held_out") for over in ("vocabulary", "allowed")}
    | {"weights": Maybe(text), "crop": Maybe(text)},
    "reconstruction": {
        "l1": Maybe(number),
        "quality": {
            "images": count, "psnr": number_or_null, "ssim": number_or_null, "lpips": Maybe(number), "note": Maybe(text),
        },
        "usage": {"segments": Each({"used_per_position": [number], "perplexity_per_position": [number]})},
    },
    "generation": Each({"measurements": Each({}), "skipped": Each(text)}),
    "elbo": {"reconstruction_bits": number, "sequence_bits": number, "negative_elbo_bits": number},
    "shared_rows": {"segment": text, "columns": size, "shared": _DISTANCES, "independent": _DISTANCES},
}  # fmt: skip
"""``results.json``: each of its parts, if it is there."""

DATA: dict[str, Any] = {part: {"source": text, "images": count, "fingerprint": text} for part in ("train", "held_out")}
"""``data.json``: which images a run is of."""

_START = {"start_from": Maybe(text), "start_hash": Maybe(text)}

CONFIG: dict[str, Any] = {
    "name": Maybe(text),
    "recipe": Maybe(text),
    "seed": Maybe(count),
    "data": Maybe({"image_size": Maybe(size)}),
    "evaluation": Maybe({"shown_per_class": Maybe(size), "guidance": Maybe(text)}),
    "tokenizer_training": Maybe({"steps": Maybe(count), **_START, "trains": Maybe(text)}),
    "prior_training": Maybe({"steps": Maybe(count), **_START}),
}
"""What the page needs of ``config.json``."""
