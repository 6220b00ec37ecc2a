"""Every code block of the documentation runs, in order, page by page, in an empty directory."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|file|fails|before): (?P<words>[^\n]+) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)^```",
    re.M | re.S,
)
SLOW = ("pip install",)
"""Lines that the continuous integration runs by itself: the installation, and the tests."""


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language (or file), code, and the words that it fails with, of every block that is meant to run.

    ``<!-- not run: reason -->`` above a block exempts it, ``<!-- file: NAME -->`` makes it a file for those after it,
    ``<!-- fails: words -->`` says what the one command in it tells, and ``<!-- before: COMMAND -->`` stands for a long one
    that the reader has run by then.
    """
    found = []
    for match in BLOCK.finditer(page.read_text()):
        mark, words, language, code = match["mark"], match["words"], match["language"], match["code"]
        if mark == "before":
            found.append(("bash", words, ""))
        if mark == "file":
            found.append((words, code, ""))
        elif mark == "fails":
            found.append((language, code, words))
        elif mark in (None, "before") and not any(slow in code for slow in SLOW):
            found.append((language, code, ""))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    python = []
    for language, code, fails in blocks(page):
        if language.endswith(".py"):
            (tmp_path / language).write_text(code)
            continue
        if language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", code]
        else:
            python.append(code)  # a page's Python blocks build on each other
            command = [sys.executable, "-c", "\n".join(python)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        said = f"{page.name}:\n{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert (done.returncode != 0) == bool(fails), said
        if fails:
            assert fails in done.stderr.splitlines()[-1], said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, place in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name} links to {target}"
        if place and found.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", found.read_text(), flags=re.M)
            assert place in map(_anchor, heads), f"{page.name} links to {target}#{place}"


def _anchor(head: str) -> str:
    """How a heading is named in links."""
    return re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_named_is_there(page: Path) -> None:
    """Files and modules in backticks exist; those of a reader's own begin with ``my_``."""
    source, text = ROOT / "src" / "overture", page.read_text()
    for name in re.findall(r"`([\w./]+\.py)`", text):
        own = name.split("/")[-1].startswith("my_") or name.startswith("path/")
        assert own or (source / name).is_file() or (ROOT / name).is_file(), f"{page.name} names {name}"
    for name in re.findall(r"`(overture(?:\.\w+)+)`", text):
        module = (
            name if importlib.util.find_spec(name.rpartition(".")[0]) and _is_module(name) else name.rpartition(".")[0]
        )
        part = name[len(module) + 1 :]
        assert hasattr(importlib.import_module(module), part) if part else True, f"{page.name} names {name}"


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
