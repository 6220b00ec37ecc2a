"""The parts of the documentation site that can be told without building it; CI builds it, strictly."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import overture

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.rst"))


def test_the_picture_of_the_rooms_is_that_of_the_table() -> None:
    spec = importlib.util.spec_from_file_location("rooms", DOCS / "figures" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    page = (DOCS / "architecture.md").read_text()
    assert len(rooms.floors(page)) > 10
    assert rooms.PICTURE.read_text() == rooms.draw(page), "run python docs/figures/rooms.py"


def test_every_page_is_in_the_navigation() -> None:
    index = DOCS / "index.md"
    entries = [
        entry.rpartition("<")[2].rstrip(">")
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", index.read_text(), re.M | re.S)
        for entry in tree.splitlines()
        if entry and not entry.startswith(":")
    ]
    found: set[Path] = set()
    for entry in entries:
        pages = [page for suffix in (".md", ".rst") for page in DOCS.glob(entry + suffix)]
        pages += [page for page in [(DOCS / f"{entry}.md").resolve()] if page.exists()]
        assert pages, f"docs/index.md names {entry}"
        found |= {page.resolve() for page in pages}
    missing = {*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")} - found - {index}
    assert not missing, f"docs/index.md leads nowhere to {', '.join(sorted(page.name for page in missing))}"


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_reference_names_what_there_is(page: Path) -> None:
    """Only public names: those of a module's ``__all__``."""
    documented = re.findall(r"\.\. automodule:: (\S+)\n   :members: (.+)", page.read_text())
    assert documented
    for module, names in documented:
        public = importlib.import_module(module).__all__
        for name in names.split(", "):
            assert name in public, f"{page.name}: {module} has no public {name}"


def test_reference_has_every_name_of_the_package() -> None:
    told = " ".join(page.read_text() for page in REFERENCE)
    missing = [name for name in overture.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", told)]
    assert not missing, f"docs/reference has no {', '.join(missing)}"


def test_reference_names_each_module_once() -> None:
    modules = re.findall(r"automodule:: (\S+)", " ".join(page.read_text() for page in REFERENCE))
    assert len(set(modules)) == len(modules)
