"""The domain classifier: shapes, learning, determinism, and files that are not one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from overture.config import to_dict
from overture.data.base import ArraySource
from overture.data.stream import Batch, DataConfig, TrainingStream
from overture.errors import OvertureError, UsageError
from overture.model_files import save_model, weights_hash
from overture.nn.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierRecord,
    load_classifier,
    save_classifier,
)
from overture.processes import Processes
from overture.progress import Interrupted, SilentProgress
from overture.training.loop import train
from overture.training.train_classifier import ClassifierTrainer, ClassifierTrainingConfig, top1_accuracy
from together import together

CONFIG = ClassifierConfig(image_size=16, num_classes=3, width=4, blocks=2)
TRAINING = ClassifierTrainingConfig(steps=40, batch_size=16)


def stripes(count: int, seed: int = 0, size: int = 16, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Three classes that a mirror does not change: rows, columns, checks, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    rows = (torch.arange(size) // 2 % 2)[:, None].expand(size, size)
    patterns = torch.stack([rows, rows.T, rows ^ rows.T]) * 100 + 50
    noise = torch.randint(0, 50, (count, channels, size, size), generator=generator)
    return (patterns[labels][:, None] + noise).to(torch.uint8), labels


def batch_of(images: Tensor, labels: Tensor) -> Batch:
    return Batch(images, labels, torch.arange(len(images)))


def stream(batch_size: int, processes: Processes = Processes()) -> TrainingStream:
    """Shuffled batches of 96 images."""
    images, labels = stripes(96)
    source = ArraySource("stripes", images[:, 0].numpy(), labels.numpy(), ("rows", "columns", "checks"))
    data = DataConfig(image_size=16, crop="center", mirror=False)
    return TrainingStream(source, data, batch_size, 0, processes.rank, processes.size)


def trained(
    tmp_path: Path, seed: int = 0, name: str = "classifier", **changes: object
) -> tuple[Path, ClassifierRecord]:
    """Train as a run does, and save."""
    path = tmp_path / f"{name}.safetensors"
    training = dataclasses.replace(TRAINING, **changes)  # type: ignore[arg-type]
    trainer = ClassifierTrainer(CONFIG, training, seed=seed, processes=Processes())
    batches = stream(training.batch_size).batches
    train(trainer, batches, tmp_path / f"{name}-{seed}", tmp_path / f"{name}-{seed}.jsonl", SilentProgress())
    record = trainer.save(path, 96, [batch_of(*stripes(60, seed=1))], "a fingerprint")
    return path, dataclasses.replace(record, weights_hash=weights_hash(raw(trainer.classifier)))


def raw(classifier: Classifier) -> dict[str, Tensor]:
    """Weights under the names that they have in a model file."""
    return {f"raw.{name}": tensor for name, tensor in classifier.state_dict().items()}


@pytest.mark.parametrize("size", [28, 33, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(size: int, channels: int) -> None:
    config = ClassifierConfig(channels=channels, image_size=size, num_classes=7, width=8)
    classifier = config.build().eval()
    images = torch.rand(2, channels, size, size) * 2 - 1
    assert classifier(images).shape == (2, 7)
    assert classifier.features(images).shape == (2, config.dims)
    maps = classifier.maps(images)
    assert [m.shape[1] for m in maps] == [8, 16, 32]
    assert [m.shape[2] for m in maps] == [-(-size // 2), -(-size // 4), -(-size // 8)]
    torch.testing.assert_close(classifier(images), classifier.head(maps[-1].mean((2, 3))))


def test_gradients_reach_the_images() -> None:
    """A perceptual loss needs them, with the weights frozen."""
    classifier = CONFIG.build().eval().requires_grad_(False)
    images = (torch.rand(1, 1, 16, 16) - 0.5).requires_grad_()
    torch.stack([m.square().mean() for m in classifier.maps(images)]).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_learns_and_measures(tmp_path: Path) -> None:
    path, record = trained(tmp_path)
    assert record.accuracy is not None
    assert record.accuracy > 0.9
    assert (record.train_images, record.held_out_images, record.seed) == (96, 60, 0)
    assert record.data == "a fingerprint"
    assert record.training == to_dict(TRAINING)
    classifier, loaded = load_classifier(path)
    assert loaded == record
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    held_out = stripes(60, seed=1)
    chance = int(held_out[1].bincount().max()) / 60  # of who always says the most frequent class
    assert record.chance == chance
    assert top1_accuracy(classifier, [batch_of(*held_out)]) == (record.accuracy, chance, 60)
    parts = zip(held_out[0].split(7), held_out[1].split(7), strict=True)
    assert top1_accuracy(classifier, [batch_of(*part) for part in parts]) == (record.accuracy, chance, 60)
    with torch.no_grad():
        right = classifier(held_out[0].float() / 127.5 - 1).argmax(dim=1) == held_out[1]
    assert record.accuracy == int(right.sum()) / 60
    assert weights_hash(raw(classifier)) == record.weights_hash == weights_hash(load_file(path))


def test_the_seed_decides_the_weights_and_nothing_else_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    _, first = trained(tmp_path, steps=5)
    torch.rand(3)
    _, again = trained(tmp_path, name="again", steps=5)
    _, other = trained(tmp_path, steps=5, seed=1)
    assert first == again
    assert first.weights_hash != other.weights_hash


def test_a_step_is_the_smoothed_cross_entropy_of_the_images_or_their_mirrors() -> None:
    images, labels = stripes(16)
    half = torch.arange(16) % 16 < 8
    images[..., half] = 0  # left and right now differ
    losses = {}
    for mirror in (False, True):
        training = dataclasses.replace(TRAINING, mirror=mirror)
        trainer = ClassifierTrainer(CONFIG, training, seed=0, processes=Processes())
        fresh = {name: value.clone() for name, value in trainer.classifier.state_dict().items()}
        losses[mirror] = trainer.train_batch(batch_of(images, labels))["loss"].item()
    with torch.no_grad():
        classifier = CONFIG.build().train()
        classifier.load_state_dict(fresh)
        log_probability = classifier(images.float() / 127.5 - 1).log_softmax(dim=1)
    target = torch.full((16, 3), 0.1 / 3) + 0.9 * torch.nn.functional.one_hot(labels, 3)
    assert losses[False] == pytest.approx(-(target * log_probability).sum(dim=1).mean().item(), rel=1e-5)
    assert losses[True] != losses[False]


def test_a_stop_is_heeded_and_the_training_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks take as long as models: Ctrl-C need not wait for their end."""
    whole = raw(trained_to_the_end(tmp_path / "whole"))
    for step in (1, 4):
        stopped = ClassifierTrainer(CONFIG, SHORT, seed=0, processes=Processes())
        monkeypatch.setattr("overture.training.loop.stop_requested", lambda t=stopped, step=step: t.step == step)
        with pytest.raises(Interrupted, match=f"stopped in stage {stopped.stage} at step {step}, saved"):
            train(stopped, stream(16).batches, tmp_path, tmp_path / "metrics.jsonl", SilentProgress())
    monkeypatch.undo()
    assert weights_hash(raw(trained_to_the_end(tmp_path))) == weights_hash(whole)


SHORT = dataclasses.replace(TRAINING, steps=6)


def trained_to_the_end(directory: Path) -> Classifier:
    trainer = ClassifierTrainer(CONFIG, SHORT, seed=0, processes=Processes())
    train(trainer, stream(16).batches, directory, directory / "metrics.jsonl", SilentProgress())
    return trainer.classifier


def test_a_stream_that_ends_early_is_refused(tmp_path: Path) -> None:
    images, labels = stripes(64)

    def batches(step: int):  # type: ignore[no-untyped-def]
        parts = zip(images.split(32), labels.split(32), strict=True)
        return iter([batch_of(*part) for part in parts][step:])

    training = dataclasses.replace(TRAINING, steps=3)
    trainer = ClassifierTrainer(CONFIG, training, seed=0, processes=Processes(), stage="judge")
    with pytest.raises(OvertureError, match="judge: the data stream ended early, at step 2"):
        train(trainer, batches, tmp_path, tmp_path / "metrics.jsonl", SilentProgress())


def test_hash_follows_weights_names_and_types_but_not_order() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert weights_hash({"a": a, "b": b}) == weights_hash({"b": b, "a": a})
    different = [{"a": a}, {"b": a}, {"a": a.double()}, {"a": b}, {"a": a, "b": a}]
    assert len({weights_hash(tensors) for tensors in different}) == len(different)


def test_impossible_requests_are_refused() -> None:
    images, labels = stripes(8)
    trainer = ClassifierTrainer(CONFIG, TRAINING, seed=0, processes=Processes())

    def attempt(images: Tensor, labels: Tensor) -> None:
        try:
            trainer.train_batch(batch_of(images, labels))
        finally:
            assert trainer.step == 0
            with pytest.raises(OvertureError):
                top1_accuracy(trainer.classifier, [batch_of(images, labels)])

    with pytest.raises(OvertureError, match="need uint8 Nx1x16x16"):
        attempt(images.float(), labels)
    with pytest.raises(OvertureError, match="need uint8 Nx1x16x16"):
        attempt(images[..., :8, :8], labels)
    with pytest.raises(OvertureError, match="8 images but labels"):
        attempt(images, labels[:5])
    with pytest.raises(OvertureError, match=r"classes \(0\.\.2\)"):
        attempt(images, labels + 1)
    with pytest.raises(OvertureError, match=r"classes \(0\.\.2\)"):
        attempt(images, labels - 1)
    with pytest.raises(OvertureError, match="no images"):
        attempt(images[:0], labels[:0])
    with pytest.raises(OvertureError, match="no held-out images"):
        top1_accuracy(trainer.classifier, [])
    with pytest.raises(UsageError, match="blocks need images"):
        ClassifierConfig(image_size=4)
    with pytest.raises(UsageError, match="learning_rate"):
        ClassifierTrainingConfig(learning_rate=0)
    with pytest.raises(UsageError, match="warm_up"):
        ClassifierTrainingConfig(warm_up=1.0)


# -- several processes --------------------------------------------------------------------------------------------------


def _train_some(processes: Processes, path: str) -> None:
    training = dataclasses.replace(TRAINING, mirror=False)  # which images are mirrored is drawn by every process
    trainer = ClassifierTrainer(CONFIG, training, seed=0, processes=processes)
    batches = stream(16, processes).batches(0)
    for _ in range(5):
        trainer.train_batch(next(batches))
    if processes.is_main:
        save_file({name: tensor.contiguous() for name, tensor in trainer.classifier.state_dict().items()}, path)


def test_two_processes_train_the_same_classifier_as_one(tmp_path: Path) -> None:
    _train_some(Processes(), f"{tmp_path}/one.safetensors")
    together(_train_some, 2, tmp_path, f"{tmp_path}/two.safetensors")
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, ClassifierRecord, bytes]:
    """A classifier, its record and the bytes of its file."""
    path, _ = trained(tmp_path_factory.mktemp("saved"), steps=2)
    return *load_classifier(path), path.read_bytes()


def refused(path: Path, match: str) -> None:
    with pytest.raises(OvertureError, match=match) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_are_no_classifier(tmp_path: Path, saved: tuple[Classifier, ClassifierRecord, bytes]) -> None:
    classifier, record, content = saved
    bad = tmp_path / "bad.safetensors"
    refused(bad, "no such classifier")
    bad.write_bytes(content[:-100])
    refused(bad, "not a readable safetensors")
    bad.write_bytes(b"\x80\x04pickle?" * 100)
    refused(bad, "not a readable safetensors")
    save_file({"a": torch.zeros(1)}, bad)
    refused(bad, "expected a classifier")
    save_model(bad, "prior", {"raw": classifier.state_dict()}, {"config": {}})
    refused(bad, "is a prior, expected a classifier")
    save_classifier(classifier, dataclasses.replace(record, config=ClassifierConfig(width=5)), bad)
    refused(bad, "does not fit")


@pytest.mark.parametrize("record", [None, {}, [], "text"])
def test_records_that_are_missing_or_none(
    tmp_path: Path, saved: tuple[Classifier, ClassifierRecord, bytes], record: object
) -> None:
    bad = tmp_path / "bad.safetensors"
    about = {} if record is None else {"record": record}
    save_model(bad, "classifier", {"raw": saved[0].state_dict()}, {"config": to_dict(CONFIG), **about})
    refused(bad, r"bad\.safetensors")


def test_a_newer_format_is_refused(tmp_path: Path, saved: tuple[Classifier, ClassifierRecord, bytes]) -> None:
    bad = tmp_path / "bad.safetensors"
    save_file(load_bytes(saved[2]), bad, metadata={"kind": "classifier", "format_version": "99"})
    refused(bad, "format 99")


def load_bytes(content: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(content)


def old_file(path: Path, classifier: Classifier, record: ClassifierRecord, text: str = "") -> str:
    """A classifier as version 0.1 wrote it, with its own way to hash; returns the hash."""
    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    text = text or json.dumps(to_dict(dataclasses.replace(record, weights_hash=digest.hexdigest())))
    save_file(tensors, path, metadata={"format": "overture-classifier", "format_version": "1", "record": text})
    return digest.hexdigest()


def test_files_of_version_0_1_are_still_read(tmp_path: Path, saved: tuple[Classifier, ClassifierRecord, bytes]) -> None:
    classifier, record, _ = saved
    path = tmp_path / "old.safetensors"
    digest = old_file(path, classifier, record)
    loaded, found = load_classifier(path)
    assert found == dataclasses.replace(record, weights_hash=digest)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in classifier.state_dict().items())
    fields = to_dict(record)
    old_file(path, classifier, record, json.dumps({**fields, "weights_hash": "0" * 64}))
    refused(path, "sha256 differs")
    old_file(path, classifier, record, json.dumps({**fields, "config": {**fields["config"], "width": 5}}))
    refused(path, "does not fit")
    old_file(path, classifier, record, "{}")
    refused(path, "missing")
    old_file(path, classifier, record, "{")
    refused(path, "record")
