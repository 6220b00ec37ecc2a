"""What version 0.1.0 wrote stays readable: a finished run, one that stopped half way, and everything in them.

``files_of_0_1_0`` was written by that version on the 120 images in it: ``done`` is a run that finished, ``half`` what a
run with the same tokenizer and longer third stage had when it was stopped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from overture.cli import main
from overture.data.ids import load_ids
from overture.data.token_files import TokenFile
from overture.evaluation.networks import load_network
from overture.evaluation.record import read_measurements
from overture.evaluation.statistics import read_statistics
from overture.pipeline import Pipeline
from overture.processes import Processes
from overture.recipes.execute import execute_recipe
from overture.runs.directory import RunDirectory
from overture.training.checkpoint import latest_step, resume
from overture.training.train_prior import PriorTrainer

FILES = Path(__file__).parent / "files_of_0_1_0"
KEYS = ("entropy", "likelihood", "reconstruction", "elbo", "shared_rows")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files; the runs name their data ``images.npz``."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    for part in ("networks", "prologue/tokenizer", "prologue/tokens"):
        shutil.copytree(FILES / "done" / part, tmp_path / "later" / part)
    shutil.copytree(FILES / "half", tmp_path / "later" / "prologue", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_sample_and_decode(place: Path) -> None:
    pipe = Pipeline.load(str(place / "done" / "prologue"))
    images = pipe([3, 7], seed=1)
    assert images.dtype == torch.uint8
    assert images.shape == (2, 1, 28, 28)
    file = TokenFile.open(place / "done" / "prologue" / "tokens" / "train.tokens")
    assert file.layout == pipe.layout
    assert pipe.decode(file.tensors(range(2))[0]).shape == (2, 1, 28, 28)


def test_token_files_keep_their_ids(place: Path) -> None:
    """The bytes behind the header are the ids: read here by hand."""
    run = RunDirectory(place / "done" / "prologue")
    for part, count in (("train", 100), ("held_out", 20)):
        file = run.token_file(part)
        assert file.rows == count
        loaded = load_ids(run.tokens(part))
        content = run.tokens(part).read_bytes()
        ids = file.ids(crop=0).astype("<u2")
        assert ids[0].tobytes() in content
        assert ids[-1].tobytes() in content
        assert np.array_equal(loaded.ids, file.ids(crop=file.central_crop))


def test_networks_and_reference(place: Path) -> None:
    judge = load_network(f"domain:{place / 'done' / 'networks' / 'judge.safetensors'}")
    side = read_statistics(place / "done" / "networks" / "reference.npz", judge)
    assert side.network_hash in (None, judge.weights_hash)
    results = json.loads((place / "done" / "prologue" / "results.json").read_text())
    assert results["generation"][0]["protocol"]["network_hash"] == judge.weights_hash


def test_results_are_read_shown_and_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = json.loads((place / "done" / "prologue" / "results.json").read_text())
    results = RunDirectory(place / "done" / "prologue").read_results()
    found = {kind: results.measurements(kind)["fid"].value for kind in ("unguided", "guided", "held_out")}
    unguided, guided = (entry["value"] for entry in written["generation"])
    real = written["reconstruction"]["held_out_images_distance"]["value"]
    assert found == {"unguided": unguided, "guided": guided, "held_out": real}
    assert {unguided, guided, real} <= {m.value for m in read_measurements(place / "done" / "prologue").values()}
    assert main(["report", "done/prologue"]) == 0
    page = (place / "done" / "prologue" / "report.html").read_text()
    assert f"{results.entropy['total_bits']:.2f}" in page
    capsys.readouterr()
    assert main(["entropy", "done/prologue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 100


def test_a_finished_run_is_still_finished(place: Path) -> None:
    """The same command finds nothing to train; what this version adds, it measures."""
    run = RunDirectory(place / "done" / "prologue")
    models = [run.tokenizer_model.read_bytes(), run.prior_model.read_bytes()]
    before = json.loads(run.results.read_text())
    execute_recipe((run.read_config(),), place / "done", title="old", several=True, jobs=1, device="cpu")
    assert [run.tokenizer_model.read_bytes(), run.prior_model.read_bytes()] == models
    after = run.read_results()
    for key in KEYS:
        if key != "reconstruction":
            assert getattr(after, key) == before.get(key)


def test_a_run_that_was_stopped_goes_on(place: Path) -> None:
    run = RunDirectory(place / "later" / "prologue")
    config = run.read_config()
    assert latest_step(run.prior) == 100
    trainer = PriorTrainer(
        config.prior, config.prior_training, config.tokenizer.layout, seed=config.seed, processes=Processes()
    )
    fresh = trainer.prior.head.projection.weight.clone()
    resume(trainer, run.prior)
    assert trainer.step == 100
    assert not trainer.prior.head.projection.weight.equal(fresh)
    execute_recipe((config,), place / "later", title="old", several=True, jobs=1, device="cpu", until="prior")
    assert run.prior_model.is_file()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines if line["stage"] == "prior" and "bits_per_image" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == config.prior_training.steps
