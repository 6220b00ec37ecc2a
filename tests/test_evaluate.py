"""Images against a reference: every metric against an independent computation, and what must not change a number."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from overture.cli import main
from overture.errors import OvertureError
from overture.evaluation.conditions import Conditions, Measurement, differences
from overture.evaluation.evaluation import evaluate
from overture.evaluation.image_sets import is_statistics_file, open_images
from overture.evaluation.metrics import METRICS
from overture.evaluation.metrics.inception_score import InceptionScoreMeter
from overture.evaluation.metrics.kernel_distance import kernel_distance
from overture.evaluation.metrics.precision_recall import share_inside
from overture.evaluation.networks import FeatureNetwork, Outputs, load_network
from overture.evaluation.record import compare_records, read_measurements
from overture.evaluation.statistics import ImageStatistics, collect, open_reference, open_samples, save_reference
from overture.nn.classifier import ClassifierConfig, ClassifierRecord, save_classifier
from overture.priors import Sampling
from overture.processes import Processes
from together import together


def pixels(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth random images, uint8 ``[N, H, W, C]``."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, channels))
    return np.repeat(np.repeat(coarse, size // 4, axis=1), size // 4, axis=2).astype(np.uint8)


@pytest.fixture
def arrays(tmp_path) -> tuple[Path, Path]:
    samples, reference = tmp_path / "samples.npz", tmp_path / "reference.npz"
    np.savez(samples, arr_0=pixels(60))
    np.savez_compressed(reference, arr_0=pixels(80, seed=1))
    return samples, reference


# Inception Score


def test_inception_score_is_its_formula_and_streams() -> None:
    logits = torch.randn(2300, 7, dtype=torch.float64) * 2
    scores = []
    for part in logits.split(1000):  # the last split is short
        p = part.softmax(dim=1).numpy()
        scores.append(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(axis=0))), axis=1))))
    for batch, places in ((1, None), (300, None), (2300, None), (300, torch.randperm(2300))):
        meter = InceptionScoreMeter(2300, split_size=1000)
        for rows in (torch.arange(2300) if places is None else places).split(batch):  # a place decides the split
            meter.update(logits[rows], rows)
        result = meter.result()
        assert result.value == pytest.approx(np.mean(scores), rel=1e-12)
        assert result.deviation == pytest.approx(np.std(scores), rel=1e-9)
        assert result.splits == 3


def test_inception_score_extremes_and_errors() -> None:
    sure = torch.eye(5, dtype=torch.float64).repeat(4, 1) * 1e4
    places = torch.arange(20)
    meter = InceptionScoreMeter(20)
    meter.update(sure, places)
    assert meter.result().value == pytest.approx(5.0)
    meter = InceptionScoreMeter(20)
    meter.update(torch.zeros(20, 5), places)
    assert meter.result().value == pytest.approx(1.0)
    meter = InceptionScoreMeter(20)
    meter.update(sure[:10], places[:10])
    with pytest.raises(OvertureError, match="saw 10 of 20"):
        meter.result()
    with pytest.raises(OvertureError, match="NaN"):
        meter.update(torch.full((1, 5), torch.nan), places[10:11])
    with pytest.raises(OvertureError, match="image 20 of 20"):
        meter.update(sure[:1], torch.tensor([20]))


# Kernel distance


def test_kernel_distance_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_kid import kernel_mmd

    samples, reference = torch.randn(40, 6), torch.randn(40, 6) * 1.5 + 0.3
    ours = kernel_distance(samples, reference, subsets=1, subset_size=40)
    theirs = kernel_mmd(samples.double().numpy(), reference.double().numpy())
    assert ours.value == pytest.approx(float(theirs), rel=1e-5)


def test_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, reference = (torch.randn(3000, 8, generator=generator) for _ in range(2))
    result = kernel_distance(samples, reference, subsets=40, subset_size=500)
    assert abs(result.value) < 3 * result.deviation / 40**0.5 + 1e-3
    assert kernel_distance(samples + 1, reference).value > 0.5


def test_the_spread_of_one_subset_is_not_told_as_a_number(tmp_path) -> None:
    """A hundred draws of all images are one: their deviation is rounding."""
    network = load_network("random:6")
    for count, told in (
        (50, "one subset of all 50 images, so its spread is not known"),
        (1200, "standard deviation .* over 100 subsets of 1,000 images"),
    ):
        (note,) = (
            n
            for n in evaluate(*sides(tmp_path, network, count, count), network, ("kid",)).measurements["kid"].notes
            if "subset" in n
        )
        assert re.fullmatch(told, note)


# The whole


def test_all_metrics_and_what_they_are_called(arrays) -> None:
    network = load_network("random:24")
    samples = open_samples(str(arrays[0]), network, keep_features=True)
    reference = open_reference(str(arrays[1]), network, keep_features=True)
    result = evaluate(samples, reference, network)
    assert list(result.measurements) == ["fid", "precision", "recall", "kid"]
    assert result.skipped.keys() == {"sfid", "is"}
    names = {measurement.name for measurement in result.measurements.values()}
    assert names == {"FD(random:24)", "Precision(random:24)", "Recall(random:24)", "KID(random:24)"}
    conditions = result.measurements["fid"].conditions
    assert (conditions.images, conditions.reference_images, conditions.image_size) == (60, 80, 16)
    features = [network(torch.from_numpy(pixels(n, seed=s)).permute(0, 3, 1, 2)) for n, s in ((60, 0), (80, 1))]
    assert result.measurements["kid"].value == kernel_distance(*features).value
    assert result.measurements["precision"].value == share_inside(*features)
    assert result.measurements["recall"].value == share_inside(*features[::-1])


class Official(FeatureNetwork):
    """A network that may call its distances FID; it offers all that the Inception network does."""

    name, dims, weights_hash, preparation = "official", 3, "1" * 64, "none"
    label = "FID"
    offers = frozenset({"logits", "spatial"})

    def outputs(self, images):
        features = images.float().mean(dim=(2, 3))
        return Outputs(features, logits=features, spatial=images.float()[:, :, 0, :2].flatten(1))


def test_the_names_of_the_field_are_kept_for_the_official_network(arrays) -> None:
    network = Official()
    samples, reference = (collect(open_images(str(path)), network, keep_features=True) for path in arrays)
    result = evaluate(samples, reference, network)
    assert result.skipped == {}
    assert [m.name for m in result.measurements.values()] == ["FID", "sFID", "IS", "Precision", "Recall", "KID"]
    assert [m.better for m in result.measurements.values()] == ["lower", "lower", "higher", "higher", "higher", "lower"]
    score = result.measurements["is"].conditions
    assert (score.reference, score.reference_hash, score.reference_images) == (None, None, None)
    assert evaluate(samples, reference, network, ("kid", "is", "kid")).measurements.keys() == {"kid", "is"}


class Plain(Official):
    """The same under a name of its own."""

    name, label = "plain", "FD(plain)"


def sides(tmp_path, network: FeatureNetwork, samples: int, reference: int) -> list[ImageStatistics]:
    found = []
    for seed, count in enumerate((samples, reference)):
        np.savez(tmp_path / f"{seed}.npz", arr_0=pixels(count, 4, seed=seed))
        found.append(collect(open_images(str(tmp_path / f"{seed}.npz")), network, keep_features=True))
    return found


@pytest.mark.parametrize(
    ("samples", "reference", "note"),
    [
        (1000, 1000, None),
        (999, 1000, "only 999 images on a side: a rough number"),
        (1000, 4, "only 4 images on a side: a rough number"),
    ],
)
def test_few_images_are_told_beside_every_number(tmp_path, samples: int, reference: int, note: str | None) -> None:
    """By one rule: precision of four images is 1 whatever they show."""
    result = evaluate(*sides(tmp_path, Plain(), samples, reference), Plain())
    assert result.measurements.keys() == {"fid", "sfid", "is", "precision", "recall", "kid"}
    for name, measured in result.measurements.items():
        told = [words for words in measured.notes if "rough" in words]
        alone = name == "is" and samples == 1000  # sees no reference
        assert told == ([] if note is None or alone else [note]), name


def test_under_the_name_of_the_field_the_number_of_the_field_is_told(tmp_path) -> None:
    result = evaluate(*sides(tmp_path, Official(), 1000, 1000), Official())
    for measured in result.measurements.values():
        assert "1,000 images; the ADM protocol takes 50,000, with fewer it is another number" in measured.notes


def test_a_weak_judge_is_told_beside_what_it_judges(tmp_path) -> None:
    network = Plain()
    network.notes = ("the judge has learned little",)
    result = evaluate(*sides(tmp_path, network, 9, 9), network)
    assert all("the judge has learned little" in measured.notes for measured in result.measurements.values())


def test_the_images_that_a_file_has_kept_are_counted_for_what_sees_them_alone(tmp_path) -> None:
    """Precision against five pictures is one against five, whatever the statistics beside them are of."""
    network, (samples, reference) = Plain(), sides(tmp_path, Plain(), 1200, 1300)
    for kept in (3, 5):
        save_reference(reference, tmp_path / "made.npz", kept)
        made = open_reference(str(tmp_path / "made.npz"), network, keep_features=True)
        for result in (evaluate(samples, made, network), evaluate(made, samples, network)):
            assert not any("rough" in words for words in result.measurements["fid"].notes)
            assert f"only {kept} images on a side: a rough number" in result.measurements["kid"].notes
            if kept == 3:
                assert result.skipped["precision"] == result.skipped["recall"] == "needs 4 images on each side"
                continue
            for name in ("precision", "recall", "kid"):
                conditions = result.measurements[name].conditions
                assert {conditions.images, conditions.reference_images} == {1200, 5}
            conditions = result.measurements["fid"].conditions
            assert {conditions.images, conditions.reference_images} == {1200, 1300}


def test_statistics_in_a_file_count_on_both_sides(tmp_path, capsys) -> None:
    """A reference against itself has no distance, though it has kept some of its images alone."""
    save_reference(sides(tmp_path, load_network("random:6"), 2, 200)[1], tmp_path / "made.npz", 40)
    words = ["evaluate", str(tmp_path / "made.npz"), "--network", "random:6", "--json"]
    assert main([*words, "--reference", str(tmp_path / "made.npz")]) == 0
    measured = json.loads(capsys.readouterr().out)["measurements"]
    assert abs(measured["fid"]["value"]) < 1e-9
    assert measured["fid"]["protocol"]["images"] == 200
    assert (measured["precision"]["value"], measured["precision"]["protocol"]["images"]) == (1.0, 40)
    assert main([*words, "--reference", str(tmp_path / "made.npz"), "--images", "9"]) == 2
    assert "cannot be cut to 9 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arr_0": pixels(9, 8)}, "statistics of images of 4x4, beside images of 8x8"),
        ({"arr_0": pixels(30, 4)}, "statistics of 20 images, beside 30"),
        ({"count": np.int64(1)}, "count is 1, statistics need at least 2 images"),
        ({"count": np.float64(20)}, "count is no whole number"),
        ({"size": np.str_("big")}, "size of its images is 'big'"),
    ],
    ids=str,
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, capsys, change: dict, told: str) -> None:
    save_reference(sides(tmp_path, load_network("random:6"), 2, 20)[1], tmp_path / "made.npz", 9)
    with np.load(tmp_path / "made.npz") as file:
        np.savez(tmp_path / "odd.npz", **{**file, **change})
    for words in ([str(tmp_path / "odd.npz"), "--reference", str(tmp_path / "0.npz")],
                  [str(tmp_path / "0.npz"), "--reference", str(tmp_path / "odd.npz")]):  # fmt: skip
        assert main(["evaluate", *words, "--network", "random:6"]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert "odd.npz" in last
        assert told in last


def test_a_metric_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch) -> None:
    """Where they were all asked for at once, as after a training; who asks for it by name is told."""

    def fails(*_: object) -> float:
        raise OvertureError("the matrix has no root")

    network, (samples, reference) = Plain(), sides(tmp_path, Plain(), 9, 9)
    broken = dataclasses.replace(METRICS.get("kid"), measure=fails)
    monkeypatch.setattr("overture.evaluation.evaluation.chosen_metrics", lambda names: [METRICS.get("fid"), broken])
    result = evaluate(samples, reference, network, strict=False)
    assert result.measurements.keys() == {"fid"}
    assert result.skipped == {"kid": "the matrix has no root"}
    with pytest.raises(OvertureError, match="the matrix has no root"):
        evaluate(samples, reference, network)


def test_three_images_have_no_precision(tmp_path, arrays) -> None:
    few, network = tmp_path / "few.npz", Official()
    np.savez(few, arr_0=pixels(3))
    samples, reference = (collect(open_images(str(path)), network, keep_features=True) for path in (arrays[0], few))
    for sides in ((samples, reference), (reference, samples)):
        result = evaluate(*sides, network)
        assert result.skipped.keys() == {"precision", "recall"}
        assert all("needs 4 images on each side" in reason for reason in result.skipped.values())
        with pytest.raises(OvertureError, match=r"recall: needs 4 images on each side"):
            evaluate(*sides, network, ("fid", "recall"))


@settings(max_examples=6, deadline=None)
@given(batch=st.integers(1, 60))
def test_no_number_depends_on_the_batch_size(tmp_path_factory, batch: int) -> None:
    path = tmp_path_factory.mktemp("batch") / "a.npz"
    np.savez_compressed(path, arr_0=pixels(60))
    network = load_network("random:24")
    whole = collect(open_images(str(path)), network, keep_features=True, batch_size=60)
    parts = collect(open_images(str(path)), network, keep_features=True, batch_size=batch)
    assert parts.hash == whole.hash
    torch.testing.assert_close(parts.gaussian.covariance, whole.gaussian.covariance, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(parts.features_ND, whole.features_ND)


def _one_process(processes: Processes, samples: str, domain: str, queue: mp.SimpleQueue) -> None:
    side = collect(
        open_images(samples), load_network(domain),
        keep_features=True, batch_size=7, split_size=25, processes=processes,
    )  # fmt: skip
    if processes.is_main:
        assert side.features_ND is not None
        assert side.score is not None
        queue.put((side.hash, side.gaussian.covariance.numpy(), side.features_ND.numpy(), side.score.value))


def test_three_processes_are_one(tmp_path, domain_file) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=pixels(61, size=28, channels=1))
    alone = collect(open_images(str(path)), load_network(domain_file), keep_features=True, batch_size=61, split_size=25)
    queue = mp.get_context("spawn").SimpleQueue()
    together(_one_process, 3, tmp_path, str(path), domain_file, queue)
    digest, covariance, features, score = queue.get()
    assert digest == alone.hash
    np.testing.assert_allclose(covariance, alone.gaussian.covariance.numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(features, alone.features_ND.numpy(), rtol=1e-4, atol=1e-5)
    assert score == pytest.approx(alone.score.value, rel=1e-5)


@pytest.fixture(scope="module")
def domain_file(tmp_path_factory) -> str:
    config = ClassifierConfig(channels=1, image_size=28, num_classes=10, width=8)
    torch.manual_seed(0)
    classifier = config.build().eval()
    path = tmp_path_factory.mktemp("domain") / "judge.safetensors"
    save_classifier(classifier, ClassifierRecord(config, 0, 1, None, 0), path)
    return f"domain:{path}"


# Image sets


def save_images(folder: Path, images: np.ndarray) -> None:
    for number, image in enumerate(images):
        place = folder / f"{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{number:03d}.png")


def test_folder_zip_and_array_are_the_same_images(tmp_path) -> None:
    import shutil

    images, network = pixels(30), load_network("random:24")
    save_images(tmp_path / "folder", images)
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "folder")
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(flat / f"{number}.png")
    np.savez(tmp_path / "array.npz", arr_0=images)
    np.save(tmp_path / "array.npy", images)
    places = [tmp_path / name for name in ("folder", "archive.zip", "flat", "array.npz", "array.npy")]
    sides = [collect(open_images(str(place)), network) for place in places]
    assert len({side.hash for side in sides}) == 1
    for side in sides:
        torch.testing.assert_close(side.gaussian.mean, sides[0].gaussian.mean)
    # Files are sorted by class: those that are measured, when it is a part, are not all of one.
    part, read = open_images(str(tmp_path / "folder")), []
    batches = part.batches
    part.batches = lambda rows, size: read.extend(rows.tolist()) or batches(rows, size)
    assert collect(part, network, 10).images == len(set(read)) == 10
    assert len({part.source.path(place).split("/")[-2] for place in read}) == 3


def test_grey_images_among_colour_ones(tmp_path) -> None:
    images = pixels(6)
    images[::2] = images[::2, ..., :1]
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0] if number % 2 == 0 else image).save(tmp_path / f"{number}.png")
    found = open_images(str(tmp_path))
    batch = torch.cat(list(found.batches(np.arange(6), 6))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(batch, images)


@settings(max_examples=20, deadline=None)
@given(rows=st.sets(st.integers(0, 59)), batch=st.integers(1, 61), packed=st.booleans())
def test_any_rows_of_an_array_in_full_batches(tmp_path_factory, rows: set[int], batch: int, packed: bool) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.npz"
    images, places = pixels(60, size=4), np.array(sorted(rows), dtype=np.int64)
    (np.savez_compressed if packed else np.savez)(path, arr_0=images)
    batches = list(open_images(str(path)).batches(places, batch))
    assert [len(part) for part in batches[:-1]] == [batch] * (len(batches) - 1)
    assert sum(map(len, batches)) == len(places)
    if len(places):
        assert 1 <= len(batches[-1]) <= batch
        np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), images[places])


def test_bad_sets_are_errors_and_never_numbers(tmp_path, arrays) -> None:
    network = load_network("random:8")
    for number, size in enumerate((16, 16, 20)):
        Image.fromarray(pixels(1, size)[0]).save(tmp_path / f"{number}.png")
    with pytest.raises(OvertureError, match=r"16x16, .* is 20x20|20x20, .* is 16x16"):
        collect(open_images(str(tmp_path)), network)
    assert collect(open_images(str(tmp_path), 12), network).size == (12, 12)
    with pytest.raises(OvertureError, match="asked for 61 images but it has 60"):
        collect(open_images(str(arrays[0])), network, 61)
    np.savez(tmp_path / "float.npz", arr_0=pixels(4).astype(np.float32))
    with pytest.raises(OvertureError, match="needs uint8"):
        open_images(str(tmp_path / "float.npz"))
    np.savez(tmp_path / "first.npz", arr_0=pixels(4).transpose(0, 3, 1, 2))
    with pytest.raises(OvertureError, match="needs \\[N, H, W, 3\\]"):
        open_images(str(tmp_path / "first.npz"))
    small = tmp_path / "small.npz"
    np.savez(small, arr_0=pixels(9, 8))
    with pytest.raises(OvertureError, match="16x16 against 8x8"):
        evaluate(collect(open_images(str(arrays[0])), network), collect(open_images(str(small)), network), network)


class Broken(FeatureNetwork):
    """A network whose features are not numbers."""

    name, dims, weights_hash, preparation = "broken", 4, "0" * 64, ""

    def outputs(self, images):
        return Outputs(torch.full((len(images), 4), torch.nan))


def test_features_that_are_not_numbers(arrays) -> None:
    with pytest.raises(OvertureError, match="NaN or infinity"):
        collect(open_images(str(arrays[0])), Broken())


# References


def test_a_reference_file_stands_for_its_images(arrays, tmp_path, capsys) -> None:
    reference = tmp_path / "made.npz"
    words = ["--network", "random:24", "--json"]
    assert main(["evaluate", str(arrays[1]), "--make-reference", str(reference), "--keep-images", "80", *words]) == 0
    assert is_statistics_file(str(reference))
    capsys.readouterr()
    results = []
    for place in (arrays[1], reference):
        assert main(["evaluate", str(arrays[0]), "--reference", str(place), *words]) == 0
        results.append(json.loads(capsys.readouterr().out)["measurements"])
    for metric, measured in results[0].items():
        assert results[1][metric]["value"] == pytest.approx(measured["value"], rel=1e-9), metric
        assert results[1][metric]["protocol"]["reference_hash"] == measured["protocol"]["reference_hash"]


def test_statistics_without_images(arrays, tmp_path, capsys) -> None:
    reference = tmp_path / "made.npz"
    words = ["--network", "random:24"]
    assert main(["evaluate", str(arrays[1]), "--make-reference", str(reference), *words]) == 0
    assert main(["evaluate", str(arrays[0]), "--reference", str(reference), *words, "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["measurements"].keys() == {"fid"}
    assert "statistics and no images" in out["skipped"]["recall"]
    assert main(["evaluate", str(arrays[0]), "--reference", str(reference), *words, "--metrics", "recall"]) == 1
    assert main(["evaluate", str(arrays[0]), "--reference", str(reference), "--network", "random:25"]) == 1
    errors = capsys.readouterr().err
    assert "and not random:25" in errors
    assert main(["evaluate", str(reference), "--reference", str(arrays[1]), *words, "--images", "9"]) == 2
    assert main(["evaluate", str(reference), "--make-reference", str(tmp_path / "again.npz"), *words]) == 2
    errors = capsys.readouterr().err
    assert "cannot be cut to 9 images" in errors
    assert "holds statistics already" in errors
    # The same statistics as both sides, as other repositories keep them (mu and sigma alone).
    plain = tmp_path / "plain.npz"
    with np.load(reference) as file:
        np.savez(plain, mu=file["mu"], sigma=file["sigma"])
    assert main(["evaluate", str(plain), "--reference", str(reference), *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["measurements"]["fid"]
    assert abs(found["value"]) < 1e-6
    assert "the statistics of the samples do not say which network made them" in found["notes"]
    assert main(["evaluate", str(plain), "--reference", str(plain), *words]) == 0
    assert "an unknown number of images (cut unknown) against an unknown number of plain.npz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give --reference REF"),
        (["--reference", "R", "--make-reference", "x.npz"], "give --reference REF"),
        (["--make-reference", "x.pt"], "is an .npz file"),
        (["--reference", "R", "--metrics", "fdi"], "did you mean 'fid'"),
        (["--reference", "R", "--images", "1"], "--images is 1, needs >= 2"),
        (["--reference", "R", "--batch-size", "0"], "--batch-size is 0, needs >= 1"),
        (["--reference", "R", "--keep-images", "5"], "--make-reference"),
        (["--make-reference", "x.npz", "--keep-images", "1"], "--keep-images needs to be at least 2"),
        (["--reference", "R", "--out", "."], "is a folder"),
        (["--reference", "R", "--inception-weights", "f", "--network", "random:3"], "does not go with"),
    ],
)
def test_wrong_usage(words: list[str], text: str, capsys) -> None:
    assert main(["evaluate", "S.npz", *words]) == 2
    assert text in capsys.readouterr().err


# Records


def test_records_side_by_side(arrays, tmp_path, capsys) -> None:
    words = ["--network", "random:24", "--reference", str(arrays[1])]
    first, again, other = (tmp_path / f"{name}.json" for name in ("first", "again", "other"))
    assert main(["evaluate", str(arrays[0]), *words, "--out", str(first)]) == 0
    assert main(["evaluate", str(arrays[1]), *words, "--images", "60", "--out", str(again)]) == 0
    assert main(["evaluate", str(arrays[0]), *words, "--images", "50", "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["compare", str(first), str(again), "--strict"]) == 0
    assert "Not to be compared" not in capsys.readouterr().out
    assert main(["compare", str(first), str(other), "--strict"]) == 1
    assert "(a) images: 50, first: 60" in capsys.readouterr().out
    assert main(["compare", str(first), str(other), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {mark["metric"] for mark in out["marks"]} == set(out["rows"][0]["values"])
    values = read_measurements(first)
    assert compare_records({"a": values, "b": values}).marks == ()


@pytest.mark.parametrize("other", [{"top_k": 1}, {"top_p": 0.5}, {"temperature": 0.9}, {"guidance": 2.0}], ids=str)
def test_whatever_changes_a_sample_is_in_its_record_and_marked(tmp_path, capsys, other: dict) -> None:
    """The likeliest tokens alone make other pictures: their distance does not stand beside that of free draws."""
    for name, sampling in (("free", Sampling()), ("other", Sampling.parse(**other))):
        conditions = Conditions(images=50, **sampling.to_dict())
        entry = {"x": Measurement("FID", 3.0, "", conditions).to_dict()}
        (tmp_path / f"{name}.json").write_text(json.dumps(entry))
    files = [str(tmp_path / f"{name}.json") for name in ("free", "other")]
    assert main(["compare", *files, "--strict"]) == 1
    assert f"{next(iter(other))}: " in capsys.readouterr().out
    assert Sampling().to_dict().keys() <= Conditions().to_dict().keys()


def test_records_that_were_changed_are_refused(arrays, tmp_path, capsys) -> None:
    words = ["--network", "random:24", "--reference", str(arrays[1]), "--metrics", "fid"]
    record = tmp_path / "record.json"
    assert main(["evaluate", str(arrays[0]), *words, "--out", str(record)]) == 0
    assert main(["compare", str(record)]) == 0
    data = json.loads(record.read_text())
    data["measurements"]["fid"]["value"] /= 2
    record.write_text(json.dumps(data))
    capsys.readouterr()
    assert main(["compare", str(record)]) == 1
    assert "record.json: was changed since it was written" in capsys.readouterr().err


def test_records_that_are_none(tmp_path, capsys) -> None:
    path = tmp_path / "record.json"
    for text, reason in (("{", "not valid JSON"), ("{}", "no measurements")):
        path.write_text(text)
        assert main(["compare", str(path)]) == 1
        assert reason in capsys.readouterr().err
    path.write_text("[" * 100_000)
    assert main(["compare", str(path)]) == 1
    assert "not valid JSON" in capsys.readouterr().err
    path.write_text(json.dumps({"x": {"name": "FID", "value": 10**400, "protocol": {}}}))
    assert main(["compare", str(path)]) == 1
    assert "too large" in capsys.readouterr().err
    path.write_text(json.dumps({"x": {"name": "FID", "value": "3", "protocol": {}}}))
    assert main(["compare", str(path)]) == 1
    assert "needs a number" in capsys.readouterr().err
    path.write_text(json.dumps({"x": {"name": "FID", "value": 3.0, "protocol": 5}}))
    assert main(["compare", str(path)]) == 1
    assert "has no protocol" in capsys.readouterr().err


def test_notes_that_are_no_list_are_refused(tmp_path, capsys) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"x": {"name": "FID", "value": 3.0, "protocol": {}, "notes": "abc"}}))
    assert main(["compare", str(path)]) == 1
    assert "record.json" in capsys.readouterr().err


def test_conditions_of_later_versions_are_refused(tmp_path) -> None:
    """A number that differs in something this version cannot see must not stand unmarked beside others."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"x": {"name": "FID", "value": 3.0, "protocol": {"magic": 1, "images": 7}}}))
    with pytest.raises(OvertureError, match=r"record\.json: the measurement 'FID' is damaged .*'magic'"):
        read_measurements(path)


def test_names_of_one_reference_do_not_count() -> None:
    one = Conditions(reference="a.npz", reference_hash="1")
    assert differences(one, Conditions(reference="b.npz", reference_hash="1")) == []
    assert differences(one, Conditions(reference="a.npz", reference_hash="2")) == ["reference_hash"]
    assert differences(Conditions(reference="a"), Conditions(reference="b")) == ["reference"]


def test_measurements_of_one_name_are_told_apart(tmp_path) -> None:
    def entry(value: float) -> dict:
        return {"name": "gFD(domain)", "value": value, "protocol": {}}

    path = tmp_path / "results.json"
    path.write_text(
        json.dumps({"real": entry(0.1), "generation": [entry(5.0), entry(4.0)], "x": {**entry(1), "name": "FD"}})
    )
    found = {name: measurement.value for name, measurement in read_measurements(tmp_path).items()}
    assert found == {
        "gFD(domain) (real)": 0.1,
        "gFD(domain) (generation 0)": 5.0,
        "gFD(domain) (generation 1)": 4.0,
        "FD": 1.0,
    }


# Statistics files


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"mu": np.zeros(24)}, "holds mu, needs images (arr_0), or mu and sigma"),
        ({"sigma": np.eye(24)}, "holds sigma, needs images (arr_0), or mu and sigma"),
        ({}, "holds nothing, needs images (arr_0), or mu and sigma"),
        ({"mu": np.eye(24), "sigma": np.zeros(24)}, "have shapes (24, 24) and (24,)"),
        ({"mu": np.full(24, np.nan), "sigma": np.eye(24)}, "NaN or infinity"),
        ({"mu": np.zeros(24), "sigma": np.triu(np.ones((24, 24)))}, "covariance of wrong.npz is not symmetric"),
        ({"mu": np.zeros(24), "sigma": -np.eye(24)}, "covariance of wrong.npz has the eigenvalue -1"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "5 features, random:24 has 24"),
        ({"mu": np.zeros(24), "sigma": np.eye(24), "size": np.str_("8x8")}, "16x16 against 8x8 pixels"),
        ({"mu": np.zeros(24), "sigma": np.eye(24), "arr_0": pixels(9, 8)}, "16x16 against 8x8 pixels"),
        ({"mu": np.zeros(24), "sigma": np.eye(24), "arr_0": pixels(9) / 255}, "needs uint8"),
    ],
)
def test_statistics_that_are_wrong(arrays, tmp_path, capsys, held: dict, text: str) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, **held)
    assert main(["evaluate", str(arrays[0]), "--reference", str(wrong), "--network", "random:24", "--json"]) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    last = errors.strip().splitlines()[-1]
    assert last.startswith("overture: ")
    assert text in last
    assert "wrong.npz" in last


def test_a_reference_knows_the_size_of_its_images(arrays, tmp_path, capsys) -> None:
    made, small = tmp_path / "made.npz", tmp_path / "small.npz"
    np.savez(small, arr_0=pixels(9, 8))
    words = ["--network", "random:24"]
    assert main(["evaluate", str(arrays[1]), "--make-reference", str(made), *words]) == 0
    assert main(["evaluate", str(small), "--reference", str(made), *words]) == 1
    assert "8x8 against 16x16 pixels" in capsys.readouterr().err
    assert main(["evaluate", str(arrays[1]), "--make-reference", str(made), *words, "--keep-images", "81"]) == 1
    assert main(
        ["evaluate", str(arrays[1]), "--make-reference", str(made), *words, "--keep-images", "9", "--images", "8"]
    ) == 1  # fmt: skip
    errors = capsys.readouterr().err
    assert "asked to keep 81 images of 80" in errors
    assert "asked to keep 9 images of 8" in errors


def test_grey_and_colour_images_are_kept_together(tmp_path) -> None:
    folder, made = tmp_path / "images", tmp_path / "made.npz"
    folder.mkdir()
    for number, image in enumerate(pixels(1004, 8)):  # more than the thousand that are read at once
        Image.fromarray(image if number == 0 else image[..., 0]).save(folder / f"{number:04d}.png")
    words = ["evaluate", str(folder), "--make-reference", str(made), "--network", "random:4", "--keep-images", "1004"]
    assert main(words) == 0
    with np.load(made) as file:
        kept = file["arr_0"]
    assert kept.shape == (1004, 8, 8, 3)
    assert int((kept.min(axis=(1, 2, 3)) < 256).sum()) == 1004
    assert int((kept[..., 0] != kept[..., 1]).any(axis=(1, 2)).sum()) == 1


def test_numbers_are_told_though_the_record_cannot_be_written(arrays, tmp_path, capsys) -> None:
    words = ["--reference", str(arrays[1]), "--network", "random:24", "--json"]
    assert main(["evaluate", str(arrays[0]), *words, "--out", str(arrays[0] / "record.json")]) == 1
    out, errors = capsys.readouterr()
    assert json.loads(out)["measurements"]["fid"]["value"] > 0
    assert "cannot write it" in errors.strip().splitlines()[-1]


# Order


GREY = """
import torch
from overture.evaluation.networks import FeatureNetwork, Outputs


class Grey(FeatureNetwork):
    name, dims, weights_hash, preparation, offers = "grey", 4, "2" * 64, "none", frozenset({"logits"})

    def __init__(self, argument, device):
        pass

    def outputs(self, images):
        x = images.flatten(1).float()
        levels = torch.arange(10) * 20.0 + 30
        return Outputs(x[:, :4] / 255, logits=-(x.mean(dim=1, keepdim=True) - levels).square())
"""


@pytest.fixture(scope="module")
def two_orders(tmp_path_factory) -> tuple[Path, Path, str]:
    """10,000 images of ten grey levels, sorted by level, and the same ones shuffled; a network that tells the levels."""
    folder, rng = tmp_path_factory.mktemp("orders"), np.random.default_rng(0)
    levels = np.arange(10).repeat(1000)[:, None, None] * 20 + 30
    images = (levels + rng.integers(-9, 10, (10_000, 8, 8))).astype(np.uint8)
    np.savez(folder / "sorted.npz", arr_0=images)
    np.savez(folder / "shuffled.npz", arr_0=rng.permutation(images))
    (folder / "grey_judge.py").write_text(GREY)
    return folder / "sorted.npz", folder / "shuffled.npz", f"{folder / 'grey_judge.py'}:Grey"


@pytest.mark.parametrize("images", [10_000, 2_000])
def test_sorted_images_score_as_the_same_in_another_order(two_orders, capsys, images: int) -> None:
    """Splits of the Inception Score and parts of a set are drawn: cut off, they would hold a half of the classes or two."""
    *orders, network = two_orders
    words = ["--network", network, "--reference", str(orders[1]), "--images", str(images), "--metrics", "is,fid"]
    scores, distances, hashes = [], [], []
    for path in orders:
        capsys.readouterr()
        assert main(["evaluate", str(path), *words, "--json", "--device", "cpu"]) == 0
        measured = json.loads(capsys.readouterr().out)["measurements"]
        scores.append(measured["is"]["value"])
        distances.append(measured["fid"]["value"])
        hashes.append(measured["is"]["protocol"]["checkpoint"])
        assert {m["protocol"]["images"] for m in measured.values()} == {images}
    assert scores == pytest.approx([10, 10], rel=0.01)
    assert scores[0] == pytest.approx(scores[1], rel=0.01)
    assert (hashes[0] == hashes[1]) == (images == 10_000)  # the same images, or others of the same set
    variance = 4 * np.var(np.arange(10) * 20 / 255)  # of the four features; two levels alone are farther away than that
    assert max(distances) < (1e-9 if images == 10_000 else 1e-2 * variance)
