"""Files are mostly sorted by class: wherever a part of them is taken, it is drawn from all, and always the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import overture.training.train_prior as train_prior
from overture.data.base import ArraySource
from overture.data.stream import DataConfig, ImageData
from overture.data.token_files import TokenFile, TokenHeader, TokenWriter
from overture.evaluation.image_sets import open_images
from overture.evaluation.networks import load_network
from overture.evaluation.reconstruction import measure_reconstruction
from overture.evaluation.statistics import collect, save_reference
from overture.layout import Layout
from overture.processes import Processes
from overture.recipes import recipe_configs
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import make_training_reference
from overture.runs.monitor import TokenizerMonitor
from overture.training.train_prior import bits_of_files

LABELS = np.arange(10).repeat(40)
"""Ten classes, one after the other."""
IMAGES = (LABELS[:, None, None] * 25 + np.random.default_rng(0).integers(0, 20, (400, 8, 8))).astype(np.uint8)


def spread(found: object) -> None:
    """All classes are there, none of them more than three times as often as its share."""
    counts = np.bincount(np.asarray(found), minlength=10)
    assert counts.min() >= 1
    assert counts.max() <= 3 * counts.sum() / 10


def classes_of(images: object) -> np.ndarray:
    pixels = np.asarray(images)
    return pixels.reshape(len(pixels), -1).min(axis=1) // 25


@pytest.fixture
def sorted_set(tmp_path: Path) -> str:
    np.savez(tmp_path / "sorted.npz", arr_0=IMAGES, arr_1=LABELS)
    return str(tmp_path / "sorted.npz")


def test_images_kept_beside_statistics(sorted_set: str, tmp_path: Path) -> None:
    side = collect(open_images(sorted_set), load_network("random:4"))
    kept = []
    for name in ("one", "two"):
        save_reference(side, tmp_path / f"{name}.npz", keep=60)
        with np.load(tmp_path / f"{name}.npz") as file:
            kept.append(file["arr_0"])
    spread(classes_of(kept[0]))
    assert (kept[0] == kept[1]).all()


def test_images_kept_of_the_training_set(sorted_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overture.runs.evaluate_run.KEPT_IMAGES", 60)
    config = recipe_configs("quickstart", tiny=True)[1].changed(
        {"data.source": sorted_set, "tokenizer.patch_size": 4, "data.image_size": 8}
    )
    kept = []
    for name in ("one", "two"):
        run = RunDirectory(tmp_path / name)
        make_training_reference(config, config.data.build(), load_network("random:4"), run)
        with np.load(run.reference) as file:
            assert file["count"] == 360
            kept.append(file["arr_0"])
        config = config.changed({"evaluation.batch_size": 7})
    assert len(kept[0]) == 60
    spread(classes_of(kept[0]))
    assert (kept[0] == kept[1]).all()


def test_rows_that_a_prior_is_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.single([10, 4])
    header = TokenHeader(layout, "hash", "center", 1, len(LABELS), 10)
    writer = TokenWriter(tmp_path / "a.tokens", header)
    ids = np.stack([LABELS, LABELS % 4], axis=1)[:, None]
    for rows in writer.missing():
        writer.write(rows, ids[rows.start : rows.stop], LABELS[rows.start : rows.stop])
    writer.finish()
    seen: list[np.ndarray] = []

    def measured(prior: object, batches: object, processes: Processes) -> SimpleNamespace:
        seen.append(torch.cat([classes for _, classes in batches]).numpy())  # type: ignore[attr-defined]
        return SimpleNamespace(vocabulary=torch.zeros(1))

    monkeypatch.setattr(train_prior, "measure_likelihood", measured)
    training = SimpleNamespace(evaluate_every=1, steps=2, evaluate_rows=60)
    trainer = SimpleNamespace(training=training, whole_prior=lambda: None, processes=Processes())
    measure = bits_of_files(trainer, {"train": TokenFile.open(tmp_path / "a.tokens")})  # type: ignore[arg-type]
    for step in (1, 2):
        measure(step)
    assert len(seen[0]) == 60
    spread(seen[0])
    assert (seen[0] == seen[1]).all()


def test_held_out_images_that_a_tokenizer_is_watched_on(tmp_path: Path) -> None:
    source = ArraySource("sorted", IMAGES, LABELS, [str(n) for n in range(10)])
    config = recipe_configs("quickstart", tiny=True)[1].changed({"watch.images": 60})
    trainer = SimpleNamespace(processes=Processes())
    monitor = TokenizerMonitor(config, ImageData(source, source, 8, 1), RunDirectory(tmp_path), trainer, None)  # type: ignore[arg-type]
    assert len(monitor.source) == 60
    spread(monitor.source.labels)


def test_pictures_of_reconstructions() -> None:
    class Same:
        layout = Layout.single([2])

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 1, dtype=torch.long)

        def decode(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(ids), 1, 16, 16)

    images = torch.from_numpy(IMAGES.repeat(2, axis=1).repeat(2, axis=2))[:, None]
    report = measure_reconstruction(Same(), images.split(30), shown=60)  # type: ignore[arg-type]
    spread(classes_of(report.shown[0]))


def test_images_that_are_looked_at_before_a_run(sorted_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from overture.data.reading import ImageReader
    from overture.runs.checks import look_at

    seen: list[int] = []
    read = ImageReader.read_or_next
    monkeypatch.setattr(
        ImageReader, "read_or_next", lambda self, index, corrupt: seen.append(index) or read(self, index, corrupt)
    )
    config = DataConfig(sorted_set, image_size=8)
    data = config.build()
    look_at(data, config)
    spread(data.train.labels[seen])
