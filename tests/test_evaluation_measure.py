"""Measurements end to end: names, conditions, references, and processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.errors import OvertureError
from overture.evaluation.conditions import Conditions, Measurement, differences
from overture.evaluation.evaluation import frechet_measurement
from overture.evaluation.gaussian import GaussianStatistics
from overture.evaluation.image_hash import ImageSetHash
from overture.evaluation.image_quality import psnr
from overture.evaluation.metrics.frechet_distance import frechet_distance
from overture.evaluation.networks import FeatureNetwork, RandomNetwork, load_network
from overture.evaluation.reconstruction import measure_reconstruction
from overture.evaluation.statistics import ImageStatistics, measure_batches, open_reference, read_statistics
from overture.layout import Layout
from overture.processes import Processes
from overture.progress import Interrupted
from together import together

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


def distance(
    batches: Iterable[torch.Tensor],
    reference: ImageStatistics,
    conditions: Conditions = Conditions(),
    network: FeatureNetwork = NETWORK,
) -> Measurement:
    """The Fréchet distance of generated images."""
    side = measure_batches("samples", network, batches)
    return frechet_measurement(f"g{network.label}", side, reference, network, conditions)


def test_frechet_measurement_is_the_distance_of_the_features() -> None:
    real, fake = images(60), images(40, seed=1)
    reference = measure_batches("toy", NETWORK, real.split(7))
    measured = distance(fake.split(9), reference, Conditions(guidance="none", seed=3))
    a, b = GaussianStatistics(6), GaussianStatistics(6)
    a.update(NETWORK(fake))
    b.update(NETWORK(real))
    assert measured.name == "gFD(random:6)"
    assert measured.value == pytest.approx(frechet_distance(a.result(), b.result()).distance, rel=FLOAT32)
    conditions = measured.conditions
    assert (conditions.images, conditions.reference_images, conditions.reference) == (40, 60, "toy")
    assert (conditions.network, conditions.network_hash) == ("random:6", NETWORK.weights_hash)
    assert (conditions.guidance, conditions.seed, conditions.reference_hash) == ("none", 3, reference.hash)
    assert (measured.better, conditions.image_size) == ("lower", 16)
    (note,) = measured.notes
    assert note == "only 40 images on a side: a rough number"
    values = measured.to_dict()
    assert Measurement.from_dict(json.loads(json.dumps(values, allow_nan=False))) == measured


def test_singular_covariances_are_told() -> None:
    reference = measure_batches("toy", NETWORK, [images(60)])
    measured = distance([images(4)], reference)
    assert "the covariance of the samples is singular: rank 3 of 6" in measured.notes
    assert not any("covariance of the reference" in note for note in measured.notes)


def test_references_keep_what_they_are(tmp_path) -> None:
    reference = measure_batches("toy", NETWORK, [images(30)])
    for side in (reference, dataclasses.replace(reference, size=(16, 24))):
        side.save(tmp_path / "toy.npz")
        loaded = read_statistics(tmp_path / "toy.npz")
        for name in ("name", "hash", "images", "network", "network_hash", "size"):
            assert getattr(loaded, name) == getattr(side, name)
    reference.save(tmp_path / "toy.npz")
    loaded = read_statistics(tmp_path / "toy.npz", NETWORK)
    a, b = (distance([images(20, seed=1)], side) for side in (reference, loaded))
    assert a == b


def test_statistics_of_another_network_are_refused(tmp_path) -> None:
    reference = measure_batches("toy", NETWORK, [images(30)])
    reference.save(tmp_path / "toy.npz")
    for other in (load_network("random:5"), RandomNetwork(6, seed=1)):
        with pytest.raises(
            OvertureError,
            match=rf"toy\.npz: .*these statistics were made with random:6 (of other weights than|and not) {other.name}",
        ):
            open_reference(str(tmp_path / "toy.npz"), other)
        with pytest.raises(OvertureError, match=f"toy: these statistics were made with random:6 .*{other.name}"):
            reference.check_network(other)


@pytest.mark.parametrize("other", [load_network("random:5"), RandomNetwork(6, seed=1)], ids=["dims", "weights alone"])
def test_no_distance_to_statistics_of_another_network(other: FeatureNetwork) -> None:
    reference = measure_batches("toy", NETWORK, [images(30)])
    with pytest.raises(
        OvertureError,
        match=f"toy: .*these statistics were made with random:6 (of other weights than|and not) {other.name}",
    ):
        distance([images(20)], reference, network=other)


def test_plain_references_are_used_with_a_note(tmp_path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6))
    measured = distance([images(20)], read_statistics(path, NETWORK))
    assert "the statistics of the reference do not say which network made them" in measured.notes
    assert measured.conditions.reference == "plain.npz"
    assert measured.conditions.reference_images is None
    np.savez(path, mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(OvertureError, match=r"plain\.npz: 7 features, random:6 has 6"):
        read_statistics(path, NETWORK)


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


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_for_a_covariance(count: int) -> None:
    with pytest.raises(OvertureError, match=f"samples: {count} images give no statistics"):
        measure_batches("samples", NETWORK, [images(1)][:count])


def test_as_many_images_come_as_were_announced() -> None:
    with pytest.raises(OvertureError, match="samples: gave 8 of 9 images"):
        measure_batches("samples", NETWORK, images(8).split(3), total=9)


def test_measurements_heed_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take hours on a large set; nothing that is finished is lost with them."""
    asked: list[int] = []
    batches = (asked.append(1) or part for part in images(300).split(100))
    monkeypatch.setattr("overture.progress._StopFlag.raised", True)
    for measure in (
        lambda: measure_batches("samples", NETWORK, batches),
        lambda: measure_reconstruction(MeanTokenizer(), batches, NETWORK),
    ):
        asked.clear()
        with pytest.raises(Interrupted, match="stopped in the measurements"):
            measure()
        assert len(asked) <= 1


def test_measure_reconstruction() -> None:
    batch = images(30)
    report = measure_reconstruction(MeanTokenizer(), batch.split(8), NETWORK, shown=11)
    tokenizer = MeanTokenizer()
    ids = tokenizer.encode(batch / 127.5 - 1)
    decoded = tokenizer.decode(ids)
    recon = (127.5 * decoded + 128).clamp(0, 255).to(torch.uint8)
    assert report.quality.psnr == pytest.approx(float(psnr(batch, recon).mean()), rel=1e-9)
    assert report.l1 == pytest.approx(float((decoded - (batch / 127.5 - 1)).abs().mean()), rel=1e-5)
    reference = measure_batches("x", NETWORK, [batch])
    assert report.distance is not None
    assert report.distance.value == pytest.approx(distance([recon], reference).value, rel=FLOAT32)
    assert report.distance.name == "rFD(random:6)"
    assert report.distance.conditions.reference_hash == reference.hash
    assert report.usage.images == 30
    assert torch.equal(report.ids_NT, ids)
    # Drawn from all images, whatever batches they come in; beside each its own reconstruction.
    places = [int((batch == image).flatten(1).all(dim=1).nonzero()) for image in report.shown[0]]
    assert places == sorted(set(places))
    assert len(places) == 11
    assert max(places) >= 15
    assert torch.equal(report.shown, torch.stack([batch[places], recon[places]]))
    assert torch.equal(report.shown, measure_reconstruction(tokenizer, [batch], shown=11).shown)
    assert torch.equal(measure_reconstruction(tokenizer, [batch], shown=99).shown, torch.stack([batch, recon]))
    assert report.lpips is None
    json.dumps(report.to_dict(), allow_nan=False)
    plain = measure_reconstruction(tokenizer, [batch])
    assert plain.distance is None
    assert "distance" not in plain.to_dict()


def test_reconstructions_of_another_size_are_refused() -> None:
    with pytest.raises(OvertureError, match="give images of the tokenizer's size"):
        measure_reconstruction(MeanTokenizer(), [images(4, size=20)], NETWORK)


def _report(processes: Processes, queue: mp.SimpleQueue) -> None:
    mine = images(30)[processes.rank :: processes.size]
    report = measure_reconstruction(MeanTokenizer(), mine.split(4), NETWORK, processes=processes)
    queue.put(json.dumps(report.to_dict()))


def test_processes_together_report_what_one_reports(tmp_path) -> None:
    queue = mp.get_context("spawn").SimpleQueue()
    together(_report, 2, tmp_path, queue)
    alone = measure_reconstruction(MeanTokenizer(), [images(30)], NETWORK).to_dict()
    for _ in range(2):
        shared = json.loads(queue.get())
        assert shared["usage"] == alone["usage"]
        assert shared["distance"]["protocol"] == alone["distance"]["protocol"]
        assert shared["distance"]["value"] == pytest.approx(alone["distance"]["value"], rel=FLOAT32)
        assert shared["quality"] == pytest.approx(alone["quality"], rel=1e-10)
        assert shared["l1"] == pytest.approx(alone["l1"], rel=FLOAT32)


def _one_measures(processes: Processes, queue: mp.SimpleQueue) -> None:
    if processes.is_main:
        queue.put(measure_batches("some", NETWORK, [images(8)]).images)


def test_one_process_can_measure_while_the_others_wait(tmp_path) -> None:
    queue = mp.get_context("spawn").SimpleQueue()
    together(_one_measures, 2, tmp_path, queue)
    assert queue.get() == 8


def test_statistics_do_not_depend_on_the_batch_size() -> None:
    batch = images(40)
    a, b = (measure_batches("some", NETWORK, batch.split(size)).gaussian for size in (1, 40))
    # Features are float32: this is their rounding, not that of the statistics.
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-5, atol=1e-7)


def test_conditions_that_differ_say_where() -> None:
    a = Conditions(network="domain", images=100, seed=0, checkpoint="aa", guidance="none")
    assert differences(a, dataclasses.replace(a, seed=1, checkpoint="bb")) == []
    assert differences(a, dataclasses.replace(a, images=99, guidance="constant 2")) == ["images", "guidance"]


def test_every_condition_counts_unless_it_names_the_subject() -> None:
    for field in dataclasses.fields(Conditions):
        changed = dataclasses.replace(Conditions(), **{field.name: "x"})
        expected = [] if field.name in ("seed", "checkpoint") else [field.name]
        assert differences(Conditions(), changed) == expected


def test_a_value_that_json_cannot_hold_is_null_with_a_note() -> None:
    values = Measurement("PSNR", float("inf"), "dB", Conditions()).to_dict()
    assert (values["value"], values["notes"]) == (None, ["the value is inf"])


def test_a_reference_of_impossible_size_is_refused(tmp_path) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6), size=np.str_("large"))
    with pytest.raises(OvertureError, match=r"toy\.npz: the size of its images is 'large', needs HEIGHTxWIDTH"):
        read_statistics(path)


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
