"""The entropy instrument against dictionaries of prefixes, closed forms and its invariants."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import overture
from overture import Layout, OvertureError, Segment, UsageError
from overture.analysis import entropy as instrument
from overture.analysis.entropy import CLIFF_SHARES, conditional_entropy


def brute_force(ids: np.ndarray) -> tuple[list[float], list[int], list[float]]:
    """bits, prefixes and unique share from a dictionary of prefixes for every position."""
    rows = [tuple(row) for row in ids.tolist()]
    bits, prefixes, unique = [], [], []
    for t in range(ids.shape[1]):
        joint = Counter(row[: t + 1] for row in rows)
        before = Counter(row[:t] for row in rows)
        bits.append(math.fsum(-c / len(rows) * math.log2(c / before[prefix[:-1]]) for prefix, c in joint.items()))
        prefixes.append(len(joint))
        unique.append(sum(c == 1 for c in joint.values()) / len(rows))
    return bits, prefixes, unique


def assert_matches(ids: np.ndarray, result: instrument.ConditionalEntropy) -> None:
    bits, prefixes, unique = brute_force(ids)
    np.testing.assert_allclose(result.bits, bits, atol=1e-12)
    assert result.prefixes.tolist() == prefixes
    assert result.unique_share.tolist() == unique


@st.composite
def token_matrices(draw: st.DrawFn) -> np.ndarray:
    """Small matrices with few, many, or repeated rows, of every integer type and codebook size."""
    rows, positions = draw(st.integers(1, 60)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]))
    largest = draw(st.sampled_from([1, 2, 3, 100, np.iinfo(dtype).max]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    distinct = random.integers(0, largest, (draw(st.integers(1, rows)), positions), dtype=dtype, endpoint=True)
    ids = distinct[random.integers(0, len(distinct), rows)]
    # Some columns constant, some flipped in a few rows: groups that stay, and groups that split late.
    ids[:, random.random(positions) < draw(st.sampled_from([0.0, 0.5, 0.95]))] = 1
    return ids


@settings(max_examples=300, deadline=None)
@given(token_matrices())
def test_equals_brute_force(ids: np.ndarray) -> None:
    assert_matches(ids, conditional_entropy(ids))


@settings(max_examples=100, deadline=None)
@given(token_matrices(), st.integers(0, 2**32))
def test_invariants(ids: np.ndarray, seed: int) -> None:
    result = conditional_entropy(ids)
    rows = Counter(map(tuple, ids.tolist()))
    of_rows = -math.fsum(c / len(ids) * math.log2(c / len(ids)) for c in rows.values())
    assert result.total_bits == pytest.approx(of_rows, abs=1e-12)
    assert result.total_bits <= result.log2_n + 1e-12
    assert (result.bits >= 0).all()
    assert (result.bits <= np.log2(result.sizes) + 1e-12).all()
    # The order of the rows is not part of the question: not one bit may change.
    shuffled = conditional_entropy(np.random.default_rng(seed).permutation(ids))
    assert shuffled.to_dict() == result.to_dict()
    # Nor are the names of the codes.
    renamed = conditional_entropy(ids.max() - ids)
    assert renamed.bits.tolist() == result.bits.tolist()
    # A repeated row changes no proportion.
    np.testing.assert_allclose(conditional_entropy(np.concatenate([ids, ids])).bits, result.bits, atol=1e-12)


def test_many_rows_over_several_blocks() -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 40, (6000, 70)).astype(np.uint16)  # several chunks of rows, three blocks of columns
    ids[:, :35] = ids[:, :35] % 7 == 0
    ids[4000:] = ids[random.integers(0, 4000, 2000)]
    assert_matches(ids, conditional_entropy(ids))


def test_groups_that_split_late() -> None:
    ids = np.zeros((64, 200), dtype=np.int32)
    ids[:, 150] = np.arange(64) // 8
    ids[:, 199] = np.arange(64) % 8
    result = conditional_entropy(ids)
    expected = np.zeros(200)
    expected[[150, 199]] = 3
    np.testing.assert_allclose(result.bits, expected, atol=1e-12)
    assert result.unique_share[198] == 0
    assert result.unique_share[199] == 1
    assert result.cliff == 200


@pytest.mark.parametrize("size", [2, 3, 8])
def test_all_rows_of_a_codebook(size: int) -> None:
    ids = np.stack(np.meshgrid(*[np.arange(size)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    result = conditional_entropy(ids)
    np.testing.assert_allclose(result.bits, math.log2(size), atol=1e-12)
    assert result.prefixes.tolist() == [size, size**2, size**3, size**4]
    assert result.cliff == result.predicted_cliff == 4
    assert result.total_bits == pytest.approx(result.log2_n)


def test_equal_rows_hold_nothing() -> None:
    result = conditional_entropy(np.full((50, 300), 7, dtype=np.uint8))
    assert not result.bits.any()
    assert (result.prefixes == 1).all()
    assert not result.unique_share.any()
    assert result.cliff == 1


def test_one_row() -> None:
    result = conditional_entropy([[3, 1, 2]])
    assert result.bits.tolist() == [0, 0, 0]
    assert result.unique_share.tolist() == [1, 1, 1]
    assert (result.log2_n, result.cliff, result.predicted_cliff) == (0, 1, 1)


def test_cliff_is_where_99_percent_are_held() -> None:
    # 2 bits in the first position, then one row in 512 differs: 0.02 bits more.
    ids = np.zeros((512, 3), dtype=np.int64)
    ids[:, 0] = np.arange(512) % 4
    ids[0, 2] = 1
    result = conditional_entropy(ids)
    share = result.cumulative_bits / result.total_bits
    assert share[0] > CLIFF_SHARES[-1]
    assert result.cliff == 1
    ids[:16, 2] = 1
    result = conditional_entropy(ids)
    assert result.cumulative_bits[1] / result.total_bits < CLIFF_SHARES[-1]
    assert result.cliff == 3


def test_inputs_of_every_kind_agree(tmp_path) -> None:
    ids = np.random.default_rng(1).integers(0, 4, (300, 20))
    expected = conditional_entropy(ids).to_dict()
    np.save(tmp_path / "ids.npy", ids.astype(np.uint16))
    wide = np.repeat(ids, 2, axis=1)
    for same in (
        torch.from_numpy(ids),
        torch.from_numpy(ids).to(torch.uint8),
        np.asfortranarray(ids),
        wide[:, ::2],
        np.load(tmp_path / "ids.npy", mmap_mode="r"),
        ids.tolist(),
    ):
        assert conditional_entropy(same).to_dict() == expected
    assert overture.conditional_entropy is conditional_entropy
    assert conditional_entropy(ids % 2 == 1).bits.tolist() == conditional_entropy(ids % 2).bits.tolist()


def test_input_is_left_as_it_was() -> None:
    ids = np.random.default_rng(1).integers(0, 4, (300, 20))
    before = ids.copy()
    conditional_entropy(ids, labels=ids[:, 0])
    assert (ids == before).all()


def test_sizes_are_given_or_one_for_all() -> None:
    ids = np.random.default_rng(2).integers(0, 2, (1000, 20))
    ids[0, 5] = 31
    assert conditional_entropy(ids).sizes == (32,) * 20
    assert conditional_entropy(ids).predicted_cliff == 2
    sizes = [2] * 5 + [32] * 15
    layout = Layout((Segment("prologue", tuple(sizes[:5]), separator=True), Segment("visual", tuple(sizes[5:]))))
    assert conditional_entropy(ids, sizes=sizes).predicted_cliff == 6
    assert conditional_entropy(ids, layout=layout).predicted_cliff == 6
    assert conditional_entropy(ids, sizes=1024).predicted_cliff == 1
    assert conditional_entropy(np.arange(9).reshape(-1, 1), sizes=9).predicted_cliff == 1
    assert conditional_entropy(np.zeros((9, 3), dtype=int)).predicted_cliff is None


def test_per_class() -> None:
    random = np.random.default_rng(3)
    ids, labels = random.integers(0, 3, (400, 8)), random.integers(0, 5, 400)
    result = conditional_entropy(ids, labels=torch.from_numpy(labels))
    assert list(result.per_class) == sorted(set(labels.tolist()))
    for label, each in result.per_class.items():
        assert_matches(ids[labels == label], each)
        assert each.rows == (labels == label).sum()
        assert each.sizes == result.sizes
    assert result.bits.tolist() == conditional_entropy(ids).bits.tolist()
    assert set(result.to_dict()["per_class"]) == {"0", "1", "2", "3", "4"}


def test_dictionary_is_strict_json() -> None:
    result = conditional_entropy(np.zeros((3, 2), dtype=np.uint16), labels=[0, 0, 1])
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["predicted_cliff"] is None
    assert json.loads(text)["per_class"]["1"]["rows"] == 1


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.arange(5), "shape [5]"),
        (np.zeros((2, 2, 2), dtype=int), "shape [2, 2, 2]"),
        (np.zeros((0, 4), dtype=int), "shape [0, 4]"),
        (np.zeros((4, 0), dtype=int), "shape [4, 0]"),
        (np.zeros((2, 2)), "float64"),
        (np.array([[1, np.nan]]), "float64"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "bfloat16"),
        (np.array([["a", "b"]]), "need integers"),
        ([[1, 2], [3]], "no array of integers"),
        (np.array([[0, 1], [2, -3]]), "id -3 at row 1, position 1 is negative"),
    ],
)
def test_bad_ids_are_one_line(ids, says) -> None:
    with pytest.raises(OvertureError) as caught:
        conditional_entropy(ids)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_sizes_and_labels_are_one_line() -> None:
    ids = np.array([[0, 1], [2, 3], [0, 5]])
    cases = [
        ({"sizes": [3]}, "2 positions, 1 codebook sizes"),
        ({"sizes": [3, 5]}, "id 5 at row 2, position 1 is outside 0..4"),
        ({"layout": Layout.single([3, 5])}, "id 5 at row 2, position 1 is outside 0..4"),
        ({"sizes": 0}, "codebook size 0"),
        ({"labels": [1, 2]}, "labels have shape [2], need one for each of 3 rows"),
        ({"labels": [1.0, 2.0, 3.0]}, "labels are float64"),
    ]
    for arguments, says in cases:
        with pytest.raises(OvertureError) as caught:
            conditional_entropy(ids, **arguments)
        assert says in str(caught.value)
    with pytest.raises(UsageError, match="not both"):
        conditional_entropy(ids, sizes=9, layout=Layout.single([9, 9]))


@pytest.mark.parametrize("images", [1000, 1024, 1025])
def test_random_uniform_tokens_show_the_cliff(images: int) -> None:
    ids = np.random.default_rng(4).integers(0, 32, (images, 16))
    result = conditional_entropy(ids, sizes=32)
    assert result.predicted_cliff == math.ceil(math.log2(images) / 5)
    assert abs(result.cliff - result.predicted_cliff) <= 1
    assert result.bits[result.cliff + 1 :].sum() < 0.01 * result.log2_n


def test_cliffs_at_several_shares() -> None:
    """Two tokens tell most images apart, a tail of near duplicates needs ten."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, 64, 4096) for _ in range(2)], axis=1)
    tail = np.zeros((4096, 8), np.int64)
    tail[:, -1] = np.arange(4096) % 2
    result = conditional_entropy(np.concatenate([ids, tail], axis=1))
    assert result.cliffs == {"90%": result.cliff_at(0.9), "95%": result.cliff_at(0.95), "99%": result.cliff}
    assert result.cliffs["90%"] == 2
    assert result.cliff == 10
    assert result.to_dict()["cliffs"] == result.cliffs


def test_a_collapsed_tokenizer_is_called_so() -> None:
    assert conditional_entropy(np.zeros((100, 4), np.int64)).collapsed
    assert not conditional_entropy(np.zeros((2, 4), np.int64)).collapsed  # there is hardly anything to tell apart
    assert not conditional_entropy(np.arange(100)[:, None]).collapsed
