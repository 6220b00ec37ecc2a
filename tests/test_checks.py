"""What a run refuses and tells before any work: nothing is trained by then, and nothing written that is in the way later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overture.data.stream import DataConfig
from overture.errors import OvertureError, UsageError
from overture.processes import Processes
from overture.progress import Interrupted, SilentProgress
from overture.recipes import recipe_configs
from overture.runs import stages
from overture.runs.checks import check_run, check_weights, look_at, needed_networks
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.stages import execute
from overture.runs.worker import Task, run_task

TINY = recipe_configs("quickstart", tiny=True)[1]


def changed(**changes: object) -> RunConfig:
    """The tiny VCQ run with options changed, ``__`` for the dots."""
    return TINY.changed({name.replace("__", "."): value for name, value in changes.items()})


def task(config: RunConfig, root: Path) -> Task:
    return Task("vcq", config, str(root / "run"), str(root / "networks"), device="cpu")


def refused(config: RunConfig, root: Path, told: str) -> None:
    with pytest.raises(OvertureError, match=told) as caught:
        run_task(task(config, root), SilentProgress(), Processes())
    assert "\n" not in str(caught.value)
    assert [path.name for path in root.rglob("*") if path.is_file()] in ([".lock"], [])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prior_training__optimizer__warmup": 999}, r"--prior-training\.optimizer: .*warm-up of 999 .* in 40 steps"),
        ({"tokenizer_training__optimizer__flat": 999}, r"--tokenizer-training\.optimizer: .*999 flat steps"),
        (
            {"tokenizer_training__discriminator_optimizer__warmup": 999},
            r"--tokenizer-training\.discriminator-optimizer: .*warm-up of 999",
        ),
        ({"judge__seed": 0, "perceptual_network__seed": 0}, "--perceptual-network equals --judge"),
        ({"evaluation__metrics": "sfid"}, r"--evaluation\.metrics: sfid needs spatial features.*network domain"),
        ({"evaluation__metrics": "fdi"}, "unknown metric 'fdi'"),
        ({"evaluation__guidance": "prologue: 2"}, "no segment 'prologue'"),
        ({"evaluation__network": "nosuch"}, "nosuch"),
        ({"tokenizer__segments__0__quantizer": "finite-scalar"}, "codebook size 2 is not a product"),
        ({"tokenizer_training__start_from": "nowhere"}, "nowhere: no such file or run"),
        ({"tokenizer_training__perceptual": "convnext", "tokenizer_training__perceptual.weights": "x.pth"}, r"x\.pth"),
        ({"data__source": "nowhere"}, "no data source 'nowhere'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_that_cannot_end_does_not_begin(
    changes: dict[str, object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "train_network", lambda *_: pytest.fail("training has begun"))
    refused(changed(**changes), tmp_path, told)


def test_the_corrected_command_is_not_refused_for_the_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(changed(prior_training__optimizer__warmup=999), tmp_path, "warm-up")
    begun: list[str] = []

    def begin(*arguments: object) -> None:
        begun.append(str(arguments[2]))
        raise OvertureError("begun")

    monkeypatch.setattr(stages, "train_network", begin)
    with pytest.raises(OvertureError, match="begun"):
        run_task(task(TINY, tmp_path), SilentProgress(), Processes())
    assert begun == ["judge"]


def test_batches_that_the_processes_cannot_share_are_named() -> None:
    config = TINY.resolve(10)
    check_run(config, Processes(0, 2))
    with pytest.raises(UsageError, match=r"--[\w.-]+\.batch-size is \d+, needs a multiple of the 7 processes"):
        check_run(config, Processes(0, 7))


def test_what_is_not_measured_needs_no_judge() -> None:
    """Who trains a tokenizer alone needs no network that judges it, unless it is watched."""
    config = changed(evaluation__network="inception:nowhere.pth").resolve(10)
    check_run(config, until="prior")
    for wanted in (replace(config, watch=replace(config.watch, prior_every=5)), config):
        with pytest.raises(OvertureError, match=r"nowhere\.pth"):
            check_run(wanted, until="report" if wanted is config else "prior")


def test_weights_that_are_there_are_looked_at_and_let_pass() -> None:
    check_weights(TINY.resolve(10))
    check_weights(changed(tokenizer_training__perceptual="none").resolve(10))


# -- classes ------------------------------------------------------------------------------------------------------------


def one_class(folder: Path, count: int = 12) -> Path:
    (folder / "photos" / "all").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / "all" / f"{number}.png")
    return folder / "photos"


def test_one_class_teaches_no_network(tmp_path: Path) -> None:
    """Its accuracy would be perfect, and its features those of its first weights."""
    config = changed(data__source=str(one_class(tmp_path / "data")), data__held_out_share=0.25)
    refused(config, tmp_path / "out", r"one class.*--evaluation\.network .*--tokenizer-training\.perceptual to none")
    other = config.changed({"evaluation.network": "random:16", "tokenizer_training.perceptual": "none"})
    assert needed_networks(other) == []
    check_run(other.resolve(1))
    with pytest.raises(UsageError, match="one class"):  # either of them is enough
        check_run(config.changed({"evaluation.network": "random:16"}).resolve(1))
    check_run(config.resolve(2))


# -- what a user is told ------------------------------------------------------------------------------------------------


def mixed(folder: Path) -> str:
    """Two classes of 28 px, some of them transparent or small, beside a folder without images."""
    for name in ("cat", "dog", "videos"):
        (folder / name).mkdir(parents=True)
    (folder / "videos" / "a.mov").touch()
    for number in range(20):
        size = 14 if number < 4 else 28
        image = Image.new("RGBA", (size, size + 3), (number, 0, 0, 100 if number % 2 else 255))
        image.save(folder / ("cat" if number < 10 else "dog") / f"{number:02d}.png")
    return str(folder)


def test_what_is_odd_about_the_images_is_told(tmp_path: Path) -> None:
    spec = mixed(tmp_path / "pets")
    config = DataConfig(spec, channels=3, held_out_share=0.1)
    notes = look_at(config.build(), config)
    told = "\n".join(notes)
    assert f"{spec}: folder videos holds no images (.mov) and is left out" in notes
    assert "9 of 18 images looked at are transparent in places: white shows there (--data.background COLOUR)" in told
    assert "images looked at are smaller than 28 px and are enlarged" in told
    assert len(notes) == 3  # each once, though both parts are of one source
    assert look_at(DataConfig().build(), DataConfig()) == []
    black = replace(config, background="black")
    assert "black shows there" in "\n".join(look_at(black.build(), black))


def test_colour_that_was_meant_as_grey_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = changed(data__source=mixed(tmp_path / "data"), data__held_out_share=0.1)
    refused(config, tmp_path / "out", r"a colour image, but the data are read as grey: set --data\.channels 3")


# -- options ------------------------------------------------------------------------------------------------------------


def test_patch_sizes_that_fit_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        changed(data__image_size=32)
    assert str(caught.value).endswith(
        "image_size 32 is not a multiple of patch_size 7; set --tokenizer.patch-size to one of 1, 2, 4, 8, 16, 32, or "
        "another --data.image-size"
    )


def test_schedules_follow_the_steps_in_proportion() -> None:
    base = TINY.changed(
        {
            "tokenizer_training.steps": 1000, "tokenizer_training.optimizer.warmup": 100,
            "tokenizer_training.optimizer.flat": 500, "tokenizer_training.discriminator_optimizer.warmup": 50,
            "tokenizer_training.adversarial.start": 300, "prior_training.steps": 400, "prior_training.optimizer.warmup": 40,
        }
    )  # fmt: skip
    short = base.changed({"tokenizer_training.steps": 100})
    training = short.tokenizer_training
    assert (training.optimizer.warmup, training.optimizer.flat) == (10, 50)
    assert (training.discriminator_optimizer.warmup, training.adversarial.start) == (5, 30)
    assert short.prior_training == base.prior_training
    long = base.changed({"prior_training.steps": 800})
    assert long.prior_training.optimizer.warmup == 80
    assert long.tokenizer_training == base.tokenizer_training
    told = base.changed({"tokenizer_training.steps": 100, "tokenizer_training.optimizer.warmup": 100})
    assert (told.tokenizer_training.optimizer.warmup, told.tokenizer_training.optimizer.flat) == (100, 50)
    assert base.changed({"seed": 1}) == replace(base, seed=1)


def test_what_auto_became_is_said_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overture.runs.stages.chosen_precision", lambda precision, device: "float32")
    config = recipe_configs("quickstart", tiny=True)[0].changed({"tokenizer_training.precision": "auto"})
    said: list[str] = []

    class Told(SilentProgress):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr("overture.runs.stages.train_network", stop)
    with pytest.raises(Interrupted):
        execute(config, RunDirectory(tmp_path / "run"), Told(), Processes())
    assert "--tokenizer-training.precision auto: float32 on this hardware" in said
    assert not any("prior-training" in line for line in said)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["tokenizer_training"]["precision"] == "float32"


def stop(*_: object) -> None:
    raise Interrupted("enough")


def test_more_images_for_the_prior_than_there_are(tmp_path: Path) -> None:
    refused(changed(tokens__images=9001), tmp_path, "tokens: images is 9001, there are 9000 training images")
    assert not (tmp_path / "run/tokenizer").exists()
    with pytest.raises(UsageError, match="tokens: images is -1, needs >= 1"):
        changed(tokens__images=-1)


def test_the_prior_always_learns_from_the_same_images() -> None:
    training = TINY.data.build().train
    chosen = changed(tokens__images=50).tokens.chosen(training)
    assert len(chosen) == 50
    assert chosen.fingerprint() == changed(tokens__images=50).tokens.chosen(training).fingerprint()
    assert len(set(chosen.labels.tolist())) > 5  # drawn, not cut off a sorted set
    assert TINY.tokens.chosen(training) is training
