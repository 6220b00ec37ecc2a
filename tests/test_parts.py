"""Parts in other people's training loops: quantizers, the prologue's loss, the entropy of tokens while they are learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import overture
from overture.cli import main
from overture.errors import OvertureError, UsageError
from overture.layout import Layout, Segment
from overture.nn.transformer import set_recompute
from overture.priors import Prior, PriorConfig
from overture.quantizers import QuantizerConfig, SoftConfig, VectorConfig
from overture.training.prologue_loss import PrologueLoss

LAYOUT = Layout((Segment("head", (6, 6), separator=True), Segment("rest", (4, 8, 8))))


class Judged:
    """Two quantizers, features that want gradients, and a prior."""

    def __init__(self, layout: Layout = LAYOUT) -> None:
        torch.manual_seed(0)
        self.layout = layout
        self.quantizers = nn.ModuleDict(
            {
                "head": SoftConfig(z_dim=4, temperature=0.3).build(5, layout.segments[0].sizes),
                "rest": VectorConfig(z_dim=4).build(5, layout.segments[1].sizes),
            }
        )
        for quantizer in self.quantizers.values():
            nn.init.normal_(quantizer.projection.weight)
        self.features = {s.name: torch.randn(7, len(s), 5, requires_grad=True) for s in layout.segments}
        self.ids = torch.cat([self.quantizers[name](part).ids for name, part in self.features.items()], dim=1)
        config = PriorConfig(dim=16, depth=1, heads=2, condition_dim=8, num_classes=3, dropout=0.3)
        self.prior: Prior = config.build(layout)

    def dense_loss(self, weights: dict[str, float]) -> torch.Tensor:
        """The formula of docs/prologue.md, section 6, with a table of one-hot rows and all logits."""
        table = self.prior.token_embedding.weight.detach()
        head, features = self.quantizers["head"], self.features["head"]
        z = F.normalize(F.linear(features, head.projection.weight, head.projection.bias), dim=-1)
        soft = (z @ F.normalize(head.codebook, dim=-1).T / 0.3).softmax(dim=-1)
        hard = F.one_hot(self.ids[:, :2], 6).float()
        one_hot = soft + (hard - soft).detach()
        sequence = self.layout.to_sequence(self.ids)
        start = self.layout.offsets[0]
        inputs = torch.cat([one_hot @ table[start : start + 6], table[sequence[:, 2:]]], dim=1)
        self.prior.eval()
        logits = self.prior.predict(inputs[:, :-1], torch.full((7,), 3))
        losses = F.cross_entropy(logits.transpose(1, 2), sequence, reduction="none").mean(dim=0)
        by_position = torch.tensor([weights["head"]] * 3 + [weights["rest"]] * 3)
        return (losses * by_position).sum() / 6


@pytest.mark.parametrize("weights", [3.0, {"head": 0.5, "rest": 2.0}])
def test_the_prologues_loss_is_the_dense_formula(weights: float | dict[str, float]) -> None:
    parts = Judged()
    judge = PrologueLoss(parts.prior, weights, input_dropout=0.0)
    parts.prior.train()
    loss, terms = judge(parts.quantizers, parts.features, parts.ids)
    loss.backward()
    found = parts.features["head"].grad
    assert parts.features["rest"].grad is None
    assert parts.prior.training
    assert all(p.grad is None and p.requires_grad for p in parts.prior.parameters())
    by_name = weights if isinstance(weights, dict) else dict.fromkeys(LAYOUT.names, weights)
    parts.features["head"].grad = None
    dense = parts.dense_loss(by_name)
    dense.backward()
    torch.testing.assert_close(loss, dense)
    torch.testing.assert_close(found, parts.features["head"].grad, rtol=1e-4, atol=1e-7)
    assert found is not None
    assert found.abs().max() > 0
    if not isinstance(weights, dict):
        torch.testing.assert_close(loss.detach(), 3 * torch.stack(list(terms.values())).sum())


def test_the_prior_learns_the_mean_cross_entropy_and_the_hidden_inputs_hide() -> None:
    parts = Judged()
    parts.prior.eval()
    sequence, classes = LAYOUT.to_sequence(parts.ids), torch.arange(7) % 3
    plain = PrologueLoss(parts.prior, input_dropout=0.0).prior_loss(parts.ids, classes)
    torch.testing.assert_close(plain, F.cross_entropy(parts.prior(sequence, classes).transpose(1, 2), sequence))
    plain.backward()
    assert all(p.grad is not None for p in parts.prior.parameters())
    hidden = sequence.clone()
    hidden[:, 3:] = sequence[0, 2]  # the separator, wherever something follows it
    embeddings = parts.prior.token_embedding(hidden[:, :-1])
    logits = parts.prior.predict(embeddings, torch.full((7,), parts.prior.unconditional))
    judge = PrologueLoss(parts.prior, 1.0, input_dropout=1.0)
    expected = F.cross_entropy(logits.transpose(1, 2), sequence)
    torch.testing.assert_close(judge.prior_loss(parts.ids), expected)
    torch.testing.assert_close(judge(parts.quantizers, parts.features, parts.ids).loss, expected)


def test_a_prior_that_recomputes_is_refused() -> None:
    parts = Judged()
    judge = PrologueLoss(parts.prior)
    set_recompute(parts.prior, "everything")
    for wrong in (lambda: PrologueLoss(parts.prior), lambda: judge(parts.quantizers, parts.features, parts.ids)):
        with pytest.raises(UsageError, match="recomputes activations"):
            wrong()
    judge.prior_loss(parts.ids).backward()  # nothing is frozen there


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda p: PrologueLoss(p.prior, {"head": 1.0}), "need a number >= 0 for each of head, rest"),
        (lambda p: PrologueLoss(p.prior, -1.0), "need a number >= 0"),
        (lambda p: PrologueLoss(p.prior, input_dropout=1.5), "needs a probability"),
        (
            lambda p: PrologueLoss(p.prior)({"head": p.quantizers["head"]}, p.features, p.ids),
            "quantizers of 'rest' are missing",
        ),
        (
            lambda p: PrologueLoss(p.prior)(p.quantizers, {**p.features, "rest": p.ids}, p.ids),
            "features of 'rest' have shape",
        ),
        (lambda p: PrologueLoss(p.prior)(p.quantizers, p.features, p.ids[:, :4]), r"need \[B, 5\]"),
        (
            lambda p: PrologueLoss(p.prior)(p.quantizers, p.features, p.ids, torch.zeros(3).long()),
            "7 images and classes",
        ),
        (
            lambda p: PrologueLoss(p.prior)(p.quantizers, p.features, p.ids, torch.full((7,), 9)),
            "class 9 is out of range",
        ),
    ],
)
def test_what_does_not_fit_the_layout_is_one_line(wrong, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OvertureError, match=words):
        wrong(Judged())


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (overture.VectorConfig(z_dim=6, revive_after=5), overture.Schedule.linear(9, 2, 64).sizes),
        (overture.LookupFreeConfig(), overture.Schedule.steps(9, 64).sizes),
        (overture.FiniteScalarConfig(levels=(4, 4, 4)), (4, 4, 4, 16, 16, 16, 64, 64, 64)),
    ],
)
def test_a_quantizer_in_a_plain_autoencoder(config: QuantizerConfig, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = nn.Linear(20, 9 * 8)
    quantizer = config.build(dim=8, sizes=sizes)
    decoder = nn.Linear(9 * quantizer.z_dim, 20)
    modules = nn.ModuleList([encoder, quantizer, decoder])
    optimizer, usage = torch.optim.Adam(modules.parameters(), 1e-2), overture.UsageMeter(Layout.single(sizes))
    x = torch.randn(64, 20)
    errors = []
    for step in range(60):
        ids, codes, loss = quantizer(encoder(x).view(64, 9, 8))
        error = F.mse_loss(decoder(codes.flatten(1)), x)
        optimizer.zero_grad()
        (error + loss).backward()
        assert encoder.weight.grad is not None
        optimizer.step()
        quantizer.maintain(0, step)
        usage.update(ids)
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]
    assert (ids < torch.tensor(sizes)).all()
    assert quantizer.encode(encoder(x).view(64, 9, 8)).shape == ids.shape == (64, 9)
    assert usage.result().images == 64 * 60


@pytest.mark.parametrize("batches", [[3, 4], [5, 5, 5], [1] * 23, [40], [7, 13, 2]])
def test_the_tracker_measures_the_last_rows_exactly(batches: list[int]) -> None:
    rng, sizes = np.random.default_rng(len(batches)), (2, 4, 300)
    tracker, given = overture.EntropyTracker(sizes, rows=10), np.empty((0, 3), np.int64)
    for count in batches:
        ids = rng.integers(0, sizes, (count, 3))
        given = np.concatenate([given, ids])
        tracker.update(torch.from_numpy(ids) if count % 2 else ids)
    expected = overture.conditional_entropy(given[-10:], sizes=sizes)
    result = tracker.result()
    np.testing.assert_array_equal(result.bits, expected.bits)
    assert (result.cliff, result.predicted_cliff) == (expected.cliff, expected.predicted_cliff)
    assert (len(tracker), tracker.seen, result.rows) == (min(len(given), 10), len(given), min(len(given), 10))
    tracker.reset()
    tracker.update(given[:4])
    np.testing.assert_array_equal(tracker.result().bits, overture.conditional_entropy(given[:4], sizes=sizes).bits)


def test_the_tracker_is_overture_entropy_of_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.random.default_rng(0).integers(0, 5, (500, 7)) ** 2
    tracker = overture.EntropyTracker((17,) * 7)
    for part in np.array_split(ids, 9):
        tracker.update(part)
    np.save(tmp_path / "ids.npy", ids)
    assert main(["entropy", str(tmp_path / "ids.npy"), "--codebook-size", "17", "--json"]) == 0
    told, result = json.loads(capsys.readouterr().out), tracker.result().to_dict()
    assert {key: told[key] for key in result} == result


def test_the_tracker_holds_no_more_than_it_was_asked_to() -> None:
    tracker = overture.EntropyTracker((70_000, 4), rows=8)
    held = tracker._ids
    for _ in range(5):
        tracker.update(np.array([[69_999, 3]] * 6))
    assert tracker._ids is held
    assert held.shape == (8, 2)
    assert held[0, 0] == 69_999


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[0, 4]], "id 4 at row 0, position 1 is outside 0..3"),
        ([[0, 1], [-1, 0]], "id -1 at row 1, position 0"),
        ([[0.0, 1.0]], "need integers"),
        ([[0, 1, 2]], "have 3 positions"),
        ([0, 1], "need integers"),
    ],
)
def test_ids_that_are_none_are_refused(ids: list[object], words: str) -> None:
    tracker = overture.EntropyTracker((2, 4))
    with pytest.raises(OvertureError, match=words):
        tracker.update(np.array(ids))
    with pytest.raises(OvertureError, match="no ids were given"):
        tracker.result()
    with pytest.raises(UsageError, match="rows is 0"):
        overture.EntropyTracker((2, 4), rows=0)
