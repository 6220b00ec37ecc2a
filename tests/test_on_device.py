"""What an accelerator may do otherwise than a CPU.

``OVERTURE_TEST_DEVICE=cuda python -m pytest -m device`` runs these, the golden data and the waits on an accelerator. Those
that compare it with the CPU have nothing to say on a CPU. Greedy samples are part of the golden data (``test_golden.py``).
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from overture.evaluation.networks import load_network
from overture.losses.adversarial import AdversarialConfig
from overture.priors import PriorConfig
from overture.priors.model import Prior
from overture.processes import Processes
from overture.quantizers.code_search import nearest_codes, soft_lookup
from overture.recipes import recipe_configs
from overture.schedules import Schedule
from overture.tokenizers.tokenizer import Tokenizer
from overture.training.prior_pass import PriorPass
from overture.training.step import Trainable, autocast
from tiny_steps import TRAININGS

pytestmark = pytest.mark.device

CONFIG = recipe_configs("vcq-prologue", tiny=True)[0].resolve(10)
IMAGES = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def accelerator(device: torch.device) -> torch.device:
    if device.type == "cpu":
        pytest.skip("compares an accelerator with the CPU")
    return device


def test_the_random_network_is_the_same_on_every_device(accelerator: torch.device) -> None:
    assert load_network("random:6", accelerator).weights_hash == load_network("random:6").weights_hash


def built_tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return CONFIG.tokenizer.build().eval()


def built_prior() -> Prior:
    torch.manual_seed(0)
    prior = PriorConfig(dim=32, depth=2, heads=2, condition_dim=16, num_classes=10, dropout=0.0)
    return prior.build(CONFIG.tokenizer.layout).eval()


def close(ours: Tensor, exact: Tensor, within: float = 1e-4) -> bool:
    """Within so much of the largest magnitude."""
    exact = exact.cpu().double()
    return float((ours.cpu().double() - exact).abs().max()) <= within * float(exact.abs().max())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def same_gradients(ours: nn.Module, exact: nn.Module) -> bool:
    mine, theirs = gradients(ours), gradients(exact)
    return mine.keys() == theirs.keys() and all(
        close(mine[name], theirs[name], 1e-3) for name in theirs if theirs[name].abs().max() > 1e-9
    )


def test_code_search(device: torch.device) -> None:
    """Whole numbers, so that there are ties and no rounding."""
    generator = torch.Generator().manual_seed(0)
    sizes = Schedule.linear(40, 2, 1000).sizes
    z = torch.randint(-3, 4, (9, 40, 5), generator=generator).float()
    codes = torch.randint(-3, 4, (1000, 5), generator=generator).float()
    beyond = torch.arange(1000) >= torch.tensor(sizes)[:, None]
    expected = (z @ codes.t()).masked_fill(beyond, -torch.inf).argmax(dim=-1)
    assert torch.equal(nearest_codes(z.to(device), codes.to(device), sizes).cpu(), expected)


def test_soft_lookup(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = Schedule.linear(12, 2, 700).sizes
    z, codes, rows = (torch.randn(shape, generator=generator) for shape in ((3, 12, 5), (700, 5), (700, 4)))
    direction = torch.randn(3, 12, 4, generator=generator)
    ids = nearest_codes(z, codes, sizes)
    leaves = [part.to(device).requires_grad_() for part in (z, codes, rows)]
    out = soft_lookup(*leaves, ids.to(device), sizes, 0.3)  # type: ignore[call-arg, misc]
    ours = torch.autograd.grad((out * direction.to(device)).sum(), leaves)
    exact = [part.double().requires_grad_() for part in (z, codes, rows)]
    beyond = torch.arange(700) >= torch.tensor(sizes)[:, None]
    soft = ((exact[0] @ exact[1].t()) / 0.3).masked_fill(beyond, -torch.inf).softmax(dim=-1)
    one_hot = soft + (nn.functional.one_hot(ids, 700) - soft).detach()
    theirs = torch.autograd.grad(((one_hot @ exact[2]) * direction).sum(), exact)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def test_tokenizer_forward_and_backward(accelerator: torch.device) -> None:
    exact = built_tokenizer()
    ours = built_tokenizer().to(accelerator)
    encoded, expected = ours.encode_for_training(IMAGES.to(accelerator)), exact.encode_for_training(IMAGES)
    assert torch.equal(encoded.ids.cpu(), expected.ids)
    for model, answer, images in ((ours, encoded, IMAGES.to(accelerator)), (exact, expected, IMAGES)):
        ((model.reconstruct(answer) - images).square().mean() + answer.quantizer_loss).backward()
    assert close(ours.reconstruct(encoded).detach(), exact.reconstruct(expected).detach())
    assert same_gradients(ours, exact)


@pytest.mark.parametrize("allowed", [False, True])
def test_prior_forward_and_backward(allowed: bool, accelerator: torch.device) -> None:
    exact, ours = built_prior(), built_prior().to(accelerator)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(CONFIG.tokenizer.layout.sizes)
    ids = (torch.rand(5, len(sizes), generator=generator) * sizes).long()
    sequence, classes = CONFIG.tokenizer.layout.to_sequence(ids), torch.arange(5)
    parts = (sequence, sequence, classes)
    loss = PriorPass(ours, "float32", allowed=allowed)(*(part.to(accelerator) for part in parts), sequence.numel())
    logits = exact(sequence, classes)
    if allowed:
        positions = CONFIG.tokenizer.layout.positions
        low, high = (torch.tensor([getattr(position, end) for position in positions]) for end in ("low", "high"))
        every = torch.arange(logits.shape[-1])
        logits = logits.masked_fill((every < low[:, None]) | (every >= high[:, None]), -torch.inf)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), sequence.flatten())
    for value in (loss, expected):
        value.backward()
    assert close(loss.detach(), expected.detach())
    assert same_gradients(ours, exact)


def test_discriminator_with_r1(accelerator: torch.device) -> None:
    torch.manual_seed(0)
    ours = AdversarialConfig(channels=8, layers=2).build(1, 28)
    exact = deepcopy(ours)
    ours = ours.to(accelerator)
    fake = IMAGES.flip(0)
    terms = ours(IMAGES.to(accelerator), fake.to(accelerator), 0)
    expected = exact(IMAGES, fake, 0)
    for model in (terms, expected):
        model["total"].backward()
    assert all(close(terms[name].detach(), expected[name].detach()) for name in expected)
    assert same_gradients(ours, exact)


def test_bfloat16_is_near(accelerator: torch.device) -> None:
    """Autocast's rounding: eight bits, over two blocks."""
    exact, ours = built_prior(), built_prior().to(accelerator)
    sequence = CONFIG.tokenizer.layout.to_sequence(torch.zeros(3, CONFIG.tokenizer.layout.length, dtype=torch.long))
    classes = torch.arange(3)
    with autocast(accelerator, "bfloat16"):
        hidden = ours.hidden(ours.token_embedding(sequence.to(accelerator)[:, :-1]), classes.to(accelerator))
    expected = exact.hidden(exact.token_embedding(sequence[:, :-1]), classes)
    assert hidden.dtype == torch.float32
    assert close(hidden.detach(), expected.detach(), 3e-2)


@pytest.mark.parametrize("bad", [False, True])
def test_an_optimizer_step(bad: bool, device: torch.device) -> None:
    """AdamW by hand; a step whose gradients are not finite changes nothing."""
    optimizer = CONFIG.prior_training.optimizer
    module = nn.Linear(3, 2).to(device)
    before = module.weight.detach().cpu().double()
    trained = Trainable(module, optimizer, 100, Processes(device=device))
    assert trained.optimizer.defaults["fused"]
    gradient = torch.arange(6.0).view(2, 3)
    module.weight.grad = gradient.to(device) / (0 if bad else 1)
    module.bias.grad = torch.zeros(2, device=device)
    norm = trained.optimizer_step(0)
    rate = trained.schedule.learning_rate(0)
    shrunk = gradient.double() * min(1.0, optimizer.clip / float(gradient.norm()))
    expected = before * (1 - rate * optimizer.weight_decay) - rate * shrunk / (shrunk.abs() + 1e-8)
    assert bool(norm.isfinite()) != bad
    moved = module.weight.detach().cpu().double() - before
    assert torch.equal(moved, torch.zeros_like(moved)) if bad else close(moved, expected - before, 1e-3)


@pytest.mark.parametrize("name", TRAININGS)
def test_steps_of_training_stay_finite(name: str, device: torch.device) -> None:
    training = TRAININGS[name](device)
    for _ in range(2):
        training.step()
    assert training.trainer.nonfinite.clean()
    assert training.trainer.nonfinite.check() == ""
