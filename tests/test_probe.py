"""Linear probe: optimum, known cases, intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from overture.analysis.probe import LinearHead, ProbeData, fit_linear, prefix_lengths, study, wilson_interval
from overture.errors import OvertureError, UsageError
from overture.layout import Layout, Segment

LAYOUT = Layout((Segment("prologue", (4, 4), separator=True), Segment("visual", (8, 8, 8))))


def make_data(rows: int = 400, seed: int = 0) -> ProbeData:
    """The label is the first token; the second repeats it in one half of the rows; the rest is noise."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(LAYOUT.sizes)
    ids = (torch.rand(2 * rows, LAYOUT.length, generator=generator) * sizes).long()
    labels = ids[:, 0].clone()
    ids[::2, 1] = labels[::2]
    return ProbeData(LAYOUT, ids[:rows], labels[:rows], ids[rows:], labels[rows:])


def one_hot(ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(ids, 8).float()


def test_the_token_that_is_the_class_and_tokens_that_are_not() -> None:
    data = make_data()
    found = study(data, codes=one_hot)
    results = {(r.segment, r.tokens, r.features): r for r in found.results}
    assert {name for name, _, _ in results} == {"all", "prologue", "visual"}
    for kind in ("codes", "ids"):
        assert results["all", 1, kind].top1 == 1.0
        assert results["all", 5, kind].top1 > 0.98
        chance = results["visual", 3, kind]
        assert 0.15 < chance.top1 < 0.35
        assert chance.interval[0] < chance.top1 < chance.interval[1]
    assert results["all", 1, "ids"].top5 is None  # four classes
    assert results["prologue", 1, "ids"].top1 == results["all", 1, "ids"].top1


def test_what_a_study_tells() -> None:
    data = make_data(100)
    found = study(data, [1, 3, 5], codes=one_hot, kinds=("ids",))
    assert [(r.segment, r.tokens) for r in found.results] == [
        ("all", 1), ("all", 3), ("all", 5), ("prologue", 1), ("visual", 1), ("visual", 3)
    ]  # fmt: skip
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (record["train_images"], record["test_images"], record["classes"]) == (100, 100, 4)
    assert [entry["top1"] for entry in record["results"]] == [r.top1 for r in found.results]
    assert all(entry["images"] == 100 for entry in record["results"])
    table = found.describe()
    assert len(table.splitlines()) == 3 + len(found.results)
    assert "100.00%" in table  # the first token is the class
    (entry,) = found.entries()
    assert (entry.name, entry.data) == ("probe", found.to_dict())
    (axes,) = entry.drawing.axes  # type: ignore[union-attr]
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert curves["visual, one-hot ids"] == [100 * r.top1 for r in found.results if r.segment == "visual"]
    assert study(data, [1], kinds=("ids",), segments=["visual"]).results == (found.results[4],)


def test_the_fit_is_the_optimum_of_the_penalised_likelihood() -> None:
    data = make_data(60)
    rows, labels, decay = data.train_ids[:, 1:3].float(), data.train_labels, 0.03
    head = LinearHead(rows, None, 4)
    value, converged = fit_linear(head, rows, labels, decay)
    assert converged
    x = ((rows - rows.mean(0)) / rows.std(0, correction=0)).double().numpy()
    y = labels.numpy()

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:8].reshape(2, 4), flat[8:]
        logits = x @ weight + bias
        log_sum = np.log(np.exp(logits).sum(axis=1))
        return float((log_sum - logits[np.arange(len(y)), y]).mean() + decay / 2 * (weight**2).sum())

    best = minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-8})
    with torch.no_grad():
        reached = loss(np.concatenate([head.weight.double().numpy().ravel(), head.bias.double().numpy()]))
    assert reached == pytest.approx(best.fun, abs=1e-6)
    assert value >= best.fun - 1e-6


def test_features_that_lie_on_few_axes() -> None:
    """Code vectors of small codebooks: condition numbers at which plain L-BFGS stops far from the optimum."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2000, 4, generator=generator)
    rows = hidden @ torch.randn(4, 24, generator=generator) + 1e-3 * torch.randn(2000, 24, generator=generator)
    labels = (hidden @ torch.randn(4, 3, generator=generator) + torch.randn(2000, 3, generator=generator)).argmax(1)
    decay = 1e-6
    head = LinearHead(rows, None, 3)
    value, converged = fit_linear(head, rows, labels, decay)
    x = ((rows - rows.mean(0)) / rows.std(0, correction=0)).double()
    assert torch.linalg.cond(x.T @ x) > 1e5

    # Newton's method in float64, from zero.
    weight = torch.zeros(24 * 3 + 3, dtype=torch.double)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        matrix = flat[:72].reshape(24, 3)
        entropy = torch.nn.functional.cross_entropy(x @ matrix + flat[72:], labels)
        return entropy + decay / 2 * matrix.square().sum()

    for _ in range(30):
        gradient = torch.func.grad(loss)(weight)
        hessian = torch.func.hessian(loss)(weight)
        weight = weight - torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]
    best = float(loss(weight))
    assert converged
    assert value == pytest.approx(best, abs=1e-5)


def test_ids_are_one_hot_vectors() -> None:
    data = make_data(50)
    ids = data.train_ids[:, :2]
    head = LinearHead(ids, [4, 4], 4)
    torch.nn.init.normal_(head.turned)
    head.precondition(0.1)
    expected = torch.nn.functional.one_hot(ids, 4).flatten(1).float() @ head.weight + head.bias
    torch.testing.assert_close(head(ids), expected)


def test_wilson_interval() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_prefix_lengths() -> None:
    assert prefix_lengths(1) == (1,)
    assert prefix_lengths(8) == (1, 2, 4, 8)
    assert prefix_lengths(49) == (1, 2, 4, 8, 16, 32, 49)


def test_probes_that_cannot_be() -> None:
    data = make_data(30)
    with pytest.raises(UsageError, match="no segment 'epilogue'"):
        study(data, kinds=("ids",), segments=["epilogue"])
    with pytest.raises(UsageError, match="need the tokenizer"):
        study(data, kinds=("codes",))
    with pytest.raises(UsageError, match="6 tokens, the layout has 1 to 5"):
        study(data, [6], kinds=("ids",))
    with pytest.raises(OvertureError, match="at least 20"):
        ProbeData(LAYOUT, data.train_ids[:5], data.train_labels[:5], data.test_ids, data.test_labels)
