"""What several processes measure of a run together is what one measures, and what fails for one fails for all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import overture.runs.evaluate_run as evaluate_run_module
from killing.tiny_runs import draw_images
from overture.errors import Interrupted, OvertureError
from overture.evaluation.evaluation import evaluate
from overture.evaluation.metrics import precision_recall
from overture.evaluation.networks import FeatureNetwork, Outputs
from overture.evaluation.reconstruction import measure_reconstruction
from overture.evaluation.statistics import measure_batches
from overture.layout import Layout
from overture.losses.perceptual import NoPerceptual
from overture.model_files import read_weights
from overture.pipeline import load_tokenizer
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.recipes import recipe_configs
from overture.runs.config import RunConfig, WatchConfig
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import judge_network
from overture.runs.monitor import PriorMonitor, TokenizerMonitor
from overture.runs.stages import execute
from overture.training.train_prior import EngineConfig, PriorTrainer
from overture.training.train_tokenizer import TokenizerTrainer
from together import together

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WATCH = WatchConfig(tokenizer_every=2, prior_every=2, images=110, samples=210, keep_best="gfd")


def config(run: Path) -> RunConfig:
    """Two segments, so that there are rows to share; 210 samples are two blocks and a bit. Images lie beside the first run."""
    tiny = recipe_configs("prologue-fashion-mnist", tiny=True)[-1].resolve(10)
    images = (run / "images.txt").read_text()
    classifier = replace(tiny.judge.training, steps=3)
    training = replace(
        tiny.tokenizer_training, steps=16, adversarial=replace(tiny.tokenizer_training.adversarial, start=99)
    )
    return replace(
        tiny,
        data=replace(tiny.data, source=images, held_out_share=0.3, corrupt_limit=0.05),
        judge=replace(tiny.judge, training=classifier),
        perceptual_network=replace(tiny.perceptual_network, training=classifier),
        tokenizer_training=training,
        prior_training=replace(tiny.prior_training, steps=16, evaluate_every=16),
        evaluation=replace(tiny.evaluation, samples=210, batch_size=70),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models are trained, nothing is measured."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    root, images = folder / "run", folder / "images"
    draw_images(images)
    for path in sorted(images.rglob("*.png"))[::25]:  # corrupt ones, so that shares are of unlike lengths
        path.write_bytes(path.read_bytes()[:100])
    root.mkdir()
    (root / "images.txt").write_text(str(images))
    execute(config(root), RunDirectory(root), SilentProgress(), Processes(), until="prior")
    return root


def copy_of(run: Path, place: Path) -> Path:
    shutil.copytree(run, place)
    return place


def measure(processes: Processes, root: Path) -> None:
    execute(config(root), RunDirectory(root), SilentProgress(), processes)


def results(root: Path) -> dict[str, Any]:
    found = json.loads((root / "results.json").read_text())
    del found["checksum"]  # of the digits
    return found


def same(one: Any, other: Any, where: str = "") -> list[str]:
    """The places at which two results differ by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in same(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [place for i, pair in enumerate(zip(one, other, strict=True)) for place in same(*pair, f"{where}/{i}")]
    if isinstance(one, float) and isinstance(other, float):
        return [] if one == pytest.approx(other, rel=1e-6, abs=1e-9) else [f"{where}: {one} and {other}"]
    return [] if one == other else [f"{where}: {one} and {other}"]


def test_two_processes_measure_what_one_does(trained: Path, tmp_path: Path) -> None:
    alone, shared = (copy_of(trained, tmp_path / name) for name in ("alone", "shared"))
    measure(Processes(), alone)
    together(measure, 2, tmp_path, shared)
    found = results(alone)
    assert {"entropy", "likelihood", "reconstruction", "generation", "elbo", "shared_rows"} <= found.keys()
    assert "failed" not in found
    assert found["generation"]["held_out"]["measurements"]["fid"]["protocol"]["images"] < 0.3 * 400
    assert same(found, results(shared)) == []
    files = sorted(path.relative_to(alone) for path in (alone / "samples").iterdir())
    assert {path.name for path in files} > {"reconstructions.png", "classes.png", "guided.npz"}
    for path in files:
        assert (alone / path).read_bytes() == (shared / path).read_bytes(), path


def with_a_failure(processes: Processes, root: Path) -> None:
    """The second process cannot read its images when reconstructions are measured."""
    crops = evaluate_run_module.centre_crops

    def failing(*arguments: Any) -> Any:
        if not processes.is_main:
            raise OvertureError("the second disk is gone")
        return crops(*arguments)

    reconstruction = evaluate_run_module.reconstruction_results

    def measure_with_it(*arguments: Any) -> Any:
        evaluate_run_module.centre_crops = failing
        try:
            return reconstruction(*arguments)
        finally:
            evaluate_run_module.centre_crops = crops

    evaluate_run_module.reconstruction_results = measure_with_it
    measure(processes, root)


def test_what_fails_for_one_fails_for_all_and_takes_no_other_with_it(trained: Path, tmp_path: Path) -> None:
    root = copy_of(trained, tmp_path / "run")
    together(with_a_failure, 2, tmp_path, root)
    found = results(root)
    assert found["failed"] == {
        "reconstruction": "process 1 of 2: the second disk is gone",
        "elbo": "needs the reconstruction and the likelihood",
    }
    assert {"generation", "likelihood"} <= found.keys()


def agreeing(processes: Processes, folder: Path) -> None:
    """What each process raises where the second fails in its own way."""
    said = []
    for error in (None, OvertureError("a bad image"), Interrupted("stopped")):
        try:
            with processes.agree():
                if error is not None and not processes.is_main:
                    raise error
            said.append("nothing")
        except OvertureError as raised:
            said.append(f"{type(raised).__name__}: {raised}")
    rows = torch.arange(processes.rank * 3, processes.rank * 3 + 2 * processes.rank + 1)
    (folder / f"{processes.rank}.json").write_text(json.dumps([said, processes.gather_rows(rows).tolist()]))


def test_processes_agree(tmp_path: Path) -> None:
    together(agreeing, 2, tmp_path, tmp_path)
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    peer = "OvertureError: process 1 of 2: "
    assert main[0] == ["nothing", f"{peer}a bad image", "Interrupted: process 1 of 2: stopped"]
    assert other[0] == ["nothing", "OvertureError: a bad image", "Interrupted: stopped"]
    assert main[1] == other[1] == [0, 3, 4, 5]
    with pytest.raises(ValueError, match="as it is"), Processes().agree():
        raise ValueError("as it is")


def failing_metric(processes: Processes, folder: Path) -> None:
    """The second process fails while it measures recall; what each makes of it, and of too few images."""
    precision_recall.BLOCK = 1000
    squares = precision_recall._squares

    def failing(points: torch.Tensor, centres: torch.Tensor, who: Processes, what: str) -> Any:
        yield next(squares(points, centres, who, what))
        if not who.is_main:
            raise RuntimeError("no memory left")

    precision_recall._squares = failing
    network = Features()
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mine = images[:10] if processes.is_main else images[10:]
    sides = [
        measure_batches(
            "some", network, [mine], total=20, start=10 * processes.rank, keep_features=True, processes=processes
        )
        for _ in range(2)
    ]
    found = evaluate(*sides, network, ("recall", "fid"), strict=False)
    said = [sorted(found.measurements), found.skipped["recall"]]
    for work in (
        lambda: measure_batches("few", network, [mine] if processes.is_main else [], processes=processes),
        lambda: measure_reconstruction(Same(), [mine] if processes.is_main else [], processes=processes),
    ):
        try:
            work()
        except OvertureError as error:
            said.append(str(error))
    (folder / f"{processes.rank}.json").write_text(json.dumps(said))


class Features(FeatureNetwork):
    """A feature network: means of the channels, and the corner."""

    name, dims, weights_hash, preparation = "means", 4, "0", "none"

    def outputs(self, images: torch.Tensor) -> Outputs:
        corner = images[:, :1, 0, 0].float()
        return Outputs(torch.cat([images.float().mean(dim=(2, 3)), corner], dim=1))


class Same:
    """A tokenizer that gives back what it gets, grey."""

    layout = Layout.single([2])

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 1, dtype=torch.long)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(ids), 3, 8, 8)


def test_a_metric_that_fails_for_one_fails_for_all(tmp_path: Path) -> None:
    together(failing_metric, 2, tmp_path, tmp_path)
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert main[0] == other[0] == ["fid"]
    assert "process 1 of 2: RuntimeError: no memory left" in main[1]
    assert "no memory left" in other[1]
    none = "there are no images for this process; start fewer"
    assert [line.endswith(none) for line in main[2:] + other[2:]] == [True] * 4


def watch(processes: Processes, root: Path) -> None:
    """Measurements of fresh models while they train: the prior spread over the processes, where there are several."""
    run, whole = RunDirectory(root), replace(config(root), watch=WATCH)
    data = whole.data.build()
    judge = judge_network(whole, run)
    evaluate_run_module.make_training_reference(whole, data, judge, run, processes)
    monitors: list[Any] = []
    training = replace(whole.tokenizer_training, perceptual=NoPerceptual())
    tokenizer = TokenizerTrainer(whole.tokenizer, training, seed=0, processes=processes)
    monitors.append(TokenizerMonitor(whole, data, run, tokenizer, judge))
    engine = EngineConfig(shard=processes.size > 1)
    prior = PriorTrainer(
        whole.prior, whole.prior_training, whole.tokenizer.layout, seed=0, processes=processes, engine=engine
    )
    monitors.append(PriorMonitor(whole, run, prior, load_tokenizer(run.root), judge, lambda path: prior.save(path, {})))
    for monitor in monitors:
        for _ in range(2):  # the second time it is known
            values = monitor.measure(2)
        assert bool(values) == processes.is_main
    processes.barrier()


def test_two_processes_watch_as_one_does(trained: Path, tmp_path: Path) -> None:
    alone, shared = (copy_of(trained, tmp_path / name) for name in ("alone", "shared"))
    watch(Processes(), alone)
    together(watch, 2, tmp_path, shared)
    for name in ("watch-tokenizer.jsonl", "watch-prior.jsonl"):
        lines = [[json.loads(line) for line in (root / name).read_text().splitlines()] for root in (alone, shared)]
        assert len(lines[0]) == len(lines[1]) == 1
        assert same(lines[0], lines[1]) == []
    best = [read_weights(root / "prior" / "best" / "model.safetensors", "raw") for root in (alone, shared)]
    assert best[0].keys() == best[1].keys()
    assert all(torch.equal(tensor, best[1][name]) for name, tensor in best[0].items())
    pictures = [root / "samples" / "training" / "gfd-00000002.png" for root in (alone, shared)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
