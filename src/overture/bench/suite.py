"""What a suite is, and the members that it consists of.

A suite names runs that are compared, and seeds. A member is one run with one seed. With ``priors`` above 1 a seed has
further members, which train another prior on the tokens of that seed's tokenizer: they say how much of a difference is
the prior's chance alone. A run may start from the tokenizer that another run of the suite has with the same seed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from overture.config import to_dict
from overture.errors import UsageError, nearest
from overture.files import json_hash
from overture.recipes.tiny import tiny_form
from overture.runs.config import RunConfig

__all__ = ["Member", "Suite"]

_NAME = re.compile(r"\w[\w.-]*")
FURTHER_PRIOR = 1000
"""What a further prior adds to its seed; below it lie the seeds of a suite."""


@dataclass(frozen=True)
class Member:
    """One run of a suite with one seed."""

    name: str
    """``RUN-sSEED``, with ``-pNUMBER`` behind it for a further prior."""
    run: str
    """The run of the suite that this is one of."""
    seed: int
    """Of the tokenizer."""
    prior: int
    """Which prior on this tokenizer's tokens; 0 is the tokenizer's own run."""
    config: RunConfig
    """What is declared: its ``start_from`` is the name of a member, not the place of its models."""
    group: str
    """Members of one group have the same images, and share the networks that are trained on them."""
    tokenizer: str = ""
    """The member whose tokenizer this one starts from; nothing for one that trains its own."""


@dataclass(frozen=True)
class Suite:
    """Runs x seeds x metrics."""

    runs: tuple[RunConfig, ...]
    """What is compared; each has a name of its own, and a seed that is replaced."""
    metrics: dict[str, str]
    """The columns of the table: a value's dotted name (docs/bench.md), and its heading."""
    compare: str | dict[str, str] = ""
    """The run that all others are compared with, or by run the one that it is compared with; nothing: none is."""
    seeds: tuple[int, ...] = (0, 1, 2)
    priors: int = 1
    """Priors on the tokens of each tokenizer."""
    starts_from: dict[str, str] = field(default_factory=dict)
    """Runs that start from the tokenizer of another run, by name; what they train of it says their ``trains``."""
    readings: tuple[str, ...] = ("results",)
    """What is read off a finished run (:data:`overture.bench.readings.READINGS`, or ``module:function``)."""
    until: Literal["tokens", "report"] = "report"
    """How far a run goes: to its token files, or to its results."""
    folder: str = ""
    """Where its members lie below ``runs/bench``, if not in a folder of the suite's name: suites with one folder share the
    members that they declare alike."""
    is_tiny: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        for name in names:
            if not _NAME.fullmatch(name):
                raise UsageError(f"suite: the run '{name}' needs a name of letters, digits, '.', '-' and '_'")
        if len(set(names)) < len(names) or not names:
            raise UsageError(f"suite: needs runs with different names, got {', '.join(names) or 'none'}")
        pairs = self.compare.items() if isinstance(self.compare, dict) else [("", self.compare)] * bool(self.compare)
        for name in (name for pair in pairs for name in pair if name):
            if name not in names:
                raise UsageError(f"suite: compare has '{name}', no run of it{nearest(name, names)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"suite: seeds are {self.seeds}, needs different ones")
        if not all(0 <= seed < FURTHER_PRIOR for seed in self.seeds):
            raise UsageError(f"suite: seeds are {self.seeds}, needs 0 to {FURTHER_PRIOR - 1}")
        if self.priors < 1 or (self.priors > 1 and self.until == "tokens"):
            raise UsageError(f"suite: priors is {self.priors}, needs >= 1, and 1 where runs end at their tokens")
        if not self.metrics or not self.readings:
            raise UsageError("suite: needs metrics and readings")
        for name, start in self.starts_from.items():
            if name not in names or start not in names or start in self.starts_from:
                raise UsageError(
                    f"suite: starts_from has {name}: {start}, needs two runs of it, the second with a tokenizer of its own"
                )
        for run in self.runs:
            if self.priors > 1 and run.prior_source == "joint":
                raise UsageError(f"suite: {run.name} has the prior of its tokenizer's training; priors needs to be 1")
        if len({member.name for member in self.members}) < len(self.members):
            raise UsageError(f"suite: names of runs that end in -s0 or -p1 give two members one name: {names}")

    def compared_with(self, run: str) -> str:
        """The run that this one is compared with; nothing where there is none."""
        other = self.compare.get(run, "") if isinstance(self.compare, dict) else self.compare
        return "" if other == run else other

    @property
    def baselines(self) -> str:
        """The runs that others are compared with, in words."""
        return self.compare if isinstance(self.compare, str) else " or ".join(dict.fromkeys(self.compare.values()))

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every member, in the order of runs, seeds and priors."""
        # Other images are another group, wherever they lie: a folder goes on where the data have another path.
        sources = list(dict.fromkeys((run.data.source, run.data.held_out) for run in self.runs))
        return tuple(
            _member(run, seed, prior, sources.index((run.data.source, run.data.held_out)), self.starts_from)
            for run in self.runs
            for seed in self.seeds
            for prior in range(self.priors)
        )

    def start_of(self, member: Member) -> Member:
        """The member whose tokenizer this one starts from."""
        return next(other for other in self.members if other.name == member.tokenizer)

    def tiny(self) -> Suite:
        """The same arrangement at a size that takes seconds a member: tiny runs, at most two seeds and two priors."""
        return replace(
            self,
            runs=tuple(map(self._tiny_run, self.runs)),
            seeds=self.seeds[:2],
            priors=min(self.priors, 2),
            is_tiny=True,
        )

    def _tiny_run(self, run: RunConfig) -> RunConfig:
        """The tiny form, which trains what the run itself would."""
        tiny, start = tiny_form(run), self.starts_from.get(run.name, "")
        if not start:
            return tiny
        trains = run.tokenizer_training.trains
        return replace(tiny, tokenizer_training=replace(tiny.tokenizer_training, trains=trains, start_from=start))

    def with_images(self, source: str, held_out: str) -> Suite:
        """The same with images that lie elsewhere, of a suite with one data set."""
        if len({(run.data.source, run.data.held_out) for run in self.runs}) > 1:
            raise UsageError(f"--data {source}: the runs of this suite have different data")
        return replace(
            self, runs=tuple(run.changed({"data.source": source, "data.held_out": held_out}) for run in self.runs)
        )

    def chosen(self, names: Sequence[str]) -> tuple[Member, ...]:
        """The members with these names, or of the runs with these names; all for none."""
        known = {member.name for member in self.members} | {member.run for member in self.members}
        for name in names:
            if name not in known:
                raise UsageError(f"--only {name}: the suite has no such member or run{nearest(name, known)}")
        return tuple(m for m in self.members if not names or m.name in names or m.run in names)


def _member(run: RunConfig, seed: int, prior: int, source: int, starts_from: dict[str, str]) -> Member:
    own = seed + FURTHER_PRIOR * prior
    group = {"source": source, "data": to_dict(run.data, numbers=True), "evaluation": run.evaluation.network}
    changes: dict[str, Any] = {"name": f"{run.name}-s{seed}" + (f"-p{prior}" if prior else ""), "seed": own}
    for part in ("judge", "perceptual_network"):
        network = getattr(run, part)
        drawn_from = 1000 * run.seed + network.seed  # as the run that was declared would
        group[part] = to_dict(replace(network, seed=drawn_from))
        # One judge for all seeds, or their distances could not be averaged: a run adds 1000 times its own seed.
        changes[part] = replace(network, seed=drawn_from - 1000 * own)
    training, tokenizer = run.tokenizer_training, ""
    if prior:
        tokenizer = f"{run.name}-s{seed}"
        changes["tokenizer_training"] = replace(training, start_from=tokenizer, trains="nothing", joint=None)
    elif run.name in starts_from:
        tokenizer = f"{starts_from[run.name]}-s{seed}"
        changes["tokenizer_training"] = replace(training, start_from=tokenizer)
    config = replace(run, **changes)
    return Member(config.name, run.name, seed, prior, config, json_hash(group)[:8], tokenizer)
