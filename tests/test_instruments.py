"""Prefixes, predictions, neighbours and texts: against brute force and on models whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.analysis.neighbours import Neighbours, nearest_by_features, nearest_by_tokens, suspicious_share
from overture.analysis.predictive import predict
from overture.analysis.prefix import keep_prefix, partners, sequence_prefix, study_prefixes, swap_prefix
from overture.analysis.text import text_rows
from overture.data.transforms import to_uint8
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import Outputs, load_network
from overture.layout import Layout, Segment
from overture.nn.transformer import TransformerConfig
from overture.pipeline import Pipeline
from overture.priors import PriorConfig
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


@settings(max_examples=10, deadline=None)
@given(tokens=st.integers(0, 7))
def test_what_is_kept_is_kept(tokens: int) -> None:
    ids, seen = random_ids(4), []
    decode = PIPE.tokenizer.decode

    class Spy:
        def __getattr__(self, name: str):
            return getattr(PIPE.tokenizer, name)

        def decode(self, local: torch.Tensor) -> torch.Tensor:
            seen.append(local)
            return decode(local)

    pipe = Pipeline(PIPE.tokenizer, PIPE.prior)
    pipe.tokenizer = Spy()
    images = keep_prefix(pipe, ids, torch.tensor([0, 1, 2, 3]), tokens, seed=1)
    assert images.dtype == torch.uint8
    assert torch.equal(seen[0][:, :tokens], ids[:, :tokens])
    LAYOUT.check(seen[0])
    if tokens == LAYOUT.length:
        assert torch.equal(seen[0], ids)


def test_swapped_ends_are_the_images_themselves() -> None:
    first, other = random_ids(3), random_ids(3, 1)
    with torch.inference_mode():
        assert torch.equal(swap_prefix(PIPE, first, other, 0), to_uint8(PIPE.tokenizer.decode(other)))
        assert torch.equal(swap_prefix(PIPE, first, other, LAYOUT.length), to_uint8(PIPE.tokenizer.decode(first)))


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

    def outputs(self, images):
        from overture.evaluation.networks import Outputs

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
    study = study_prefixes(PIPE, ids, labels, (0, 2, LAYOUT.length), judge, pictures=4, batch_size=5)
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
    with pytest.raises(OvertureError, match="has no classes"):
        study_prefixes(PIPE, ids, labels, (0,), load_network("random:8"))


# Predictions


def test_predictions_are_the_means_of_their_definition() -> None:
    ids, classes = random_ids(9), torch.arange(9) % 4
    found = predict(PIPE.prior, ids, classes, batch_size=4)
    sequence = LAYOUT.to_sequence(ids)
    with torch.inference_mode():
        logits = PIPE.prior(sequence, classes).double()
    place = 0
    for step, position in enumerate(LAYOUT.positions):
        if position.is_separator:
            continue
        p = logits[:, step, position.low : position.high].softmax(dim=-1)
        entropy = -(p * p.log2()).sum(dim=-1).mean()
        loss = -p[torch.arange(9), sequence[:, step] - position.low].log2().mean()
        assert found.entropy_bits[place] == pytest.approx(float(entropy), rel=1e-5)
        assert found.loss_bits[place] == pytest.approx(float(loss), rel=1e-5)
        assert found.entropy_bits[place] <= np.log2(LAYOUT.sizes[place]) + 1e-9
        place += 1
    assert place == LAYOUT.length


# Neighbours


def test_neighbours_are_brute_force(monkeypatch) -> None:
    from overture.analysis import neighbours

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
        study_prefixes(PIPE, random_ids(6), torch.arange(6) % 3, (0, 2), Blind())  # type: ignore[arg-type]
