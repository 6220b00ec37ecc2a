"""The limits that rounded features give to distances hold, whatever the features are, and in both kinds of arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overture.errors import OvertureError
from overture.evaluation import precision_recall as manifolds
from overture.evaluation import rounded
from overture.evaluation.precision_recall import neighbour_radii, precision_recall
from overture.evaluation.rounded import Grid, exact_squares, near_pairs


def features(kind: str, count: int, dims: int, seed: int) -> Tensor:
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
    return x


KINDS = ["normal", "one direction", "outlier", "sparse", "duplicates", "far away", "all the same"]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [1, 3, 65, 300, 2048])
def test_distances_lie_between_their_limits(monkeypatch, kind: str, dims: int, whole: bool) -> None:
    monkeypatch.setattr(rounded, "_has_int8_products", lambda: whole)
    a_ND, b_MD = features(kind, 60, dims, 1), features(kind, 50, dims, 2)
    grid = Grid(a_ND, b_MD)
    a, b = grid.round(a_ND, seed=1), grid.round(b_MD, seed=2)
    squares_NM = grid.squares(a, slice(0, 60), b.columns(slice(0, 50)))
    margins_NM = a.margins_N[:, None] + b.margins_N
    true_NM = torch.cdist(a_ND.double(), b_MD.double()) / grid.step
    least_NM = (squares_NM - grid.slack).clamp(min=0).double().sqrt() - margins_NM
    most_NM = (squares_NM + grid.slack).clamp(min=0).double().sqrt() + margins_NM
    assert (least_NM <= true_NM).all()
    assert (true_NM <= most_NM).all()
    if kind == "normal" and dims == 2048:  # the limits are close enough to be of use
        assert float((most_NM - least_NM).mean() / true_NM.mean()) < (0.02 if whole else 0.05)


@pytest.mark.parametrize("whole", [True, False])
def test_products_of_the_largest_codes_are_exact(monkeypatch, whole: bool) -> None:
    monkeypatch.setattr(rounded, "_has_int8_products", lambda: whole)
    for dims in (5, 2048, 20_000):
        corner = torch.ones(4, dims)
        grid = Grid(corner, -corner)
        codes = torch.full((4, -(-dims // 64) * 64), grid.levels, dtype=torch.int8)
        codes[0] = -grid.levels
        assert torch.equal(grid._products(codes, codes.T.contiguous()).long(), codes.long() @ codes.long().T)
        assert 4 * grid.levels**2 * codes.shape[1] < 2**31


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    other=st.sampled_from(KINDS),
    counts=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    dims=st.sampled_from([1, 2, 30, 200]),
    k=st.integers(1, 4),
    block=st.sampled_from([4, 16, 1000]),
)
def test_precision_and_recall_are_those_of_all_pairs(
    kind: str, other: str, counts: tuple[int, int], dims: int, k: int, block: int
) -> None:
    samples, reference = features(kind, counts[0], dims, 3), features(other, counts[1], dims, 4)

    def squares(a_ND: Tensor, b_MD: Tensor) -> Tensor:
        rows, columns = torch.cartesian_prod(torch.arange(len(a_ND)), torch.arange(len(b_MD))).T
        return exact_squares(a_ND, rows, b_MD, columns).view(len(a_ND), len(b_MD))

    def radii(x_ND: Tensor) -> Tensor:
        return squares(x_ND, x_ND).fill_diagonal_(torch.inf).sort(dim=1).values[:, k - 1]

    between = squares(samples, reference)
    expected = (
        float((between <= radii(reference)).any(dim=1).double().mean()),
        float((between <= radii(samples)[:, None]).any(dim=0).double().mean()),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifolds, "BLOCK", block)
        result = precision_recall(samples, reference, k)
        assert torch.equal(neighbour_radii(samples, k), radii(samples))
    assert (result.precision, result.recall) == expected


def test_several_threads_find_what_one_finds(monkeypatch) -> None:
    samples, reference = features("normal", 300, 20, 5), features("normal", 250, 20, 6) * 1.1
    monkeypatch.setattr(manifolds, "BLOCK", 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = precision_recall(samples, reference), neighbour_radii(samples)
        torch.set_num_threads(3)
        three = precision_recall(samples, reference), neighbour_radii(samples)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert one[0] == three[0]
    assert torch.equal(one[1], three[1])
    assert 0.1 < one[0].precision < 0.99


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("wide", [0, 1, 3])
def test_near_pairs_are_those_within_their_own_limits(transposed: bool, wide: int) -> None:
    generator = torch.Generator().manual_seed(wide)
    squares = torch.randint(-5, 3000, (30, 20), generator=generator, dtype=torch.int32)
    if transposed:
        squares = squares.T.contiguous().T
    reach, own = torch.rand(30, generator=generator) * 40, 3 + torch.rand(30, generator=generator)
    reach[0] = torch.inf
    others = 3 + torch.rand(20, generator=generator)
    others[:wide] = 1000.0
    rows, columns = near_pairs(squares, reach, own, others, slack=7)
    found = torch.zeros(30, 20, dtype=torch.bool)
    found[rows, columns] = True
    assert len(rows) == int(found.sum())  # none twice
    needed = squares <= (reach[:, None] + own[:, None] + others).square() + 7
    assert found[needed].all()
    # Beside what is needed at most what the widest of the usual members would need.
    usual = squares <= (reach[:, None] + own[:, None] + others[wide:].max()).square() + 8
    assert (usual | needed)[found].all()


def test_a_member_that_was_cut_off_does_not_make_all_pairs_near(monkeypatch) -> None:
    x = features("normal", 512, 64, 7)
    counted = []
    monkeypatch.setattr(
        manifolds, "near_pairs", lambda *arguments: counted.append(near_pairs(*arguments)) or counted[-1]
    )
    monkeypatch.setattr(manifolds, "BLOCK", 128)
    neighbour_radii(x)
    before = sum(len(rows) for rows, _ in counted)
    counted.clear()
    x[100] *= 30
    neighbour_radii(x)
    after = sum(len(rows) for rows, _ in counted)
    assert after < 2 * before + 4 * len(x)


def test_bad_features_and_modes() -> None:
    x, y = features("normal", 40, 8, 1), features("normal", 50, 8, 2)
    with torch.inference_mode():
        inside = precision_recall(x, y)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.inference_mode():
            assert precision_recall(x, y) == inside
    finally:
        torch.set_num_threads(before)
    for bad in (torch.nan, torch.inf):
        broken = x.clone()
        broken[3, 2] = bad
        with pytest.raises(OvertureError, match="NaN or infinite"):
            precision_recall(y, broken)
    with pytest.raises(OvertureError, match="too large"):
        neighbour_radii(x * 1e30)
    with pytest.raises(OvertureError, match="0 images"):
        neighbour_radii(x[:0])
    with pytest.raises(OvertureError, match="needs at least 1"):
        neighbour_radii(x, 0)
