"""The domain classifier: shapes, learning, determinism, and files that are not one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from overture.errors import OvertureError, UsageError
from overture.nn.classifier import (
    ClassifierConfig,
    load_classifier,
    save_classifier,
    tensors_hash,
)
from overture.training.classifier import ClassifierTrainingConfig, top1_accuracy, train_classifier

CONFIG = ClassifierConfig(image_size=16, num_classes=3, width=4, blocks=2)
TRAINING = ClassifierTrainingConfig(steps=40, batch_size=16)


def stripes(count: int, seed: int = 0, size: int = 16, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes that a mirror does not change: rows, columns, checks, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    rows = (torch.arange(size) // 2 % 2)[:, None].expand(size, size)
    patterns = torch.stack([rows, rows.T, rows ^ rows.T]) * 100 + 50
    noise = torch.randint(0, 50, (count, channels, size, size), generator=generator)
    return (patterns[labels][:, None] + noise).to(torch.uint8), labels


def train(tmp_path, seed: int = 0, name: str = "classifier", **changes):
    path = tmp_path / f"{name}.safetensors"
    images, labels = stripes(96)
    training = dataclasses.replace(TRAINING, **changes)
    held_out = stripes(60, seed=1)
    record = train_classifier(images, labels, CONFIG, training, seed=seed, out=path, held_out=held_out, progress=False)
    return path, record


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
    sum(m.square().mean() for m in classifier.maps(images)).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_learns_and_measures(tmp_path) -> None:
    path, record = train(tmp_path)
    assert record.accuracy is not None
    assert record.accuracy > 0.9
    assert (record.train_images, record.held_out_images, record.seed) == (96, 60, 0)
    classifier, loaded = load_classifier(path)
    assert loaded == record
    assert not classifier.training
    assert top1_accuracy(classifier, [stripes(60, seed=1)]) == (record.accuracy, 60)
    assert tensors_hash(classifier.state_dict()) == record.weights_hash == tensors_hash(load_file(path))


def test_the_seed_decides_the_weights_and_nothing_else_does(tmp_path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _, first = train(tmp_path, steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    _, again = train(tmp_path, steps=5)
    _, other = train(tmp_path, steps=5, seed=1)
    assert first == again
    assert first.weights_hash != other.weights_hash


def test_a_stream_gives_what_its_batches_give(tmp_path) -> None:
    images, labels = stripes(64)
    batches = zip(images.split(16), labels.split(16), strict=True)
    training = dataclasses.replace(TRAINING, steps=3)
    out = tmp_path / "stream.safetensors"
    record = train_classifier(batches, None, CONFIG, training, seed=0, out=out, progress=False)
    assert (record.train_images, record.accuracy) == (48, None)
    short = zip(images.split(32), labels.split(32), strict=True)
    with pytest.raises(OvertureError, match="ended after 2 of 3"):
        train_classifier(short, None, CONFIG, training, seed=0, out=out, progress=False)


def test_hash_follows_weights_names_and_types_but_not_order() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert tensors_hash({"a": a, "b": b}) == tensors_hash({"b": b, "a": a})
    different = [{"a": a}, {"b": a}, {"a": a.double()}, {"a": a.view(1, 2)}, {"a": b}]
    assert len({tensors_hash(tensors) for tensors in different}) == len(different)


def test_impossible_requests_are_refused(tmp_path) -> None:
    images, labels = stripes(8)
    out = tmp_path / "x.safetensors"

    def attempt(images, labels) -> None:
        train_classifier(images, labels, CONFIG, TRAINING, seed=0, out=out, progress=False)

    with pytest.raises(OvertureError, match="need uint8 Nx1x16x16"):
        attempt(images.float(), labels)
    with pytest.raises(OvertureError, match="need uint8 Nx1x16x16"):
        attempt(images[..., :8, :8], labels)
    with pytest.raises(OvertureError, match="8 images but labels"):
        attempt(images, labels[:5])
    with pytest.raises(OvertureError, match=r"classes \(0\.\.2\)"):
        attempt(images, labels + 1)
    with pytest.raises(OvertureError, match="no images"):
        attempt(images[:0], labels[:0])
    with pytest.raises(UsageError, match="need labels"):
        attempt(images, None)
    with pytest.raises(UsageError, match="blocks need images"):
        ClassifierConfig(image_size=4)
    with pytest.raises(UsageError, match="learning_rate"):
        ClassifierTrainingConfig(learning_rate=0)
    assert not out.exists()


def test_files_that_are_no_classifier(tmp_path) -> None:
    path, record = train(tmp_path, steps=2)
    classifier, _ = load_classifier(path)
    bad = tmp_path / "bad.safetensors"

    def refused(match: str) -> None:
        with pytest.raises(OvertureError, match=match) as caught:
            load_classifier(bad)
        assert "\n" not in str(caught.value)
        assert str(bad) in str(caught.value)

    refused("no such classifier")
    bad.write_bytes(path.read_bytes()[:-100])
    refused("not a readable safetensors")
    save_file({"a": torch.zeros(1)}, bad)
    refused("not a classifier of this project")
    save_classifier(classifier, dataclasses.replace(record, weights_hash="0" * 64), bad)
    refused("sha256 differs")
    save_classifier(classifier, dataclasses.replace(record, config=ClassifierConfig(width=5)), bad)
    refused("do not fit")
    tensors = load_file(path)
    save_file(tensors, bad, metadata={"format": "overture-classifier", "format_version": "99"})
    refused("format 99")
    save_file(tensors, bad, metadata={"format": "overture-classifier", "format_version": "1"})
    refused("record")
    save_file(tensors, bad, metadata={"format": "overture-classifier", "format_version": "1", "record": "{}"})
    refused("missing")
