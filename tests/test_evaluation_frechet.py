"""The Fréchet distance against closed forms and scipy; the statistics against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.errors import OvertureError
from overture.evaluation.gaussian import Gaussian, GaussianStatistics
from overture.evaluation.metrics.frechet_distance import frechet_distance
from overture.evaluation.statistics import ImageStatistics, read_statistics
from overture.files import file_hash
from overture.processes import Processes
from together import together


def features(count: int, dims: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.1, 2.0, dims, dtype=torch.float64)
    mixing = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    return torch.randn(count, dims, generator=generator, dtype=torch.float64) * scale @ mixing + offset


def gaussian(x: torch.Tensor) -> Gaussian:
    statistics = GaussianStatistics(x.shape[1])
    statistics.update(x)
    return statistics.result()


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 17), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 2),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_statistics_do_not_depend_on_the_batches(sizes: list[int], offset: float) -> None:
    x = features(sum(sizes), 5, offset=offset)
    statistics = GaussianStatistics(5)
    for batch in x.split(sizes):
        statistics.update(batch)
    result = statistics.result()
    torch.testing.assert_close(result.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    expected = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    assert (result.covariance - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert result.count == sum(sizes)


def _share(processes: Processes, shares: list[int], queue: mp.SimpleQueue) -> None:
    statistics = GaussianStatistics(4)
    statistics.update(features(sum(shares), 4).split(shares)[processes.rank])
    statistics.all_reduce(processes)
    result = statistics.result()
    queue.put((processes.rank, result.count, result.mean.tolist(), result.covariance.tolist()))


def test_processes_together_give_what_one_gives(tmp_path) -> None:
    shares = [7, 0, 12]  # a process may have no images at all
    queue = mp.get_context("spawn").SimpleQueue()
    together(_share, len(shares), tmp_path, shares, queue)
    whole = gaussian(features(sum(shares), 4))
    for _ in shares:
        _, count, mean, covariance = queue.get()
        assert count == sum(shares)
        torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), whole.mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            torch.tensor(covariance, dtype=torch.float64), whole.covariance, rtol=1e-12, atol=1e-13
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_numbers_are_refused(bad: float) -> None:
    x = features(6, 3)
    x[4, 1] = bad
    statistics = GaussianStatistics(3)
    with pytest.raises(OvertureError, match="1 of 6 feature rows hold NaN or infinity"):
        statistics.update(x)
    assert statistics.count == 0


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_are_refused(count: int) -> None:
    statistics = GaussianStatistics(3)
    statistics.update(features(2, 3)[:count])
    with pytest.raises(OvertureError, match=f"{count} samples"):
        statistics.result()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(OvertureError, match=r"need \[B, 3\]"):
        GaussianStatistics(3).update(torch.zeros(2, 4))
    with pytest.raises(OvertureError, match="same network"):
        frechet_distance(gaussian(features(9, 3)), gaussian(features(9, 4)))


def test_closed_form_for_commuting_covariances() -> None:
    rotation = torch.linalg.qr(features(6, 6)).Q
    values_a = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    values_b = torch.tensor([1.0, 4.0, 0.2, 0.5, 2.0, 0.3], dtype=torch.float64)
    mean_a, mean_b = torch.arange(6.0), torch.ones(6)
    a = Gaussian(mean_a, rotation * values_a @ rotation.T)
    b = Gaussian(mean_b, rotation * values_b @ rotation.T)
    result = frechet_distance(a, b)
    mean_term = float((mean_a - mean_b).square().sum())
    covariance_term = float((values_a.sqrt() - values_b.sqrt()).square().sum())
    assert result.distance == pytest.approx(mean_term + covariance_term, rel=1e-10)
    assert (result.rank_a, result.rank_b, result.dims) == (6, 6, 6)
    assert frechet_distance(Gaussian(mean_b, a.covariance), b).distance == pytest.approx(covariance_term, rel=1e-10)
    assert frechet_distance(Gaussian(mean_b, a.covariance), a).distance == pytest.approx(mean_term, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(dims=st.integers(2, 20), seed=st.integers(0, 10**6))
def test_agrees_with_scipy_on_well_conditioned_covariances(dims: int, seed: int) -> None:
    noise = torch.eye(dims, dtype=torch.float64) * 0.1
    a, b = (gaussian(features(8 * dims, dims, seed + side, offset=side)) for side in (0, 1))
    a, b = (Gaussian(g.mean, g.covariance + noise) for g in (a, b))
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    expected = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace())
    expected -= 2 * np.trace(root).real
    assert frechet_distance(a, b).distance == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_symmetric_and_never_negative() -> None:
    a, b = gaussian(features(60, 8, 0)), gaussian(features(60, 8, 1))
    assert frechet_distance(a, b).distance == pytest.approx(frechet_distance(b, a).distance, rel=1e-10)
    assert frechet_distance(a, b).distance > 0


@pytest.mark.parametrize("count", [5, 40, 400])
def test_identical_statistics_are_at_distance_zero_even_when_singular(count: int) -> None:
    a = gaussian(features(count, 100, offset=3.0) * 30)
    result = frechet_distance(a, a)
    assert 0 <= result.distance < 1e-6
    assert result.rank_a == result.rank_b == min(count - 1, 100)


def test_rank_deficient_covariances_against_points_on_a_line() -> None:
    """Variances 4 and 9 along one direction of five: the distance is (2 - 3)^2 and the means'."""
    direction = torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0], dtype=torch.float64) / 5
    a = Gaussian(torch.zeros(5), 4 * torch.outer(direction, direction))
    b = Gaussian(torch.full((5,), 2.0), 9 * torch.outer(direction, direction))
    result = frechet_distance(a, b)
    assert result.distance == pytest.approx(1 + 20, rel=1e-12)
    assert (result.rank_a, result.rank_b) == (1, 1)


def test_orthogonal_supports_add_their_variances() -> None:
    a = Gaussian(torch.zeros(2), torch.diag(torch.tensor([4.0, 0.0])))
    b = Gaussian(torch.zeros(2), torch.diag(torch.tensor([0.0, 9.0])))
    assert frechet_distance(a, b).distance == pytest.approx(13, rel=1e-12)


def test_no_variance_at_all_leaves_the_means() -> None:
    a, b = Gaussian(torch.zeros(3), torch.zeros(3, 3)), Gaussian(torch.ones(3), torch.zeros(3, 3))
    result = frechet_distance(a, b)
    assert (result.distance, result.rank_a, result.rank_b) == (3.0, 0, 0)


def test_float32_rounding_is_accepted_and_what_is_no_covariance_refused() -> None:
    rounded = gaussian(features(20, 50)).covariance.float().double()
    a = Gaussian(torch.zeros(50), rounded)
    assert frechet_distance(a, a).distance < 1e-4
    with pytest.raises(OvertureError, match="covariance of REF has the eigenvalue"):
        frechet_distance(a, Gaussian(torch.zeros(50), -rounded), ("SAMPLES", "REF"))
    lopsided = rounded.clone()
    lopsided[0, 1] += 1
    with pytest.raises(OvertureError, match="covariance of SAMPLES is not symmetric"):
        frechet_distance(Gaussian(torch.zeros(50), lopsided), a, ("SAMPLES", "REF"))


def test_statistics_survive_a_file(tmp_path) -> None:
    a = gaussian(features(12, 3))
    path = tmp_path / "deep" / "statistics.npz"
    ImageStatistics("twelve", "ab" * 32, 12, a).save(path)
    side = read_statistics(path)
    assert torch.equal(a.mean, side.gaussian.mean)
    assert torch.equal(a.covariance, side.gaussian.covariance)
    assert (side.gaussian.count, side.images) == (12, 12)
    assert (side.name, side.hash, side.size, side.network, side.network_hash) == ("twelve", "ab" * 32, None, None, None)
    assert [file.name for file in path.parent.iterdir()] == ["statistics.npz"]
    before = path.read_bytes()
    side.save(path)
    assert path.read_bytes() == before


def test_plain_files_of_others_are_read(tmp_path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, mu=np.zeros(3, np.float32), sigma=np.eye(3), mu_s=np.zeros(7))
    side = read_statistics(path)
    assert (side.gaussian.dims, side.gaussian.count, side.images, side.spatial) == (3, None, None, None)
    assert (side.name, side.hash, side.network, side.network_hash) == ("plain.npz", file_hash(path), None, None)


def test_broken_files_are_one_line_errors(tmp_path) -> None:
    path = tmp_path / "statistics.npz"
    with pytest.raises(OvertureError, match="cannot read"):
        read_statistics(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(OvertureError, match="not a readable"):
        read_statistics(path)
    np.savez(path, images=np.zeros(3))
    with pytest.raises(OvertureError, match="holds images, needs mu and sigma"):
        read_statistics(path)
    np.savez(path, mu=np.array([object()] * 2), sigma=np.eye(2))
    with pytest.raises(OvertureError, match="mu is object, needs real numbers"):
        read_statistics(path)
    np.savez(path, mu=np.zeros(2), sigma=np.eye(3))
    with pytest.raises(OvertureError, match="have shapes"):
        read_statistics(path)
    np.savez(path, mu=np.array([0, np.nan]), sigma=np.eye(2))
    with pytest.raises(OvertureError, match=r"statistics\.npz: .*NaN") as caught:
        read_statistics(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"sigma": np.eye(2) + 0j}, "sigma is complex128, needs real numbers"),
        ({"mu_s": np.array(["a"]), "sigma_s": np.eye(1)}, "mu_s is <U1, needs real numbers"),
        ({"count": np.array([5])}, "count is no whole number"),
        ({"count": np.float64(5)}, "count is no whole number"),
        ({"count": np.int64(-3)}, "count is -3, statistics need at least 2 images"),
    ],
)
def test_statistics_of_the_wrong_kind_are_refused(tmp_path, arrays: dict, match: str) -> None:
    path = tmp_path / "statistics.npz"
    np.savez(path, **{"mu": np.zeros(2), "sigma": np.eye(2), **arrays})
    with pytest.raises(OvertureError, match=rf"statistics\.npz: {match}"):
        read_statistics(path)


def test_arrays_beside_the_statistics_are_left_alone(tmp_path) -> None:
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2), other=np.array([{}]), columns=np.asfortranarray(np.ones((2, 3))))
    assert read_statistics(path).gaussian.dims == 2


def test_statistics_begun_in_inference_mode_go_on_outside() -> None:
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        statistics = GaussianStatistics(4)
        statistics.update(x[:2500])
    statistics.update(x[2500:])
    torch.testing.assert_close(statistics.result().covariance, torch.cov(x.double().T))
