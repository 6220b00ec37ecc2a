"""overture plan: the release's parameter counts, and arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from overture.cli import main
from overture.data.token_files import TokenHeader
from overture.errors import UsageError
from overture.layout import Layout, Segment
from overture.losses.cross_entropy import projected_cross_entropy
from overture.losses.perceptual import NoPerceptual
from overture.plan.run_plan import Images, count_images, make_plan, sampling_flops
from overture.priors import Guidance, PriorConfig
from overture.recipes import RECIPES, recipe_configs
from overture.runs.config import RunConfig


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    config = recipe_configs("prologue-b-b")[0]
    return make_plan(config, count_images(config), world_size=8)


def test_parameters_are_the_releases(base: dict[str, Any]) -> None:
    rounded = {name: round(count / 1e6, 2) for name, count in base["parameters"].items()}
    assert (rounded["encoder"], rounded["decoder"], rounded["prior"]) == (87.12, 86.88, 115.47)
    assert base["layout"]["vocabulary"] == 17_409


def test_lengths_and_disk_of_the_base_recipe(base: dict[str, Any]) -> None:
    assert base["images"] == {
        "train": 1_281_167, "held_out": 50_000, "classes": 1000, "how": "ImageNet's, the source is not there"
    }  # fmt: skip
    stages = base["stages"]
    assert stages["tokenizer"]["images_seen"] == 256_000_000
    assert round(stages["tokenizer"]["epochs"]) == 200
    assert round(stages["prior"]["epochs"]) == 400
    assert stages["tokens"]["bytes_per_image"] == 10 * 272 * 2 + 4
    assert stages["tokens"]["bytes"] == (1_281_167 + 50_000) * (10 * 272 * 2 + 4)
    assert base["checkpoints"]["prior_model"] == 2 * 4 * base["parameters"]["prior"]


def tiny(name: str) -> RunConfig:
    return recipe_configs(name, tiny=True)[0].changed({"tokenizer_training.perceptual": NoPerceptual()})


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_tiny_recipe_has_a_plan(name: str) -> None:
    config = tiny(name)
    plan = make_plan(config, Images(1000, 10, 10, "given"))
    resolved = config.resolve(10)
    tokenizer = resolved.tokenizer.build()
    encoder = [*tokenizer.encoder.parameters(), *tokenizer.quantizers.parameters()]
    assert plan["parameters"]["encoder"] == sum(p.numel() for p in encoder)
    prior = resolved.prior.build(resolved.tokenizer.layout)
    assert plan["parameters"]["prior"] == sum(p.numel() for p in prior.parameters())
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert plan["stages"]["tokenizer"]["epochs"] == pytest.approx(40 * 32 / 1000)
    for memory in plan["memory_per_device"].values():
        assert memory is None or memory["total"] == sum(size for use, size in memory.items() if use != "total")


def test_counts_equal_those_of_a_real_pass() -> None:
    config = tiny("prologue-b-b").resolve(10)
    plan = make_plan(config, Images(1000, 10, 10, "given"))
    tokenizer, layout = config.tokenizer.build().eval(), config.tokenizer.layout
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        with FlopCounterMode(display=False) as encode:
            ids = tokenizer.encode(torch.zeros(1, 1, 28, 28))
        with FlopCounterMode(display=False) as decode:
            tokenizer.decode(ids)
        with FlopCounterMode(display=False) as predict:
            config.prior.build(layout)(layout.to_sequence(ids), torch.tensor([0]))
    flops = plan["flops_per_image"]
    assert flops["encode"] == encode.get_total_flops()
    assert flops["decode"] == decode.get_total_flops()
    assert flops["prior_step"] == 3 * predict.get_total_flops()


def test_memory_by_hand() -> None:
    config = tiny("imagenet-2d")
    one, four = (make_plan(config, Images(1000, 0, 10, "given"), size) for size in (1, 4))
    count = one["parameters"]
    trained = count["encoder"] + count["decoder"] + count["discriminator"]
    memory = one["memory_per_device"]["tokenizer"]
    assert (memory["weights"], memory["gradients"], memory["adam"]) == (4 * trained, 4 * trained, 8 * trained)
    assert memory["ema"] == 4 * (count["encoder"] + count["decoder"])
    shared = four["memory_per_device"]["tokenizer"]
    assert shared["activations"] * 4 == memory["activations"]
    assert shared["weights"] == memory["weights"]
    # float32 tensors that autograd keeps of one pass through a layer of a known size
    assert memory["activations"] > 32 * 4 * 16 * 64


@pytest.mark.parametrize("loss", ["vocabulary", "allowed"])
def test_activations_are_what_autograd_keeps_in_a_real_pass(loss: str) -> None:
    config = tiny("imagenet-2d").resolve(10).changed({"prior_training.loss": loss})
    layout = config.tokenizer.layout
    prior = config.prior.build(layout)
    weights = {parameter.untyped_storage().data_ptr() for parameter in prior.parameters()}

    def kept(batch: int) -> int:
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        sequence = layout.to_sequence(torch.zeros(batch, layout.length, dtype=torch.long))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = prior.hidden(prior.token_embedding(sequence[:, :-1]), torch.zeros(batch, dtype=torch.long))
            if config.prior_training.loss == "vocabulary":  # all logits are never held
                shares = torch.full((sequence.numel(),), 1 / sequence.numel())
                table = prior.head.projection.weight
                loss, _ = projected_cross_entropy(hidden.flatten(0, 1), table, sequence.flatten(), shares)
            else:
                loss = torch.nn.functional.cross_entropy(prior.head.project(hidden).flatten(0, 1), sequence.flatten())
        total = sum(storage.nbytes() for place, storage in storages.items() if place not in weights)
        del loss
        return total

    memory = make_plan(config, Images(1000, 10, 10, "given"))["memory_per_device"]["prior"]
    assert memory["activations"] == pytest.approx(32 * (kept(3) - kept(2)), rel=0.01)


def test_a_prior_in_parts_and_spread_over_devices() -> None:
    config = tiny("imagenet-2d")
    images = Images(1000, 10, 10, "given")
    whole = make_plan(config, images, world_size=2)["memory_per_device"]["prior"]
    parts = make_plan(config.changed({"engine.micro_batch": 4}), images, world_size=2)["memory_per_device"]["prior"]
    spread = make_plan(config.changed({"engine.shard": True}), images, world_size=2)["memory_per_device"]["prior"]
    assert whole["activations"] == parts["activations"] * (config.prior_training.batch_size // 2) // 4
    assert spread["activations"] == whole["activations"]
    for use in ("weights", "gradients", "adam", "ema"):
        assert parts[use] == whole[use]
        assert spread[use] == pytest.approx(whole[use] / 2, abs=8)


def test_post_trains_only_its_own_path() -> None:
    plan = make_plan(tiny("prologue-post"), Images(1000, 0, 10, "given"))
    count, memory = plan["parameters"], plan["memory_per_device"]["tokenizer"]
    everything = count["encoder"] + count["post_encoder"] + count["decoder"]
    others = count["discriminator"] + count["joint_prior"]
    assert memory["weights"] == 4 * (everything + others)
    quantizer = 32 * 14 + 14 + 1024 * 14  # the prologue's projection from 32 channels and its codebook
    assert memory["gradients"] == 4 * (count["post_encoder"] + quantizer + others)


def test_one_stage_has_no_third_stage() -> None:
    plan = make_plan(tiny("prologue-onestage"), Images(1000, 0, 10, "given"))
    assert plan["stages"]["prior"]["steps"] == 0
    assert plan["memory_per_device"]["prior"] is None
    assert plan["parameters"]["prior"] == plan["parameters"]["joint_prior"]


def test_sampling_by_hand() -> None:
    config, layout = PriorConfig(8, 2, 2, 2.0, 4, 5), Layout((Segment("a", (3, 4), separator=True), Segment("b", (6,))))
    blocks = 2 * 2 * (4 * 8 * 8 + 3 * 8 * 16)
    attention = 4 * 2 * 8 * (1 + 2 + 3 + 4)
    outputs = 2 * 8 * (3 + 4 + 6)
    whole = 4 * blocks + attention + outputs
    assert sampling_flops(config, layout, Guidance.none()) == whole
    assert sampling_flops(config, layout, Guidance.constant(2.0)) == 2 * whole
    first = 2 * blocks + 4 * 2 * 8 * (1 + 2) + 2 * 8 * (3 + 4)
    assert sampling_flops(config, layout, Guidance.split(a=2.0)) == whole + first


def test_sampling_costs_one_pass_without_the_attention_to_what_comes_later() -> None:
    layout, config = Layout.single((30,) * 20), PriorConfig(64, 3, 2, 2.0, 4, 5)
    sequence = torch.zeros(1, 20, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        config.build(layout).eval()(sequence, torch.tensor([0]))
    later = 4 * 3 * 64 * sum(range(20))
    assert sampling_flops(config, layout, Guidance.none()) == pytest.approx(counter.get_total_flops() - later, rel=0.01)


def test_images_are_counted_known_or_asked_for() -> None:
    config = recipe_configs("quickstart")[0]
    assert count_images(config) == Images(9000, 1000, 10, "counted")
    assert count_images(recipe_configs("cifar10")[0]).train == 50_000
    assert count_images(config, 7).train == 7
    missing = replace(config, data=replace(config.data, source="nowhere/photos.zip"))
    with pytest.raises(UsageError, match="--images"):
        count_images(missing)


def test_bytes_are_those_of_a_token_file() -> None:
    layout = Layout.single((70_000,) * 3)
    header = TokenHeader(layout, "hash", "ten", 10, 5, 2)
    assert header.row_bytes == 10 * 3 * 4


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "imagenet-2d", "--tiny", "--prior.depth", "1", "--images", "500", "--world-size", "2"]
    assert main([*words, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["recipe"] == "imagenet-2d"
    assert set(out["runs"][0]) == {
        "recipe", "run", "world_size", "images", "layout", "parameters", "flops_per_image", "stages",
        "memory_per_device", "checkpoints", "reference", "assumptions",
    }  # fmt: skip
    assert out["runs"][0]["images"]["train"] == 500
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "encoder" in text
    assert "memory of a device, 2 in all" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["prologue-bb"],
            "unknown recipe 'prologue-bb' (did you mean 'prologue-b-b', 'prologue-b-l' or 'prologue-l-b'?), or write module:name",
        ),
        (["quickstart", "--only", "vqc"], "recipe quickstart has no run 'vqc' (did you mean 'vcq'?)"),
        (
            ["quickstart", "--prior.dept", "2"],
            "unknown option '--prior.dept' (did you mean '--prior.depth', '--prior.dropout' or '--prior.theta'?)",
        ),
        (["quickstart", "--world-size", "0"], "--world-size is 0, needs >= 1"),
    ],
)
def test_wrong_requests(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["plan", *words]) == 2
    assert capsys.readouterr().err == f"overture: {message}\n"
