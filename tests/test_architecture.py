"""The shape of the package: imports point down, start-up is light, every module says what it is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "overture"

LEVELS = [
    {"errors"},
    {"registry", "files", "hub", "elsewhere"},
    {"config", "last_resort"},
    {"processes", "progress", "schedules", "loggers"},
    {"layout", "model_files"},
    {"nn", "pretrained", "saved_model"},
    {"quantizers", "data"},
    {"losses", "tokenizers", "priors"},
    {"pictures", "pipeline", "training"},
    {"evaluation"},
    {"analysis"},
    {"runs", "interop"},
    {"plan", "report", "watching"},
    {"recipes", "share"},
    {"bench", "app"},
    {"cli"},
]
"""Rooms from the ground up. A room imports rooms below it and nothing else."""


def level(room: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def imports(path: Path) -> set[str]:
    """Rooms that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("overture.")}
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or not path.name.startswith("__"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other in imports(path) - {room}:
        assert level(other) < level(room), f"{room} imports {other}"


def test_every_room_is_on_a_floor_and_in_the_docs() -> None:
    rooms = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if not path.name.startswith(("_", "py."))}
    assert rooms == set().union(*LEVELS)
    table = (SOURCE.parents[1] / "docs" / "architecture.md").read_text().split("## Rooms")[1].split("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    told = [set(re.findall(r"`([a-z_]+)`", row.split("|")[1])) for row in rows]
    assert told == LEVELS


def test_no_two_files_have_one_name() -> None:
    """But for ``__init__``, ``config``, and commands, which are called as what they run."""
    names = Counter(path.name for path in FILES if path.parent.name != "cli")
    twins = {name for name, count in names.items() if count > 1} - {"__init__.py", "config.py"}
    assert not twins


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_function_is_long(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_only_two_files_know_torch_distributed() -> None:
    """Those of the processes, and of weights that are spread over them."""
    for path in FILES:
        if path.name not in ("processes.py", "sharding.py"):
            assert "torch.distributed" not in path.read_text(), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("statement", ["import overture", "import overture; overture.Layout, overture.Schedule"])
def test_import_is_light(statement: str) -> None:
    code = f"{statement}; import sys; assert not {{'torch', 'torchvision', 'matplotlib'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_and_schedule_do_not_import_torch() -> None:
    for words in (["--help"], ["schedule", "--help"], ["entropy", "--help"], ["run", "--help"]):
        code = (
            "import sys\nfrom overture.cli import main\n"
            f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
            "assert not {'torch', 'matplotlib'} & sys.modules.keys(), sorted(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_no_branch_on_the_word_prologue_outside_its_places() -> None:
    """The layout is the contract: no module asks "is this Prologue?"."""
    for path in FILES:
        if path.relative_to(SOURCE).parts[0] in ("layout.py", "interop", "recipes"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If | ast.IfExp):
                assert "prologue" not in ast.unparse(node.test).lower(), f"{path}:{node.lineno}"
