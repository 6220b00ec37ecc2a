"""Images against a reference: every metric against an independent computation, and what must not change a number."""

from __future__ import annotations

import json
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
from overture.evaluation.collect import collect
from overture.evaluation.evaluate import collect_reference, collect_samples, evaluate
from overture.evaluation.image_sets import is_statistics_file, open_images
from overture.evaluation.inception_score import InceptionScoreMeter
from overture.evaluation.kernel_distance import kernel_distance
from overture.evaluation.networks import load_network
from overture.evaluation.precision_recall import neighbour_radii, precision_recall
from overture.evaluation.protocol import Protocol, differences
from overture.evaluation.record import compare_records, read_measurements
from overture.nn.classifier import ClassifierConfig, ClassifierRecord, save_classifier, tensors_hash


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


# Precision and recall


def brute_force(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None].astype(np.float64), axis=2)

    def radii(x: np.ndarray) -> np.ndarray:
        return np.sort(distances(x, x), axis=1)[:, k]  # place 0 is the point itself

    between = distances(samples, reference)
    precision = (between <= radii(reference)[None]).any(axis=1).mean()
    recall = (between <= radii(samples)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


@settings(max_examples=25)
@given(count=st.integers(5, 40), others=st.integers(5, 40), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_precision_recall_is_brute_force(count: int, others: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples, reference = rng.normal(size=(count, 3)) * 1.3, rng.normal(size=(others, 3)) + 5.0
    samples += 5.2
    samples, reference = samples.astype(np.float32), reference.astype(np.float32)
    result = precision_recall(torch.from_numpy(samples), torch.from_numpy(reference), k)
    assert (result.precision, result.recall) == brute_force(samples, reference, k)


@pytest.mark.parametrize("block", [7, 50, 1000])
def test_precision_recall_over_several_blocks(monkeypatch, block: int) -> None:
    from overture.evaluation import precision_recall as module

    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(90, 8, generator=generator)
    reference = torch.randn(110, 8, generator=generator) * 1.2
    expected = brute_force(samples.numpy(), reference.numpy(), 3)
    radii = neighbour_radii(samples)
    monkeypatch.setattr(module, "BLOCK", block)
    result = precision_recall(samples, reference)
    assert (result.precision, result.recall) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(neighbour_radii(samples), radii, rtol=1e-5, atol=1e-6)
    assert 0 < expected[0] < 1


def test_precision_recall_extremes() -> None:
    cloud = torch.randn(40, 5)
    same = precision_recall(cloud, cloud.clone())
    assert (same.precision, same.recall) == (1.0, 1.0)
    far = precision_recall(cloud, cloud + 1e4)
    assert (far.precision, far.recall) == (0.0, 0.0)
    with pytest.raises(OvertureError, match="more than 3"):
        precision_recall(cloud[:3], cloud)


# Inception Score


def test_inception_score_is_its_formula_and_streams() -> None:
    logits = torch.randn(2300, 7, dtype=torch.float64) * 2
    scores = []
    for part in logits.split(1000):  # the last split is short
        p = part.softmax(dim=1).numpy()
        scores.append(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(axis=0))), axis=1))))
    for batch in (1, 300, 2300):
        meter = InceptionScoreMeter(2300, split_size=1000)
        for start in range(0, 2300, batch):
            meter.update(logits[start : start + batch], start)
        result = meter.result()
        assert result.value == pytest.approx(np.mean(scores), rel=1e-12)
        assert result.deviation == pytest.approx(np.std(scores), rel=1e-9)
        assert result.splits == 3


def test_inception_score_extremes_and_errors() -> None:
    sure = torch.eye(5, dtype=torch.float64).repeat(4, 1) * 1e4
    meter = InceptionScoreMeter(20)
    meter.update(sure, 0)
    assert meter.result().value == pytest.approx(5.0)
    meter = InceptionScoreMeter(20)
    meter.update(torch.zeros(20, 5), 0)
    assert meter.result().value == pytest.approx(1.0)
    meter = InceptionScoreMeter(20)
    meter.update(sure[:10], 0)
    with pytest.raises(OvertureError, match="saw 10 of 20"):
        meter.result()
    with pytest.raises(OvertureError, match="NaN"):
        meter.update(torch.full((1, 5), torch.nan), 10)


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


# The whole


def test_all_metrics_and_what_they_are_called(arrays) -> None:
    network = load_network("random:24")
    samples = collect_samples(str(arrays[0]), network, ("kid",))
    reference = collect_reference(str(arrays[1]), network, ("kid",))
    result = evaluate(samples, reference, network)
    assert list(result.measurements) == ["fid", "precision", "recall", "kid"]
    assert result.skipped.keys() == {"sfid", "is"}
    names = {measurement.name for measurement in result.measurements.values()}
    assert names == {"FD(random:24)", "Precision(random:24)", "Recall(random:24)", "KID(random:24)"}
    protocol = result.measurements["fid"].protocol
    assert (protocol.images, protocol.reference_images, protocol.image_size) == (60, 80, 16)
    features = [network(torch.from_numpy(pixels(n, seed=s)).permute(0, 3, 1, 2)) for n, s in ((60, 0), (80, 1))]
    assert result.measurements["kid"].value == kernel_distance(*features).value
    assert result.measurements["precision"].value == precision_recall(*features).precision


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


def _one_process(rank: int, meeting: str, samples: str, domain: str, queue: mp.SimpleQueue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=3)
    side = collect(open_images(samples), load_network(domain), keep_features=True, batch_size=7, split_size=25)
    if rank == 0:
        assert side.features_ND is not None
        assert side.score is not None
        queue.put((side.hash, side.gaussian.covariance.numpy(), side.features_ND.numpy(), side.score.value))
    torch.distributed.destroy_process_group()


def test_three_processes_are_one(tmp_path, domain_file) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=pixels(61, size=28, channels=1))
    alone = collect(open_images(str(path)), load_network(domain_file), keep_features=True, batch_size=61, split_size=25)
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_one_process, args=(str(tmp_path / "meeting"), str(path), domain_file, queue), nprocs=3)
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
    record = ClassifierRecord(config, 0, 1, None, 0, tensors_hash(classifier.state_dict()))
    save_classifier(classifier, record, path)
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
    # Files are sorted by class: the first ones that are measured are not all of one.
    first = open_images(str(tmp_path / "folder"))
    assert len({first.source.path(int(place)).split("/")[-2] for place in first.order[:10]}) == 3


def test_grey_images_among_colour_ones(tmp_path) -> None:
    images = pixels(6)
    images[::2] = images[::2, ..., :1]
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0] if number % 2 == 0 else image).save(tmp_path / f"{number}.png")
    found = open_images(str(tmp_path))
    batch = torch.cat(list(found.batches(0, 6, 6))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(batch, images[found.order])


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


class Broken:
    """A network whose features are not numbers."""

    name, dims, weights_hash, label, preparation, offers = "broken", 4, "0" * 64, "FD(broken)", "", frozenset()

    def outputs(self, images):
        from overture.evaluation.networks import Outputs

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
    assert "other weights" in errors
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
        (["--reference", "R", "--images", "1"], "at least 2"),
        (["--reference", "R", "--batch-size", "0"], "at least 1"),
        (["--reference", "R", "--keep-images", "5"], "--make-reference"),
        (["--make-reference", "x.npz", "--keep-images", "1"], "--keep-images at least 2"),
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


def test_records_that_are_none(tmp_path, capsys) -> None:
    path = tmp_path / "record.json"
    for text, reason in (("{", "not a JSON"), ("{}", "no measurements")):
        path.write_text(text)
        assert main(["compare", str(path)]) == 1
        assert reason in capsys.readouterr().err
    path.write_text("[" * 100_000)
    assert main(["compare", str(path)]) == 1
    assert "not a JSON" in capsys.readouterr().err
    for wrong, reason in (({"value": 10**400}, "too large"), ({"notes": "abc"}, "need a list")):
        path.write_text(json.dumps({"x": {"name": "FID", "value": 3.0, "protocol": {}, **wrong}}))
        assert main(["compare", str(path)]) == 1
        assert reason in capsys.readouterr().err
    path.write_text(json.dumps({"x": {"name": "FID", "value": "3", "protocol": {}}}))
    assert main(["compare", str(path)]) == 1
    assert "needs a number" in capsys.readouterr().err
    path.write_text(json.dumps({"x": {"name": "FID", "value": 3.0, "protocol": {"magic": 1}}}))
    assert main(["compare", str(path)]) == 1
    assert "magic" in capsys.readouterr().err


def test_names_of_one_reference_do_not_count() -> None:
    one = Protocol(reference="a.npz", reference_hash="1")
    assert differences(one, Protocol(reference="b.npz", reference_hash="1")) == []
    assert differences(one, Protocol(reference="a.npz", reference_hash="2")) == ["reference_hash"]
    assert differences(Protocol(reference="a"), Protocol(reference="b")) == ["reference"]


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
    assert "cannot write the record" in errors.strip().splitlines()[-1]
