"""The pages of the experiments say what the results beside them say: no number was typed by hand, and none is stale."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from overture.bench import SUITES

PAGES = Path(__file__).parents[1] / "docs/experiments"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_pages_are_what_the_results_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specification = importlib.util.spec_from_file_location("regenerate", PAGES / "regenerate.py")
    assert specification
    assert specification.loader
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    assert set(script.PAGES) == set(SUITES)
    copy = shutil.copytree(PAGES, tmp_path / "experiments")
    for page in copy.glob("*.md"):  # what stands between marks is taken out, so that nothing stale can stay
        text = re.sub(r"(<!-- bench \S+ -->\n).*?(<!-- end -->)", r"\1\2", page.read_text(encoding="utf-8"), flags=re.S)
        page.write_text(re.sub(r"(<!-- = [^>]* -->).*?(<!-- \. -->)", r"\1\2", text), encoding="utf-8")
    script.regenerate(copy)
    for page in PAGES.glob("*.md"):
        assert (copy / page.name).read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), page.name
    told = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    for picture in re.findall(r"\]\((images/bench-\S+?)\)", told):
        assert (PAGES / picture).is_file(), picture


def test_no_mark_begins_a_line() -> None:
    """A comment at a line's start is a block of its own in Markdown, and would break the paragraph around a number."""
    for page in PAGES.glob("*.md"):
        assert not re.findall(r"^ *<!-- = .*", page.read_text(encoding="utf-8"), flags=re.M), page.name
