"""Precision and recall against a brute force over all pairs in float64."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overture.errors import OvertureError
from overture.evaluation.metrics import precision_recall as module
from overture.evaluation.metrics.precision_recall import neighbour_squares, share_inside
from overture.processes import Processes
from together import together

KINDS = ["normal", "one direction", "outlier", "sparse", "duplicates", "far away", "all the same", "whole numbers"]


def features(kind: str, count: int, dims: int, seed: int) -> Tensor:
    """Features float32 ``[N, D]``; of "whole numbers" many distances are ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dims, generator=generator)
    if kind == "one direction":
        x = x[:, :1] * torch.ones(dims) + 1e-3 * x
    elif kind == "outlier":
        x[0] *= 1000.0
    elif kind == "sparse":
        x = (x - 2).relu() * 50
    elif kind == "duplicates":
        x = x[:3].repeat(-(-count // 3), 1)[:count]
    elif kind == "far away":
        x += 1e4
    elif kind == "all the same":
        x = torch.ones(count, dims)
    elif kind == "whole numbers":
        x = torch.randint(0, 3, (count, dims), generator=generator).float()
    return x


def all_squares(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Squared distances of all pairs, difference by difference."""
    return torch.stack([(row - b_MD.double()).square().sum(dim=1) for row in a_ND.double()])


def brute_squares(x_ND: Tensor, k: int) -> Tensor:
    return all_squares(x_ND, x_ND).fill_diagonal_(torch.inf).sort(dim=1).values[:, k - 1]


def brute_share(points_ND: Tensor, centres_MD: Tensor, k: int) -> float:
    inside = (all_squares(points_ND, centres_MD) <= brute_squares(centres_MD, k)).any(dim=1)
    return float(inside.double().mean())


def rounding(*sides: Tensor) -> float:
    """How much a squared distance may be off when it is computed from lengths and products."""
    return 4e-12 * max(float(side.double().square().sum(dim=1).max()) for side in sides)


def margin(points_ND: Tensor, centres_MD: Tensor, k: int) -> Tensor:
    """How far each point is from changing sides, as a squared distance ``[N]``."""
    gaps = brute_squares(centres_MD, k) - all_squares(points_ND, centres_MD)
    return torch.where((gaps >= 0).any(dim=1), gaps.amax(dim=1), -gaps.amax(dim=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [1, 3, 65, 2048])
@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_those_of_all_pairs(kind: str, dims: int, k: int) -> None:
    x = features(kind, 60, dims, 1)
    found = neighbour_squares(x, k)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, brute_squares(x, k), rtol=1e-9, atol=rounding(x))
    if kind in ("duplicates", "all the same"):
        assert not found.any()  # copies are at distance zero, to the last bit


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    other=st.sampled_from(KINDS),
    counts=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    dims=st.sampled_from([1, 2, 30, 200]),
    k=st.integers(1, 4),
    block=st.sampled_from([1, 100, 2**24]),
)
def test_shares_are_those_of_all_pairs(
    kind: str, other: str, counts: tuple[int, int], dims: int, k: int, block: int
) -> None:
    points, centres = features(kind, counts[0], dims, 3), features(other, counts[1], dims, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = share_inside(points, centres, k)
    # Points that lie on the surface of a ball may fall to either side; ties of whole numbers have no rounding at all.
    exact = {kind, other} <= {"whole numbers", "all the same"}
    doubtful = 0 if exact else int((margin(points, centres, k) <= rounding(points, centres)).sum())
    assert abs(found - brute_share(points, centres, k)) * len(points) <= doubtful + 1e-9


@settings(max_examples=25, deadline=None)
@given(count=st.integers(5, 40), others=st.integers(5, 40), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_overlapping_clouds(count: int, others: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(count, 3, generator=generator) * 1.3 + 5.2
    reference = torch.randn(others, 3, generator=generator) + 5.0
    assert share_inside(samples, reference, k) == pytest.approx(brute_share(samples, reference, k), abs=1e-12)
    assert share_inside(reference, samples, k) == pytest.approx(brute_share(reference, samples, k), abs=1e-12)


def test_shares_of_all_sizes_occur() -> None:
    """The clouds of these tests are not all inside or all outside."""
    x, y = features("normal", 90, 8, 1), features("normal", 110, 8, 2) * 1.2
    assert 0.1 < brute_share(x, y, 3) < 1
    assert 0.1 < brute_share(y, x, 3) < 0.99


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_are_inside(k: int) -> None:
    """On a line of whole numbers the k-th neighbour is a tie for all but the ends, and balls reach to whole numbers."""
    centres = torch.arange(20.0)[:, None]
    expected = [float(max(-(-k // 2), k - min(place, 19 - place))) ** 2 for place in range(20)]
    assert neighbour_squares(centres, k).tolist() == expected
    # The last ball reaches to 19 + k and not farther.
    points = torch.tensor([[19.0 + k], [19.0 + k + 1e-4], [-k], [7.5]])
    assert share_inside(points, centres, k) == 3 / 4


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_copies_are_inside_and_at_distance_zero(offset: float) -> None:
    cloud = features("normal", 40, 500, 5) + offset
    twice = torch.cat([cloud, cloud, cloud])
    assert neighbour_squares(twice, 2).tolist() == [0.0] * 120
    assert bool((neighbour_squares(twice, 3) > 0).all())
    assert share_inside(cloud, twice, 2) == 1.0  # balls of no size hold their own centre
    assert share_inside(cloud + 1e-2, twice, 2) == 0.0
    assert share_inside(cloud, cloud.clone()) == 1.0


def test_far_members_hold_nothing_and_change_no_other_ball() -> None:
    cloud = features("normal", 40, 5, 6)
    assert share_inside(cloud, cloud + 1e4) == share_inside(cloud + 1e4, cloud) == 0.0
    far = torch.cat([cloud, torch.full((1, 5), 1e6)])
    torch.testing.assert_close(neighbour_squares(far)[:40], neighbour_squares(cloud), rtol=1e-9, atol=1e-9)
    # The lonely member's ball reaches back to the cloud, and so holds what lies around it.
    assert float(neighbour_squares(far)[40]) == pytest.approx(float(brute_squares(far, 3)[40]), rel=1e-9)
    assert share_inside(far, cloud) == pytest.approx(40 / 41)


def test_the_order_of_the_members_does_not_matter() -> None:
    x, y = features("normal", 50, 7, 7), features("normal", 60, 7, 8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(neighbour_squares(x[order]), neighbour_squares(x)[order], rtol=1e-9, atol=1e-12)
    assert share_inside(x[order], y) == pytest.approx(share_inside(x, y), abs=1e-12)
    assert share_inside(y, x[order]) == pytest.approx(share_inside(y, x), abs=1e-12)


def test_float64_tells_what_float32_cannot() -> None:
    """Neighbours that are a hundred-thousandth of the features' length apart keep their order."""
    x = 100 + torch.arange(1.0, 9.0, dtype=torch.float64)[:, None].cumsum(0) * 1e-3 * torch.ones(1, 64)
    torch.testing.assert_close(neighbour_squares(x, 1), brute_squares(x, 1), rtol=1e-4, atol=0)
    large = features("normal", 40, 8, 1) * 1e30  # its squares are beyond float32
    torch.testing.assert_close(neighbour_squares(large), brute_squares(large, 3), rtol=1e-9, atol=0)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("block", [64, 2**24])
def test_inference_mode_and_blocks_change_nothing(monkeypatch, inference: bool, block: int) -> None:
    x, y = features("normal", 50, 8, 1), features("normal", 40, 8, 2)
    expected = share_inside(x, y)
    monkeypatch.setattr(module, "BLOCK", block)
    with torch.inference_mode(inference):
        assert share_inside(x, y) == expected


def _one_process(processes: Processes, queue: mp.SimpleQueue) -> None:
    points, centres = features("normal", 53, 6, 11), features("normal", 41, 6, 12)
    found = share_inside(points, centres, processes=processes), neighbour_squares(centres, processes=processes)
    queue.put((found[0], found[1].tolist()))


def test_three_processes_find_what_one_finds(tmp_path) -> None:
    queue = mp.get_context("spawn").SimpleQueue()
    together(_one_process, 3, tmp_path, queue)
    points, centres = features("normal", 53, 6, 11), features("normal", 41, 6, 12)
    share, squares = share_inside(points, centres), neighbour_squares(centres)
    assert 0.1 < share < 0.99
    for _ in range(3):
        found = queue.get()
        assert found[0] == share
        torch.testing.assert_close(torch.tensor(found[1], dtype=torch.float64), squares, rtol=1e-12, atol=0)


def test_what_cannot_be_measured_is_refused() -> None:
    x, y = features("normal", 40, 8, 1), features("normal", 50, 8, 2)
    with pytest.raises(OvertureError, match="3 images and 3 neighbours"):
        share_inside(y, x[:3])
    assert 0 <= share_inside(x[:3], y) <= 1
    with pytest.raises(OvertureError, match="0 images"):
        neighbour_squares(x[:0])
    with pytest.raises(OvertureError, match="needs at least 1"):
        neighbour_squares(x, 0)
    with pytest.raises(OvertureError, match="8 against 7 features"):
        share_inside(x, y[:, :7])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_numbers_are_refused(bad: float) -> None:
    x, y = features("normal", 40, 8, 1), features("normal", 50, 8, 2)
    broken = x.clone()
    broken[3, 2] = bad
    with pytest.raises(OvertureError, match="NaN or infinit"):
        share_inside(y, broken)
    with pytest.raises(OvertureError, match="NaN or infinit"):
        share_inside(broken, y)
    with pytest.raises(OvertureError, match="NaN or infinit"):
        neighbour_squares(broken)
