"""Suites: killed and continued, copied, a member that fails; chance against brute force; tables between their marks."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from overture.bench import SUITES, load_suite, second_judge
from overture.bench.chance import Chance, Comparison, Sample, student_quantile, unit_of
from overture.bench.member_file import Finished, read_finished
from overture.bench.page_table import cells, markdown
from overture.bench.readings import Value, read_cliff
from overture.bench.run_suite import SuiteFolder
from overture.bench.suite import Suite
from overture.cli import main
from overture.config import to_dict
from overture.data.stream import evaluation_batches
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import FeatureNetwork, load_network
from overture.model_files import read_metadata
from overture.pipeline import load_prior
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.runs.checks import check_run
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.pool import Pool
from overture.runs.worker import Task, run_task
from overture.training.hardware import processor_name, trained_with

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SUITE = '''
from dataclasses import replace
from pathlib import Path

from overture.bench.readings import Value
from overture.bench.suite import Suite
from overture.losses.perceptual import NoPerceptual
from overture.recipes import recipe_configs

HERE = Path(__file__).parent


def small(run):
    changes = {
        "data.source": "few.npz", "data.held_out_share": 0.5, "tokenizer_training.steps": 6,
        "tokenizer_training.adversarial.start": 3, "tokenizer_training.checkpoint_minutes": 0.0, "prior_training.steps": 4,
        "tokenizer_training.log_every": 1, "prior_training.evaluate_every": 2, "evaluation.network": "random:16",
        "tokenizer_training.optimizer.warmup": 1, "tokenizer_training.optimizer.flat": 2, "prior_training.optimizer.warmup": 1,
        "tokenizer_training.discriminator_optimizer.warmup": 1, "tokenizer_training.discriminator_optimizer.flat": 2,
        "tokenizer_training.perceptual": NoPerceptual(), "evaluation.samples": 20, "evaluation.metrics": ("fid",),
    }
    return run.changed(changes)


def pair():
    """Two small runs, and what is read off them."""
    return Suite(
        runs=tuple(map(small, recipe_configs("quickstart", tiny=True))),
        compare="uniform", seeds=(3,), readings=("results", "my_suites:own"),
        metrics={"generation.unguided.fid": "gFD", "bits.held_out": "bits, held out", "own.rows": "rows"},
    )


def more_priors():
    """The same with two priors on each tokenizer."""
    return replace(pair(), priors=2)


def sharing():
    """Another suite in the folder of ``pair``: one of its runs, and two that start from it."""
    uniform = pair().runs[0]
    frozen = {"tokenizer_training.start_from": "uniform", "tokenizer_training.trains": "nothing"}
    fewer = uniform.changed({"name": "fewer", "tokens.images": 7, **frozen})
    decoder = {"name": "decoder", "tokenizer_training.start_from": "uniform", "tokenizer_training.trains": "decoder"}
    return replace(
        pair(), runs=(uniform, fewer, uniform.changed(decoder)), compare={"fewer": "uniform"},
        starts_from={"fewer": "uniform", "decoder": "uniform"},
    )


def calibrated():
    """The same runs, read for how well their priors know themselves."""
    return replace(pair(), readings=("calibration",), metrics={"calibration.held_out.all.excess": "excess"})


def judged():
    """The same runs under a second judge."""
    return replace(pair(), readings=("vgg16",), metrics={"vgg16.generation": "gFD"})


def own(run, device):
    """A reading of a stranger, which one file can stop."""
    if (HERE / "stop" / run.root.name).exists():
        raise ValueError("no such luck")
    return {"own.rows": Value(run.token_file("train").rows, "rows")}
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with forty images and a suite of two small runs."""
    return furnish(tmp_path, monkeypatch)


def furnish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "my_suites", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "my_suites.py").write_text(SUITE)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(folder / "few.npz", images=images, labels=np.arange(40) % 2)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite that nobody interrupts; one of its members by a worker of its own."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        furnish(folder, patch)
        assert main(["bench", "my_suites:pair", "--out", "out", "--device", "cpu", "--only", "vcq-s3"]) == 0
        done_here(patch)
        assert main(["bench", "my_suites:pair", "--out", "out", "--device", "cpu"]) == 0
    return folder / "out"


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tasks are done in this process, which has imported all it needs; returns the labels of those that were begun."""
    return done_here(monkeypatch)


def done_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    begun: list[str] = []

    def run_each(self: Pool, tasks: Sequence[Task]) -> dict[str, OvertureError]:
        failures = {}
        for task in tasks:
            begun.append(task.label)
            try:
                run_task(task, SilentProgress(), Processes())
            except OvertureError as error:
                failures[task.label] = error
        return failures

    monkeypatch.setattr(Pool, "run_each", run_each)
    return begun


def numbers(root: Path) -> dict[str, Any]:
    """The values of every member but the seconds, with the hashes of its models."""
    records = {path.name: json.loads(path.read_text()) for path in sorted((root / "members").iterdir())}
    return {
        name: (record["models"], {k: v for k, v in record["values"].items() if not k.startswith("seconds.")})
        for name, record in records.items()
    }


# -- members ----------------------------------------------------------------------------------------------------------


def test_a_finished_member_is_one_file(whole: Path) -> None:
    assert sorted(path.name for path in (whole / "members").iterdir()) == ["uniform-s3.json", "vcq-s3.json"]
    record = json.loads((whole / "members/vcq-s3.json").read_text())
    (run,) = whole.glob("runs/*/vcq-s3")
    results = json.loads((run / "results.json").read_text())
    measured = results["generation"]["unguided"]["measurements"]["fid"]
    told = record["values"]["generation.unguided.fid"]
    assert (told["value"], told["protocol"]) == (measured["value"], measured["protocol"])
    bits = results["likelihood"]
    gap = bits["held_out_allowed"]["bits_per_image"] - bits["train_allowed"]["bits_per_image"]
    assert record["values"]["bits.gap"]["value"] == gap
    assert record["values"]["own.rows"] == {"value": 20, "unit": "rows", "protocol": None}
    assert record["values"]["entropy.room"]["value"] == pytest.approx(sum(map(math.log2, results["entropy"]["sizes"])))
    assert record["models"] == results["models"]
    assert record["data"]["train"]["images"] == 20
    assert (record["processor"], record["device"], record["threads"]) == (processor_name(), "cpu", 1)
    assert record["trained_with"] == {"tokenizer": trained_with(Processes()), "prior": trained_with(Processes())}
    lines = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [line["member"] for line in lines] == ["uniform-s3", "vcq-s3"]
    assert lines[1]["values"] == record["values"]
    # The models stay, what can be made again from them does not.
    assert (run / "prior/model.safetensors").exists()
    assert not (run / "tokens").exists()
    assert not list(run.glob("samples/*.npz"))


def test_killed_in_the_middle_and_continued_the_numbers_are_the_same(
    here: Path, whole: Path, inline: list[str]
) -> None:
    suite = load_suite("my_suites:pair")
    task = SuiteFolder(Path("out")).task(suite.members[0], suite, "cpu", "models")
    child = os.fork()
    if not child:  # pragma: no cover

        class Deadly(SilentProgress):
            steps = 0

            def advance(self, count: int = 1, **shown: float) -> None:
                self.steps += 1
                if self.steps == 4:
                    os.kill(os.getpid(), signal.SIGKILL)

        run_task(task, Deadly(), Processes())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(Path(task.root).glob("tokenizer/step-*"))
    assert not Path("out/members").exists()
    assert main(["bench", "my_suites:pair", "--out", "out", "--only", "vcq"]) == 0
    assert main(["bench", "my_suites:pair", "--out", "out"]) == 0
    assert inline == ["vcq-s3", "uniform-s3"]
    assert numbers(Path("out")) == numbers(whole)


def test_a_member_that_another_suite_has_finished_meanwhile(here: Path, whole: Path) -> None:
    suite = load_suite("my_suites:pair")
    task = SuiteFolder(Path("out")).task(suite.members[0], suite, "cpu", "models")
    shutil.copytree(whole / "members", "out/members")
    before = Path(task.file).stat().st_mtime_ns
    run_task(task, SilentProgress(), Processes())
    assert Path(task.file).stat().st_mtime_ns == before
    assert not (Path(task.root) / "tokenizer").exists()


def test_a_copied_folder_is_not_run_again(
    here: Path, whole: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("members", "results.jsonl"):  # a result file is enough
        copy = shutil.copytree if part == "members" else shutil.copy
        Path("elsewhere").mkdir(exist_ok=True)
        copy(whole / part, Path("elsewhere") / part)
    assert main(["bench", "my_suites:pair", "--out", "elsewhere", "--json"]) == 0
    assert not inline
    told = json.loads(capsys.readouterr().out)
    assert told["missing"] == []
    assert told["members"].keys() == {"uniform-s3", "vcq-s3"}
    assert [(c["run"], c["within_chance"]) for c in told["table"]] == [("uniform", None)] * 3 + [("vcq", None)] * 3
    assert (Path("elsewhere") / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()


def test_further_priors_learn_the_same_tokens(here: Path, whole: Path, inline: list[str]) -> None:
    shutil.copytree(whole, "out")
    assert main(["bench", "my_suites:more_priors", "--out", "out", "--only", "uniform"]) == 0
    assert inline == ["uniform-s3-p1"]
    found = numbers(Path("out"))
    (models, values), (other_models, others) = found["uniform-s3.json"], found["uniform-s3-p1.json"]
    assert models["prior_hash"] != other_models["prior_hash"]
    for name in ("entropy.bits", "reconstruction.distance", "reconstruction.psnr"):
        assert values[name]["value"] == others[name]["value"]
    assert values["bits.held_out"]["value"] != others["bits.held_out"]["value"]
    files = [
        next(Path("out").glob(f"runs/*/{name}/tokenizer/model.safetensors")) for name in ("uniform-s3", "uniform-s3-p1")
    ]
    first, second = (read_metadata(path, "tokenizer") for path in files)
    assert second["ids_hash"] == first["weights_hash"]


def test_a_run_starts_from_that_of_another_with_its_seed(here: Path, whole: Path, inline: list[str]) -> None:
    shutil.copytree(whole, "out")
    assert main(["bench", "my_suites:sharing", "--out", "out"]) == 0
    assert inline == ["fewer-s3", "decoder-s3"]  # and the one that both suites declare is finished
    found = numbers(Path("out"))
    rows = {name: values["own.rows"]["value"] for name, (_, values) in found.items()}
    assert rows == {"uniform-s3.json": 20, "vcq-s3.json": 20, "fewer-s3.json": 7, "decoder-s3.json": 20}
    (_, uniform), (_, fewer), (_, decoder) = (found[f"{name}-s3.json"] for name in ("uniform", "fewer", "decoder"))
    assert uniform["reconstruction.psnr"] == fewer["reconstruction.psnr"] != decoder["reconstruction.psnr"]
    assert uniform["entropy.bits"] == decoder["entropy.bits"]
    lines = (Path("out") / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["member"] for line in lines] == ["decoder-s3", "fewer-s3", "uniform-s3", "vcq-s3"]


def test_a_run_that_starts_from_another_waits_for_it(here: Path, inline: list[str]) -> None:
    """Also when nothing is there yet, and in the tiny form, which trains what the run itself would."""
    suite = load_suite("my_suites:sharing", tiny=True)
    assert [m.config.tokenizer_training.trains for m in suite.members] == ["everything", "nothing", "decoder"]
    assert [m.tokenizer for m in suite.members] == ["", "uniform-s3", "uniform-s3"]
    assert main(["bench", "my_suites:sharing", "--out", "out", "--only", "fewer", "uniform"]) == 0
    assert inline == ["uniform-s3", "fewer-s3"]


def test_a_further_reading_is_taken_of_a_finished_run(
    here: Path, whole: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, "out")
    file = Path("out/members/vcq-s3.json")
    before = json.loads(file.read_text())
    assert main(["bench", "my_suites:calibrated", "--out", "out", "--only", "vcq", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == ["uniform-s3"]  # finished, but for the new reading
    after = json.loads(file.read_text())
    added = after["values"].keys() - before["values"].keys()
    assert "calibration.held_out.all.excess" in added
    assert all(name.startswith("calibration.") for name in added)
    assert {name: after["values"][name] for name in before["values"]} == before["values"]
    assert after["readings"] == ["results", "my_suites:own", "calibration"]
    assert [(made["readings"], made["device"]) for made in after["added"]] == [(["calibration"], "cpu")]
    same = before.keys() - {"readings", "values", "checksum"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    # Both suites have all that they want of it now; and models that lie there by another training are not taken for those.
    assert main(["bench", "my_suites:pair", "--out", "out"]) == 0
    assert main(["bench", "my_suites:calibrated", "--out", "out", "--only", "vcq"]) == 0
    assert inline == ["vcq-s3"]
    record = {name: value for name, value in after.items() if name != "checksum"}
    file.write_text(json.dumps({**record, "readings": ["results"], "models": {"tokenizer_hash": "another"}}))
    assert main(["bench", "my_suites:calibrated", "--out", "out", "--only", "vcq"]) == 2
    assert "vcq-s3: is finished without calibration, and the models that it was measured of are not in" in (
        capsys.readouterr().err
    )
    (run,) = Path("out").glob("runs/*/vcq-s3")
    shutil.rmtree(run)  # nothing is trained again for a reading
    file.write_text(json.dumps(before))
    assert main(["bench", "my_suites:calibrated", "--out", "out", "--only", "vcq"]) == 2
    assert "bring them back" in capsys.readouterr().err
    assert inline == ["vcq-s3"]


def test_a_second_judge(here: Path, whole: Path, inline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, "out")
    monkeypatch.setattr(second_judge, "NETWORK", "random:8")
    monkeypatch.setattr(second_judge, "RECONSTRUCTED", 11)
    assert main(["bench", "my_suites:judged", "--out", "out", "--only", "uniform", "--keep", "run"]) == 0
    values = json.loads(Path("out/members/uniform-s3.json").read_text())["values"]
    (run,) = Path("out").glob("runs/*/uniform-s3")
    images = np.load("few.npz")["images"]
    with np.load(run / "samples/unguided.npz") as file:
        samples = file["arr_0"]
    config = RunDirectory(run).read_config()
    rows = config.data.build()
    judge = load_network("random:8")
    training = torch.cat([batch.images for batch in evaluation_batches(rows.train, config.data, 100)])
    assert len(training) == len(images) // 2
    expected = frechet(features(judge, torch.from_numpy(samples).permute(0, 3, 1, 2)), features(judge, training))
    assert values["vgg16.generation"]["value"] == pytest.approx(expected, rel=1e-6)
    assert values["vgg16.generation"]["protocol"]["network"] == "random:8"
    assert values["vgg16.reconstruction"]["protocol"]["images"] == 11
    # The run's own statistics are those of its own judge.
    assert {path.name for path in run.parent.glob("networks/reference*")} == {"reference.npz", "reference-random-8.npz"}


def features(network: FeatureNetwork, images: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return network(images).double().numpy()


def frechet(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """By scipy's matrix root."""
    roots = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * roots))


def test_how_well_a_prior_knows_itself(here: Path, whole: Path, inline: list[str]) -> None:
    """What tokens cost under the prior is what the run has measured; what it expects is the entropy of its predictions."""
    shutil.copytree(whole / "runs", "out/runs")
    assert main(["bench", "my_suites:calibrated", "--out", "out", "--keep", "run"]) == 0
    record = json.loads(Path("out/members/vcq-s3.json").read_text())["values"]
    value = {name.removeprefix("calibration."): each["value"] for name, each in record.items()}
    bits = json.loads((whole / "members/vcq-s3.json").read_text())["values"]
    for part in ("train", "held_out"):
        assert value[f"{part}.all.observed"] == pytest.approx(bits[f"bits.{part}"]["value"], rel=1e-6)
        parts = [
            value[f"{part}.{where}.observed"]
            for where in ("2-7", "8-63", "64-65536")
            if f"{part}.{where}.observed" in value
        ]
        assert len(parts) == 2  # the sizes of the quickstart's VCQ model begin at 2 and go on above 63
        assert sum(parts) == pytest.approx(value[f"{part}.all.observed"])
    (run,) = Path("out").glob("runs/*/vcq-s3")
    prior, file = load_prior(run), RunDirectory(run).token_file("held_out")
    ids_NT, labels_N = file.tensors()
    with torch.inference_mode():
        sequence_NL = prior.layout.to_sequence(ids_NT)
        logits_NLV = prior.head.project(prior.hidden(prior.token_embedding(sequence_NL[:, :-1]), labels_N)).double()
    entropy = 0.0
    for place, position in enumerate(prior.layout.positions):
        p = logits_NLV[:, place, position.low : position.high].softmax(dim=1).numpy()
        entropy += float(-(p * np.log2(p)).sum(axis=1).mean())
    assert value["held_out.all.expected"] == pytest.approx(entropy, rel=1e-6)
    assert value["held_out.all.excess"] == pytest.approx(100 * (value["held_out.all.observed"] / entropy - 1), rel=1e-6)


def test_a_further_prior_waits_for_its_tokenizer(
    here: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "my_suites:more_priors", "--out", "out", "--only", "vcq-s3-p1"]) == 1
    assert not inline
    assert "vcq-s3-p1: starts from the tokenizer of vcq-s3, which is not finished" in capsys.readouterr().err


def test_a_member_that_fails_takes_no_other_with_it(
    here: Path, whole: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, "out")
    shutil.rmtree("out/members")
    Path("stop").mkdir()
    Path("stop/uniform-s3").touch()
    command = ["bench", "my_suites:pair", "--out", "out"]
    assert main(command) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("overture: 1 member failed, the others are not touched by it: uniform-s3: my_suites:own: ")
    assert "no such luck" in last
    assert [path.name for path in Path("out/members").iterdir()] == ["vcq-s3.json"]
    Path("stop/uniform-s3").unlink()
    assert main(command) == 0
    assert inline == ["uniform-s3", "vcq-s3", "uniform-s3"]
    assert numbers(Path("out")) == numbers(whole)


def test_workers_of_a_pool_fail_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = tmp_path / "python"
    shell.write_text(
        f"""#!/bin/sh
case "$3" in
*run0*) echo '{{"error": "wrong", "status": 2}}'; exit 2;;
*run1*) kill -KILL $$;;
esac
touch {tmp_path}/done
"""
    )
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    tasks = [Task(f"run{n}", RunConfig(), str(tmp_path / f"run{n}"), str(tmp_path / "networks")) for n in range(3)]
    pool = Pool(1)
    failures = pool.run_each(tasks)
    assert {name: type(error) for name, error in failures.items()} == {"run0": UsageError, "run1": OvertureError}
    assert "SIGKILL" in str(failures["run1"])
    assert (tmp_path / "done").exists()
    assert pool.run_each(tasks[2:]) == {}


def test_images_that_lie_elsewhere(
    here: Path, whole: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    Path("few.npz").rename("data/the.npz")
    shutil.copytree(whole, "out")
    command = ["bench", "my_suites:pair", "--out", "out", "--data"]
    assert main([*command, "data/the.npz"]) == 0
    assert not inline
    Path("out/members/vcq-s3.json").unlink()
    assert main([*command, "data/the.npz"]) == 0  # only what was deleted of the run is made again
    assert inline == ["vcq-s3"]
    assert numbers(Path("out"))["vcq-s3.json"][0] == numbers(whole)["vcq-s3.json"][0]
    shutil.rmtree("out/runs")
    Path("out/members/vcq-s3.json").unlink()
    images = np.random.default_rng(1).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez("others.npz", images=images, labels=np.arange(40) % 2)
    assert main([*command, "others.npz"]) == 2
    assert "vcq-s3 was measured on other images than uniform-s3 (train: 20 with fingerprint" in capsys.readouterr().err
    assert main([*command[:-1], "--held-out", "others.npz"]) == 2
    assert "--held-out goes with --data" in capsys.readouterr().err


def test_what_was_declared_otherwise_is_refused(
    here: Path, whole: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, "out")
    Path("my_suites.py").write_text(SUITE.replace('"prior_training.steps": 4', '"prior_training.steps": 5'))
    assert main(["bench", "my_suites:pair", "--out", "out"]) == 2
    assert "uniform-s3.json: was measured with another config (prior_training.steps was 4, now 5)" in (
        capsys.readouterr().err
    )
    Path("my_suites.py").write_text(SUITE.replace("seeds=(3,), ", 'seeds=(3,), until="tokens", '))
    sys.modules.pop("my_suites")
    assert main(["bench", "my_suites:pair", "--out", "out"]) == 2
    assert "until was 'report', now 'tokens'" in capsys.readouterr().err
    file = Path("out/members/vcq-s3.json")
    file.write_text(file.read_text().replace('"tiny": false', '"tiny": true'))
    sys.modules.pop("my_suites")
    Path("my_suites.py").write_text(SUITE)
    assert main(["bench", "my_suites:pair", "--out", "out"]) == 1
    assert "vcq-s3.json: was changed since it was written; delete it to measure again" in capsys.readouterr().err
    record = {name: value for name, value in json.loads(file.read_text()).items() if name != "checksum"}
    file.write_text(json.dumps({**record, "tiny": False, "values": {"x": {"value": None, "unit": ""}}}))
    assert main(["bench", "my_suites:pair", "--out", "out"]) == 1
    assert "damaged (member.values.x.value is None, needs a finite number" in capsys.readouterr().err
    file.write_text(json.dumps({**record, "tiny": True}))
    assert main(["bench", "my_suites:pair", "--out", "out"]) == 2
    assert "vcq-s3.json: was measured with another config (it is a tiny one)" in capsys.readouterr().err
    assert not inline


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["uniform-vqc"], "unknown suite 'uniform-vqc' (did you mean 'uniform-vcq'"),
        (["my_suites:small"], "my_suites:small: "),
        (["my_suites:pair", "--only", "unifrom-s3"], "--only unifrom-s3: the suite has no such member or run (did you mean 'uniform"),
        (["my_suites:pair", "--jobs", "-1"], "--jobs is -1, needs >= 1"),
        (["my_suites:pair", "--out", "few.npz"], "--out few.npz: is a file; name a folder"),
        (["my_suites:pair", "--tables", "page.md"], "holds no finished member of my_suites:pair; run it first"),
        (["my_suites:pair", "--prior.depth", "3"], "bench: unknown option '--prior.depth'"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(
    words: list[str], line: str, here: Path, inline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert line in said[0]
    assert not inline


# -- suites -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SUITES))
def test_members_of_our_suites_can_be_run(name: str) -> None:
    for suite in (load_suite(name), load_suite(name, tiny=True)):
        for member in suite.members:
            if not member.prior and member.seed == suite.seeds[0]:
                check_run(member.config.resolve(10), until=suite.until)
        assert len({member.group for member in suite.members}) == 1  # they share one judge
        for part in ("judge", "perceptual_network"):  # as a run draws its networks
            seeds = {1000 * m.config.seed + getattr(m.config, part).seed for m in suite.members}
            assert seeds == {getattr(suite.runs[0], part).seed}
    assert len(load_suite(name, tiny=True).seeds) == 2


def test_equal_bits_and_equal_largest_sizes() -> None:
    sizes = {run.name: run.tokenizer.layout.sizes for run in load_suite("uniform-vcq").runs}
    bits = {name: sum(map(math.log2, each)) for name, each in sizes.items()}
    assert bits["uniform"] == 320
    assert abs(bits["equal-bits"] - 320) < 1
    assert abs(bits["uniform-349"] - bits["linear"]) < 0.5
    assert {max(sizes[name]) for name in ("uniform", "linear", "power-2", "geometric")} == {1024}
    assert bits["uniform"] > bits["linear"] > bits["power-2"] > bits["geometric"]


def test_the_suite_of_equal_bits_compares_at_equal_bits() -> None:
    suite = load_suite("same-bits")
    bits = {run.name: run.tokenizer.layout.total_bits for run in suite.runs}
    compared = {name: suite.compared_with(name) for name in bits if suite.compared_with(name)}
    assert len(compared) == 6
    assert all(abs(bits[name] - bits[other]) < 1 for name, other in compared.items())
    images = {run.name: run.tokens.images for run in suite.runs}
    assert all(images[name] == images[other] for name, other in compared.items())
    known = [*load_suite("uniform-vcq").runs, *load_suite("few-images").runs]
    assert all(run in known for run in suite.runs)


def test_priors_of_long_tokenizers_are_compared_among_themselves() -> None:
    suite = load_suite("cifar-long")
    assert suite.starts_from["linear-long-6000"] == "linear-long"
    assert suite.compared_with("linear-long-6000") == "uniform-long-6000"
    assert suite.compared_with("linear-long") == "uniform-long"
    steps = {run.name: run.prior_training.steps for run in suite.runs}
    assert steps["linear-long-6000"] == 4 * steps["linear-long"]


def test_suites_that_cannot_be() -> None:
    run = RunConfig(name="a")
    good: dict[str, Any] = {"runs": (run, replace(run, name="b")), "metrics": {"x": "x"}}
    for wrong, line in (
        ({"runs": (run, run)}, "different names"),
        ({"runs": (replace(run, name="a/b"),)}, "needs a name of letters"),
        ({"runs": (run, replace(run, name="a-s0")), "seeds": (0,), "priors": 1, "compare": "c"}, "no run of it"),
        ({"seeds": (1, 1)}, "different ones"),
        ({"seeds": (1000,)}, "needs 0 to 999"),
        ({"priors": 0}, "needs >= 1"),
        ({"priors": 2, "until": "tokens"}, "1 where runs end at their tokens"),
        ({"metrics": {}}, "needs metrics"),
        ({"compare": {"a": "c"}}, "no run of it"),
        ({"starts_from": {"a": "c"}}, "needs two runs of it"),
        ({"starts_from": {"a": "b", "b": "a"}}, "the second with a tokenizer of its own"),
        (
            {"runs": (run.changed({"tokenizer_training.joint": "default", "prior_source": "joint"}),), "priors": 2},
            "has the prior",
        ),
    ):
        with pytest.raises(UsageError, match=line):
            Suite(**{**good, **wrong})
    members = Suite(**good, seeds=(5, 7), priors=2).members
    assert [m.name for m in members] == [f"{r}-s{s}{p}" for r in "ab" for s in (5, 7) for p in ("", "-p1")]
    assert len({m.config.seed for m in members if m.run == "a"}) == 4
    assert to_dict(members[1].config)["tokenizer_training"]["start_from"] == "a-s5"


def test_the_cliff_of_some_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that count in base 4: position t holds 2 bits until log2 N are told."""
    ids = (np.arange(2048)[:, None] // 4 ** np.arange(8)[::-1]) % 4

    class Tokens:
        rows, central_crop, layout = 2048, 0, None

        def ids(self, rows: Any, crop: int) -> Any:
            return ids[rows]

    monkeypatch.setattr(RunDirectory, "token_file", lambda self, part: Tokens())
    found = read_cliff(RunDirectory(tmp_path), None)  # type: ignore[arg-type]
    assert {name for name in found if name.endswith("measured")} == {"cliff.1000.measured", "cliff.2048.measured"}
    assert found["cliff.2048.bits"].value == pytest.approx(11)
    assert found["cliff.1000.bits"].value == pytest.approx(math.log2(1000))
    assert found["cliff.2048.predicted"].value == 6  # 4^6 is the first power of 4 from 2048 on
    assert found["cliff.2048.measured"].value == 8  # counted from the top, the last digit still tells 2 of 11 bits


# -- chance -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1.0, 2.0, 2.7, 4.0, 11.3, 150.0])
def test_student_against_its_integral(freedom: float) -> None:
    """The tails by adding up the density."""
    t = (np.arange(200_000) + 0.5) / 200_000
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    for level in (0.5, 0.05):
        bound = student_quantile(level, freedom)
        inner = bound * t
        density = scale * (1 + inner**2 / freedom) ** (-(freedom + 1) / 2)
        assert 1 - 2 * bound * density.mean() == pytest.approx(level, abs=1e-8)


def sample(values: dict[tuple[int, int], float], over: Any = "seeds") -> Sample:
    return Sample(values, over)


def seeds(*values: float) -> Sample:
    return Sample({(seed, 0): value for seed, value in enumerate(values)})


def test_of_two_runs_it_is_the_interval_of_student() -> None:
    draw = np.random.default_rng(0)
    for sizes in ((2, 2), (3, 3), (3, 7), (20, 4)):
        a, b = seeds(*draw.normal(0, 1, sizes[0])), seeds(*draw.normal(1, 3, sizes[1]))
        interval = stats.ttest_ind(a.units, b.units, equal_var=True).confidence_interval(0.95)
        found = Comparison.of(a, b, Chance.pooled([a, b]))
        assert found.margin is not None
        ends = (found.difference - found.margin, found.difference + found.margin)
        assert ends == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_the_pooled_variance_is_that_of_the_residuals() -> None:
    """By brute force: what is left when every run's own mean is taken away, over the units less the runs."""
    draw = np.random.default_rng(1)
    runs = [seeds(*draw.normal(mean, 1, units)) for mean, units in ((0, 2), (5, 3), (9, 4), (2, 1))]
    design = np.concatenate([np.eye(4)[[i] * len(run.units)] for i, run in enumerate(runs)])
    values = np.concatenate([run.units for run in runs])
    residuals = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    chance = Chance.pooled(runs)
    assert chance is not None
    assert chance.freedom == 10 - 4
    assert chance.variance == pytest.approx((residuals**2).sum() / 6)
    lone = Comparison.of(runs[3], runs[0], chance)  # one seed, and still compared
    assert lone.margin == pytest.approx(stats.t.ppf(0.975, 6) * math.sqrt(chance.variance * (1 + 1 / 2)))


def test_one_difference_of_chance_in_twenty_is_not_marked() -> None:
    draw = np.random.default_rng(2)
    told = 0
    for _ in range(1000):
        runs = [seeds(*draw.normal(0, 1, 2)) for _ in range(5)]
        told += Comparison.of(runs[1], runs[0], Chance.pooled(runs)).within_chance is False
    assert 30 <= told <= 70


def test_chance_is_measured_over_seeds_else_over_priors_else_not_at_all() -> None:
    two_seeds, two_priors = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0}, {(0, 0): 1.0, (0, 1): 3.0}
    assert unit_of([two_seeds, two_priors]) == "seeds"
    assert unit_of([two_priors, {(0, 0): 1.0}]) == "priors"
    assert (sample(two_seeds).units, sample(two_seeds).mean) == ([2.0, 5.0], 3.5)
    assert sample(two_seeds).spread == pytest.approx(np.std([2, 5], ddof=1))
    assert sample(two_priors).units == [2.0]
    assert sample(two_priors, "priors").units == [1.0, 3.0]
    alike = sample({(0, 0): 2.0, (0, 1): 2.0}, "priors")  # of the tokenizer alone
    assert (alike.units, alike.spread) == ([2.0], None)
    assert Chance.pooled([alike, alike]) is None
    assert Comparison.of(alike, alike, None).within_chance is None
    base, near, far = (seeds(*(start + 0.1 * s for s in range(3))) for start in (2.0, 2.05, 3.0))
    chance = Chance.pooled([base, near, far])
    assert Comparison.of(near, base, chance).within_chance is True
    assert Comparison.of(far, base, chance).within_chance is False
    assert Comparison.of(base, base, chance).within_chance is True


# -- tables -------------------------------------------------------------------------------------------------------------


def made(values: dict[str, dict[str, float]], protocol: dict[str, Any] | None = None, **about: Any) -> tuple[Suite, dict[str, Finished]]:  # fmt: skip
    """A suite of the runs a and b, and finished members with these values by member and metric."""
    run = RunConfig(name="a")
    suite = Suite(runs=(run, replace(run, name="b")), metrics={"x": "X", "y": "Y"}, compare="a", **about)
    images = {"images": 10, "fingerprint": "x"}
    machine = {"processor": "one", "device": "cpu", "torch": "2", "data": {"train": images, "held_out": images}}
    members = {member.name: member for member in suite.members}
    finished = {
        name: Finished(members[name], {m: Value(v, "", protocol) for m, v in each.items()}, machine)
        for name, each in values.items()
    }
    return suite, finished


def test_the_words_of_a_table() -> None:
    suite, finished = made(
        {
            "a-s0": {"x": 0.1, "y": 1000}, "a-s1": {"x": 0.12, "y": 1000}, "a-s2": {"x": 0.11, "y": 1000},
            "b-s0": {"x": 0.118, "y": 1100}, "b-s1": {"x": 0.098, "y": 1100},
        },
        {"rows": 60000},
    )  # fmt: skip
    text = markdown("made", suite, finished)
    assert text.splitlines()[:4] == [
        "| | X | Y |",
        "| --- | --- | --- |",
        "| a | 0.110 ± 0.010 | 1,000 ± 0 |",
        "| b | 0.108 ± 0.014 ≈ | 1,100 ± 0 |",
    ]
    assert "5 of 6 members (`overture bench made`), 2 runs, seeds 0, 1 and 2." in text
    assert (
        "≈: the difference to a is within chance (its 95 % interval holds 0; the variance over seeds is pooled over all "
        "runs). 2 were compared;" in text
    )
    assert "X and Y: rows 60,000." in text
    suite, finished = made({"a-s0": {"x": 12.3456}, "b-s0": {"x": 0.0012345, "y": -3}}, seeds=(0,))
    assert markdown("made", suite, finished).splitlines()[2:4] == ["| a | 12.35 | |", "| b | 0.001234 ? | -3 |"]
    suite, finished = made({"a-s0": {"x": 1, "y": 1}})
    assert cells(replace(suite, metrics={"z": "Z"}), finished) == {}  # runs that are to come may have it
    suite, finished = made({"a-s0": {"z.long.name": 1}, "b-s0": {}})
    with pytest.raises(UsageError, match=r"no member has a value 'x'"):
        cells(replace(suite, metrics={"x": "X"}), finished)
    with pytest.raises(UsageError, match=r"'long.name' \(did you mean 'z.long.name'"):
        cells(replace(suite, metrics={"long.name": "X"}), finished)


def test_a_value_of_the_start_counts_once() -> None:
    """b starts from a: what it has unchanged tells nothing more of chance, what it changes does."""
    values = {
        "a-s0": {"x": 1.0, "y": 1.0},
        "a-s1": {"x": 2.0, "y": 3.0},
        "b-s0": {"x": 1.0, "y": 5.0},
        "b-s1": {"x": 2.0, "y": 5.0},
    }
    suite, finished = made(values, seeds=(0, 1))
    suite = replace(suite, starts_from={"b": "a"})
    found = cells(suite, finished)
    for metric, variance, freedom in (("x", 0.5, 1), ("y", (2.0 + 0.0) / 2, 2)):
        compared = found["b", metric].comparison
        assert compared is not None
        assert compared.margin == pytest.approx(Chance(variance, freedom).margin(2, 2))


def test_each_run_beside_its_own_baseline() -> None:
    values = {"a-s0": {"x": 1.0, "y": 1}, "b-s0": {"x": 5.0, "y": 1}}
    suite, finished = made(values, seeds=(0,))
    suite = replace(suite, compare={"b": "b"})
    assert all(cell.comparison is None for cell in cells(suite, finished).values())
    suite = replace(suite, compare={"a": "b"})
    found = cells(suite, finished)["a", "x"].comparison
    assert found is not None
    assert found.difference == -4.0
    assert suite.baselines == "b"


def test_unlike_conditions_are_marked() -> None:
    suite, finished = made({"a-s0": {"x": 1.5, "y": 1}, "b-s0": {"x": 2.5, "y": 1}}, {"rows": 1, "seed": 0}, seeds=(0,))
    other = replace(
        finished["b-s0"], values={"x": Value(2.5, "", {"rows": 2, "seed": 1}), "y": Value(1, "", {"rows": 1})}
    )
    text = markdown("made", suite, {**finished, "b-s0": other})
    assert "| b | 2.500 ?† | 1 ? |" in text
    assert "† made under unlike conditions: X: rows." in text


def test_a_table_tells_where_its_numbers_come_from() -> None:
    suite, finished = made({"a-s0": {"x": 1, "y": 1}, "a-s1": {"x": 2, "y": 2}, "b-s0": {"x": 1, "y": 1}}, seeds=(0, 1))
    text = markdown("made", suite, finished)  # of older members
    assert "Measured on: one (cpu, PyTorch 2)." in text
    assert "Trained on" not in text
    card = {"device": "<b>Card", "processes": 2, "torch": "9"}
    told = [{"tokenizer": card, "prior": {**card, "device": "Chip", "processes": 1}}, {"tokenizer": card}, {}]
    finished = {
        name: replace(each, record={**each.record, "trained_with": made_with})
        for (name, each), made_with in zip(finished.items(), told, strict=True)
    }
    finished["b-s0"].record["added"] = [{"processor": "two", "device": "cuda", "torch": "3"}]
    text = markdown("made", suite, finished)
    assert "Measured on: one (cpu, PyTorch 2) and two (cuda, PyTorch 3)." in text
    assert (
        "Trained on: 2 x &lt;b&gt;Card, PyTorch 9 (2 of 3 members), Chip, PyTorch 9 (1 of 3 members) and "
        "not recorded (1 of 3 members)." in text
    )


def test_tables_touch_nothing_outside_their_marks(here: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "my_suites:pair", "--out", str(whole), "--tables", "page.md"]
    marks = "<!-- bench my_suites:pair -->\n{}<!-- end -->"
    before, after = "# Mine\n\n<!-- bench other -->\nkept\n<!-- end -->\n\n", "\n\nkept too\n<!-- end -->\n"
    page = Path("page.md")
    page.write_text(before + marks.format("stale\n") + after)
    assert main(command) == 0
    text = page.read_text()
    assert text.startswith(before + "<!-- bench my_suites:pair -->\n| | gFD | bits, held out | rows |\n")
    assert text.endswith("<!-- end -->" + after)
    assert "stale" not in text
    assert "](images/bench-pair.svg)" in text
    written = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (page, Path("images/bench-pair.svg"))}
    assert main(command) == 0
    assert page.stat().st_mtime_ns == written[page][1]
    assert {path: path.read_bytes() for path in written} == {path: data for path, (data, _) in written.items()}
    for wrong in (
        "nothing",
        marks.format("") + marks.format(""),
        "<!-- bench my_suites:pair -->\n<!-- bench b -->\n<!-- end -->",
    ):
        page.write_text(wrong)
        assert main(command) == 2
        assert "page.md: needs the line '<!-- bench my_suites:pair -->' once" in capsys.readouterr().err
        assert page.read_text() == wrong
    assert main([*command[:-1], "none.md"]) == 1
    assert "none.md: cannot read it" in capsys.readouterr().err
    assert not read_finished(Path("nowhere"), load_suite("my_suites:pair"))


def test_numbers_within_the_text_of_a_page(here: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page may have numbers of a suite and no table, beside numbers of others."""
    mark = "<!-- = my_suites:pair vcq generation.unguided.fid -->{}<!-- . -->"
    others = "<!-- = other vcq generation.unguided.fid -->kept<!-- . -->"
    page, command = Path("page.md"), ["bench", "my_suites:pair", "--out", str(whole), "--tables", "page.md"]
    page.write_text(f"It is {mark.format('')}, yes {mark.format('9.99 ≈')}; {others}.\n")
    assert main(command) == 0
    value = json.loads((whole / "members/vcq-s3.json").read_text())["values"]["generation.unguided.fid"]["value"]
    text = page.read_text().replace("\N{NO-BREAK SPACE}?", " ?")
    told = re.findall(r" -->([\d.,]+) \?<!-- \. -->", text)
    assert [float(number) for number in told] == pytest.approx([value] * 2, rel=1e-3)
    assert text == f"It is {mark.format(f'{told[0]} ?')}, yes {mark.format(f'{told[0]} ?')}; {others}.\n"
    assert not Path("images").exists()  # without a table there is no figure
    for unclosed in (mark.format("9").removesuffix("<!-- . -->") + f" and {mark.format('9')}", mark.format("9\n")):
        page.write_text(unclosed)
        assert main(command) == 2
        assert "has no '<!-- . -->' behind its number" in capsys.readouterr().err
        assert page.read_text() == unclosed
    page.write_text(mark.format("").replace("vcq gen", "vqc gen"))
    assert main(command) == 2
    assert "page.md: '<!-- = my_suites:pair vqc generation.unguided.fid -->' names no finished run and metric" in (
        capsys.readouterr().err
    )
