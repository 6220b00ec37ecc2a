"""Measuring while training: it changes nothing, keeps the best, and a failure loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from overture.errors import OvertureError, UsageError
from overture.pipeline import load_prior
from overture.priors.guidance import Guidance
from overture.recipes.quickstart import quickstart
from overture.runs.config import RunConfig, WatchConfig
from overture.runs.directory import RunDirectory
from overture.runs.evaluate import check_evaluation, generated_batches
from overture.runs.stages import execute
from overture.runs.watch import PriorWatch, _Watch
from overture.training.checkpoint import read_metadata
from overture.training.distributed import World
from overture.training.progress import SilentProgress

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WATCH = WatchConfig(tokenizer_every=6, prior_every=6, images=30, samples=20, keep_best="gfd")


def config(watch: WatchConfig) -> RunConfig:
    tiny = quickstart(tiny=True)[1]
    training = replace(tiny.tokenizer_training, steps=14, log_every=5)
    optimizer = replace(training.optimizer, warmup=2, flat=2)
    classifier = replace(tiny.judge.training, steps=3)
    return replace(
        tiny,
        judge=replace(tiny.judge, training=classifier),
        perceptual_network=replace(tiny.perceptual_network, training=classifier),
        tokenizer_training=replace(
            training,
            optimizer=optimizer,
            discriminator_optimizer=optimizer,
            adversarial=replace(training.adversarial, start=4),
        ),
        prior_training=replace(tiny.prior_training, steps=14, log_every=5, evaluate_every=10),
        evaluation=replace(tiny.evaluation, samples=40, batch_size=10, guidance="1.5"),
        watch=watch,
    )


def train(root: Path, watch: WatchConfig) -> tuple[str, str]:
    """Weights hashes of the tokenizer and the prior."""
    torch.set_num_threads(1)
    run = RunDirectory(root)
    execute(config(watch), run, SilentProgress(), World(), until="prior")
    return tuple(  # type: ignore[return-value]
        read_metadata(path, kind)["weights_hash"]
        for path, kind in ((run.tokenizer_model, "tokenizer"), (run.prior_model, "prior"))
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, tuple[str, str]]:
    root = tmp_path_factory.mktemp("watched")
    return root, train(root, WATCH)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_watching_changes_no_bit(watched, tmp_path) -> None:
    assert train(tmp_path, WatchConfig()) == watched[1]
    assert not (tmp_path / "watch-prior.jsonl").exists()


def test_what_is_measured_is_logged_and_the_best_kept(watched) -> None:
    root, _ = watched
    entries = lines(root / "watch-prior.jsonl")
    assert [entry["step"] for entry in entries] == [6, 12]
    assert {"gfd", "gfd_guided"} == set(entries[0]["values"])
    logged = {entry["step"]: entry for entry in lines(root / "metrics.jsonl") if "gfd" in entry}
    for entry in entries:
        assert logged[entry["step"]]["gfd"] == pytest.approx(entry["values"]["gfd"], rel=1e-4)
        assert (root / "samples" / "training" / f"gfd-{entry['step']:08d}.png").is_file()
    best = min(entries, key=lambda entry: entry["values"]["gfd"])
    kept = root / "prior" / "best" / "model.safetensors"
    assert read_metadata(kept, "prior")["step"] == best["step"]
    assert load_prior(kept).layout == load_prior(root).layout
    tokenizer = lines(root / "watch-tokenizer.jsonl")
    assert [entry["step"] for entry in tokenizer] == [6, 12]
    assert {"rfd", "psnr", "ssim", "entropy_bits", "entropy_cliff", "used_visual"} == set(tokenizer[0]["values"])


def test_a_failure_stops_with_its_reason_and_loses_nothing(watched, tmp_path, monkeypatch) -> None:
    import overture.runs.watch as module

    measure, calls = module.generation_distance, []

    def failing(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:  # the first one at step 12
            raise RuntimeError("the evaluator died")
        return measure(*arguments, **named)

    monkeypatch.setattr(module, "generation_distance", failing)
    with pytest.raises(OvertureError, match=r"step 12 of stage prior failed \(the evaluator died\)"):
        train(tmp_path, WATCH)
    assert [entry["step"] for entry in lines(tmp_path / "watch-prior.jsonl")] == [6]
    assert train(tmp_path, WATCH) == watched[1]
    assert lines(tmp_path / "watch-prior.jsonl") == lines(watched[0] / "watch-prior.jsonl")


def test_watches_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="needs prior_every"):
        WatchConfig(keep_best="gfd")
    with pytest.raises(UsageError, match="samples is 1"):
        WatchConfig(samples=1)


def test_guided_samples_cannot_be_best_without_guidance() -> None:
    wanted = config(replace(WATCH, keep_best="gfd_guided"))
    check_evaluation(wanted)
    with pytest.raises(UsageError, match="keep_best is gfd_guided"):
        check_evaluation(replace(wanted, evaluation=replace(wanted.evaluation, guidance="1.0")))


def test_an_interrupted_line_is_measured_again_and_damage_is_refused(tmp_path) -> None:
    watch = _Watch(RunDirectory(tmp_path), "prior", every=5)
    watch.keep(5, {"gfd": 1.5})
    watch.keep(10, {"gfd": 1.0})
    whole = watch.path.read_text()
    watch.path.write_text(whole[:-4])
    assert watch.known() == {5: {"gfd": 1.5}}
    assert watch.pending(10)
    watch.keep(10, {"gfd": 1.0})
    assert watch.path.read_text() == whole
    watch.path.write_text(whole[3:])
    with pytest.raises(OvertureError, match=r"watch-prior\.jsonl: damaged"):
        watch.known()


def test_samples_to_choose_by_are_not_those_of_the_results(tmp_path) -> None:
    seeds: list[int] = []

    def pipe(classes: torch.Tensor, *, seed: int, **settings: object) -> torch.Tensor:
        seeds.append(seed)
        return torch.zeros(len(classes), 1, 8, 8)

    shared = config(WATCH)
    watch = SimpleNamespace(config=shared, run=RunDirectory(tmp_path))
    for step in (6, 12):
        list(PriorWatch._samples(watch, pipe, Guidance.parse("1.0"), 1.0, step, "gfd"))  # type: ignore[arg-type]
    assert seeds[: len(seeds) // 2] == seeds[len(seeds) // 2 :]
    chosen_by = set(seeds)
    seeds.clear()
    list(generated_batches(shared, pipe, Guidance.parse("1.0"), 1.0, SilentProgress()))  # type: ignore[arg-type]
    assert len(seeds) == 4
    assert not chosen_by & set(seeds)
