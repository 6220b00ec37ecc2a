"""A share of the fuzzing, the same every time: changed files are read right or refused in one line.

More of it: ``python tests/fuzz/run.py --inputs 10000 --seed 1``.
"""

from __future__ import annotations

from targets import names_of
from verdict import Case, outcomes

SEED, ROUNDS = 0, 24


def test_changed_files_are_read_right_or_refused_in_one_line() -> None:
    cases = [Case(SEED, name, number) for number in range(ROUNDS) for name in names_of(number)]
    faults = [(case, outcome) for case, outcome in outcomes(cases) if outcome.kind == "fault"]
    told = "\n\n".join(f"{case} {outcome.mutation}\n{outcome.told}" for case, outcome in faults[:5])
    assert not faults, f"{len(faults)} faults, the first of them (run.py --target NAME --seed S --replay N):\n{told}"
