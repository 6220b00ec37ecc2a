"""Prefixes, predictions, neighbours and texts: against brute force and on models whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overture.analysis import expectations, neighbours, prefix
from overture.analysis.neighbours import Neighbours, nearest_by_features, nearest_by_tokens, suspicious_share
from overture.analysis.prefix import partners, sequence_prefix
from overture.analysis.text import text_rows
from overture.data.transforms import to_uint8
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import Outputs, load_network
from overture.layout import Layout, Segment
from overture.nn.transformer import TransformerConfig
from overture.pipeline import Pipeline, balanced_classes
from overture.priors import PriorConfig, Sampling
from overture.priors.likelihood import measure_likelihood
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig


def make_pipe() -> Pipeline:
    torch.manual_seed(0)
    size = TransformerConfig(dim=16, depth=1, heads=2, condition_dim=4)
    segments = (
        SegmentConfig("prologue", "queries", 3, CodebookConfig("uniform", k_max=6), decoded=False, separator=True),
        SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=8)),
    )
    tokenizer = TokenizerConfig(
        image_size=8, channels=1, patch_size=4, encoder=size, decoder=size, segments=segments, num_classes=3
    ).build()
    prior = PriorConfig(16, 2, 2, 2.0, 4, num_classes=3, dropout=0.0).build(tokenizer.layout)
    for parameter in [*prior.parameters(), *tokenizer.decoder.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    return Pipeline(tokenizer.eval(), prior.eval())


PIPE = make_pipe()
LAYOUT = PIPE.prior.layout


def random_ids(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, LAYOUT.length, generator=generator) * torch.tensor(LAYOUT.sizes)).long()


def close(found: Any, expected: Any) -> bool:
    """Whether two records agree but for a level of a pixel: images decoded in other batches may differ by so much."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected, rel=1e-3) if isinstance(expected, float) else expected)


@given(tokens=st.integers(0, 7), seed=st.integers(0, 50))
def test_a_sequence_prefix_holds_the_first_tokens(tokens: int, seed: int) -> None:
    ids = random_ids(3, seed)
    prefix = sequence_prefix(LAYOUT, ids, tokens)
    whole = LAYOUT.to_sequence(ids)
    assert torch.equal(prefix, whole[:, : prefix.shape[1]])
    changed = ids.clone()
    changed[:, tokens:] = 0
    assert torch.equal(sequence_prefix(LAYOUT, changed, tokens), prefix)  # nothing later is in it
    separators = sum(position.is_separator for position in LAYOUT.positions[: prefix.shape[1]])
    assert prefix.shape[1] - separators == tokens


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Records the ids of every call of the decoder."""
    seen: list[torch.Tensor] = []
    decode = PIPE.tokenizer.decode_valid
    monkeypatch.setattr(PIPE.tokenizer, "decode_valid", lambda ids: (seen.append(ids), decode(ids))[1])
    return seen


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_what_is_kept_is_kept(decoded: list[torch.Tensor], conditional: bool, batch_size: int) -> None:
    ids, labels = random_ids(9), torch.arange(9) % 3
    for tokens in range(LAYOUT.length + 1):
        decoded.clear()
        options = {"conditional": conditional, "batch_size": batch_size, "pictures": 1, "seed": 1}
        prefix.study(PIPE, ids, labels, Brightness(), (tokens,), **options)  # type: ignore[arg-type]
        seen = torch.cat(decoded).split(9)
        assert len(seen) == 3 + (len(decoded[-1]) == 1)
        original, resampled, mixed = seen[:3]
        assert torch.equal(original, ids)
        assert torch.equal(resampled[:, :tokens], ids[:, :tokens])
        LAYOUT.check(resampled)
        assert (tokens == LAYOUT.length) == torch.equal(resampled, ids)
        assert torch.equal(mixed[:, :tokens], ids[:, :tokens])
        assert torch.equal(mixed[:, tokens:], ids[partners(labels)][:, tokens:])
        classes = labels if conditional else torch.full((9,), PIPE.prior.unconditional)
        given_ids = sequence_prefix(LAYOUT, ids, tokens)
        if tokens < LAYOUT.length:
            assert torch.equal(resampled, torch.cat(list(PIPE.sample_ids(classes, seed=1, prefix=given_ids))))


def test_swapped_ends_are_the_images_themselves() -> None:
    ids, labels = random_ids(6), torch.arange(6) % 3
    found = prefix.study(PIPE, ids, labels, Brightness(), (0, LAYOUT.length), pictures=6)  # type: ignore[arg-type]
    first, other, all_of_other, all_of_first = found.swapped.unbind(dim=1)
    assert torch.equal(first, PIPE.decode(ids))
    assert torch.equal(other, PIPE.decode(ids[partners(labels)]))
    assert torch.equal(all_of_other, other)
    assert torch.equal(all_of_first, first)


@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=30))
def test_partners_are_of_another_class(labels: list[int]) -> None:
    tensor = torch.tensor(labels)
    if len(set(labels)) < 2:
        with pytest.raises(OvertureError, match="one class"):
            partners(tensor)
        return
    found = partners(tensor)
    assert bool((tensor[found] != tensor).all())


class Brightness:
    """A judge with three classes by brightness; features are the pixels."""

    name, label, weights_hash, preparation, offers = "brightness", "FD(brightness)", "0" * 64, "", {"logits"}
    dims = 64

    def __call__(self, images):
        return self.outputs(images).features

    def outputs(self, images):
        pixels = images.flatten(1).float()
        level = (pixels.mean(dim=1) / 256 * 3).long().clamp(max=2)
        return Outputs(pixels, torch.nn.functional.one_hot(level, 3).float())


def test_a_study_against_its_definition() -> None:
    ids = random_ids(12)
    judge = Brightness()
    with torch.inference_mode():
        decoded = to_uint8(PIPE.tokenizer.decode(ids))
    labels = judge.outputs(decoded).logits.argmax(dim=1)
    if len(labels.unique()) < 2:
        labels = torch.arange(12) % 3
    study = prefix.study(PIPE, ids, labels, judge, (0, 2, LAYOUT.length), pictures=4, batch_size=5)
    last = study.results[-1]
    named = judge.outputs(decoded).logits.argmax(dim=1)
    assert study.reconstruction_accuracy == pytest.approx(float((named == labels).double().mean()))
    assert last.accuracy == last.swapped_first == study.reconstruction_accuracy
    assert last.relative_distance == 0
    assert study.results[0].swapped_other == pytest.approx(
        float((named[partners(labels)] == labels[partners(labels)]).double().mean())
    )
    assert study.resampled.shape == (4, 4, 1, 8, 8)
    assert torch.equal(study.resampled[:, 0], decoded[:4])
    assert torch.equal(study.swapped[:, 1], decoded[partners(labels)[:4]])
    # The kept prologue is not decoded: keeping it alone and taking all else of the other image changes nothing.
    assert study.results[1].swapped_other == study.results[0].swapped_other
    # Nothing depends on the size of the batches.
    again = prefix.study(PIPE, ids, labels, judge, (0, 2, LAYOUT.length), pictures=4, batch_size=12)
    assert close(again.to_dict(), study.to_dict())
    for one, other in ((again.resampled, study.resampled), (again.swapped, study.swapped)):
        assert (one.int() - other.int()).abs().max() <= 1


def test_what_a_prefix_study_tells() -> None:
    ids, labels = random_ids(10), torch.arange(10) % 3
    sampling = Sampling.parse(temperature=0.9, top_k=4)
    judge: Any = Brightness()
    found = prefix.study(PIPE, ids, labels, judge, (), sampling=sampling, pictures=2, seed=3)
    assert [result.tokens for result in found.results] == [0, 1, 2, 4, 7]
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (record["images"], record["seed"], record["conditional"]) == (10, 3, False)
    assert (record["temperature"], record["top_k"], record["judge"]) == ("0.9", "4", "brightness")
    assert [entry["tokens"] for entry in record["results"]] == [0, 1, 2, 4, 7]
    assert len(found.describe().splitlines()) == 4 + 5
    entries = found.entries()
    assert [entry.name for entry in entries] == ["prefix", "prefix-resampled", "prefix-swapped"]
    assert entries[0].data == found.to_dict()
    assert "not told the class" in entries[0].caption
    curve = entries[0].drawing.axes[0].lines[0]  # type: ignore[union-attr]
    assert list(curve.get_ydata()) == [100 * result.accuracy for result in found.results]


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (1, {}, "1 images and 6 pictures, needs at least 2 and 1"),
        (4, {"pictures": 0}, "4 images and 0 pictures"),
        (4, {"lengths": (8,)}, "8 tokens, the layout has 0 to 7"),
        (4, {"lengths": (-1,)}, "-1 tokens, the layout has 0 to 7"),
        (4, {"judge": load_network("random:8")}, "has no classes"),
    ],
)
def test_prefixes_that_cannot_be_studied(rows: int, arguments: dict, message: str) -> None:
    given_ids = (random_ids(rows), torch.arange(rows) % 3)
    with pytest.raises(OvertureError, match=message):
        prefix.study(PIPE, *given_ids, **{"judge": Brightness(), **arguments})


# Likelihood


def batches(ids: torch.Tensor, classes: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(ids.split(size), classes.split(size), strict=True))


@pytest.mark.parametrize("batch_size", [4, 9])
def test_likelihoods_are_the_means_of_their_definition(batch_size: int) -> None:
    ids, classes = random_ids(9), torch.arange(9) % 4
    heard: list[int] = []
    found = measure_likelihood(PIPE.prior, batches(ids, classes, batch_size), done=heard.append)
    assert (found.rows, sum(heard), max(heard)) == (9, 9, batch_size)
    sequence = LAYOUT.to_sequence(ids)
    with torch.inference_mode():
        logits = PIPE.prior(sequence, classes).double()
    assert found.vocabulary.shape == found.allowed.shape == found.expected.shape == (LAYOUT.sequence_length,)
    for step, position in enumerate(LAYOUT.positions):
        p = logits[:, step, position.low : position.high].softmax(dim=-1)
        entropy = -(p * p.log2()).sum(dim=-1).mean()
        loss = -p[torch.arange(9), sequence[:, step] - position.low].log2().mean()
        whole = -logits[:, step].softmax(dim=-1)[torch.arange(9), sequence[:, step]].log2().mean()
        assert found.expected[step] == pytest.approx(float(entropy), rel=1e-5, abs=1e-12)
        assert found.allowed[step] == pytest.approx(float(loss), rel=1e-5, abs=1e-12)
        assert found.vocabulary[step] == pytest.approx(float(whole), rel=1e-5)
        assert found.expected[step] <= np.log2(position.high - position.low) + 1e-9
        assert found.allowed[step] < found.vocabulary[step]  # the ids that are not allowed have a share too
        assert position.is_separator == (found.allowed[step] == 0)


def test_a_likelihood_leaves_the_mode_of_the_prior_and_has_no_dropout() -> None:
    torch.manual_seed(0)
    prior = PriorConfig(16, 1, 2, 2.0, 4, num_classes=3, dropout=0.5).build(LAYOUT)
    ids, classes = random_ids(5), torch.zeros(5, dtype=torch.long)
    first, second = (measure_likelihood(prior.train(mode), [(ids, classes)]) for mode in (True, False))
    assert torch.equal(first.vocabulary, second.vocabulary)
    measure_likelihood(prior.train(), [(ids, classes)])
    assert prior.training


def test_likelihoods_of_nothing_are_refused() -> None:
    with pytest.raises(OvertureError, match="3 rows and 2 classes"):
        measure_likelihood(PIPE.prior, [(random_ids(3), torch.zeros(2, dtype=torch.long))])
    with pytest.raises(OvertureError, match="no rows"):
        measure_likelihood(PIPE.prior, [])


def test_what_the_prior_expects_of_tokens() -> None:
    tokens = {
        name: (random_ids(rows, rows), torch.arange(rows) % 3) for name, rows in (("training", 8), ("held_out", 5))
    }
    found = expectations.study(PIPE.prior, tokens)
    alone = measure_likelihood(PIPE.prior, [tokens["held_out"]])
    assert torch.equal(found.held_out.allowed, alone.allowed)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    places = [place for place, position in enumerate(LAYOUT.positions) if not position.is_separator]
    assert record["held_out"]["cross_entropy_bits"] == alone.allowed[places].tolist()
    assert record["held_out"]["predictive_entropy_bits"] == alone.expected[places].tolist()
    assert (record["training"]["rows"], record["held_out"]["rows"]) == (8, 5)
    gap = [a - b for a, b in zip(*(record[k]["cross_entropy_bits"] for k in ("held_out", "training")), strict=True)]
    assert record["memorisation_gap_bits"] == pytest.approx(gap)
    assert record["memorisation_gap_bits_per_image"] == pytest.approx(sum(gap))
    same = expectations.study(PIPE.prior, {"training": tokens["training"], "held_out": tokens["training"]})
    assert not same.gap_bits.any()
    assert len(found.describe().splitlines()) == 4
    (entry,) = found.entries()
    assert entry.data == found.to_dict()
    bars = entry.drawing.axes[1].patches  # type: ignore[union-attr]
    assert [bar.get_height() for bar in bars] == pytest.approx(found.gap_bits.tolist())


# Neighbours


def test_neighbours_are_brute_force(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    samples, training = torch.randn(9, 5), torch.randn(30, 5)
    distances = (samples[:, None] - training[None]).double().norm(dim=2)
    found = nearest_by_features(samples, training)
    assert torch.equal(found.places_N, distances.argmin(dim=1))
    torch.testing.assert_close(found.distances_N, distances.min(dim=1).values, rtol=1e-5, atol=1e-6)
    ids, others = random_ids(9), random_ids(40, 1)
    others[11] = ids[3]
    differ = (ids[:, None] != others[None]).sum(dim=2)
    by_tokens = nearest_by_tokens(ids, others)
    assert torch.equal(by_tokens.distances_N, differ.min(dim=1).values)
    assert (int(by_tokens.places_N[3]), int(by_tokens.distances_N[3])) == (11, 0)


def test_copies_are_suspicious_and_strangers_are_not() -> None:
    training, held_out = torch.randn(300, 6), torch.randn(200, 6)
    yardstick = nearest_by_features(held_out, training)
    copied = suspicious_share(nearest_by_features(training[:50] + 1e-4, training), yardstick)
    assert copied["suspicious_share"] == 1.0
    fresh = suspicious_share(nearest_by_features(torch.randn(200, 6), training), yardstick)
    assert fresh["suspicious_share"] < 0.05
    assert fresh["held_out_share"] <= 0.01
    assert yardstick.distances_N.quantile(0.005) < fresh["threshold"] < yardstick.distances_N.quantile(0.02)
    exact = suspicious_share(Neighbours(torch.zeros(2), torch.tensor([0.0, 1.0])), yardstick)
    assert exact["exact_copies"] == 1


def test_a_study_of_neighbours_against_its_definition() -> None:
    training, held_out, judge = random_ids(40), random_ids(15, 1), Brightness()
    sampling = Sampling.parse(1.5, 0.8)
    options = {"samples": 8, "sampling": sampling, "pictures": 3, "seed": 2}
    found = neighbours.study(PIPE, training, held_out, judge, batch_size=3, **options)  # type: ignore[arg-type]
    samples = torch.cat(list(PIPE.sample_ids(balanced_classes(8, 3), sampling, seed=2)))
    pixels = {name: judge(PIPE.decode(ids)) for name, ids in (("s", samples), ("t", training), ("h", held_out))}
    by_features = nearest_by_features(pixels["s"], pixels["t"])
    yardstick = nearest_by_features(pixels["h"], pixels["t"])
    assert close(found.features, suspicious_share(by_features, yardstick))
    by_tokens = nearest_by_tokens(samples, training)
    assert found.tokens == suspicious_share(by_tokens, nearest_by_tokens(held_out, training))
    order = by_features.distances_N.argsort()[:3]
    shown, near, alike = found.pictures
    assert torch.equal(shown, PIPE.decode(samples[order]))
    assert torch.equal(near, PIPE.decode(training[by_features.places_N[order]]))
    assert torch.equal(alike, PIPE.decode(training[by_tokens.places_N[order]]))
    again = neighbours.study(PIPE, training, held_out, judge, batch_size=100, **options)  # type: ignore[arg-type]
    assert close(again.to_dict(), found.to_dict())
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    counts = [record[key] for key in ("samples", "training_images", "held_out_images", "seed")]
    assert counts == [8, 40, 15, 2]
    assert (record["guidance"], record["temperature"], record["judge"]) == ("constant 1.5", "0.8", "brightness")
    assert len(found.describe().splitlines()) == 2
    (entry,) = found.entries()
    assert entry.drawing.size[0] > 3 * 8 > 0  # type: ignore[union-attr]
    assert entry.data == found.to_dict()


# Texts


def test_text_as_rows_of_bytes(tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("Überall und nirgends.".encode())
    ids, size = text_rows(path, 5)
    assert size == 256
    assert bytes(ids.ravel().astype(np.uint8).tolist()) == path.read_bytes()[:20]
    with pytest.raises(OvertureError, match="1 rows of 20, needs at least 2"):
        text_rows(path, 20)
    with pytest.raises(UsageError, match="at least 1"):
        text_rows(path, 0)


def test_text_by_a_tokenizer_file(tmp_path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"one": 0, "two": 1, "three": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    file, path = tmp_path / "tokenizer.json", tmp_path / "text.txt"
    tokenizer.save(str(file))
    path.write_text("one two three four one two")
    ids, size = text_rows(path, 3, file)
    assert size == 4
    assert ids.tolist() == [[0, 1, 2], [3, 0, 1]]
    broken = Path(tmp_path / "broken.json")
    broken.write_text("{")
    with pytest.raises(OvertureError, match=r"not a tokenizer\.json"):
        text_rows(path, 3, broken)


def test_layouts_of_these_tests_have_a_separator() -> None:
    assert LAYOUT.names == ("prologue", "visual")
    assert isinstance(LAYOUT, Layout)
    assert isinstance(LAYOUT.segments[0], Segment)


@given(counts=st.lists(st.integers(0, 3), min_size=20, max_size=400))
def test_held_out_images_are_suspicious_to_one_percent_whatever_the_ties(counts: list[int]) -> None:
    held_out = Neighbours(torch.zeros(len(counts)), torch.tensor(counts))
    found = suspicious_share(held_out, held_out)
    assert found["suspicious_share"] == found["held_out_share"] == pytest.approx(0.01)
    nearer = suspicious_share(Neighbours(torch.zeros(2), torch.tensor([-1, 9])), held_out)
    assert nearer["suspicious_share"] == 0.5


def test_copies_are_at_distance_zero_though_features_are_rounded() -> None:
    training = torch.randn(3000, 128) + 3
    copies = training[::100] * (1 + 1e-7 * torch.randn(30, 128))
    found = nearest_by_features(copies, training)
    assert torch.equal(found.places_N, torch.arange(0, 3000, 100))
    assert found.distances_N.tolist() == [0.0] * 30
    near = nearest_by_features(training[:30] + 1e-3, training)
    torch.testing.assert_close(near.distances_N, torch.full((30,), 1e-3 * 128**0.5).double(), rtol=1e-3, atol=0)


def test_distances_relative_to_nothing_are_refused() -> None:
    class Blind:
        """A judge to whom all images are one."""

        name, offers = "blind", frozenset({"logits"})

        def outputs(self, images: torch.Tensor) -> Outputs:
            return Outputs(torch.ones(len(images), 4), torch.zeros(len(images), 3))

    with pytest.raises(OvertureError, match="all 6 images are alike to blind"):
        prefix.study(PIPE, random_ids(6), torch.arange(6) % 3, Blind(), (0, 2))  # type: ignore[arg-type]
