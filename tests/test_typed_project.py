"""A small project of a user's, under the strictest checking: the package is typed, and its public names are found.

Torch is left out of the check, which takes a minute of its own: its types are ``Any`` here.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

PROJECT = '''
"""What a user writes: tokens, a schedule of one's own, samples, a quantizer's config, an instrument."""

from pathlib import Path
from typing import assert_type

import overture
from overture import Guidance, Layout, OvertureError, Pipeline, Prior, Sampling, Schedule, Segment, Tokenizer
from overture import UsageError, VectorConfig, conditional_entropy, load_prior, load_tokenizer
from overture.analysis.entropy import ConditionalEntropy


def growing(positions: int) -> Layout:
    """A layout with a short prologue before a growing codebook."""
    law = Schedule.geometric(positions, 2, 1024)
    assert_type(law.sizes, tuple[int, ...])
    assert_type(law.cliff(60_000), int | None)
    layout = Layout((Segment("prologue", (64,) * 4), Segment("visual", law.sizes)))
    assert_type(layout.total_bits, float)
    return layout


def cliff_of(file: Path) -> int:
    """Of a matrix of tokens."""
    found = conditional_entropy([[0, 1], [1, 0]], layout=Layout.single((2, 2)))
    assert_type(found, ConditionalEntropy)
    return found.cliff


def draw(run: Path, classes: list[int]) -> None:
    """Samples of a trained run."""
    tokenizer, prior = load_tokenizer(run), load_prior(run, weights="ema")
    assert_type(tokenizer, Tokenizer)
    assert_type(prior, Prior)
    pipe = Pipeline(tokenizer, prior)
    assert_type(pipe.layout, Layout)
    sampling = Sampling.parse("cosine 4 power 1.5", temperature=0.9)
    assert_type(sampling, Sampling)
    try:
        pipe(classes, sampling, seed=0)
    except (UsageError, OvertureError) as error:
        print(error)


def settings() -> tuple[Guidance, VectorConfig, str]:
    """Frozen values."""
    return Guidance.constant(1.5), VectorConfig(), overture.__version__
'''

CONFIG = """
[mypy]
strict = True
[mypy-torch.*,torchvision.*,numpy.*,scipy.*,matplotlib.*,PIL.*,safetensors.*,huggingface_hub.*,torch_fidelity.*,tqdm.*,jinja2.*]
follow_imports = skip
"""


WRONG = """
from overture import Layout, Schedule

Layout.single("ab")
Schedule.geometric(4, 2).sizes.append(1)
"""
MISSPELT = "from overture import layuot"


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """Line and kind of every error, by file."""
    folder = tmp_path_factory.mktemp("project")
    files = {"theirs.py": PROJECT, "wrong.py": WRONG, "misspelt.py": MISSPELT}
    for name, text in {"mypy.ini": CONFIG, **files}.items():
        (folder / name).write_text(text)
    words = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-pretty", *files]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    found = re.findall(r"^([\w.]+):(\d+): error: .* \[([\w-]+)\]$", done.stdout, re.MULTILINE)
    return {name: [(int(line), kind) for file, line, kind in found if file == name] for name in files}


def test_a_users_project_passes_strictly(errors: dict[str, list[tuple[int, str]]]) -> None:
    assert errors["theirs.py"] == []


def test_wrong_uses_are_found(errors: dict[str, list[tuple[int, str]]]) -> None:
    """So the test above can fail: names and types are known, not ``Any``."""
    assert errors["wrong.py"] == [(4, "arg-type"), (5, "call-arg"), (5, "attr-defined")]
    assert errors["misspelt.py"] == [(1, "attr-defined")]
