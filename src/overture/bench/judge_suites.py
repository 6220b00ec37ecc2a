"""Suites that ask whether another judge, which has never seen the data set, says the same."""

from __future__ import annotations

from overture.bench.codebook_suites import READINGS, cifar_codebooks, uniform_vcq
from overture.bench.prologue_suites import cifar_prologue, prologue
from overture.bench.suite import Suite

__all__ = ["cifar_second_judge", "second_judge"]

JUDGED = {
    "generation.unguided.fid": "gFD(domain)",
    "vgg16.generation": "gFD(vgg16:32)",
    "reconstruction.distance": "rFD(domain)",
    "vgg16.reconstruction": "rFD(vgg16:32)",
}


def second_judge() -> Suite:
    """The main comparisons on Fashion-MNIST under VGG16 too, beside the classifier of the data set.

    Needs ``overture weights vgg16``. Hardware: one CPU core a member; members are those of ``uniform-vcq`` and ``prologue``.
    """
    return _judged(uniform_vcq(), prologue())


def cifar_second_judge() -> Suite:
    """The same on CIFAR-10, in colour.

    Needs ``overture weights vgg16``. Hardware: one CPU core a member; members are those of the other suites of CIFAR-10.
    """
    return _judged(cifar_codebooks(), cifar_prologue())


def _judged(codebooks: Suite, prologues: Suite) -> Suite:
    baselines = {"linear": "uniform", "equal-bits": "uniform", "prologue-4": "2d", "post-4": "2d"}
    wanted = {*baselines, *baselines.values()}
    return Suite(
        runs=tuple(run for run in (*codebooks.runs, *prologues.runs) if run.name in wanted),
        compare=baselines,
        starts_from={"post-4": "2d"},
        metrics=JUDGED,
        readings=(*READINGS, "vgg16"),
        folder=codebooks.folder,
    )
