"""Runs that die again and again, each time at a drawn touch of the disk, end as the run that nobody touched.

The long form, with more ways to die and several processes, is ``benchmarks/kills.py``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from killing import dying
from killing.same_run import differences
from killing.tiny_runs import RECIPES, draw_images, run_words

DEATHS = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_images(folder)
    return folder


def touches_of_run(recipe: str, images: Path, root: Path, *ends: int) -> int:
    """A run that dies at each of ``ends`` (touches of its directory) and then goes on; the touches of its last life."""
    words = run_words(recipe, images, root)
    script = [sys.executable, dying.__file__, str(root), ",".join(map(str, [*ends, 0]))]
    done = subprocess.run([*script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *earlier, touches = done.stdout.splitlines()
    assert not earlier, "it ended before it could die"
    return int(touches.split()[0])


@pytest.mark.parametrize("name", ["quickstart-2", "prologue", "onestage-2"])
def test_kills_change_nothing_and_leave_nothing(name: str, images: Path, tmp_path: Path) -> None:
    recipe = RECIPES[name][0]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    touches = touches_of_run(recipe, images, whole)
    draw = random.Random(name)
    ends = [draw.randint(1, touches // DEATHS) for _ in range(DEATHS)]
    assert touches_of_run(recipe, images, killed, *ends) < touches
    assert differences(whole, killed) == []


SWEEP = """
import sys
from pathlib import Path
import torch
from killing import dying
from overture.data.stream import DataConfig
from overture.pictures import save_picture
from overture.recipes import recipe_configs
from overture.runs.directory import RunDirectory
from overture.training.checkpoint import save_state
from overture.training.metric_log import MetricLog

config = recipe_configs("quickstart", tiny=True)[0]
data = DataConfig(source=sys.argv[1], image_size=28, channels=1, held_out_share=0.1).build()

def command(root):
    run = RunDirectory(root / "run", root / "networks")
    with run.locked():
        run.write_or_check_config(config)
        run.write_or_check_data(data)
        log = MetricLog(run.metrics, "prior", 0)
        for step in (1, 2):
            log.write(step, {"loss": 1.0})
            save_state(run.prior, step, {"weights": torch.ones(2), "step": step})
        if not (run.networks / "seen.png").exists():
            save_picture(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 1, run.networks / "seen.png")
    return 0

whole = Path(sys.argv[2])
dying.run_forked(whole, 0, lambda: command(whole))
deaths = 0
while True:
    root = Path(f"{sys.argv[2]}-{deaths + 1}")
    if dying.run_forked(root, deaths + 1, lambda: command(root)) == 0:
        break
    deaths += 1
    dying.run_forked(root, 0, lambda: command(root))
print(deaths, "deaths")
"""


def test_wherever_a_small_run_dies_it_ends_whole(images: Path, tmp_path: Path) -> None:
    """Every touch of the disk in turn: config, data, measurements, states, what lies beside the run."""
    words = [sys.executable, "-c", SWEEP, str(images), str(tmp_path / "small")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(dying.__file__).parents[1]), *sys.path])}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    deaths = int(done.stdout.splitlines()[-1].split()[0])
    assert deaths > 50
    for number in range(1, deaths + 1):
        assert differences(tmp_path / "small", tmp_path / f"small-{number}") == [], f"death {number}"


STOPPED = """
import sys
from overture.data.stream import DataConfig, TrainingStream

def train():
    config = DataConfig(source=sys.argv[1], image_size=28, channels=1, held_out_share=0.1, workers=1)
    batches = TrainingStream(config.build().train, config, 8, 0, 0, 1).batches(0)
    next(batches)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise error from error  # it holds itself, and what it came through

try:
    train()
except KeyboardInterrupt:
    print("stopped")
"""


def test_an_error_that_holds_a_stream_does_not_keep_its_workers_at_the_end(images: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED, str(images)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
