"""Attention maps: the weights are those that the forward pass uses; and LPIPS as a meter."""

from __future__ import annotations

import json

import pytest
import torch

from overture.analysis.attention_maps import attention_maps, study
from overture.data.transforms import to_float
from overture.errors import OvertureError, UsageError
from overture.evaluation.lpips import LpipsMeter
from overture.losses.perceptual import Lpips
from overture.nn.attention import Attention
from overture.nn.transformer import TransformerConfig
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig

SIZE = TransformerConfig(dim=16, depth=2, heads=2, condition_dim=4)


def make_tokenizer():
    torch.manual_seed(0)
    book = CodebookConfig("uniform", k_max=8)
    segments = (
        SegmentConfig("prologue", "queries", 3, book, decoded=False, separator=True),
        SegmentConfig("visual", "patches", 0, book),
    )
    tokenizer = TokenizerConfig(
        image_size=16, channels=1, patch_size=4, encoder=SIZE, decoder=SIZE, segments=segments, num_classes=3
    ).build()
    for parameter in tokenizer.encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tokenizer.eval()


@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_those_of_the_forward_pass(causal: bool) -> None:
    tokenizer = make_tokenizer()
    x_BLD = torch.randn(2, 19, 16)
    attention = Attention(16, 2, bias=True, causal=causal)
    rotary = tokenizer.encoder.rotary
    weights = attention.weights(x_BLD, rotary)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 19))
    _, value = attention.key_value(x_BLD).chunk(2, dim=-1)
    mixed = weights @ value.unflatten(-1, (2, 8)).transpose(1, 2)
    expected = attention.output(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x_BLD, rotary), expected, rtol=1e-4, atol=1e-5)


def test_maps_of_every_segment() -> None:
    tokenizer = make_tokenizer()
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    for segment, count in (("prologue", 3), ("visual", 16)):
        maps = study(tokenizer, images, segment)
        assert torch.equal(maps.maps_BTGG, attention_maps(tokenizer, images, segment))
        assert maps.maps_BTGG.shape == (2, count, 4, 4)
        torch.testing.assert_close(maps.maps_BTGG.sum(dim=(2, 3)).mean(dim=0), maps.share_T)
        assert bool(((maps.share_T > 0) & (maps.share_T < 1)).all())
        assert maps.largest_spread == 4
        assert bool((maps.spread_T <= 4.0001).all())
    first, last = (attention_maps(tokenizer, images, "prologue", layer) for layer in (0, 1))
    assert not torch.allclose(first, last)
    assert torch.equal(attention_maps(tokenizer, images, "prologue"), last)
    with pytest.raises(UsageError, match="no layer 2"):
        attention_maps(tokenizer, images, "prologue", 2)
    with pytest.raises(UsageError, match="no segment"):
        attention_maps(tokenizer, images, "epilogue")
    for count, tokens in ((0, 1), (2, 0)):
        with pytest.raises(UsageError, match="at least one token and one image"):
            study(tokenizer, images[:count], tokens=tokens)


def test_what_a_study_tells() -> None:
    tokenizer = make_tokenizer()
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    found = study(tokenizer, images, tokens=2)
    assert found.segment == "prologue"  # the first one
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (record["images"], record["layer"], record["largest_spread_bits"]) == (2, -1, 4.0)
    assert record["share_on_patches"] == found.share_T.tolist()
    assert len(found.describe().splitlines()) == 1 + 2
    (entry,) = found.entries()
    assert (entry.name, entry.data) == ("attention", found.to_dict())
    assert len(entry.drawing.axes) == 2 * 3  # type: ignore[union-attr]
    assert len(study(tokenizer, images, tokens=100).entries()[0].drawing.axes) == 2 * 4  # type: ignore[union-attr]


def test_a_token_that_looks_at_one_place_has_no_spread() -> None:
    tokenizer = make_tokenizer()
    images = torch.randint(0, 256, (1, 1, 16, 16), dtype=torch.uint8)
    target = 5

    def only_target(x_BLD, rotary):
        weights = torch.zeros(1, 2, 19, 19)
        weights[..., target] = 1
        return weights

    last = [module for module in tokenizer.encoder.modules() if isinstance(module, Attention)][-1]
    last.weights = only_target
    maps = study(tokenizer, images, "prologue")
    assert maps.maps_BTGG[0, 0, 1, 1] == 1  # patch 5 of a 4 x 4 grid
    assert bool((maps.share_T == 1).all())
    assert bool((maps.spread_T.abs() < 1e-6).all())


def make_lpips() -> Lpips:
    torch.manual_seed(0)
    stages = [
        torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3, padding=1), torch.nn.ReLU()) for channels in (3, 4, 4, 4, 4)
    ]
    return Lpips(stages, [torch.rand(1, 4, 1, 1) for _ in stages])


def test_lpips_is_the_mean_over_images_whatever_the_batches() -> None:
    network = make_lpips()
    images, others = (torch.randint(0, 256, (7, 1, 24, 24), dtype=torch.uint8) for _ in range(2))
    alone = [float(network(to_float(b[None]), to_float(a[None]))) for a, b in zip(images, others, strict=True)]
    for batch in (1, 3, 7):
        meter = LpipsMeter(network)
        for a, b in zip(images.split(batch), others.split(batch), strict=True):
            meter.update(a, b)
        assert meter.result() == pytest.approx(sum(alone) / 7, rel=1e-5)
    same = LpipsMeter(network)
    same.update(images, images)
    assert same.result() == 0
    with pytest.raises(OvertureError, match="no images"):
        LpipsMeter(network).result()
