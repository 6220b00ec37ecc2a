"""Measurements end to end: names, protocols, references, and processes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.errors import OvertureError
from overture.evaluation.frechet import GaussianStatistics, frechet_distance
from overture.evaluation.measure import (
    feature_statistics,
    generation_distance,
    make_reference,
    reconstruction_report,
    take,
)
from overture.evaluation.networks import load_network
from overture.evaluation.processes import alone
from overture.evaluation.protocol import Measurement, Protocol, differences
from overture.evaluation.reconstruction import psnr
from overture.evaluation.reference import ImageSetHash, Reference
from overture.layout import Layout

NETWORK = load_network("random:6")
FLOAT32 = 1e-5  # features are float32, and their last digits depend on the batch size


def images(count: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 256, (count, 1, 1, 1), generator=generator)
    noise = torch.randint(-60, 60, (count, 1, size, size), generator=generator)
    return (base + noise).clamp(0, 255).to(torch.uint8)


class MeanTokenizer:
    """One token per quarter of the image: its mean grey level among 16."""

    layout = Layout.single([16] * 4)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        assert x.min() >= -1
        assert x.max() <= 1
        means = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return ((means + 1) * 8).long().clamp(0, 15)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        levels = (ids.float() + 0.5) / 8 - 1
        return levels.view(-1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3) * 1.01


def test_generation_distance_is_the_distance_of_the_features() -> None:
    real, fake = images(60), images(40, seed=1)
    reference = make_reference("toy", NETWORK, real.split(7))
    measured = generation_distance(NETWORK, fake.split(9), reference, Protocol(guidance="none", seed=3))
    a, b = GaussianStatistics(6), GaussianStatistics(6)
    a.update(NETWORK(fake))
    b.update(NETWORK(real))
    assert measured.name == "gFD(random:6)"
    assert measured.value == pytest.approx(frechet_distance(a.result(), b.result()).distance, rel=FLOAT32)
    protocol = measured.protocol
    assert (protocol.images, protocol.reference_images, protocol.reference) == (40, 60, "toy")
    assert (protocol.network, protocol.network_hash) == ("random:6", NETWORK.weights_hash)
    assert (protocol.guidance, protocol.seed, protocol.reference_hash) == ("none", 3, reference.hash)
    assert measured.notes == ()
    json.dumps(measured.to_dict(), allow_nan=False)


def test_singular_covariances_are_told() -> None:
    reference = make_reference("toy", NETWORK, [images(60)])
    measured = generation_distance(NETWORK, [images(4)], reference)
    assert measured.notes == ("the covariance of the images is singular: rank 3 of 6",)


def test_references_keep_what_they_are(tmp_path) -> None:
    reference = dataclasses.replace(make_reference("toy", NETWORK, [images(30)]), size=(16, 24))
    reference.save(tmp_path / "toy.npz")
    loaded = Reference.load(tmp_path / "toy.npz")
    for name in ("name", "hash", "network", "network_hash", "size"):
        assert getattr(loaded, name) == getattr(reference, name)
    a, b = (generation_distance(NETWORK, [images(20, seed=1)], r) for r in (reference, loaded))
    assert a == b
    with pytest.raises(OvertureError, match="other weights than random:5"):
        generation_distance(load_network("random:5"), [images(20)], loaded)


def test_plain_references_are_used_with_a_note(tmp_path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6))
    measured = generation_distance(NETWORK, [images(20)], Reference.load(path))
    assert measured.notes == ("the reference does not say which network made it",)
    assert measured.protocol.reference == "plain.npz"
    assert measured.protocol.reference_images is None
    np.savez(path, mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(OvertureError, match=r"'plain\.npz': 7 features, random:6 has 6"):
        generation_distance(NETWORK, [images(20)], Reference.load(path))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)), sizes=st.sampled_from([1, 3, 8]))
def test_image_set_hash_ignores_order_and_batches(order: list[int], sizes: int) -> None:
    batch = images(8)
    a, b = ImageSetHash(), ImageSetHash()
    a.update(batch)
    for part in batch[order].split(sizes):
        b.update(part)
    assert a.hexdigest() == b.hexdigest()
    b.update(batch[:1])
    assert a.hexdigest() != b.hexdigest()


def test_take_gives_exactly_what_was_asked_for() -> None:
    batch = images(10)
    assert torch.equal(torch.cat(list(take(batch.split(4), 7))), batch[:7])
    assert torch.equal(torch.cat(list(take(batch.split(5), 10))), batch)
    with pytest.raises(OvertureError, match="asked for 11 images but the source has 10"):
        list(take(batch.split(4), 11))
    endless = iter(lambda: batch, None)
    assert sum(map(len, take(endless, 20))) == 20


def test_too_few_images_for_a_covariance() -> None:
    reference = make_reference("toy", NETWORK, [images(30)])
    with pytest.raises(OvertureError, match="0 samples"):
        generation_distance(NETWORK, [], reference)


def test_reconstruction_report() -> None:
    batch = images(30)
    report = reconstruction_report(MeanTokenizer(), batch.split(8), NETWORK)
    tokenizer = MeanTokenizer()
    decoded = tokenizer.decode(tokenizer.encode(batch / 127.5 - 1))
    recon = (127.5 * decoded + 128).clamp(0, 255).to(torch.uint8)
    assert report.quality.psnr == pytest.approx(float(psnr(batch, recon).mean()), rel=1e-9)
    reference = make_reference("x", NETWORK, [batch])
    expected = generation_distance(NETWORK, [recon], reference)
    assert report.distance.value == pytest.approx(expected.value, rel=FLOAT32)
    assert report.distance.name == "rFD(random:6)"
    assert report.distance.protocol.reference_hash == reference.hash
    assert report.usage.images == 30
    json.dumps(report.to_dict(), allow_nan=False)
    given = reconstruction_report(tokenizer, [batch], NETWORK, make_reference("other", NETWORK, [images(50, seed=2)]))
    assert given.distance.protocol.reference == "other"
    assert given.distance.value != report.distance.value


def test_reconstructions_of_another_size_are_refused() -> None:
    with pytest.raises(OvertureError, match="give images of the tokenizer's size"):
        reconstruction_report(MeanTokenizer(), [images(4, size=20)], NETWORK)


def _report(rank: int, file: str, world: int, queue: mp.SimpleQueue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    report = reconstruction_report(MeanTokenizer(), images(30)[rank::world].split(4), NETWORK)
    queue.put(json.dumps(report.to_dict()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_together_report_what_one_reports(tmp_path) -> None:
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_report, args=(str(tmp_path / "rendezvous"), 2, queue), nprocs=2)
    alone = reconstruction_report(MeanTokenizer(), [images(30)], NETWORK).to_dict()
    for _ in range(2):
        shared = json.loads(queue.get())
        assert shared["usage"] == alone["usage"]
        assert shared["distance"]["protocol"] == alone["distance"]["protocol"]
        assert shared["distance"]["value"] == pytest.approx(alone["distance"]["value"], rel=FLOAT32)
        assert shared["quality"] == pytest.approx(alone["quality"], rel=1e-10)


def _one_measures(rank: int, file: str, world: int, queue: mp.SimpleQueue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    if rank == 0:
        with alone():
            queue.put(feature_statistics(NETWORK, [images(8)]).count)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_one_process_can_measure_while_the_others_wait(tmp_path) -> None:
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_one_measures, args=(str(tmp_path / "rendezvous"), 2, queue), nprocs=2)
    assert queue.get() == 8


def test_statistics_do_not_depend_on_the_batch_size() -> None:
    batch = images(40)
    a, b = (feature_statistics(NETWORK, batch.split(size)).result() for size in (1, 40))
    # Features are float32: this is their rounding, not that of the statistics.
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-5, atol=1e-7)


def test_protocols_that_differ_say_where() -> None:
    a = Protocol(network="domain", images=100, seed=0, checkpoint="aa", guidance="none")
    assert differences(a, dataclasses.replace(a, seed=1, checkpoint="bb")) == []
    assert differences(a, dataclasses.replace(a, images=99, guidance="constant 2")) == ["images", "guidance"]


def test_every_protocol_field_counts_unless_it_names_the_subject() -> None:
    for field in dataclasses.fields(Protocol):
        changed = dataclasses.replace(Protocol(), **{field.name: "x"})
        expected = [] if field.name in ("seed", "checkpoint") else [field.name]
        assert differences(Protocol(), changed) == expected


def test_a_value_that_json_cannot_hold_is_null_with_a_note() -> None:
    values = Measurement("PSNR", float("inf"), "dB", Protocol()).to_dict()
    assert (values["value"], values["notes"]) == (None, ["the value is inf"])


def test_a_reference_of_impossible_size_is_refused(tmp_path) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6), size=np.str_("large"))
    with pytest.raises(OvertureError, match=r"toy\.npz: the size of its images is 'large', needs HEIGHTxWIDTH"):
        Reference.load(path)


def test_a_reference_of_another_network_is_refused_before_the_work() -> None:
    def never():
        raise AssertionError("an image was asked for")
        yield

    reference = make_reference("toy", load_network("random:5"), [images(30)])
    for measure in (
        lambda: generation_distance(NETWORK, never(), reference),
        lambda: reconstruction_report(MeanTokenizer(), never(), NETWORK, reference),
    ):
        with pytest.raises(OvertureError, match="'toy': these statistics were made with random:5"):
            measure()


def test_a_grey_image_has_one_hash_in_grey_and_in_colour() -> None:
    grey, others = images(3), images(3, seed=1)

    def digest(*batches: torch.Tensor) -> str:
        found = ImageSetHash()
        for batch in batches:
            found.update(batch)
        return found.hexdigest()

    assert digest(grey, others) == digest(grey.expand(-1, 3, -1, -1), others)
    coloured = grey.repeat(1, 3, 1, 1)
    coloured[1, 2, 5, 5] ^= 1
    assert digest(grey) != digest(coloured)
