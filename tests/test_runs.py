"""Whole runs: killed and continued, refused with another config, and the commands on what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overture.cli import main
from overture.cli.run import parse_overrides
from overture.config import differences, to_dict
from overture.data.token_files import TokenFile
from overture.errors import OvertureError, UsageError
from overture.evaluation.conditions import Measurement
from overture.files import read_record
from overture.model_files import read_metadata, read_weights, save_model
from overture.pipeline import load_prior
from overture.priors.likelihood import measure_likelihood
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.recipes import recipe_configs
from overture.recipes.execute import execute_recipe
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import measure_run_likelihood
from overture.runs.results import Results
from overture.runs.worker import Task, run_task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def config() -> RunConfig:
    """The tiny VCQ run, smaller still."""
    tiny = recipe_configs("quickstart", tiny=True)[1]
    training = replace(tiny.tokenizer_training, steps=20, log_every=1, checkpoint_minutes=0.0)
    optimizer = replace(training.optimizer, warmup=2, flat=2)
    adversarial = replace(training.adversarial, start=4)
    classifier = replace(tiny.judge.training, steps=3)
    return replace(
        tiny,
        judge=replace(tiny.judge, training=classifier),
        perceptual_network=replace(tiny.perceptual_network, training=classifier),
        tokenizer_training=replace(
            training, optimizer=optimizer, discriminator_optimizer=optimizer, adversarial=adversarial
        ),
        prior_training=replace(tiny.prior_training, steps=20, log_every=1, evaluate_every=10, checkpoint_minutes=0.0),
        evaluation=replace(tiny.evaluation, samples=40, batch_size=20, shown_per_class=2),
    )


def start(root: Path) -> subprocess.Popen[str]:
    task = Task("vcq", config(), str(root), str(root / "networks"), device="cpu")
    return subprocess.Popen(
        [sys.executable, "-m", "overture.runs.worker", task.to_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(worker: subprocess.Popen[str], stage: str) -> None:
    """Read events until the stage has begun to advance."""
    current = ""
    assert worker.stdout
    for line in worker.stdout:
        event = json.loads(line)
        current = event.get("start", current)
        if current == stage and "advance" in event:
            return
    raise AssertionError(f"the worker ended before stage {stage}: {worker.stderr.read() if worker.stderr else ''}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    root = tmp_path_factory.mktemp("whole") / "vcq"
    worker = start(root)
    _, errors = worker.communicate()
    assert worker.returncode == 0, errors
    return root


def test_a_run_that_is_killed_and_interrupted_ends_as_if_nothing_had_happened(whole: Path, tmp_path: Path) -> None:
    worker = start(tmp_path)
    wait_for(worker, "tokenizer")
    worker.kill()  # no time to save anything
    worker.communicate()
    worker = start(tmp_path)
    wait_for(worker, "tokenizer")
    worker.send_signal(signal.SIGTERM)  # saves and stops
    worker.communicate()
    assert worker.returncode in (130, 0)
    worker = start(tmp_path)
    wait_for(worker, "prior")
    worker.send_signal(signal.SIGINT)
    worker.communicate()
    worker = start(tmp_path)
    _, errors = worker.communicate()
    assert worker.returncode == 0, errors
    for kind in ("tokenizer", "prior"):
        hashes = [read_metadata(root / kind / "model.safetensors", kind)["weights_hash"] for root in (whole, tmp_path)]
        assert hashes[0] == hashes[1], kind
    results = [RunDirectory(root).read_results() for root in (whole, tmp_path)]
    assert all(set(r.seconds) == {"tokenizer", "prior"} for r in results)
    assert replace(results[0], seconds={}) == replace(results[1], seconds={})
    assert (whole / "metrics.jsonl").read_text() == (tmp_path / "metrics.jsonl").read_text()
    assert not list(tmp_path.glob("*/step-*"))


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    worker = start(whole)
    _, errors = worker.communicate()
    assert worker.returncode == 0, errors
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}


def test_what_a_run_measures(whole: Path) -> None:
    results = RunDirectory(whole).read_results()
    assert set(results.to_dict()) == {
        "entropy",
        "likelihood",
        "reconstruction",
        "generation",
        "elbo",
        "seconds",
        "models",
    }
    assert results.shared_rows is None  # one segment has no shared rows
    assert results.generation is not None
    assert list(results.generation) == ["unguided", "guided", "held_out"]
    for kind, guidance, images in (("unguided", "none", 40), ("guided", "constant 1.5", 40), ("held_out", None, 1000)):
        measured = results.measurements(kind)
        assert measured.keys() == {"fid", "precision", "recall", "kid", "is"}, results.generation[kind]["skipped"]
        assert results.generation[kind]["skipped"].keys() == {"sfid"}  # the run's own judge has no spatial features
        distance = measured["fid"]
        assert distance.name == "FD(domain)"
        assert distance.conditions.guidance == guidance
        assert (distance.conditions.images, distance.conditions.reference_images) == (images, 9000)
    assert results.reconstruction_distance is not None
    assert results.reconstruction_distance.name == "rFD(domain)"
    assert results.entropy is not None
    assert results.entropy["predicted_cliff"] == 3
    assert results.likelihood is not None
    for part, rows in (("train", 9000), ("held_out", 1000)):
        assert results.likelihood[f"{part}_vocabulary"]["images"] == rows
        assert results.likelihood[f"{part}_allowed"]["bits_per_image"] > 0
    assert sorted(path.name for path in (whole / "tokens").iterdir()) == ["held_out.tokens", "train.tokens"]


@pytest.mark.parametrize("kind", ["unguided", "guided"])
def test_a_run_measures_its_samples_as_the_command_does(
    whole: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    results = RunDirectory(whole).read_results()
    status, record, _ = command(
        capsys, "evaluate", whole / "samples" / f"{kind}.npz", "--reference", whole / "networks" / "reference.npz",
        "--network", f"domain:{whole / 'networks' / 'judge.safetensors'}", "--json", "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    read = {name: Measurement.from_dict(entry) for name, entry in record["measurements"].items()}
    assert read.keys() == results.measurements(kind).keys()
    for name, measurement in read.items():
        assert measurement.value == pytest.approx(results.measurements(kind)[name].value, rel=1e-6, nan_ok=True), name
    stored = json.loads((whole / "results.json").read_text())["generation"][kind]
    assert record["measurements"].keys() == stored["measurements"].keys() == {"fid", "is", "precision", "recall", "kid"}
    assert record["skipped"] == stored["skipped"]
    for metric, measured in record["measurements"].items():
        ours = stored["measurements"][metric]
        for key in ("name", "value", "unit", "notes", "better", "meaning"):
            assert measured[key] == ours[key], (metric, key)
        for key in ("network", "network_hash", "reference", "reference_hash", "reference_images", "images"):
            assert measured["protocol"][key] == ours["protocol"][key], (metric, key)


def test_samples_do_not_depend_on_the_size_of_batches(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    run, changed = RunDirectory(tmp_path / "run"), replace(config().evaluation, batch_size=7)
    run.config.unlink()
    (run.samples / "guided.npz").unlink()
    run.write_results(replace(run.read_results(), generation=None))
    task = Task("vcq", replace(config(), evaluation=changed), str(run.root), str(run.networks), device="cpu")
    run_task(task, SilentProgress(), Processes())
    with np.load(run.samples / "guided.npz") as ours, np.load(whole / "samples" / "guided.npz") as theirs:
        assert (ours["arr_1"] == theirs["arr_1"]).all()
        assert np.abs(ours["arr_0"].astype(int) - theirs["arr_0"].astype(int)).max() <= 1


def test_the_results_of_a_finished_run_are_one_json_object(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a recipe that is nothing but the run's own config."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "finished_run.py").write_text(
        "from overture.runs.directory import RunDirectory\n"
        f"def again():\n    return RunDirectory({str(tmp_path / 'run')!r}).read_config()\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    recipe = f"{tmp_path / 'finished_run.py'}:again"
    status, about, _ = command(capsys, "run", recipe, "--out", tmp_path / "run", "--device", "cpu", "--json")
    sys.modules.pop("finished_run", None)
    assert status == 0
    assert about["runs"] == {"vcq": read_record(whole / "results.json")}
    assert Path(about["report"]).is_file()


def test_a_measurement_that_fails_takes_no_other_with_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All others are kept and shown; the reason is told, and the same command tries again."""
    shutil.copytree(whole, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    complete = run.read_results()
    run.write_results(replace(complete, reconstruction=None, elbo=None, generation=None, entropy=None))

    def fails(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    def again() -> dict[str, Any]:
        return execute_recipe([run.read_config()], run.root, title="again", several=False, device="cpu")

    with monkeypatch.context() as patch:
        patch.setattr("overture.runs.evaluate_run.reconstruction_results", fails)
        reason = "ZeroDivisionError: division by zero"
        with pytest.raises(
            OvertureError, match=rf"everything is done but .*: vcq: reconstruction \({reason}\); .*the same command"
        ):
            again()
    assert f"reconstruction could not be measured: {reason}" in capsys.readouterr().err
    found = run.read_results()
    assert found.failed == {"reconstruction": reason, "elbo": "needs the reconstruction and the likelihood"}
    assert (found.entropy, found.likelihood, found.elbo) == (complete.entropy, complete.likelihood, None)
    for kind in ("unguided", "guided", "held_out"):
        ours, theirs = found.measurements(kind), complete.measurements(kind)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].value == pytest.approx(theirs[name].value, rel=1e-6, abs=1e-9) for name in ours), kind
    assert (run.root / "report.html").is_file()
    again()
    assert run.read_results() == replace(complete, generation=found.generation)


def test_the_likelihood_of_some_images(whole: Path) -> None:
    """It is that of rows drawn from all of them, and says how many."""
    run = RunDirectory(whole)
    prior = load_prior(run.prior_model)
    found = measure_run_likelihood(prior, run, SilentProgress(), images=7)
    for part in ("train", "held_out"):
        file = run.token_file(part)
        rows = np.random.default_rng(0).permutation(file.rows)[:7]
        ids, classes = file.tensors(np.sort(rows))
        expected = measure_likelihood(prior, [(ids, classes)])
        assert found[f"{part}_allowed"]["images"] == 7
        assert found[f"{part}_allowed"]["bits_per_image"] == pytest.approx(float(expected.allowed.sum()), rel=1e-9)
    whole_set = measure_run_likelihood(prior, run, SilentProgress(), images=10**9)
    recorded = run.read_results().likelihood
    assert recorded is not None
    assert whole_set["train_allowed"]["images"] == recorded["train_allowed"]["images"]


def test_another_config_is_refused_with_the_keys_that_differ(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "quickstart", "--tiny", "--only", "vcq", "--out", str(whole.parent), "--prior.depth", "5"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was begun with another config" in error


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any, str]:
    """Exit status, the JSON object on stdout if there is one, and the last line of stderr."""
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    lines = out.err.strip().splitlines()
    return status, json.loads(out.out) if out.out.startswith("{") else out.out, lines[-1] if lines else ""


def test_generate_writes_images_of_the_classes_asked_for(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.npz"
    arguments = ["--classes", "3,5", "--count", "2", "--guidance", "1.5", "--out", out, "--json"]
    status, about, _ = command(capsys, "generate", whole, *arguments)
    assert status == 0
    assert about["images"] == 4
    first = np.load(out)
    assert first["arr_0"].shape == (4, 28, 28, 1)
    assert first["arr_1"].tolist() == [3, 5, 3, 5]  # in turn: any part of the set holds all classes
    command(capsys, "generate", whole, *arguments)
    assert (np.load(out)["arr_0"] == first["arr_0"]).all()
    status, _, _ = command(capsys, "generate", whole, "--count", "1", "--out", tmp_path / "a.png")
    assert status == 0
    assert (tmp_path / "a.png").exists()
    status, _, _ = command(capsys, "generate", whole, "--classes", "0-1", "--count", "1", "--out", tmp_path / "folder")
    assert sorted(p.parent.name for p in (tmp_path / "folder").rglob("*.png")) == ["T-shirt-top", "Trouser"]
    status, about, _ = command(
        capsys, "generate", whole, "--classes", "Sneaker,3", "--count", "1", "--out", tmp_path / "names.npz", "--json"
    )
    assert about["classes"] == np.load(tmp_path / "names.npz")["arr_1"].tolist() == [7, 3]
    # An image is the same in batches of any size, and alone.
    for size in ("1", "3"):
        command(capsys, "generate", whole, *arguments, "--batch-size", size)
        assert np.abs(np.load(out)["arr_0"].astype(int) - first["arr_0"].astype(int)).max() <= 1


def test_reconstruct_and_tokenize(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "embedded:fashion-mnist", "--images", "50", "--out", tmp_path / "r.png", "--json"]
    status, result, _ = command(capsys, "reconstruct", whole, *arguments)
    assert status == 0
    assert result["quality"]["images"] == 50
    tokens = tmp_path / "all.tokens"
    status, about, _ = command(capsys, "tokenize", whole, "--data", "embedded:fashion-mnist", "--out", tokens, "--json")
    assert status == 0
    assert about["rows"] == len(TokenFile.open(tokens)) == 10_000
    status, result, _ = command(capsys, "entropy", tokens, "--json")
    assert status == 0
    assert len(result["conditional_entropy_bits"]) == 16


def test_report_of_a_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, about, _ = command(capsys, "report", whole, "--out", tmp_path / "page.html", "--json")
    assert status == 0
    assert Path(about["report"]).read_text().lower().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["generate", "RUN", "--classes", "12"], 2, "class 12 is out of range, the model knows 0..9"),
        (["generate", "RUN", "--guidance", "prologue: 2"], 2, "no segment 'prologue' in this layout"),
        (["generate", "RUN", "--guidance", "often"], 2, "guidance 'often'"),
        (["generate", "RUN", "--temperature", "0"], 2, "temperature is 0, needs to be finite and >= 0.001"),
        (["generate", "RUN", "--out", "x.gif"], 2, "--out x.gif"),
        (["generate", "RUN", "--device", "warp"], 2, "device 'warp' cannot be used"),
        (["generate", "nowhere"], 1, "nowhere: no such file or run (of the hub, write hf:owner/name)"),
        (["generate"], 2, "give a RUN"),
        (["generate", "RUN", "--sed", "3"], 2, "unknown option '--sed'"),
        (["reconstruct", "RUN", "--data", "no/such/folder"], 2, "no data source 'no/such/folder'"),
        (["report", "."], 2, "is no run"),
        (["run", "quickstrat"], 2, "did you mean 'quickstart'?"),
        (["run", "quickstart", "--prior.dpeth", "3"], 2, "did you mean '--prior.depth'"),
        (["run", "quickstart", "--only", "vqc"], 2, "did you mean 'vcq'?"),
        (["run", "quickstart", "--prior.heads", "5"], 2, "does not give an even head size"),
        (["run", "quickstart", "--prior.depth", "abc"], 2, "prior.depth: expected int, got 'abc'"),
        (["run", "quickstart", "stray"], 2, "unexpected word 'stray'"),
        (["run", "quickstart", "--jobs", "-1"], 2, "--jobs is -1"),
        (["run", "quickstart", "--only", "vcq", "--device", "warp"], 2, "device 'warp' cannot be used"),
        (["run", "quickstart", "--tokenizer.image-size", "56"], 2, "comes from the data: set --data.image-size"),
        (["run", "quickstart", "--prior-training.log-every", "0"], 2, "log_every is 0"),
        (["run", "quickstart", "--evaluation.top-p", "0"], 2, "top-p is 0.0"),
        (["run", "quickstart", "--only", "vcq", "--evaluation.guidance", "prologue: 2"], 2, "no segment 'prologue'"),
        (["run", "quickstart", "--only", "vcq", "--evaluation.network", "domian"], 2, "did you mean 'domain'?"),
        (["train"], 2, "tokenizer or prior"),
        (["reconstruct", "RUN", "--data", "embedded:fashion-mnist", "--images", "-3"], 2, "--images is -3, needs >= 1"),
        (["runn"], 2, "did you mean 'run'?"),
    ],
)
def test_wrong_requests_are_one_line(
    whole: Path,
    words: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        got = main([str(whole) if word == "RUN" else word for word in words])
    except SystemExit as error:
        got = int(error.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert got == status


def test_differences_name_values_that_decide_numbers() -> None:
    config = recipe_configs("quickstart", tiny=True)[1]
    other = config.changed({"prior.depth": 3, "tokenizer.segments.0.tokens": 4})
    quiet = {
        "data.workers": 2, "data.source": "./embedded:fashion-mnist", "data.corrupt_limit": 0.5, "tokens.batch_size": 7,
        "prior_training.checkpoint_minutes": 1.0, "prior_training.recompute": "blocks", "prior_training.compile": True,
        "tokenizer_training.log_every": 3, "evaluation.batch_size": 7, "recipe": "mine",
    }  # fmt: skip
    assert differences(config, config.changed(quiet)) == []
    assert differences(config, other.changed(quiet)) == [
        "prior.depth was 2, now 3",
        "tokenizer.segments.0.tokens was 16, now 4",
    ]


def test_what_changes_no_number_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    """An error may advise fewer workers, or a higher limit: the command that follows it is not another run."""
    run, begun = RunDirectory(tmp_path), config().resolve(10)
    run.write_or_check_config(begun)
    later = begun.changed({"data.workers": 3, "data.corrupt_limit": 0.2, "tokenizer_training.checkpoint_minutes": 9.0})
    run.write_or_check_config(later)
    assert run.read_config() == later
    with pytest.raises(UsageError, match="seed was 0, now 1") as caught:
        run.write_or_check_config(begun.changed({"seed": 1, "data.workers": 1}))
    assert "workers" not in str(caught.value)
    assert run.read_config() == later


def test_the_image_size_of_the_data_reaches_the_tokenizer_before_it_is_checked() -> None:
    words = ["--data.image-size", "32", "--data.channels", "3", "--tokenizer.patch-size", "8"]
    changed = recipe_configs("quickstart", tiny=True)[1].changed(parse_overrides(words)).resolve(num_classes=3)
    assert (changed.tokenizer.image_size, changed.tokenizer.channels, changed.tokenizer.grid) == (32, 3, 4)
    with pytest.raises(UsageError, match="not a multiple of patch_size 7"):
        recipe_configs("quickstart", tiny=True)[1].changed(parse_overrides(["--data.image-size=32"]))


@pytest.mark.parametrize("kind", ["tokenizer", "prior"])
def test_a_model_of_another_config_in_a_run_is_refused(whole: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / kind / "model.safetensors"
    other = getattr(config().resolve(10), kind)
    other = replace(other, theta_grid=7.0) if kind == "tokenizer" else replace(other, dropout=0.5)
    metadata = read_metadata(path, kind)
    save_model(
        path, kind, {role: read_weights(path, role) for role in ("raw", "ema")}, {**metadata, "config": to_dict(other)}
    )
    with pytest.raises(OvertureError, match=f"a {kind} of another config"):
        run_task(Task("vcq", config(), str(run), str(run / "networks"), device="cpu"), SilentProgress(), Processes())


def test_networks_of_another_config_are_not_used(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "networks", tmp_path / "networks")
    other = replace(config(), judge=replace(config().judge, seed=5))
    with pytest.raises(UsageError, match="seed was 0, now 5"):
        run_task(
            Task("vcq", other, str(tmp_path), str(tmp_path / "networks"), device="cpu"), SilentProgress(), Processes()
        )


def test_damaged_results_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("")
    with pytest.raises(OvertureError, match="delete it to measure again"):
        RunDirectory(tmp_path).read_results()


def test_results_round_trip(tmp_path: Path, whole: Path) -> None:
    run, results = RunDirectory(tmp_path), RunDirectory(whole).read_results()
    assert run.read_results() == Results()
    assert Results().to_dict() == {}
    run.write_results(results)
    assert run.read_results() == results
    assert json.loads(run.results.read_text()) == json.loads((whole / "results.json").read_text())


def old_number(name: str, value: float, guidance: str | None) -> dict[str, Any]:
    """A number as version 0.1.0 wrote it."""
    return {
        "name": name, "value": value, "unit": None, "interval": None, "notes": [],
        "protocol": {"network": "domain", "images": 40, "reference_images": 9000, "guidance": guidance},
    }  # fmt: skip


def test_results_of_the_first_version_are_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    entropy = {
        "rows": 9, "positions": 1, "conditional_entropy_bits": [1.0], "cumulative_bits": [1.0], "total_bits": 1.0,
        "log2_n": 3.2, "unique_share": [0.0], "cliff": 1, "predicted_cliff": 3, "sizes": [2],
    }  # fmt: skip
    old = {
        "entropy": entropy,
        "reconstruction": {
            "l1": 0.5,
            "quality": {"images": 40, "psnr": 20.0, "ssim": 0.75},
            "usage": {"segments": {"visual": {"used_per_position": [1.0], "perplexity_per_position": [2.0]}}},
            "distance": old_number("rFD(domain)", 3.5, None),
            "held_out_images_distance": old_number("FD(domain)", 0.25, None),
        },
        "generation": [old_number("gFD(domain)", 2.5, "none"), old_number("gFD(domain)", 1.5, "constant 1.5")],
        "seconds": {"tokenizer": 1.5},
    }
    run.results.write_text(json.dumps(old))
    results = run.read_results()
    assert (results.seconds, results.entropy) == ({"tokenizer": 1.5}, entropy)
    values = {kind: {n: m.value for n, m in results.measurements(kind).items()} for kind in results.generation or {}}
    assert values == {"unguided": {"fid": 2.5}, "guided": {"fid": 1.5}, "held_out": {"fid": 0.25}}
    assert results.measurements("guided")["fid"].conditions.guidance == "constant 1.5"
    assert results.reconstruction_distance is not None
    assert results.reconstruction_distance.value == 3.5
    assert results.likelihood is None
    run.write_results(results)
    assert run.read_results() == results


@pytest.mark.parametrize(
    "content",
    ["[]", '{"generation": 3}', '{"generation": [3]}', '{"generation": {"guided": {"measurements": {"fid": 1}}}}', "{"],
)
def test_results_that_are_none_are_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(OvertureError, match=r"results\.json.*delete it to measure again") as error:
        RunDirectory(tmp_path).read_results()
    assert "\n" not in str(error.value)


def test_held_out_tokens_under_their_old_name(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.tokens("held_out").name == "held_out.tokens"
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "val.tokens").touch()
    assert run.tokens("held_out").name == "val.tokens"
    assert run.tokens("train").name == "train.tokens"
    (tmp_path / "tokens" / "held_out.tokens").touch()
    assert run.tokens("held_out").name == "held_out.tokens"


def test_networks_beside_the_runs_that_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "several" / "one"
    root.mkdir(parents=True)
    assert RunDirectory(root).networks == root / "networks"
    shared = tmp_path / "several" / "networks"
    shared.mkdir()
    assert RunDirectory(root).judge == shared / "judge.safetensors"
    monkeypatch.chdir(root)
    assert RunDirectory(".").networks == shared  # from within the run too
    assert RunDirectory(root, tmp_path / "told").networks == tmp_path / "told"
    (root / "networks").mkdir()
    assert RunDirectory(root).networks == root / "networks"


def test_two_do_not_work_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    monkeypatch.setattr(time, "monotonic", iter(range(0, 1000, 30)).__next__)  # no need to wait
    with run.locked(), pytest.raises(OvertureError, match="another process"), run.locked():
        pass
    with run.locked():
        pass


def test_a_run_begun_before_an_option_existed_goes_on(tmp_path: Path) -> None:
    run, resolved = RunDirectory(tmp_path), config().resolve(10)
    run.write_or_check_config(resolved)
    older = json.loads(run.config.read_text())
    del older["prior_training"]["compile"], older["checksum"]  # which is new too
    run.config.write_text(json.dumps(older))
    run.write_or_check_config(resolved)
    with pytest.raises(UsageError, match="seed was 0, now 1"):
        run.write_or_check_config(replace(resolved, seed=1))
