"""Suites: recipes x seeds x metrics, run member by member, with chance measured, and the tables and figures of them.

A suite is what a short function returns (:class:`overture.bench.suite.Suite`). ``overture bench NAME`` runs it, and
anyone's as ``overture bench module:function``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from overture.errors import UsageError
from overture.registry import OpenList, strangers_code

if TYPE_CHECKING:
    from overture.bench.suite import Suite

__all__ = ["SUITES", "load_suite", "summary"]

SUITES = OpenList(
    "suite",
    {
        "uniform-vcq": "overture.bench.codebook_suites:uniform_vcq",
        "same-bits": "overture.bench.codebook_suites:same_bits",
        "few-images": "overture.bench.codebook_suites:few_images",
        "prior-sizes": "overture.bench.codebook_suites:prior_sizes",
        "prologue": "overture.bench.prologue_suites:prologue",
        "prologue-vcq": "overture.bench.prologue_suites:prologue_vcq",
        "cifar-codebooks": "overture.bench.codebook_suites:cifar_codebooks",
        "cifar-long": "overture.bench.codebook_suites:cifar_long",
        "cifar-prologue": "overture.bench.prologue_suites:cifar_prologue",
        "cliff": "overture.bench.codebook_suites:cliff",
        "second-judge": "overture.bench.judge_suites:second_judge",
        "cifar-second-judge": "overture.bench.judge_suites:cifar_second_judge",
    },
)


def load_suite(name: str, *, tiny: bool = False) -> Suite:
    """The suite called ``name``, ours or ``module:function``; or its tiny form."""
    from overture.bench.suite import Suite

    make = SUITES.get(name)
    if not callable(make):
        raise UsageError(f"{name}: is no function that returns a suite")
    with strangers_code(name):
        suite = make()
    if not isinstance(suite, Suite):
        raise UsageError(f"{name}: returned {type(suite).__name__}, needs an overture.bench.suite.Suite")
    return suite.tiny() if tiny else suite


def summary(name: str) -> str:
    """The first line of a suite's docstring."""
    return (SUITES.get(name).__doc__ or "").strip().split("\n")[0]
