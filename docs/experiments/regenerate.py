"""Writes the tables, figures and numbers of these pages anew from the results beside them; trains nothing.

python docs/experiments/regenerate.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from overture.bench import load_suite
from overture.bench.member_file import read_finished
from overture.cli import main

PAGES = {
    "cliff": "cliff.md",
    "uniform-vcq": "codebooks.md",
    "same-bits": "codebooks.md",
    "few-images": "codebooks.md",
    "prior-sizes": "codebooks.md",
    "cifar-codebooks": "codebooks.md",
    "cifar-long": "codebooks.md",
    "prologue": "prologue.md",
    "prologue-vcq": "prologue.md",
    "cifar-prologue": "prologue.md",
    "second-judge": "claims.md",
    "cifar-second-judge": "claims.md",
}
"""By suite, the page with its table; ``claims.md`` has single numbers of all of them."""


def regenerate(root: Path) -> None:
    """Write the pages in ``root`` from the results in it; a suite without any is passed over."""
    for suite, page in PAGES.items():
        declared = load_suite(suite)
        results = root / "results" / (declared.folder or suite)
        if all(each.lacks for each in read_finished(results, declared).values()):
            continue  # nothing is finished, or only for other suites of that folder
        for each in dict.fromkeys((page, "claims.md")):
            text = (root / each).read_text(encoding="utf-8")
            if f"<!-- bench {suite} -->" in text or f"<!-- = {suite} " in text:
                status = main(["bench", suite, "--out", str(results), "--tables", str(root / each)])
                if status:
                    sys.exit(status)


if __name__ == "__main__":
    regenerate(Path(__file__).parent)
