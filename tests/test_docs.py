"""Every code block of the documentation runs, in order, page by page, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?P<mark><!-- (?:not run: [^\n]+|file: (?P<file>\S+)) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)^```",
    re.M | re.S,
)
SLOW = ("pip install",)
"""Lines that the continuous integration runs by itself: the installation, and the tests."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language (or file) and code of every block that is meant to run.

    ``<!-- not run: reason -->`` above a block exempts it, ``<!-- file: NAME -->`` makes it a file for those after it.
    """
    found = []
    for match in BLOCK.finditer(page.read_text()):
        if match["file"]:
            found.append((match["file"], match["code"]))
        elif not match["mark"] and not any(word in match["code"] for word in SLOW):
            found.append((match["language"], match["code"]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    python = []
    for language, code in blocks(page):
        if language.endswith(".py"):
            (tmp_path / language).write_text(code)
            continue
        if language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", code]
        else:
            python.append(code)  # a page's Python blocks build on each other
            command = [sys.executable, "-c", "\n".join(python)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
