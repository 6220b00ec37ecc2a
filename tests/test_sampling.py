"""How samples are drawn, as one value: from text and back; and the one loop that samples in batches."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overture.data.transforms import to_uint8
from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.nn.transformer import TransformerConfig
from overture.pipeline import Pipeline, balanced_classes
from overture.priors import Guidance, PriorConfig, Sampling
from overture.priors.sampler import generate
from overture.processes import Processes
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig
from together import together

PROLOGUE = Layout((Segment("prologue", (7,) * 4, separator=True), Segment("visual", (30,) * 6)))


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "sampling"),
    [
        ({}, Sampling()),
        ({"guidance": 1.0}, Sampling()),
        ({"guidance": "none", "temperature": "1"}, Sampling()),
        ({"guidance": 1.5}, Sampling(Guidance.constant(1.5))),
        ({"guidance": 2}, Sampling(Guidance.constant(2.0))),
        ({"guidance": Guidance.linear(3.0)}, Sampling(Guidance.linear(3.0))),
        ({"guidance": "cosine 4 power 1.5", "temperature": 0.9}, Sampling(Guidance.cosine(4.0, power=1.5), 0.9)),
        ({"temperature": "0.85", "top_k": 5, "top_p": 0.5}, Sampling(temperature=0.85, top_k=5, top_p=0.5)),
        ({"temperature": {"visual": 2}}, Sampling(temperature=(("visual", 2.0),))),
        (
            {"guidance": "prologue: 0.7, visual: 3", "temperature": " prologue: 0.7 ,visual:0.9"},
            Sampling(Guidance.split(prologue=0.7, visual=3.0), (("prologue", 0.7), ("visual", 0.9))),
        ),
    ],
)
def test_parse(written: dict[str, object], sampling: Sampling) -> None:
    assert Sampling.parse(**written) == sampling  # type: ignore[arg-type]


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Of numbers that six digits write exactly."""
    numbers = st.integers(1, 320).map(lambda n: n / 16)
    guidance = draw(
        st.one_of(
            st.just(Guidance.none()),
            numbers.map(Guidance.constant),
            st.builds(Guidance.linear, numbers, numbers),
            st.builds(Guidance.cosine, numbers, numbers, numbers),
            st.builds(
                lambda a, b, p: Guidance.split(prologue=a, visual=Guidance.cosine(b, p)), numbers, numbers, numbers
            ),
        )
    )
    named = st.dictionaries(st.sampled_from(["prologue", "visual"]), numbers, min_size=1)
    temperature = draw(st.one_of(numbers, named.map(lambda by_segment: tuple(by_segment.items()))))
    return Sampling(guidance, temperature, draw(st.integers(0, 2000)), draw(st.integers(1, 64)) / 64)


@given(samplings())
def test_words_round_trip(sampling: Sampling) -> None:
    words = json.loads(json.dumps(sampling.to_dict()))
    assert all(isinstance(word, str) for word in words.values())
    known = Sampling.parse(words["guidance"], words["temperature"], int(words["top_k"]), float(words["top_p"]))
    assert known == sampling
    sampling.check(PROLOGUE)


@given(samplings())
def test_parse_reads_what_records_hold(sampling: Sampling) -> None:
    assert Sampling.parse(**sampling.to_dict()) == sampling  # type: ignore[arg-type]


@given(samplings())
def test_two_samplings_of_one_description_are_one(sampling: Sampling) -> None:
    text = str(sampling)
    assert f"guidance {sampling.guidance}" in text
    assert ("top-k" in text) == (sampling.top_k > 0)
    assert ("top-p" in text) == (sampling.top_p < 1)
    assert "\n" not in text
    again = Sampling(sampling.guidance, sampling.temperature, sampling.top_k, sampling.top_p)
    assert (again, hash(again), str(again)) == (sampling, hash(sampling), text)


def test_it_is_a_value() -> None:
    with pytest.raises(FrozenInstanceError):
        Sampling().top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"guidance": "often"}, "guidance 'often'"),
        ({"guidance": "sine 3"}, "guidance 'sine 3'"),
        ({"guidance": ""}, "guidance"),
        ({"guidance": math.nan}, "guidance scale is nan"),
        ({"guidance": "inf"}, "guidance scale is inf"),
        ({"temperature": "warm"}, "temperature 'warm'"),
        ({"temperature": ""}, "temperature ''"),
        ({"temperature": "prologue: hot"}, "temperature 'prologue: hot'"),
        ({"temperature": "prologue: 1: 2"}, "temperature 'prologue: 1: 2'"),
        ({"temperature": "prologue 0.7, visual: 0.9"}, "temperature 'prologue 0.7"),
        ({"temperature": 0}, "temperature is 0, needs to be finite and >= 0.001"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": 0.00099}, "top-k 1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "inf"}, "temperature is inf"),
        ({"temperature": {"visual": 0.0}}, "temperature is 0"),
        ({"temperature": "prologue: 1, visual: -2"}, "temperature is -2"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_k": 1.5}, "top-k is 1.5"),
        ({"top_k": True}, "top-k is True"),
        ({"top_k": math.nan}, "top-k is nan"),
        ({"top_k": math.inf}, "top-k is inf"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.5}, "top-p is 1.5"),
        ({"top_p": -0.1}, "top-p is -0.1"),
        ({"top_p": math.nan}, "top-p is nan"),
    ],
)
def test_bad_values_are_one_line(written: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Sampling.parse(**written)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "written",
    [{"temperature": 1e-38}, {"temperature": "visual: 1e-38"}, {"temperature": math.inf}, {"guidance": 1e38},
     {"guidance": "cosine 2 start -1e38"}, {"guidance": math.nan}],
    ids=str,
)  # fmt: skip
def test_settings_that_leave_the_range_of_the_logits_are_refused(written: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"needs (to be finite and >= 0\.001|a number from -1000 to 1000)"):
        Sampling.parse(**written)  # type: ignore[arg-type]


def test_the_lowest_temperature_keeps_logits_finite() -> None:
    assert math.isfinite(float(torch.tensor(1e30) / Sampling.parse(temperature=1e-3).temperatures[""]))


# -- segments ---------------------------------------------------------------------------------------------------------


def test_temperature_of_every_position() -> None:
    assert Sampling.parse(temperature={"visual": 0.5}).step_temperatures(PROLOGUE) == [1.0] * 4 + [0.5] * 7
    assert Sampling.parse(temperature=2).step_temperatures(PROLOGUE) == [2.0] * 11
    both = Sampling.parse(temperature="visual: 0.5, prologue: 3")
    assert both.step_temperatures(PROLOGUE) == [3.0] * 4 + [0.5] * 7
    assert both.temperatures == {"visual": 0.5, "prologue": 3.0}


@pytest.mark.parametrize("written", [{"guidance": "visaul: 2"}, {"temperature": "visaul: 2"}])
def test_segments_that_the_layout_does_not_have(written: dict[str, str]) -> None:
    sampling = Sampling.parse(**written)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no segment 'visaul'.*did you mean 'visual'") as error:
        sampling.check(PROLOGUE)
    assert "\n" not in str(error.value)


# -- the loop ---------------------------------------------------------------------------------------------------------


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


PIPE = make_pipe()


@settings(deadline=None, max_examples=12)
@given(batch_size=st.integers(1, 30), first=st.integers(0, 25), sampling=samplings())
def test_batches_are_cuts_of_one_set(batch_size: int, first: int, sampling: Sampling) -> None:
    classes = balanced_classes(26, 3)
    whole = PIPE.layout.from_sequence(generate(PIPE.prior, classes, sampling, seed=4))
    parts = list(PIPE.sample_ids(classes[first:], sampling, seed=4, first=first, batch_size=batch_size))
    assert [len(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert torch.equal(torch.cat(parts), whole[first:])
    images = torch.cat(list(PIPE.sample(classes[first:], sampling, seed=4, first=first, batch_size=batch_size)))
    assert images.dtype == torch.uint8
    with torch.inference_mode():
        expected = to_uint8(PIPE.tokenizer.decode(whole[first:]))
    assert (images.int() - expected.int()).abs().max() <= 1  # decoded in other batches: rounded at most
    assert torch.equal(images, PIPE(classes[first:], sampling, seed=4, first=first, batch_size=batch_size))


def test_prefixes_and_kept_tokens_go_with_their_images() -> None:
    classes = balanced_classes(11, 3)
    source = PIPE.layout.to_sequence(torch.cat(list(PIPE.sample_ids(classes, seed=9))))
    kept = source.clone()
    kept[:, 2::3] = -1
    for options in ({"prefix": source[:, :5]}, {"fixed": kept}):
        (whole,) = PIPE.sample_ids(classes, batch_size=11, **options)
        parts = torch.cat(list(PIPE.sample_ids(classes, batch_size=4, **options)))
        assert torch.equal(parts, whole)
    assert torch.equal(PIPE.layout.to_sequence(whole)[kept >= 0], source[kept >= 0])


def test_decoding_is_that_of_the_tokenizer() -> None:
    ids = torch.cat(list(PIPE.sample_ids(balanced_classes(7, 3))))
    with torch.inference_mode():
        expected = to_uint8(PIPE.tokenizer.decode(ids))
    for batch_size in (1, 3, 100):
        assert (PIPE.decode(ids, batch_size).int() - expected.int()).abs().max() <= 1
    assert torch.equal(PIPE.decode(ids), expected)


def test_classes_in_turn() -> None:
    assert balanced_classes(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        ([], {}, "need at least one integer"),
        ([0.5], {}, "classes are torch.float32"),
        ([[0, 1]], {}, r"of shape \[1, 2\]"),
        ([True], {}, "torch.bool"),
        ([0, 4], {}, "class 4 is out of range"),
        ([-1], {}, "class -1 is out of range"),
        ([[0.0, 1.0], [1.0, 0.0]], {}, r"torch.float32 of shape \[2, 2\]"),
        (torch.eye(3, dtype=torch.int64), {}, r"of shape \[3, 3\], need at least one integer \[N\]"),
        ([0, 1], {"batch_size": 0}, "batch size is 0"),
        ([0, 1], {"seed": -2}, "seed is -2"),
    ],
)
def test_wrong_requests_of_the_loop(classes: list, options: dict, message: str) -> None:
    for sample in (PIPE.sample_ids, PIPE.sample):
        with pytest.raises(UsageError, match=message):
            list(sample(classes, **options))
    with pytest.raises(UsageError, match=message):
        PIPE(classes, **options)


def _sample_together(processes: Processes, folder: Path) -> None:
    for number, (count, batch_size) in enumerate(TOGETHER):
        classes = balanced_classes(count, 3)
        batches = list(
            PIPE.sample_together(classes, DRAWN, processes=processes, seed=4, first=5, batch_size=batch_size)
        )
        assert all(len(batch) <= 2 * batch_size for batch in batches)
        torch.save(torch.cat(batches), folder / f"{processes.rank}-{number}.pt")


TOGETHER = ((11, 3), (1, 4), (12, 3), (13, 6), (5, 64))
"""How many images in which batches: the last batch of all is full, cut, or too small for two."""
DRAWN = Sampling.parse(1.5, temperature=0.9, top_k=5)


def test_two_processes_sample_together_what_one_samples(tmp_path: Path) -> None:
    """Every process gets all images, each once and in order."""
    together(_sample_together, 2, tmp_path, tmp_path)
    for number, (count, batch_size) in enumerate(TOGETHER):
        classes = balanced_classes(count, 3)
        alone = torch.cat(list(PIPE.sample(classes, DRAWN, seed=4, first=5)))
        assert len(alone) == count
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}-{number}.pt")
            assert (found.int() - alone.int()).abs().max() <= 1  # decoded in other batches: rounded at most
        same = PIPE.sample_together(classes, DRAWN, processes=Processes(), seed=4, first=5, batch_size=batch_size)
        assert (torch.cat(list(same)).int() - alone.int()).abs().max() <= 1


def test_unconditional_samples_are_asked_for_by_their_loop_alone() -> None:
    assert sum(map(len, PIPE.sample_ids([3, 3, 0]))) == 3
    with pytest.raises(UsageError, match=r"class 3 is out of range, the model knows 0\.\.2"):
        PIPE([3])
