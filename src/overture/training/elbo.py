"""The negative ELBO in bits per image: what reconstruction and tokens cost together ("Prologue", docs/prologue.md, section 1).

With a deterministic encoder it is the reconstruction term plus the cross-entropy of the sequence under the prior. The
reconstruction term takes pixel values (0 .. 255) as Laplace-distributed around the decoder's output, at the scale that
fits best, which is the mean absolute error b: log2(2 e b) bits a value. It is a density, so it may fall below 0 when
errors are below a fifth of a grey level; it is comparable between models of the same image size only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["negative_elbo", "reconstruction_bits", "sequence_bits"]


def reconstruction_bits(l1: float, values: int) -> float:
    """Bits per image of the reconstruction term, from the mean absolute error in [-1, 1] and the values of an image."""
    return values * math.log2(2 * math.e * max(l1, 1e-9) * 127.5)


def sequence_bits(terms: Mapping[str, float], length: int) -> float:
    """Bits per image of the sequence, from the ``ce_*`` terms of stage 1 (nats, divided by the sequence's length)."""
    return sum(value for name, value in terms.items() if name.startswith("ce_")) * length / math.log(2)


def negative_elbo(terms: Mapping[str, float], values: int, length: int) -> dict[str, float]:
    """``reconstruction_bits``, ``sequence_bits`` and their sum ``negative_elbo_bits``; nothing without a joint prior."""
    if not any(name.startswith("ce_") for name in terms):
        return {}
    parts = {
        "reconstruction_bits": reconstruction_bits(terms["l1"], values),
        "sequence_bits": sequence_bits(terms, length),
    }
    return {**parts, "negative_elbo_bits": sum(parts.values())}
