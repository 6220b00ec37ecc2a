"""Files that somebody edited, or that were damaged where no checksum reaches: one line that says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overture.cli import main
from overture.config import from_dict
from overture.data.npz import array_entries
from overture.errors import OvertureError, error_line
from overture.model_files import load_model, save_model
from overture.runs.config import EvaluationConfig
from overture.runs.results import Results
from overture.training.metric_log import read_metrics

RUN = Path(__file__).parent / "files_of_0_1_0" / "done" / "prologue"


def edited(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RUN / "results.json").read_text())
    change(data)
    return data


def test_an_error_is_one_line_that_a_terminal_can_show() -> None:
    assert error_line(OvertureError("a\n  b \x1b[31m \ud800 é")) == "a b \\x1b[31m \\ud800 é"
    line = error_line(OvertureError(f"x: {'long ' * 10_000}; delete it"))
    assert len(line) < 1000
    assert line.endswith("; delete it")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data["entropy"].pop("cliff"), "entropy.cliff is missing"),
        (lambda data: data["entropy"]["cumulative_bits"].pop(), "entropy: its lists have 24, 23, 24, 24 positions"),
        (lambda data: data["seconds"].update(prior="1 s"), "seconds.prior is '1 s', needs a finite number"),
        (lambda data: data["elbo"].update(sequence_bits=float("nan")), "elbo.sequence_bits is nan"),
        (lambda data: data["likelihood"]["train_allowed"].update(images=10**400), "likelihood.train_allowed.images"),
        (lambda data: data["reconstruction"].update(usage=[1]), "reconstruction.usage is [1], needs an object"),
        (
            lambda data: data["generation"][0]["protocol"].update(images="many"),
            "images is 'many', needs a whole number",
        ),
    ],
)
def test_results_that_hold_something_else(change: Callable[[dict[str, Any]], Any], told: str) -> None:
    with pytest.raises(OvertureError, match=r"results\.json: damaged") as caught:
        Results.from_dict(edited(change), "results.json")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"stage": "prior"}', "'step' is no int"),
        ('{"stage": "prior", "step": "10"}', "'step' is no int"),
        ('{"stage": "prior", "step": 10, "loss": {}}', "'loss' is no number"),
        ('{"stage": "prior", "step": 10, "loss": NaN}', "'loss' is no number"),
    ],
)
def test_metrics_that_hold_something_else(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"stage": "prior", "step": 5, "loss": 2}}\n{line}\n')
    with pytest.raises(OvertureError, match="line 2") as caught:
        read_metrics(path)
    assert told in str(caught.value)


def test_a_page_of_an_edited_run_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "evaluation": None}))
    assert main(["report", str(run)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "config.evaluation is None, needs an object" in told


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), "high", True])
def test_a_number_of_a_config_is_finite(value: object) -> None:
    with pytest.raises(OvertureError, match=r"evaluation\.top_p: expected"):
        from_dict(EvaluationConfig, {"top_p": value}, "evaluation")


def test_a_damaged_name_hides_no_array(tmp_path: Path) -> None:
    """No checksum covers the directory of a zip: its names are compared with those beside the data."""
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.zeros(3), count=np.int64(5))
    good = path.read_bytes()
    place = good.rindex(b"count.npy")
    for damage in (b"count.nqy", b"count.\0py"):
        path.write_bytes(good[:place] + damage + good[place + 9 :])
        with pytest.raises(OvertureError, match="differ"):
            array_entries(path)
    entry = good.index(b"PK\x01\x02")
    path.write_bytes(good[: entry + 32] + b"\xff\xff" + good[entry + 34 :])  # a comment that covers the other entry
    with pytest.raises(OvertureError, match="counts 2 entries, 1 can be read"):
        array_entries(path)


def test_weights_that_are_not_finite_are_not_used(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3)
    with torch.no_grad():
        module.bias[1] = float("nan")
    save_model(tmp_path / "model.safetensors", "prior", {"raw": module.state_dict()}, {"config": {}})
    with pytest.raises(OvertureError, match="not all finite"):
        load_model(tmp_path / "model.safetensors", "raw", lambda: torch.nn.Linear(2, 3))
