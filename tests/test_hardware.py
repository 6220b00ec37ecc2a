"""What models say of the machine that they were trained on, and what is made of it later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from overture import __version__
from overture.config import to_dict
from overture.model_files import read_metadata, save_model
from overture.nn.transformer import TransformerConfig
from overture.processes import Processes
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig
from overture.training import hardware
from overture.training.hardware import device_name, in_words, processor_name, trained_with, was_trained_with
from overture.training.train_tokenizer import TokenizerTrainingConfig, save_finished

ELSEWHERE = {"device": "Card 9000", "processes": 8, "threads": 4, "torch": "9.1", "overture": "7"}


def test_of_this_process() -> None:
    told = trained_with(Processes())
    assert told == {
        "device": processor_name(), "processes": 1, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "overture": __version__,
    }  # fmt: skip
    assert was_trained_with({"trained_with": told}) == told
    assert in_words(told) == f"{processor_name()}, PyTorch {torch.__version__}"
    assert in_words(ELSEWHERE) == "8 x Card 9000, PyTorch 9.1"


def test_accelerators_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    monkeypatch.setattr(hardware, "processor_name", lambda: "Chip")
    names = [device_name(torch.device(device)) for device in ("cuda:3", "cpu", "mps")]
    assert names == ["Card 3", "Chip", "mps (Chip)"]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"trained_with": "a card"},
        {"trained_with": {"device": "Card 9000"}},
        {"trained_with": {**ELSEWHERE, "processes": "8"}},
        {"trained_with": {**ELSEWHERE, "device": "Card\n# 9000"}},
        {"trained_with": {**ELSEWHERE, "more": 1}},
    ],
)
def test_what_others_say_is_taken_only_in_our_form(metadata: dict[str, Any]) -> None:
    assert was_trained_with(metadata) == {}


def test_a_tokenizer_that_is_taken_over_was_trained_where_it_was(tmp_path: Path) -> None:
    size = TransformerConfig(dim=16, depth=1, heads=2, condition_dim=4)
    segments = (SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=8)),)
    config = TokenizerConfig(8, 1, 4, num_classes=3, encoder=size, decoder=size, segments=segments)
    weights = {role: config.build().state_dict() for role in ("raw", "ema")}
    for name, told in (("card", {"trained_with": ELSEWHERE}), ("old", {}), ("odd", {"trained_with": "here"})):
        start, copy = tmp_path / name / "model.safetensors", tmp_path / f"{name}-copy" / "model.safetensors"
        save_model(start, "tokenizer", weights, {"config": to_dict(config), **told})
        save_finished(config, TokenizerTrainingConfig(start_from=str(start), trains="nothing"), copy, {})
        assert was_trained_with(read_metadata(copy, "tokenizer")) == (ELSEWHERE if name == "card" else {})
