"""Keeping some tokens and resampling the rest; and rows of samples that share their first segment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.analysis.shared_rows import row_distances, study
from overture.bench.composition import Patterns, read_composition
from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.nn.transformer import TransformerConfig
from overture.pipeline import Pipeline
from overture.priors import Prior, PriorConfig, Sampling
from overture.priors.sampler import generate, keep_segments
from overture.runs.config import EvaluationConfig
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig

LAYOUT = Layout((Segment("prologue", (6, 6, 6), separator=True), Segment("visual", (4, 8, 8, 8))))


def make_prior() -> Prior:
    torch.manual_seed(0)
    prior = PriorConfig(16, 2, 2, 2.0, 4, num_classes=3, dropout=0.0).build(LAYOUT).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


PRIOR = make_prior()
GREEDY = Sampling(top_k=1)
IDS = torch.tensor([[5, 0, 3, 1, 7, 2, 6], [1, 2, 4, 3, 0, 5, 5]])


@settings(max_examples=25, deadline=None)
@given(prologue=st.sets(st.integers(0, 2)), visual=st.sets(st.integers(0, 3)), seed=st.integers(0, 100))
def test_any_subset_is_kept_and_the_rest_respects_the_layout(prologue: set[int], visual: set[int], seed: int) -> None:
    fixed = keep_segments(LAYOUT, IDS, {"prologue": sorted(prologue), "visual": sorted(visual)})
    assert int((fixed >= 0).sum()) == 2 * (len(prologue) + len(visual))
    sequence = generate(PRIOR, [0, 1], Sampling.parse(1.5), seed=seed, fixed=fixed)
    assert torch.equal(sequence[fixed >= 0], fixed[fixed >= 0])
    local = LAYOUT.from_sequence(sequence)
    LAYOUT.check(local)
    assert torch.equal(local[:, sorted(prologue)], IDS[:, sorted(prologue)])


def test_keeping_the_prologue_is_continuing_it() -> None:
    fixed = keep_segments(LAYOUT, IDS, {"prologue": True})
    prefix = LAYOUT.to_sequence(IDS)[:, :3]
    samples = [generate(PRIOR, [0, 1], seed=1, **kept) for kept in ({"fixed": fixed}, {"prefix": prefix})]
    assert torch.equal(*samples)


def test_kept_tokens_are_conditioned_on() -> None:
    """Greedy sampling around kept tokens is the argmax of the full forward on the final sequence."""
    fixed = keep_segments(LAYOUT, IDS, {"prologue": [1], "visual": [2]})
    sequence = generate(PRIOR, [0, 2], GREEDY, fixed=fixed)
    logits = PRIOR(sequence, torch.tensor([0, 2]))
    for step, position in enumerate(LAYOUT.positions):
        if (fixed[:, step] < 0).all():
            best = logits[:, step, position.low : position.high].argmax(-1) + position.low
            assert torch.equal(best, sequence[:, step])


def test_rows_may_keep_different_positions() -> None:
    fixed = torch.full((2, LAYOUT.sequence_length), -1)
    fixed[0, 0] = LAYOUT.positions[0].low + 5
    sequence = generate(PRIOR, [0, 0], GREEDY, fixed=fixed)
    free = generate(PRIOR, [0, 0], GREEDY)
    assert sequence[0, 0] == fixed[0, 0]
    assert torch.equal(sequence[1], free[1])


def test_errors() -> None:
    with pytest.raises(UsageError, match="has no position 3"):
        keep_segments(LAYOUT, IDS, {"prologue": [3]})
    with pytest.raises(UsageError, match="no segment 'prelude'"):
        keep_segments(LAYOUT, IDS, {"prelude": True})
    wrong = torch.full((2, LAYOUT.sequence_length), -1)
    wrong[0, 2] = 0
    with pytest.raises(UsageError, match="fixed: position 2 holds an id outside"):
        generate(PRIOR, [0, 1], fixed=wrong)


# -- the study --------------------------------------------------------------------------------------------------------


def make_pipe() -> Pipeline:
    torch.manual_seed(0)
    size = TransformerConfig(dim=16, depth=1, heads=2, condition_dim=4)
    segments = (
        SegmentConfig("prologue", "queries", 3, CodebookConfig("uniform", k_max=6), separator=True),
        SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=8)),
    )
    tokenizer = TokenizerConfig(8, 1, 4, num_classes=3, encoder=size, decoder=size, segments=segments).build().eval()
    prior = PriorConfig(16, 2, 2, 2.0, 4, num_classes=3, dropout=0.0).build(tokenizer.layout).eval()
    for parameter in [*prior.parameters(), *tokenizer.decoder.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    return Pipeline(tokenizer, prior)


class Pixels:
    """Pixels as features."""

    name, weights_hash = "pixels", "0" * 64

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float()


def test_shared_rows_share_the_first_segment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, judge, sampling = make_pipe(), Pixels(), Sampling.parse(1.5, 0.9)
    decoded: list[torch.Tensor] = []
    decode = pipe.tokenizer.decode_valid
    monkeypatch.setattr(pipe.tokenizer, "decode_valid", lambda ids: (decoded.append(ids), decode(ids))[1])
    found = study(pipe, judge, sampling, kinds=10, rows=3, columns=4, seed=5)  # type: ignore[arg-type]
    ids = torch.cat(decoded).unflatten(0, (2, 9, 4))  # independent, shared; rows; columns
    classes = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])  # no more kinds than classes
    source = torch.cat(list(pipe.sample_ids(classes, sampling, seed=5)))
    assert torch.equal(ids[1, :, :, :3], source[:, None, :3].expand(-1, 4, -1))
    rest = ids[1, :, :, 3:]
    assert all(len(row.unique(dim=0)) > 1 for row in rest)
    assert not (rest == source[:, None, 3:]).all(dim=-1).any()  # other draws than those of the kept segments
    assert any(len(row.unique(dim=0)) > 1 for row in ids[0, :, :, :3])
    assert found.images.shape == (9, 8, 1, 8, 8)
    shared, independent = found.images.split(4, dim=1)
    assert torch.equal(independent.flatten(0, 1), pipe(classes.repeat_interleave(4), sampling, seed=5))
    assert found.shared == row_distances(shared, classes, judge)  # type: ignore[arg-type]
    assert found.independent == row_distances(independent, classes, judge)  # type: ignore[arg-type]
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (record["segment"], record["rows"], record["columns"], record["seed"]) == ("prologue", 9, 4, 5)
    assert (record["guidance"], record["temperature"], record["network"]) == ("constant 1.5", "0.9", "pixels")
    again = study(pipe, judge, sampling, kinds=10, rows=3, columns=4, seed=5)  # type: ignore[arg-type]
    assert torch.equal(again.images, found.images)


class Mixed(Pixels):
    """Sums of pixels with weights that are no whole numbers."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return super().__call__(images) @ torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("columns", [3, 8])
def test_greedy_rows_have_no_ratio(columns: int) -> None:
    """All images of a class are one, so there is nothing to divide by, however many they are."""
    found = study(make_pipe(), Mixed(), GREEDY, kinds=3, rows=4, columns=columns)  # type: ignore[arg-type]
    assert found.shared["ratio"] is found.independent["ratio"] is None


# -- patterns as the judge --------------------------------------------------------------------------------------------


def test_a_distance_of_patterns_is_the_correlation_of_thumbnails() -> None:
    images = torch.randint(0, 256, (6, 1, 8, 12), dtype=torch.uint8)
    found = Patterns(1)(images).double()
    blocks = images.unflatten(2, (4, 2)).unflatten(4, (4, 3)).double().mean(dim=(3, 5)).flatten(1)
    assert found.shape == (6, Patterns(1).dims)
    assert torch.allclose(torch.cdist(found, found) ** 2, 2 - 2 * torch.corrcoef(blocks), atol=1e-5)


def test_an_even_picture_has_no_pattern() -> None:
    images = torch.tensor([0, 7, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 10, 10)
    assert Patterns(3)(images).abs().max() < 1e-4


def test_what_lies_where_counts_and_detail_and_brightness_do_not() -> None:
    """Of rows that differ within blocks of 2 x 2 the composition is one, of rows that are as light it is not."""
    generator = torch.Generator().manual_seed(0)

    def coarse(columns: int) -> torch.Tensor:
        pixels = torch.randint(60, 160, (12, columns, 1, 4, 4), generator=generator)
        return pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)

    detail = torch.tensor([[5, -5], [-5, 5]]).repeat(4, 4)
    kept = torch.cat([(one := coarse(1)), one + detail, one + 40], dim=1)
    lost = coarse(3) + torch.randint(-60, 90, (12, 1, 1, 1, 1), generator=generator)
    classes = torch.zeros(12, dtype=torch.int64)
    ratios = [row_distances(images.to(torch.uint8), classes, Patterns(1))["ratio"] for images in (kept, lost)]
    assert ratios == [pytest.approx(0, abs=1e-6), pytest.approx(1, abs=0.1)]


def test_the_reading_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is the study of shared rows with patterns, and nothing where there is one segment."""
    pipe, evaluation = make_pipe(), EvaluationConfig(guidance="constant 1.5")
    run = SimpleNamespace(
        root=tmp_path, read_config=lambda: SimpleNamespace(tokenizer=config, evaluation=evaluation, seed=3)
    )
    monkeypatch.setattr(Pipeline, "load", lambda *_: pipe)
    config = pipe.tokenizer.config
    values = read_composition(run, torch.device("cpu"))  # type: ignore[arg-type]
    expected = study(pipe, Patterns(1), evaluation.guided, seed=3)
    assert {name: value.value for name, value in values.items()} == {
        "composition.shared": expected.shared["ratio"],
        "composition.independent": expected.independent["ratio"],
    }
    protocol = values["composition.shared"].protocol or {}
    assert (protocol["segment"], protocol["network"], protocol["guidance"]) == ("prologue", "pattern:4", "constant 1.5")
    assert protocol["temperature"] == "1"
    config = replace(config, segments=config.segments[1:])
    assert read_composition(run, torch.device("cpu")) == {}  # type: ignore[arg-type]
