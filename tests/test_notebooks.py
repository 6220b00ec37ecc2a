"""Every notebook runs from its first cell to its last, and is stored without outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

RUNNER = """
import json, sys
names = {"__name__": "__main__"}
code = [cell for cell in json.load(open(sys.argv[1]))["cells"] if cell["cell_type"] == "code"]
for number, cell in enumerate(code, start=1):
    exec(compile("".join(cell["source"]), f"code cell {number}", "exec"), names)
print(f"{len(code)} cells, {len(sys.modules['matplotlib.pyplot'].get_fignums())} figures")
"""
"""What a kernel does with them, so that no kernel has to be installed: the cells of these notebooks are plain Python."""


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@each_notebook
def test_every_cell_runs(path: Path, tmp_path: Path) -> None:
    quick = {"QUICK": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", RUNNER, str(path)]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **quick}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert re.fullmatch(r"\d+ cells, [1-9]\d* figures", done.stdout.splitlines()[-1]), done.stdout[-2000:]


@each_notebook
def test_stored_as_a_notebook_without_outputs(path: Path) -> None:
    """Outputs would go stale, and every run would change the file."""
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert not re.search(r"^[%!]", "".join(cell["source"]), re.M), "plain Python, so that the test above can run it"


@each_notebook
def test_links_lead_somewhere(path: Path) -> None:
    words = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", words):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
