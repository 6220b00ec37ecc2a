"""Patch discriminator, GAN terms, LeCam, R1, and that several processes compute what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import UsageError
from overture.losses.adversarial import Adversarial, AdversarialConfig, PatchDiscriminator
from overture.nn.global_batch_norm import GlobalBatchNorm2d
from overture.processes import Processes
from together import together

SMALL = AdversarialConfig(channels=4, layers=2, lecam=0.5, lecam_decay=0.9, r1=3.0, r1_every=2)


def small(config: AdversarialConfig = SMALL, channels: int = 3, processes: Processes = Processes()) -> Adversarial:
    torch.manual_seed(0)
    adversarial = config.build(channels, processes=processes)
    for parameter in adversarial.parameters():  # larger than at the start of training, so that every term matters
        nn.init.normal_(parameter, 0.1, 0.3)
    return adversarial


def images(count: int, seed: int, size: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference_discriminator(state: dict[str, Tensor], layers: int, x: Tensor) -> Tensor:
    """The PatchGAN written out, with batch statistics by their definition."""
    x = F.leaky_relu(F.conv2d(x, state["0.weight"], state["0.bias"], stride=2, padding=1), 0.2)
    for layer in range(1, layers + 1):
        at = 3 * layer - 1
        x = F.conv2d(x, state[f"{at}.weight"], stride=2 if layer < layers else 1, padding=1)
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        scale, shift = state[f"{at + 1}.weight"], state[f"{at + 1}.bias"]
        x = (x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        x = torch.where(x > 0, x, 0.2 * x)
    at = 3 * layers + 2
    return F.conv2d(x, state[f"{at}.weight"], state[f"{at}.bias"], padding=1)


def test_released_size() -> None:
    discriminator = PatchDiscriminator(3, 64, 3)
    convolutions = [m for m in discriminator if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convolutions] == [2, 2, 2, 1, 1]
    assert [m.bias is not None for m in convolutions] == [True, False, False, False, True]
    ends, middle = 16 * (3 * 64 + 512) + 64 + 1, 16 * (64 * 128 + 128 * 256 + 256 * 512) + 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in discriminator.parameters()) == ends + middle == 2_765_633
    assert discriminator(images(1, 0, size=256)).shape == (1, 1, 30, 30)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, 64, 3)
    norms = torch.cat([m.weight for m in discriminator if isinstance(m, nn.BatchNorm2d)]).detach()
    weight = discriminator.get_parameter("5.weight").detach()
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert norms.mean().item() == pytest.approx(1, abs=0.01)
    assert norms.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_discriminator_against_its_definition(layers: int) -> None:
    adversarial = small(AdversarialConfig(channels=4, layers=layers))
    x = images(3, 1, size=48)
    expected = reference_discriminator(dict(adversarial.discriminator.state_dict()), layers, x)
    assert torch.allclose(adversarial.discriminator(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("size", "layers"), [(6, 1), (12, 2), (24, 3), (28, 3), (31, 3), (48, 4), (32, 3)])
def test_smallest_images(size: int, layers: int) -> None:
    adversarial = AdversarialConfig(channels=2, layers=layers).build(1, image_size=size)
    assert min(adversarial.discriminator(images(2, 0, size, 1)).shape[-2:]) >= 1
    too_many = AdversarialConfig(channels=2, layers=layers + 2)
    with pytest.raises(UsageError, match="leave no patch"):
        too_many.build(1, image_size=size)
    with pytest.raises(UsageError, match="leave no patch"):
        too_many.build(1).discriminator(images(2, 0, size, 1))


@pytest.mark.parametrize("size", [5, 6, 11, 12, 23, 24, 47, 48])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_size_check_is_exact(size: int, layers: int) -> None:
    """Refused exactly when the convolutions themselves would find nothing to do."""
    discriminator = PatchDiscriminator(1, 2, layers)
    possible = True
    try:
        nn.Sequential.forward(discriminator, images(2, 0, size, 1))
    except RuntimeError:
        possible = False
    try:
        discriminator(images(2, 0, size, 1))
        allowed = True
    except UsageError:
        allowed = False
    assert allowed == possible


def test_vanilla_loss_is_cross_entropy() -> None:
    adversarial = small()
    real, fake = images(4, 1), images(4, 2)
    state = dict(adversarial.discriminator.state_dict())
    real_logits = reference_discriminator(state, 2, real)
    fake_logits = reference_discriminator(state, 2, fake)
    ones, zeros = torch.ones_like(real_logits), torch.zeros_like(real_logits)
    cross_entropy = F.binary_cross_entropy_with_logits
    expected = 0.5 * (cross_entropy(real_logits, ones) + cross_entropy(fake_logits, zeros))
    terms = adversarial(real, fake, step=1)
    assert terms["discriminator"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert adversarial.generator_loss(fake).item() == pytest.approx(cross_entropy(fake_logits, ones).item(), rel=1e-5)


def test_lecam_over_three_steps() -> None:
    adversarial = small()
    state = {name: tensor.clone() for name, tensor in adversarial.discriminator.state_dict().items()}
    real_average = fake_average = 0.0
    for step in range(3):
        real, fake = images(4, step), images(4, 10 + step)
        real_logits = reference_discriminator(state, 2, real)
        fake_logits = reference_discriminator(state, 2, fake)
        expected = ((real_logits - fake_average).clamp_min(0) ** 2).mean()
        expected = expected + ((real_average - fake_logits).clamp_min(0) ** 2).mean()
        terms = adversarial(real, fake, step)
        assert terms["lecam"].item() == pytest.approx(expected.item(), rel=1e-4)
        real_average = 0.9 * real_average + 0.1 * real_logits.mean().item()
        fake_average = 0.9 * fake_average + 0.1 * fake_logits.mean().item()
    saved = adversarial.state_dict()
    assert saved["real_average"].item() == pytest.approx(real_average, rel=1e-4)
    assert saved["fake_average"].item() == pytest.approx(fake_average, rel=1e-4)
    assert real_average != 0


def test_r1_against_finite_differences() -> None:
    adversarial = small()
    adversarial.discriminator.double()
    real = images(2, 1, size=12).double()
    terms = adversarial(real, images(2, 2, size=12).double(), step=0)
    state = dict(adversarial.discriminator.state_dict())
    squares = 0.0
    for index in range(real.numel()):
        delta = torch.zeros_like(real)
        delta.view(-1)[index] = 1e-6
        up = reference_discriminator(state, 2, real + delta).sum()
        down = reference_discriminator(state, 2, real - delta).sum()
        squares += ((up - down) / 2e-6).item() ** 2
    assert terms["r1"].item() == pytest.approx(squares / 2, rel=1e-3)


def test_r1_comes_every_so_often_and_terms_add_up() -> None:
    adversarial = small()
    for step in range(5):
        terms = adversarial(images(2, 1), images(2, 2), step)
        assert set(terms) == {"discriminator", "lecam", "total"} | ({"r1"} if step % 2 == 0 else set())
        expected = terms["discriminator"] + 0.5 * terms["lecam"] + 1.5 * terms.get("r1", torch.zeros(()))
        assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    off = small(AdversarialConfig(channels=4, layers=2, lecam=0, r1=0))
    assert set(off(images(2, 1), images(2, 2), 0)) == {"discriminator", "total"}


def test_r1_reaches_the_weights() -> None:
    adversarial = small()
    terms = adversarial(images(2, 1), images(2, 2), 0)
    gradients = torch.autograd.grad(terms["r1"], list(adversarial.discriminator[0].parameters()), allow_unused=True)
    assert gradients[0].abs().sum() > 0


def test_generator_step_leaves_the_discriminator_alone() -> None:
    adversarial = small()
    fake = images(2, 1).requires_grad_()
    loss = adversarial.generator_loss(fake)
    assert all(parameter.requires_grad for parameter in adversarial.parameters())
    loss.backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in adversarial.parameters())
    with pytest.raises(UsageError):
        adversarial.generator_loss(images(2, 1, size=4))
    assert all(parameter.requires_grad for parameter in adversarial.parameters())


def test_discriminator_step_leaves_the_images_alone() -> None:
    adversarial = small()
    real, fake = images(2, 1).requires_grad_(), images(2, 2).requires_grad_()
    adversarial(real, fake, 0)["total"].backward()
    assert real.grad is None
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in adversarial.parameters())


def test_autocast_keeps_the_reductions_in_float32() -> None:
    adversarial = small()
    with torch.autocast("cpu", torch.bfloat16):
        terms = adversarial(images(2, 1), images(2, 2), 0)
        generator = adversarial.generator_loss(images(2, 2))
    assert {value.dtype for value in terms.values()} | {generator.dtype} == {torch.float32}
    terms["total"].backward()


@pytest.mark.parametrize("bad", [{"layers": 0}, {"r1_every": 0}, {"lecam": -1.0}, {"lecam_decay": 1.0}, {"start": -1}])
def test_impossible_values(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        AdversarialConfig(**bad)  # type: ignore[arg-type]


def test_start() -> None:
    config = AdversarialConfig(start=5)
    assert [config.active(step) for step in (0, 4, 5, 6)] == [False, False, True, True]
    assert not AdversarialConfig(weight=0.0).active(10)


# -- several processes --------------------------------------------------------------------------------------------------


def game(share: slice, processes: Processes) -> dict[str, Tensor]:
    """Two discriminator steps and a generator step on a share of the batch: mean gradients over all processes."""
    adversarial = small(processes=processes)
    results = {}
    for step in range(2):
        real, fake = images(4, step)[share], images(4, 10 + step)[share]
        adversarial.zero_grad()
        terms = adversarial(real, fake, step)
        terms["total"].backward()
        for name, parameter in adversarial.named_parameters():
            assert parameter.grad is not None
            results[f"{step} {name}"] = processes.mean(parameter.grad)
        for name, value in terms.items():
            results[f"{step} {name}"] = processes.mean(value.detach())
    fake = images(4, 20)[share].requires_grad_()
    adversarial.generator_loss(fake).backward()
    assert fake.grad is not None
    results["generator"] = processes.gather(fake.grad) / processes.size
    return {**results, **{f"state {name}": tensor for name, tensor in adversarial.state_dict().items()}}


def uneven_norm(share: slice, processes: Processes) -> dict[str, Tensor]:
    """A norm far from zero mean, whose processes hold different numbers of samples."""
    norm = GlobalBatchNorm2d(3, processes)
    x = (images(5, 3) + 10)[share].requires_grad_()
    y = norm(x)
    (y.square().sum() + y[:, 0].sum()).backward()
    assert norm.weight.grad is not None
    sums = {"y sums": y.detach().sum(dim=0), "weight": norm.weight.grad}
    return {**{name: processes.sum(value) for name, value in sums.items()}, **norm.state_dict()}


def process(processes: Processes, folder: Path) -> None:
    results = game(slice(0, 2) if processes.is_main else slice(2, 4), processes)
    norm = uneven_norm(slice(0, 4) if processes.is_main else slice(4, 5), processes)
    if processes.is_main:
        torch.save({"game": results, "norm": norm}, folder / "results.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    together(process, 2, tmp_path, tmp_path)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for name, reference in (("game", game(slice(None), Processes())), ("norm", uneven_norm(slice(None), Processes()))):
        assert results[name].keys() == reference.keys()
        for key, expected in reference.items():
            difference = (results[name][key] - expected).abs().max() / expected.abs().max().clamp_min(1.0)
            assert difference < 1e-5, f"{name} {key}: {difference}"
