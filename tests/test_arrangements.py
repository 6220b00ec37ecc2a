"""Every kind of tokenizer is one config: 2D, 1D, Prologue, Prologue over 1D with VCQ, variable prologue, Post."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError
from overture.nn.transformer import TransformerConfig
from overture.quantizers import SoftConfig, VectorConfig
from overture.schedules import CodebookConfig
from overture.tokenizers import SegmentConfig, TokenizerConfig
from overture.tokenizers.tokenizer import Tokenizer

SIZE = TransformerConfig(dim=32, depth=2, heads=2, condition_dim=8)
VISUAL = SegmentConfig("visual", codebook=CodebookConfig(k_max=32), quantizer=VectorConfig(z_dim=6))
VISUAL_1D = replace(VISUAL, source="queries", tokens=6)
VCQ_1D = replace(VISUAL_1D, codebook=CodebookConfig("linear", k_min=2, k_max=32))
PROLOGUE = SegmentConfig(
    "prologue", "queries", 4, CodebookConfig(k_max=16), SoftConfig(z_dim=6), decoded=False, separator=True
)
GROWING = replace(PROLOGUE, codebook=CodebookConfig("geometric", k_min=2, k_max=16))
ARRANGEMENTS = {
    "2d": (VISUAL,),
    "2d-vcq": (replace(VISUAL, codebook=VCQ_1D.codebook),),
    "1d": (VISUAL_1D,),
    "prologue": (PROLOGUE, VISUAL),
    "prologue-1d-vcq": (PROLOGUE, VCQ_1D),
    "variable-prologue": (GROWING, VISUAL),
    "both-variable": (GROWING, replace(VISUAL, codebook=VCQ_1D.codebook)),
    "post": (replace(PROLOGUE, source="post"), VISUAL),
    "post-1d": (replace(PROLOGUE, source="post"), VCQ_1D),
}


def config(name: str) -> TokenizerConfig:
    post = TransformerConfig(dim=16, depth=1, heads=1, ratio=2.0, condition_dim=8) if "post" in name else None
    return TokenizerConfig(16, 3, 4, 10, SIZE, SIZE, segments=ARRANGEMENTS[name], post_encoder=post)


def build(name: str) -> Tokenizer:
    """Fresh weights, with gates and output opened so that every part matters."""
    torch.manual_seed(0)
    tokenizer = config(name).build()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return tokenizer


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_encode_and_decode(name: str, images: torch.Tensor) -> None:
    tokenizer = build(name)
    ids = tokenizer.encode(images)
    assert ids.shape == (3, tokenizer.layout.length)
    assert (ids >= 0).all()
    assert (ids < torch.tensor(tokenizer.layout.sizes)).all()
    encoded = tokenizer.encode_for_training(images)
    reconstruction = tokenizer.reconstruct(encoded)
    assert torch.equal(encoded.ids, ids)
    assert reconstruction.shape == tokenizer.decode(ids).shape == images.shape
    torch.testing.assert_close(tokenizer.decode(ids), reconstruction)
    assert torch.equal(tokenizer.decode_valid(ids), tokenizer.decode(ids))
    assert torch.equal(tokenizer.layout.from_sequence(tokenizer.layout.to_sequence(ids)), ids)


@pytest.mark.parametrize("name", [name for name, segments in ARRANGEMENTS.items() if len(segments) == 2])
def test_the_image_does_not_depend_on_the_prologue(name: str, images: torch.Tensor) -> None:
    tokenizer = build(name)
    ids = tokenizer.encode(images)
    image = tokenizer.decode(ids)
    other = ids.clone()
    where = tokenizer.layout.slice("prologue")
    other[:, where] = (ids[:, where] + 1) % torch.tensor(tokenizer.layout.sizes[where])
    assert not torch.equal(other, ids)
    assert torch.equal(tokenizer.decode(other), image)
    other[:, tokenizer.layout.slice("visual")] = 0
    assert not torch.equal(tokenizer.decode(other), image)


def test_post_leaves_the_finished_tokenizer_as_it_is(images: torch.Tensor) -> None:
    """Its visual tokens and images are the base's, and no gradient of the prologue's tokens reaches the base."""
    base, post = build("2d"), build("post")
    outcome = post.load_state_dict(base.state_dict(), strict=False)
    assert not outcome.unexpected_keys
    trained = dict(post.trained_parameters())
    assert set(outcome.missing_keys) == set(trained)
    ids = post.encode(images)
    assert torch.equal(ids[:, post.layout.slice("visual")], base.encode(images))
    assert torch.equal(post.decode(ids), base.decode(base.encode(images)))

    encoded = post.encode_for_training(images)
    quantizer = post.quantizers["prologue"]
    rows = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    embedded = quantizer.embed(encoded.features["prologue"], encoded.quantized["prologue"].ids, rows)  # type: ignore[operator]
    embedded.square().sum().backward()
    reached = {name for name, parameter in post.named_parameters() if parameter.grad is not None}
    assert reached <= set(trained)
    assert any(trained[name].grad.abs().sum() > 0 for name in reached if name.startswith("post_encoder."))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [name for name in ARRANGEMENTS if "post" not in name])
def test_other_tokenizers_train_whole(name: str) -> None:
    tokenizer = config(name).build()
    assert dict(tokenizer.trained_parameters()).keys() == dict(tokenizer.named_parameters()).keys()


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_configs_survive_json(name: str) -> None:
    assert from_dict(TokenizerConfig, to_dict(config(name))) == config(name)


def test_post_segment_and_post_encoder_need_each_other() -> None:
    with pytest.raises(UsageError, match="need each other"):
        replace(config("post"), post_encoder=None)
    with pytest.raises(UsageError, match="need each other"):
        replace(config("prologue"), post_encoder=SIZE)
    with pytest.raises(UsageError, match="tokens is 0"):
        replace(config("post"), segments=(replace(PROLOGUE, source="post", tokens=0), VISUAL))


def test_an_encoder_may_count_its_patches_in_rows_of_another_length(images: torch.Tensor) -> None:
    """Only its positions change: a row as long as the grid is the grid, another one gives other outputs."""
    for name in ("2d", "post"):
        outputs = {}
        for columns in (None, 4, 16):
            tokenizer = replace(config(name), encoder_columns=columns).build()
            tokenizer.load_state_dict(build(name).state_dict())
            outputs[columns] = tokenizer.features(images)["visual"]
        assert torch.equal(outputs[4], outputs[None])
        assert not torch.allclose(outputs[16], outputs[None])
        if name == "post":  # what it makes of the first encoder's outputs is still on the grid
            assert tokenizer.post_encoder is not None
            assert torch.equal(tokenizer.post_encoder.cos, build(name).post_encoder.cos)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="encoder_columns is 0"):
        replace(config("2d"), encoder_columns=0)


def test_what_is_no_image_is_refused() -> None:
    """Pixels of 0..255, whole numbers and NaN would be encoded to tokens that mean nothing."""
    tokenizer = build("2d")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ids = tokenizer.encode(images)
    assert torch.equal(tokenizer.encode(images.double()), ids)
    assert tokenizer.encode(images.half()).shape == ids.shape
    for wrong, words in (
        ((images * 127.5 + 127.5).byte(), "uint8, need floats"),
        (images * 127.5 + 127.5, r"need finite values in \[-1, 1\]"),
        (images.clone().fill_(torch.nan), "need finite values"),
        (images[0], r"images are \[3, 16, 16\]"),
    ):
        with pytest.raises(OvertureError, match=words):
            tokenizer.encode(wrong)
    for wrong_ids, words in ((ids[0], r"of shape \[\d+\]"), (ids.float(), "float32"), (ids + 10**6, "outside 0")):
        with pytest.raises(OvertureError, match=words):
            tokenizer.decode(wrong_ids)
