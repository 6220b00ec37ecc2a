"""Bits of reconstruction and sequence against direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from overture.training.elbo import negative_elbo, reconstruction_bits


def test_reconstruction_bits_are_the_laplace_code_length_at_the_best_scale() -> None:
    rng = np.random.default_rng(0)
    errors = rng.laplace(scale=0.1, size=10_000)  # in [-1, 1]
    levels = np.abs(errors) * 127.5

    def bits(scale: float) -> float:
        return float(np.sum(np.log2(2 * scale) + levels / scale / math.log(2)))

    ours = reconstruction_bits(float(np.abs(errors).mean()), errors.size)
    assert ours == pytest.approx(bits(levels.mean()), rel=1e-9)
    assert all(ours <= bits(levels.mean() * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_the_negative_elbo_adds_both_terms() -> None:
    terms = {"l1": 0.1, "ce_prologue": 0.2, "ce_separator": 0.0, "ce_visual": 1.0, "loss": 9.0}
    parts = negative_elbo(terms, values=784, length=20)
    assert parts["sequence_bits"] == pytest.approx(1.2 * 20 / math.log(2))
    assert parts["negative_elbo_bits"] == pytest.approx(parts["reconstruction_bits"] + parts["sequence_bits"])
    assert negative_elbo({"l1": 0.1}, 784, 20) == {}
