"""What is shipped: the wheel and the source archive, extras that mean something, the papers in the citation."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import overture

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "overture"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"pillow": "PIL", "scikit-image": "skimage"}
COMES_WITH = {"starlette": "gradio"}
"""Packages that another brings on purpose, as a part of what it offers."""
LOOKED_FOR = {"pip"}
"""Not asked for: without it there is one line that says so."""
PURPOSES_OF_OUR_OWN = {"dev", "docs"}
"""Extras for who works on Overture itself; the package does not import what they bring."""


def distribution(requirement: str) -> str:
    """``torch-fidelity`` of ``torch-fidelity>=0.4; python_version > '3'``."""
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower()


def module(name: str) -> str:
    return IMPORTED_AS.get(name, name.replace("-", "_"))


def imported() -> set[str]:
    """Every top-level module that the package imports anywhere, its own left out."""
    found = set[str]()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "find_spec"):
                found |= {word.value.split(".")[0] for word in node.args if isinstance(word, ast.Constant)}
    return found - {"overture"} - set(sys.stdlib_module_names)


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and source archive, made of this tree."""
    place = tmp_path_factory.mktemp("dist")
    code = "import hatchling.build as build, sys; build.build_wheel(sys.argv[1]); build.build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(place)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def test_the_wheel_holds_the_package_with_its_licences_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"overture-{overture.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"overture-{overture.__version__}.dist-info/METADATA").decode()
    info = {name for name in names if ".dist-info/" in name}
    package = {
        path.relative_to(ROOT / "src").as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names - info == package
    assert {"overture/py.typed", "overture/data/embedded/LICENSE", "overture/report/report.html"} <= package
    licences = {name.partition("/licenses/")[2] for name in info if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE", "src/overture/data/embedded/LICENSE"}
    assert "License-Expression: Apache-2.0 AND MIT" in metadata


def test_the_wheel_works_where_it_is_unpacked(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import overture; from overture.cli import main; "
        "assert overture.__file__.startswith(sys.argv[1]); main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"overture {overture.__version__}\n"), done.stderr


def test_the_source_archive_holds_what_a_packager_needs_and_no_leavings(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "CITATION.cff"}
    assert needed <= names
    assert {"tests/conftest.py", "docs/architecture.md", "src/overture/py.typed"} <= names
    left = [name for name in names if re.search(r"__pycache__|\.pyc$|^\.(?!gitignore)|^runs/|^dist/", name)]
    assert left == []


# -- dependencies ---------------------------------------------------------------------------------------------------


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_imported() -> None:
    base = {module(distribution(each)) for each in PROJECT["dependencies"]}
    extra = {
        module(distribution(each))
        for name, needs in PROJECT["optional-dependencies"].items()
        if name not in PURPOSES_OF_OUR_OWN
        for each in needs
        if distribution(each) != "overture"
    }
    found = imported()
    assert base - found == set()
    found = {COMES_WITH.get(name, name) for name in found - LOOKED_FOR}
    assert found - base - extra == set()
    assert extra - found == set(), "an extra brings what nothing imports"


def test_every_extra_is_named_by_what_needs_it() -> None:
    """Without it there is one line that says which to install, and there is no extra that no line or page names."""
    texts = [path.read_text(encoding="utf-8") for path in [*SOURCE.rglob("*.py"), *(ROOT / "docs").rglob("*.md")]]
    named = {extra for text in texts for extra in re.findall(r"missing_package\(\s*[^,]+,\s*\"(\w+)\"", text)}
    written = {extra for text in texts for extra in re.findall(r"overture\[(\w+)\]'", text)}
    extras = set(PROJECT["optional-dependencies"])
    assert (named | written) - extras == set()
    assert extras - PURPOSES_OF_OUR_OWN - named - written == set()


# -- words ----------------------------------------------------------------------------------------------------------


def test_the_citation_is_of_this_version_and_of_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == overture.__version__
    papers = {paper["identifiers"][0]["value"]: paper for paper in citation["references"]}
    assert papers.keys() == {"arXiv:2605.06207", "arXiv:2605.06137"}
    for paper in papers.values():
        families = [author["family-names"] for author in paper["authors"]]
        assert families == ["Zheng", "Luo", "Yang", "Zhang", "Hu"]


def test_the_changelog_tells_of_this_version() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(f"## {overture.__version__}") for line in lines)


def test_the_notice_names_what_is_not_ours() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    others = [path for path in SOURCE.rglob("*") if path.suffix in (".png", ".npz", ".safetensors", ".woff2", ".js")]
    assert others
    assert all(path.relative_to(ROOT).as_posix() in notice for path in others)
