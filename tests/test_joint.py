"""The joint stage 1 against the reference data and the dense formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from golden_names import rename
from overture.layout import Layout, Segment
from overture.nn.transformer import set_recompute
from overture.priors import PriorConfig
from overture.processes import Processes
from overture.tokenizers import TokenizerConfig
from overture.tokenizers.tokenizer import Encoded, Tokenizer
from overture.training.joint_prior import (
    JointPrior,
    JointPriorConfig,
    input_fillers,
    position_terms,
    sum_by_term,
)
from overture.training.optim import OptimizerConfig
from test_golden import GOLDEN, SEGMENTS, TRANSFORMER

PRIOR = PriorConfig(32, 2, 2, 11 / 4, 16, 10, rope_axes=(8, 4, 4), dropout=0.0)
RATE = OptimizerConfig(learning_rate=1e-3, learning_rate_min=0.0, betas=(0.9, 0.99), warmup=1, flat=0)


@pytest.fixture
def parts():  # type: ignore[no-untyped-def]
    """Raw tokenizer, joint prior with the raw prior's weights, images, expectations."""
    directory = GOLDEN / "prologue"
    expected = np.load(directory / "golden.npz")
    config = TokenizerConfig(32, 3, 8, 10, TRANSFORMER, TRANSFORMER, (4, 4, 8), segments=SEGMENTS["prologue"])
    tokenizer = config.build()
    weights = load_file(directory / "tokenizer/model.safetensors") | load_file(
        directory / "tokenizer/model_1.safetensors"
    )
    tokenizer.load_state_dict(rename(weights))
    joint = JointPriorConfig(PRIOR, RATE).build(config.layout, 10, Processes(), "float32")
    joint.prior.load_state_dict(rename(load_file(directory / "ar/model.safetensors")))
    images = torch.tensor(expected["images_uint8_NCHW"]).float() / 127.5 - 1
    return tokenizer, joint, images, expected


def segment_terms(logits: torch.Tensor, sequence: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """``ce_NAME`` of each segment (and ``ce_separator``) from the table of all logits, position by position."""
    terms: dict[str, torch.Tensor] = {}
    for index, position in enumerate(layout.positions):
        name = "ce_separator" if position.is_separator else f"ce_{layout.names[position.segment]}"
        loss = F.cross_entropy(logits[:, index], sequence[:, index]) / layout.sequence_length
        terms[name] = terms[name] + loss if name in terms else loss
    return terms


def encoder_terms(
    joint: JointPrior, tokenizer: Tokenizer, encoded: Encoded, classes: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The generator's cross-entropies in one piece of graph, from the encoder to the table of all logits."""
    joint.prior.eval()
    embeddings = joint.embeddings(tokenizer, encoded, joint.draw_dropped(len(encoded.ids)))
    logits = joint.prior.predict(embeddings[:, :-1], classes)
    return segment_terms(logits, joint.layout.to_sequence(encoded.ids), joint.layout)


def test_losses_and_gradients_of_the_generator_step(parts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    tokenizer, joint, images, expected = parts
    monkeypatch.setattr(JointPrior, "draw_dropped", lambda self, batch: torch.tensor(expected["joint_dropped_rows"]))
    classes = torch.full((len(images),), joint.prior.unconditional)
    encoded = tokenizer.encode_for_training(images)
    terms, loss, embeddings, gradient = joint.encoder_loss(tokenizer, encoded, classes)
    for name in ("prologue", "separator", "visual"):
        assert terms[f"ce_{name}"].item() == pytest.approx(float(expected[f"joint_ce_{name}"]), rel=1e-4)
    assert loss.item() == pytest.approx(3.0 * sum(term.item() for term in terms.values()), rel=1e-5)
    embeddings.backward(gradient)
    parameters = {
        "semantic_quantizer.embedding.weight": tokenizer.quantizers["prologue"].codebook,
        "semantic_quantizer.proj_in.weight": tokenizer.quantizers["prologue"].projection.weight,
        "enc.input_layer.weight": tokenizer.encoder.patches.weight,
    }
    for name, parameter in parameters.items():
        reference = torch.tensor(expected[f"joint_grad/{name}"])
        assert (parameter.grad - reference).abs().max() <= 1e-4 * reference.abs().max(), name
    assert all(parameter.grad is None for parameter in joint.prior.parameters())
    assert tokenizer.quantizers["visual"].codebook.grad is None


def test_the_early_backward_pass_is_the_plain_one(parts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    tokenizer, joint, images, expected = parts
    monkeypatch.setattr(JointPrior, "draw_dropped", lambda self, batch: torch.tensor(expected["joint_dropped_rows"]))
    classes = torch.full((len(images),), joint.prior.unconditional)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        tokenizer.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in tokenizer.named_parameters() if p.grad is not None}

    encoded = tokenizer.encode_for_training(images)
    plain_terms = encoder_terms(joint, tokenizer, encoded, classes)
    weights = joint.weights(tokenizer)
    plain_loss = torch.stack([weights[name] * term for name, term in plain_terms.items()]).sum()
    plain = gradients(plain_loss + tokenizer.reconstruct(encoded).square().mean())
    encoded = tokenizer.encode_for_training(images)
    terms, loss, embeddings, gradient = joint.encoder_loss(tokenizer, encoded, classes)
    assert not loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())
    handed_on = (embeddings * gradient).sum()  # its gradient by the embeddings is the one to hand on
    early = gradients(handed_on + tokenizer.reconstruct(encoded).square().mean())
    torch.testing.assert_close(loss, plain_loss.detach())
    torch.testing.assert_close(terms, {name: term.detach() for name, term in plain_terms.items()})
    assert early.keys() == plain.keys()
    for name, gradient in plain.items():
        assert (early[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    assert all(parameter.grad is None for parameter in joint.prior.parameters())
    tokenizer.zero_grad()


def test_the_priors_own_step_is_the_mean_cross_entropy(parts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    tokenizer, joint, images, _ = parts
    monkeypatch.setattr(JointPrior, "draw_dropped", lambda self, batch: torch.zeros(batch, dtype=torch.bool))
    ids = tokenizer.encode(images)
    classes = torch.full((len(images),), joint.prior.unconditional)
    sequence = joint.layout.to_sequence(ids)
    with torch.no_grad():
        expected = F.cross_entropy(joint.prior(sequence, classes).transpose(1, 2), sequence)
    before = joint.prior.head.projection.weight.clone()
    assert joint.train_step(ids, classes, 0)["joint_prior"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.equal(before, joint.prior.head.projection.weight)


def test_dropped_inputs_hide_the_segments_after_a_separator(parts) -> None:  # type: ignore[no-untyped-def]
    tokenizer, joint, images, _ = parts
    encoded = tokenizer.encode_for_training(images)
    other = encoded._replace(
        ids=torch.cat([encoded.ids[:, :5], encoded.ids[:, 5:].flip(0)], dim=1),
        quantized={
            name: part._replace(ids=part.ids.flip(0) if name == "visual" else part.ids)
            for name, part in encoded.quantized.items()
        },
    )
    every = torch.ones(len(images), dtype=torch.bool)
    assert torch.equal(joint.embeddings(tokenizer, encoded, every), joint.embeddings(tokenizer, other, every))
    assert not torch.equal(joint.embeddings(tokenizer, encoded, ~every), joint.embeddings(tokenizer, other, ~every))


def test_terms_add_up_and_fillers_follow_separators() -> None:
    layout = Layout((Segment("a", (4, 4), separator=True), Segment("b", (8, 8, 8))))
    logits = torch.randn(3, 6, layout.vocabulary_size)
    sequence = layout.to_sequence(torch.tensor([[0, 3, 1, 2, 7]] * 3))
    terms = sum_by_term(F.cross_entropy(logits.transpose(1, 2), sequence, reduction="none"), layout)
    torch.testing.assert_close(terms, segment_terms(logits, sequence, layout))
    assert list(terms) == ["ce_a", "ce_separator", "ce_b"]
    assert sum(terms.values()).item() == pytest.approx(F.cross_entropy(logits.transpose(1, 2), sequence).item())
    assert position_terms(layout) == ["ce_a"] * 2 + ["ce_separator"] + ["ce_b"] * 3
    assert input_fillers(layout).tolist() == [-1, -1, -1, 12, 12, 12]
    assert input_fillers(Layout.single((4, 4))).tolist() == [-1, -1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_gradients(dropout: float) -> None:
    layout = Layout.single((8,) * 5)
    prior = PriorConfig(16, 2, 2, 2.0, 4, num_classes=3, dropout=dropout).build(layout).train()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sequence, classes = torch.randint(0, 8, (4, 5)), torch.tensor([0, 1, 2, 3])
    gradients = []
    for recompute in ("nothing", "elementwise", "blocks"):
        set_recompute(prior, recompute)
        prior.zero_grad()
        torch.manual_seed(0)
        prior(sequence, classes).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in prior.parameters() if parameter.grad is not None])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
