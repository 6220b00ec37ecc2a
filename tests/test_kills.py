"""Runs that die again and again, each time at a drawn touch of the disk, end as the run that nobody touched.

The long form, with more ways to die and several processes, is ``benchmarks/kills.py``.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from killing import dying
from killing.same_run import differences
from killing.tiny_runs import draw_images, run_words

DEATHS = 5
QUICK = """--judge.training.steps 2 --perceptual-network.training.steps 2 --tokenizer-training.steps 6
--prior-training.steps 6 --tokenizer-training.log-every 3 --prior-training.log-every 3"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_images(folder)
    return folder


def touches_of_run(recipe: str, images: Path, root: Path, *ends: int) -> int:
    """A run that dies at each of ``ends`` (touches of its directory) and then goes on; the touches of its last life."""
    words = [*run_words(recipe, images, root), *QUICK.split()]
    script = [sys.executable, dying.__file__, str(root), ",".join(map(str, [*ends, 0]))]
    done = subprocess.run([*script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *earlier, touches = done.stdout.splitlines()
    assert not earlier, "it ended before it could die"
    return int(touches.split()[0])


@pytest.mark.parametrize(
    "recipe", ["quickstart --only vcq", "prologue-fashion-mnist --only prologue", "prologue-onestage"]
)
def test_kills_change_nothing_and_leave_nothing(recipe: str, images: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    touches = touches_of_run(recipe, images, whole)
    draw = random.Random(recipe)
    ends = [draw.randint(1, touches // DEATHS) for _ in range(DEATHS)]
    assert touches_of_run(recipe, images, killed, *ends) < touches
    assert differences(whole, killed) == []
