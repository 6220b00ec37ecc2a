"""One step of an optimizer, the generator's step with its early backward passes, and the loop around the steps."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overture.errors import OvertureError
from overture.files import read_json_lines
from overture.losses.adversarial import AdversarialConfig
from overture.losses.perceptual import DomainConfig, NoPerceptual, Perceptual
from overture.losses.pixel import ReconstructionConfig
from overture.nn.classifier import ClassifierConfig
from overture.processes import Processes
from overture.progress import Interrupted, SilentProgress
from overture.recipes import recipe_configs
from overture.runs.config import RunConfig
from overture.training.checkpoint import latest_step
from overture.training.joint_prior import JointPrior
from overture.training.loop import Checkpointer, train
from overture.training.optim import OptimizerConfig
from overture.training.step import PATIENCE, NonFinite, Precision, Trainable, autocast, chosen_precision
from overture.training.train_tokenizer import TokenizerTrainer
from test_joint import encoder_terms
from test_training import equal_states
from together import together

CONFIG = OptimizerConfig(1e-2, 1e-3, betas=(0.9, 0.99), weight_decay=0.1, warmup=2, flat=1)
HALF_LIFE = 3.0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))


# -- one step -----------------------------------------------------------------------------------------------------------


def gradients(rank: int, step: int) -> list[Tensor]:
    """Gradients of :func:`network` on a process; some are NaN or infinite, on one process alone or on both."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    found = [torch.randn(parameter.shape, generator=generator) for parameter in network().parameters()]
    if step == 1:
        found[0][0, 0] = math.nan if rank == 1 else 1.0
        found[1][2] = math.inf
        found[2][3, 3] = -math.inf if rank == 0 else 5.0
    return found


class Pull(nn.Module):
    """A loss whose gradients are given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pulls: list[Tensor]) -> Tensor:
        pairs = zip(self.model.parameters(), pulls, strict=True)
        return torch.stack([(parameter * pull).sum() for parameter, pull in pairs]).sum()


def steps_taken(processes: Processes, clip: float) -> dict[str, dict[str, Tensor]]:
    """Weights after four steps of :class:`Trainable`."""
    model = network()
    config = replace(CONFIG, clip=clip)
    trainable = Trainable(model, config, 10, processes, ema_half_life=HALF_LIFE, forward=Pull(model))
    for step in range(4):
        trainable.forward(gradients(processes.rank, step)).backward()
        trainable.optimizer_step(step)
        assert all(parameter.grad is None for parameter in model.parameters())
    return {role: dict(weights) for role, weights in trainable.weights().items()}


def steps_by_hand(ranks: int, clip: float) -> dict[str, dict[str, Tensor]]:
    """The same in float64: mean over processes, clipped, AdamW, average of the weights; no step where it is not finite."""
    model = network()
    names = [name for name, _ in model.named_parameters()]
    weights = [parameter.detach().double() for parameter in model.parameters()]
    averages = [weight.clone() for weight in weights]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    taken = 0
    for step, rate in enumerate([5e-3, 1e-2, 1e-2, 1e-2 - 9e-3 / 7]):  # two steps up, one flat, seven down to 1e-3
        pairs = zip(*(gradients(rank, step) for rank in range(ranks)), strict=True)
        found = [(sum(parts) / ranks).double() for parts in pairs]  # type: ignore[union-attr]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in found))
        scale = clip / norm if clip and norm > clip else 1.0
        kept = 0.5 ** (1 / HALF_LIFE)
        if not math.isfinite(norm):
            averages = [kept * average + (1 - kept) * weight for average, weight in zip(averages, weights, strict=True)]
            continue
        taken += 1
        for place, gradient in enumerate(found):
            weight, gradient = weights[place], gradient * scale
            first[place] = 0.9 * first[place] + 0.1 * gradient
            second[place] = 0.99 * second[place] + 0.01 * gradient.square()
            if weight.ndim == 2:  # biases do not decay
                weight *= 1 - 0.1 * rate
            mean = first[place] / (1 - 0.9**taken)
            deviation = (second[place] / (1 - 0.99**taken)).sqrt()
            weight -= rate * mean / (deviation + 1e-8)
            averages[place] = kept * averages[place] + (1 - kept) * weight
    return {"raw": dict(zip(names, weights, strict=True)), "ema": dict(zip(names, averages, strict=True))}


def assert_equal_weights(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert list(found) == ["raw", "ema"]
    for role, weights in expected.items():
        assert found[role].keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(found[role][name].double(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_a_step_is_adamw_by_hand(clip: float) -> None:
    assert_equal_weights(steps_taken(Processes(), clip), steps_by_hand(1, clip))


def _process(processes: Processes, folder: Path) -> None:
    """What the tests with two processes need, done by one of them."""
    torch.save({clip: steps_taken(processes, clip) for clip in (0.0, 0.5)}, folder / f"{processes.rank}.pt")
    (folder / f"{processes.rank}.txt").write_text(save_after_a_bad_loss(processes, folder / "states"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their results."""
    folder = tmp_path_factory.mktemp("two")
    together(_process, 2, folder, folder)
    return folder


def test_a_step_of_two_processes_is_that_of_their_mean_gradient(two_processes: Path) -> None:
    found = [torch.load(two_processes / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert equal_states(found[0], found[1])
    for clip in (0.0, 0.5):
        assert_equal_weights(found[0][clip], steps_by_hand(2, clip))


def test_parameters_that_are_not_trained_stay_where_they_are() -> None:
    model = network()
    trained = dict(model.named_parameters())
    left_out = trained.pop("0.weight")
    trainable = Trainable(model, CONFIG, 10, Processes(), parameters=trained.items())
    assert trainable.ema is None
    assert list(trainable.weights()) == ["raw"]
    model[2].weight.requires_grad_(False)  # frozen for a step, as a joint prior is
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    left_out.requires_grad_(False)
    model(torch.ones(3, 4)).square().mean().backward()
    trainable.optimizer_step(2)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {"0.weight", "2.weight"}


def test_a_state_goes_on_as_if_it_had_never_been_saved() -> None:
    def step(trainable: Trainable, number: int) -> None:
        trainable.module(torch.full((3, 4), 0.5 + number)).square().mean().backward()
        trainable.optimizer_step(number)

    one, other = (Trainable(network(), CONFIG, 10, Processes(), ema_half_life=HALF_LIFE) for _ in range(2))
    for number in range(3):
        step(one, number)
    state = copy.deepcopy(one.state_dict("model", "how", "mean"))
    assert set(state) == {"model", "how", "mean"}
    other.load_state_dict(state, "model", "how", "mean")
    for trainable in (one, other):
        step(trainable, 3)
    assert equal_states(one.state_dict("model"), other.state_dict("model"))


def test_moments_of_channels_last_weights_go_on_in_the_order_of_the_weights() -> None:
    """A state on disk is contiguous, and the fused step goes through memory as it lies."""

    def step(trainable: Trainable, number: int) -> None:
        trainable.module(torch.arange(96.0).view(2, 3, 4, 4) + number).square().mean().backward()
        trainable.optimizer_step(number)

    def convolution() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)

    one, other = (Trainable(convolution(), CONFIG, 10, Processes()) for _ in range(2))
    step(one, 0)
    state = copy.deepcopy(one.state_dict("model"))
    for moments in state["optimizer"]["state"].values():
        moments |= {name: moment.contiguous() for name, moment in moments.items()}
    other.load_state_dict(state, "model")
    for trainable in (one, other):
        step(trainable, 1)
    assert equal_states(one.state_dict("model"), other.state_dict("model"))


# -- the generator's step -----------------------------------------------------------------------------------------------


class Weights:
    """Weights of the losses, no two of them alike."""

    quantizer, perceptual, adversarial, l1, l2, decoded, prologue = 0.8, 0.9, 0.7, 1.1, 0.3, 2.0, 0.5


ARRANGEMENTS = {"prologue": "prologue-fashion-mnist", "post": "prologue-post-fashion-mnist"}


def generator_config(name: str, precision: Precision = "float32") -> RunConfig:
    """A tiny Prologue with a joint prior, a perceptual loss of the domain and an adversarial loss."""
    config = recipe_configs(ARRANGEMENTS[name], tiny=True)[-1].resolve(10)
    joint = config.tokenizer_training.joint
    assert joint is not None
    training = replace(
        config.tokenizer_training,
        precision=precision,
        quantizer_weight=Weights.quantizer,
        reconstruction=ReconstructionConfig(Weights.l1, Weights.l2),
        perceptual=DomainConfig(),
        perceptual_weight=Weights.perceptual,
        adversarial=AdversarialConfig(Weights.adversarial, channels=4, layers=2),
        joint=replace(joint, encoder_weight=Weights.decoded, prologue_weight=Weights.prologue),
    )
    return replace(config, tokenizer_training=training)


def generator_trainer(config: RunConfig) -> TokenizerTrainer:
    """Its trainer, with weights that are large enough for every part to matter."""
    torch.manual_seed(0)
    domain = ClassifierConfig(channels=1, image_size=28, width=4).build()
    trainer = TokenizerTrainer(
        config.tokenizer, config.tokenizer_training, seed=0, processes=Processes(), perceptual_network=domain
    )
    assert trainer.joint is not None
    with torch.no_grad():
        for module in (trainer.tokenizer, trainer.joint.prior, trainer.adversarial):
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return trainer


IMAGES = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1
CLASSES = torch.tensor([0, 10, 3, 10, 10, 9])


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def early_gradients(trainer: TokenizerTrainer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the generator's step hands to its optimizer, and the losses that it tells."""
    found: dict[str, Tensor] = {}

    def keep(step: int) -> Tensor:
        found.update(gradients_of(trainer.tokenizer))
        trainer.tokenizer.zero_grad()
        return torch.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.generator, "optimizer_step", keep)
        terms, _, _ = trainer.generator_step(IMAGES, CLASSES)
    return found, terms


def plain_gradients(trainer: TokenizerTrainer, **left_out: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One backward pass of the whole weighted loss; losses can be given another weight."""
    tokenizer, joint = trainer.tokenizer, trainer.joint
    assert joint is not None
    assert trainer.perceptual is not None
    encoded = tokenizer.encode_for_training(IMAGES)
    shown = tokenizer.reconstruct(encoded)
    logits = trainer.adversarial.discriminator(shown)
    terms = {
        "quantizer": encoded.quantizer_loss,
        **encoder_terms(joint, tokenizer, encoded, CLASSES),
        "l1": (shown - IMAGES).abs().mean(),
        "l2": (shown - IMAGES).square().mean(),
        "perceptual": trainer.perceptual(shown, IMAGES),
        "adversarial": F.softplus(-logits).mean(),
    }
    weights = {
        "quantizer": Weights.quantizer, "ce_prologue": Weights.prologue, "ce_separator": Weights.prologue,
        "ce_visual": Weights.decoded, "l1": Weights.l1, "l2": Weights.l2, "perceptual": Weights.perceptual,
        "adversarial": Weights.adversarial, **left_out,
    }  # fmt: skip
    terms["loss"] = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    terms["loss"].backward()
    found = gradients_of(tokenizer)
    for module in (tokenizer, trainer.adversarial):
        module.zero_grad()
    return found, {name: term.detach() for name, term in terms.items()}


@pytest.fixture(autouse=True)
def _same_images_lose_their_prologue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JointPrior, "draw_dropped", lambda self, batch: torch.arange(batch) % 2 == 0)


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of all gradients, relative to the largest of a parameter where that is above 1."""
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1)) for name in b)


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_early_backward_passes_give_the_gradients_of_the_whole_loss(name: str) -> None:
    trainer = generator_trainer(generator_config(name))
    expected, expected_terms = plain_gradients(trainer)
    found, terms = early_gradients(trainer)
    assert found.keys() == expected.keys()
    assert largest_difference(found, expected) < 1e-6
    assert terms.keys() - {"gradient_norm"} == expected_terms.keys()
    for term, value in expected_terms.items():
        assert terms[term].item() == pytest.approx(value.item(), rel=1e-5), term
    assert not any(term.requires_grad for term in terms.values())
    assert trainer.joint is not None
    for module in (trainer.joint.prior, trainer.adversarial, trainer.perceptual):
        assert not gradients_of(module)  # type: ignore[arg-type]
    if name == "prologue":  # every loss counts, as much as the config says
        for term in set(expected_terms) - {"loss"}:
            other, _ = plain_gradients(trainer, **{term: 0.0})
            assert largest_difference(found, other) > 1e-4, term
    else:  # only the post path learns
        trained = dict(trainer.tokenizer.trained_parameters())
        assert found.keys() <= trained.keys()
        assert any(part.startswith("post_encoder.") for part in found)


def test_a_reconstruction_that_nothing_judges_yet_is_no_error() -> None:
    """Pixels that do not count, and an adversarial loss that starts later: only the quantizer teaches."""
    config = recipe_configs("quickstart", tiny=True)[0].resolve(10)
    training = replace(
        config.tokenizer_training,
        reconstruction=ReconstructionConfig(0.0, 0.0),
        perceptual=NoPerceptual(),
        adversarial=AdversarialConfig(start=5, channels=4, layers=2),
    )
    trainer = TokenizerTrainer(config.tokenizer, training, seed=0, processes=Processes())
    before = trainer.tokenizer.quantizers["visual"].codebook.detach().clone()
    terms, _, _ = trainer.generator_step(IMAGES)
    assert terms["loss"].item() == pytest.approx(terms["quantizer"].item())
    assert not torch.equal(trainer.tokenizer.quantizers["visual"].codebook, before)  # type: ignore[arg-type]


class Recorder(Perceptual):
    """A judge that says whether autocast was on when it looked, and when its gradient was made."""

    def __init__(self, seen: dict[str, bool]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, reconstruction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return Recorded.apply(reconstruction_BCHW, self.seen).square().mean()  # type: ignore[no-any-return]


class Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: dict[str, bool]) -> Tensor:  # type: ignore[override]
        ctx.seen = seen
        seen["forward"] = torch.is_autocast_enabled("cpu")
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.seen["backward"] = torch.is_autocast_enabled("cpu")
        return gradient, None


def test_auto_is_bfloat16_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    for has, meant in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda has=has: has)
        assert chosen_precision("auto", cpu) == meant
        assert autocast(cpu, "auto")._enabled == has
    assert chosen_precision("bfloat16", cpu) == "bfloat16"  # who asks for it gets it
    assert chosen_precision("auto", torch.device("meta")) == "float32"


@pytest.mark.parametrize(("precision", "low"), [("bfloat16", True), ("float32", False)])
def test_autocast_is_for_forward_passes(precision: Precision, low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left on in a backward pass, it would round gradients of float32 parts to bfloat16."""
    trainer = generator_trainer(generator_config("prologue", precision))
    judge: dict[str, bool] = {}
    likelihood: dict[str, bool] = {}
    trainer.perceptual = Recorder(judge)
    hidden = trainer.joint.prior.hidden  # type: ignore[union-attr]
    monkeypatch.setattr(
        trainer.joint.prior,
        "hidden",
        lambda *inputs: Recorded.apply(hidden(*inputs), likelihood),  # type: ignore[union-attr]
    )
    trainer.generator_step(IMAGES, CLASSES)
    assert judge == likelihood == {"forward": low, "backward": False}


class Kept(torch.autograd.Function):
    """Keeps a tensor for its backward pass, as every network does, and tells where it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: list[Any]) -> Tensor:  # type: ignore[override]
        activation = x * 2
        ctx.save_for_backward(activation)
        kept.append(weakref.ref(activation))
        return activation.square().mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (activation,) = ctx.saved_tensors
        return gradient * activation, None


def test_what_a_judge_keeps_is_gone_before_the_next_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = generator_trainer(generator_config("prologue"))
    kept: list[Any] = []
    alive: list[list[bool]] = []

    def judges(reconstruction: Tensor, images: Tensor) -> Iterator[Callable[[], tuple[dict[str, Tensor], Tensor]]]:
        def judge() -> tuple[dict[str, Tensor], Tensor]:
            before = [activation() is not None for activation in kept]
            loss: Tensor = Kept.apply(reconstruction, kept)
            alive.append([*before, kept[-1]() is not None])
            return {f"judge{len(kept)}": loss}, loss

        yield from [judge] * 3

    monkeypatch.setattr(trainer, "judges", judges)
    trainer.generator_step(IMAGES, CLASSES)
    assert alive == [[True], [False, True], [False, False, True]]


# -- losses that are not finite -----------------------------------------------------------------------------------------


def noted(*steps: dict[str, float]) -> NonFinite:
    nonfinite = NonFinite("stage")
    for step, values in enumerate(steps):
        nonfinite.note({name: torch.tensor(value, requires_grad=True) for name, value in values.items()}, step)
    return nonfinite


def test_finite_losses_pass() -> None:
    assert NonFinite("stage").check() == ""
    finite = noted({"a": 1.0}, {"a": -3e38, "b": 0.0})
    assert finite.check() == ""
    assert finite.clean()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_and_its_loss_are_named(bad: float) -> None:
    good = {"a": 1.0, "b": 2.0}
    nonfinite = noted(good, {"a": 1.0, "b": bad}, {"a": bad, "b": bad})
    assert not nonfinite.clean()
    assert nonfinite.check() == "2 steps skipped: 'b' was NaN or infinite at step 1"
    assert nonfinite.check() == ""  # told once
    assert not nonfinite.clean()  # and yet no state to keep
    nonfinite.note({"a": torch.tensor(1.0)}, 3)
    assert nonfinite.clean()


def test_the_cause_is_named_rather_than_the_sum() -> None:
    """Terms come in the order they are made, the whole loss behind those that it adds up; some start late."""
    first = {"l1": 1.0, "loss": 1.0}
    assert "'adversarial' was NaN" in noted(first, {"l1": 1.0, "adversarial": math.nan, "loss": math.nan}).check()


def test_too_many_steps_in_a_row_stop_the_run() -> None:
    bad, good = {"a": math.nan}, {"a": 0.0}
    assert (
        noted(*[bad] * (PATIENCE - 1), good, bad).check()
        == f"{PATIENCE} steps skipped: 'a' was NaN or infinite at step 0"
    )
    with pytest.raises(OvertureError, match="stage: 'a' is NaN or infinite from step 1 on, 10 steps or more") as error:
        noted(good, *[bad] * PATIENCE).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_whose_gradients_are_not_finite_is_skipped(bad: float) -> None:
    trained, whole = (Trainable(nn.Linear(2, 1), CONFIG, 7, Processes()) for _ in range(2))
    whole.module.load_state_dict(trained.module.state_dict())
    for step, gradient in enumerate([1.0, bad, 2.0]):
        for parameter in trained.module.parameters():
            parameter.grad = torch.full_like(parameter, 1.0)
            parameter.grad.view(-1)[-1] = gradient
        before = {name: value.clone() for name, value in trained.module.state_dict().items()}
        norm = trained.optimizer_step(step)
        assert bool(norm.isfinite()) == math.isfinite(gradient)
        same = equal_states(before, trained.module.state_dict())
        assert same == (not math.isfinite(gradient))
        if math.isfinite(gradient):
            for parameter in whole.module.parameters():
                parameter.grad = torch.full_like(parameter, 1.0)
                parameter.grad.view(-1)[-1] = gradient
            whole.optimizer_step(step)
    # The moments too are as if the bad step had never been.
    assert equal_states(trained.state_dict("line"), whole.state_dict("line"))


# -- the loop -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineConfig:
    steps: int = 7
    log_every: int = 2
    checkpoint_minutes: float = 60.0


class LineTrainer:
    """A stage of somebody else: one linear layer, batches of numbers."""

    stage = "line"
    shown = ("loss",)

    def __init__(self, training: LineConfig = LineConfig(), processes: Processes = Processes()) -> None:
        self.training, self.processes = training, processes
        torch.manual_seed(0)
        self.trained = Trainable(nn.Linear(2, 1), CONFIG, training.steps, processes, ema_half_life=HALF_LIFE)
        self.step, self.nonfinite = 0, NonFinite(self.stage)

    def train_batch(self, batch: Tensor) -> dict[str, Tensor]:
        loss = (self.trained.forward(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        self.trained.optimizer_step(self.step)
        self.step += 1
        return {"loss": loss.detach(), "size": batch.abs().mean()}

    def logged(self, values: dict[str, float]) -> dict[str, float]:
        return {**values, "twice": 2 * values["loss"]}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, **self.trained.state_dict("line")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.trained.load_state_dict(state, "line")


def batches(start: int) -> Iterator[Tensor]:
    """The batch of a step is a function of the step."""
    while True:
        yield torch.randn(3, 2, generator=torch.Generator().manual_seed(start))
        start += 1


def numbers(root: Path, trainer: LineTrainer, **options: Any) -> list[dict[str, Any]]:
    """Train, and read the log."""
    train(trainer, batches, root / "line", root / "metrics.jsonl", SilentProgress(), **options)
    return read_json_lines(root / "metrics.jsonl")


class StopAt:
    """Asks for a stop at the end of a step."""

    def __init__(self, trainer: LineTrainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("overture.training.loop.stop_requested", lambda: trainer.step == step)


def measure(step: int) -> dict[str, float]:
    return {"measured": 10.0 * step} if step % 3 == 0 else {}


def test_a_stage_of_somebody_else_is_trained_logged_and_saved(tmp_path: Path) -> None:
    trainer = LineTrainer()
    log = numbers(tmp_path, trainer, measure=measure)
    assert trainer.step == latest_step(tmp_path / "line") == 7
    assert [record["step"] for record in log if "loss" in record] == [2, 4, 6, 7]
    assert [record for record in log if "measured" in record] == [
        {"stage": "line", "step": 3, "measured": 30.0}, {"stage": "line", "step": 6, "measured": 60.0}
    ]  # fmt: skip
    assert all(record["twice"] == pytest.approx(2 * record["loss"], abs=2e-6) for record in log if "loss" in record)
    by_hand = LineTrainer()
    for _, batch in zip(range(7), batches(0), strict=False):
        by_hand.train_batch(batch)
    assert equal_states(by_hand.state_dict(), trainer.state_dict())


@pytest.mark.parametrize("stops", [[1], [3], [2, 6], [1, 2, 3, 4, 5, 6]])
def test_training_resumes_to_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, stops: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LineTrainer()
    log = numbers(tmp_path / "whole", whole, measure=measure)
    for step in stops:
        trainer = LineTrainer()
        StopAt(trainer, step, monkeypatch)
        with pytest.raises(Interrupted, match=f"stopped in stage line at step {step}, saved"):
            numbers(tmp_path / "parts", trainer, measure=measure)
        assert latest_step(tmp_path / "parts/line") == step
    parts = LineTrainer()
    StopAt(parts, 7, monkeypatch)  # at the end there is nothing to stop
    assert numbers(tmp_path / "parts", parts, measure=measure) == log
    assert equal_states(parts.state_dict(), whole.state_dict())


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    first, again = LineTrainer(), LineTrainer()
    log = numbers(tmp_path, first)
    assert numbers(tmp_path, again) == log
    assert equal_states(again.state_dict(), first.state_dict())


def test_the_time_between_checkpoints_changes_no_number(tmp_path: Path) -> None:
    often, seldom = LineTrainer(LineConfig(checkpoint_minutes=0.0)), LineTrainer()
    assert numbers(tmp_path / "often", often) == numbers(tmp_path / "seldom", seldom)
    assert equal_states(often.state_dict(), seldom.state_dict())


class Watched:
    """Measures every third step and remembers, as ``runs/monitor.py`` does in a file; may fail once at a step."""

    def __init__(
        self, trainer: LineTrainer, known: dict[int, dict[str, float]], failure: Exception | None = None
    ) -> None:
        self.trainer, self.known, self.failure = trainer, known, failure

    def due(self, step: int) -> bool:
        return step > 0 and step % 3 == 0

    def measure(self, step: int) -> dict[str, float]:
        if step not in self.known:
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            self.known[step] = {
                "watched": float(sum(p.detach().sum() for p in self.trainer.trained.module.parameters()))
            }
        return self.known[step]


class Told(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def watched(root: Path, known: dict[int, dict[str, float]], failure: Exception | None = None) -> list[dict[str, Any]]:
    trainer = LineTrainer()
    return numbers(root, trainer, monitor=Watched(trainer, known, failure))


@pytest.mark.parametrize("stops", [[3], [4], [2, 6], [1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("killed", [False, True])
def test_no_stop_loses_what_was_watched(
    tmp_path: Path, stops: list[int], killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measurements are made once, and stand in the log at their step, wherever the run was broken off."""
    log = watched(tmp_path / "whole", {})
    assert [record["step"] for record in log if "watched" in record] == [3, 6]
    known: dict[int, dict[str, float]] = {}
    for step in stops:
        trainer = LineTrainer()
        if killed:  # after the measurement, before the state of this step is on the disk

            def break_off(*_: Any, trainer: LineTrainer = trainer, step: int = step) -> None:
                if trainer.step == step:
                    raise KeyboardInterrupt

            monkeypatch.setattr("overture.training.loop.Checkpointer.after_step", break_off)
        else:
            StopAt(trainer, step, monkeypatch)
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            numbers(tmp_path / "parts", trainer, monitor=Watched(trainer, known))
        monkeypatch.undo()
    assert watched(tmp_path / "parts", known) == log


def test_a_measurement_that_fails_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    log, told, trainer = watched(tmp_path / "whole", {}), Told(), LineTrainer()
    monitor = Watched(trainer, {}, RuntimeError("no memory\nat all"))
    train(trainer, batches, tmp_path / "line", tmp_path / "metrics.jsonl", told, monitor=monitor)
    assert told.said == ["measuring at step 3 failed: RuntimeError: no memory at all"]
    expected = [record for record in log if not ("watched" in record and record["step"] == 3)]
    assert read_json_lines(tmp_path / "metrics.jsonl") == expected


def test_a_measurement_that_was_stopped_is_made_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, known = watched(tmp_path / "whole", {}), {}
    trainer = LineTrainer()
    StopAt(trainer, 3, monkeypatch)
    with pytest.raises(Interrupted, match="at step 3, saved"):
        numbers(
            tmp_path / "parts", trainer, monitor=Watched(trainer, known, Interrupted("stopped in the measurements"))
        )
    assert known == {}
    monkeypatch.undo()
    assert watched(tmp_path / "parts", known) == log


def test_data_that_end_in_an_error_lose_no_step(tmp_path: Path) -> None:
    """A data worker that dies for want of memory is told between two steps."""

    def dying(start: int) -> Iterator[Tensor]:
        for step, batch in enumerate(batches(start), start=start):
            if step == 5:
                raise OvertureError("a data worker died")
            yield batch

    whole, trainer, resumed = LineTrainer(), LineTrainer(), LineTrainer()
    with pytest.raises(OvertureError, match="a data worker died"):
        train(trainer, dying, tmp_path / "line", tmp_path / "metrics.jsonl", SilentProgress())
    assert latest_step(tmp_path / "line") == 5
    assert numbers(tmp_path, resumed) == numbers(tmp_path / "whole", whole)
    assert equal_states(resumed.state_dict(), whole.state_dict())


def test_a_step_broken_off_half_way_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = LineTrainer(LineConfig(checkpoint_minutes=0.0))

    def broken_off(module: nn.Module) -> None:
        if trainer.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.trained.ema, "update", broken_off)  # the weights have moved, the rest has not
    with pytest.raises(KeyboardInterrupt):
        numbers(tmp_path, trainer)
    assert latest_step(tmp_path / "line") == 4
    whole, resumed = LineTrainer(), LineTrainer()
    monkeypatch.undo()
    numbers(tmp_path / "whole", whole)
    numbers(tmp_path, resumed)
    state, expected = resumed.state_dict(), whole.state_dict()
    assert equal_states({**state, "ema": None}, {**expected, "ema": None})


def spoiled(*steps: int) -> Callable[[int], Iterator[Tensor]]:
    """:func:`batches`, but for those of some steps, whose losses are infinite."""

    def stream(start: int) -> Iterator[Tensor]:
        for step, batch in enumerate(batches(start), start=start):
            yield batch * 1e30 if step in steps else batch

    return stream


def test_a_bad_batch_costs_its_own_step_alone(tmp_path: Path) -> None:
    trainer = LineTrainer(LineConfig(checkpoint_minutes=0.0))
    train(trainer, spoiled(2, 4), tmp_path / "line", tmp_path / "metrics.jsonl", SilentProgress())
    by_hand = LineTrainer()
    for step, batch in zip(range(7), batches(0), strict=False):
        if step in (2, 4):
            by_hand.step += 1
            by_hand.trained.ema.update(by_hand.trained.module)  # type: ignore[union-attr]
        else:
            by_hand.train_batch(batch)
    assert equal_states(by_hand.state_dict(), trainer.state_dict())


def test_a_run_of_bad_batches_stops_on_the_last_good_state(tmp_path: Path) -> None:
    trainer = LineTrainer(LineConfig(steps=30, log_every=5, checkpoint_minutes=0.0))
    bad = spoiled(*range(4, 30))
    with pytest.raises(OvertureError, match="line: 'loss' is NaN or infinite from step 4 on"):
        train(trainer, bad, tmp_path / "line", tmp_path / "metrics.jsonl", SilentProgress())
    assert latest_step(tmp_path / "line") == 4
    assert trainer.step == 15  # the first log line after ten bad steps


def test_no_state_is_kept_of_a_step_that_was_skipped(tmp_path: Path) -> None:
    trainer = LineTrainer()
    checkpointer = Checkpointer(trainer, tmp_path)
    trainer.step = 1
    checkpointer.save()
    trainer.nonfinite.note({"loss": torch.tensor(math.nan)}, 1)
    trainer.step = 2
    checkpointer.save()
    checkpointer.finish()
    assert latest_step(tmp_path) == 1
    trainer.nonfinite.note({"loss": torch.tensor(1.0)}, 2)
    trainer.step = 3
    checkpointer.finish()
    assert latest_step(tmp_path) == 3


def save_after_a_bad_loss(processes: Processes, directory: Path) -> str:
    """A state is saved, then the loss is NaN on one process alone, then all want to save: which state there is."""
    trainer = LineTrainer(processes=processes)
    checkpointer = Checkpointer(trainer, directory)
    trainer.step = 1
    checkpointer.save()
    trainer.nonfinite.note({"loss": torch.tensor(math.nan if processes.rank == 1 else 1.0)}, 1)
    trainer.step = 2
    checkpointer.save()
    return str(checkpointer.saved_step)


def test_a_bad_loss_on_any_process_keeps_the_last_good_state(two_processes: Path) -> None:
    assert latest_step(two_processes / "states") == 1
    assert [(two_processes / f"{rank}.txt").read_text() for rank in range(2)] == ["1", "1"]
