"""Token ids, code vectors, reconstructions, logits and greedy samples against the reference data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden_names import GOLDEN, imported
from overture.interop.release_config import read_config
from overture.nn.transformer import TransformerConfig
from overture.pipeline import Pipeline, load_prior, load_tokenizer
from overture.priors import Guidance, PriorConfig, Sampling
from overture.priors.sampler import generate
from overture.quantizers import SoftConfig, VectorConfig
from overture.schedules import CodebookConfig
from overture.tokenizers import SegmentConfig, TokenizerConfig

pytestmark = pytest.mark.device

TRANSFORMER = TransformerConfig(dim=32, depth=2, heads=2, ratio=8 / 3, condition_dim=16)
VISUAL = SegmentConfig("visual", codebook=CodebookConfig(k_max=64), quantizer=VectorConfig(z_dim=6))
PROLOGUE = SegmentConfig(
    "prologue",
    source="queries",
    tokens=5,
    codebook=CodebookConfig(k_max=24),
    quantizer=SoftConfig(z_dim=6),
    decoded=False,
    separator=True,
)
SEGMENTS = {"2d": (VISUAL,), "prologue": (PROLOGUE, VISUAL)}
GUIDANCE = {
    "greedy_nocfg": Guidance.none(),
    "greedy_cfg1p5_constant": Guidance.constant(1.5),
    "greedy_cfg4_cosine_p1p5": Guidance.cosine(4.0, power=1.5),
    "greedy_cfg3_linear": Guidance.linear(3.0),
}
SPLIT = Guidance.split(prologue=0.7, visual=Guidance.cosine(3.75, power=0.2))


class Case:
    def __init__(self, name: str, device: torch.device) -> None:
        directory = GOLDEN / name
        self.expected = np.load(directory / "golden.npz")
        self.tokenizer = load_tokenizer(imported(name), device=device)  # EMA
        self.prior = load_prior(imported(name), device=device)  # raw
        self.images = torch.tensor(self.expected["images_uint8_NCHW"], device=device).float() / 127.5 - 1
        self.classes = torch.tensor(self.expected["class_ids"], device=device)
        self.ids = torch.tensor(self.expected["indices"], device=device)


@pytest.fixture(scope="module", params=["2d", "prologue"])
def case(request: pytest.FixtureRequest, device: torch.device) -> Case:
    return Case(request.param, device)


def close(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    """Within 1e-4 of the largest magnitude."""
    return float(np.abs(ours.detach().cpu().numpy() - theirs).max()) <= 1e-4 * float(np.abs(theirs).max())


@pytest.mark.parametrize("name", SEGMENTS)
def test_sizes_are_those_of_the_config_file(name: str) -> None:
    release, one_stage = read_config(GOLDEN / name / "config_resolved.json")
    expected = TokenizerConfig(32, 3, 8, 10, TRANSFORMER, TRANSFORMER, rope_axes=(4, 4, 8), segments=SEGMENTS[name])
    assert release.tokenizer == expected
    assert release.prior == PriorConfig(32, 2, 2, 11 / 4, 16, 10, rope_axes=(8, 4, 4), dropout=0.0)
    assert not one_stage
    assert Pipeline.load(imported(name)).prior.layout == expected.layout


def test_token_ids(case: Case) -> None:
    assert torch.equal(case.tokenizer.encode(case.images), case.ids)


def test_codes_and_quantizer_loss(case: Case) -> None:
    out = case.tokenizer.encode_for_training(case.images)
    assert torch.equal(out.ids, case.ids)
    for name, quantized in out.quantized.items():
        assert close(quantized.codes, case.expected[f"{name}_quant"])
    assert close(out.quantized["visual"].loss[None], case.expected["quant_loss_visual"][None])
    assert close(
        case.tokenizer.codes(case.ids)[:, case.tokenizer.layout.slice("visual")], case.expected["visual_quant"]
    )


def test_reconstruction(case: Case) -> None:
    expected = case.expected["reconstruction_NCHW"]
    tokenizer = case.tokenizer
    assert close(tokenizer.reconstruct(tokenizer.encode_for_training(case.images)), expected)
    assert close(case.tokenizer.decode(case.ids), expected)


def test_sequence_view(case: Case) -> None:
    layout = case.tokenizer.layout
    sequence = torch.tensor(case.expected["ar_ids"], device=case.ids.device)
    assert torch.equal(layout.to_sequence(case.ids), sequence)
    assert torch.equal(layout.from_sequence(sequence), case.ids)


def test_prior_logits(case: Case) -> None:
    sequence = torch.tensor(case.expected["ar_ids"], device=case.ids.device)
    logits = case.prior(sequence, case.classes)
    assert close(logits, case.expected["ar_logits"])
    unconditional = torch.full_like(case.classes, case.prior.unconditional)
    assert close(case.prior(sequence, unconditional), case.expected["ar_logits_uncond"])
    entropy = torch.nn.functional.cross_entropy(logits.transpose(1, 2), sequence, reduction="none")
    assert close(entropy, case.expected["ce_per_token"])


@pytest.mark.parametrize("name", GUIDANCE)
def test_greedy_samples(case: Case, name: str) -> None:
    sequence = generate(case.prior, case.classes, Sampling(GUIDANCE[name], top_k=1))
    assert torch.equal(sequence.cpu(), torch.tensor(case.expected[name]))


def test_greedy_samples_under_split_guidance(device: torch.device) -> None:
    case = Case("prologue", device)
    sequence = generate(case.prior, case.classes, Sampling(SPLIT, top_k=1))
    assert torch.equal(sequence.cpu(), torch.tensor(case.expected["greedy_split_pro0p7const_vis3p75cosine_p0p2"]))
