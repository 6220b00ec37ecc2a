"""No step of training waits for an accelerator, and sampling not once a position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from overture.layout import Layout
from overture.priors import Guidance, PriorConfig, Sampling
from overture.priors.sampler import generate
from overture.processes import placed
from pretend import PRETENDED, pretended_device
from tiny_steps import TRAININGS


@pytest.mark.parametrize("name", TRAININGS)
def test_no_step_of_training_waits(name: str) -> None:
    with pretended_device() as waits:
        training = TRAININGS[name](PRETENDED)
        training.step()  # the first one makes moments, and copies of what does not change
        waits.found.clear()
        training.step()
    assert waits.found == []


@pytest.mark.device
@pytest.mark.parametrize("name", TRAININGS)
def test_no_step_of_training_waits_for_a_real_accelerator(name: str, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA tells when it is waited for")
    training = TRAININGS[name](device)
    training.step()
    with synchronisations_are("error"):
        training.step()


# -- what is seen -------------------------------------------------------------------------------------------------------

WAITS: dict[str, Callable[[Tensor], Any]] = {
    "_local_scalar_dense": float,
    "nonzero": torch.nonzero,
    "_unique2": torch.unique,
    "masked_select": lambda x: x.masked_select(x > 0),
    "copy from lazy to cpu": lambda x: x.cpu(),
    "copy from cpu to lazy": lambda x: torch.zeros(3).to(x.device),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_seen(name: str) -> None:
    with pretended_device() as waits:
        x = torch.zeros((), device=PRETENDED)
        with suppress(DataDependentOutputException, DynamicOutputShapeException):
            WAITS[name](x)
    assert [found.partition(" at ")[0] for found in waits.found] == [name]


@pytest.mark.parametrize(
    "wait",
    [lambda x: torch.tensor([1, 2], device=x.device), lambda x: x[:, [1, 0]], lambda x: x[x > 0], lambda x: bool(x.any())],
    ids=["tensor of a list", "index by a list", "index by a mask", "truth"],
)  # fmt: skip
def test_a_wait_in_disguise_is_seen(wait: Callable[[Tensor], Any]) -> None:
    with pretended_device() as waits:
        x = torch.zeros(2, 2, device=PRETENDED)
        with suppress(DataDependentOutputException, DynamicOutputShapeException):
            wait(x)
    assert len(waits.found) == 1


def test_queued_work_is_no_wait() -> None:
    with pretended_device() as waits:
        x = placed(torch.zeros(2, 2), PRETENDED)
        torch.where(x > 0, x, 3.0).sum()
    assert waits.found == []


# -- sampling -----------------------------------------------------------------------------------------------------------


class Looks(TorchDispatchMode):
    """Counts how often values are looked at, on whatever device."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.OPERATIONS
        return func(*args, **(kwargs or {}))


def sampled(length: int, device: torch.device) -> Callable[[], Tensor]:
    prior = PriorConfig(dim=16, depth=1, heads=2, condition_dim=8, num_classes=3).build(Layout.single((5,) * length))
    sampling = Sampling(Guidance.constant(2.0), top_k=3, top_p=0.9)
    return lambda: generate(prior.to(device), [0, 1, 2], sampling)


def test_sampling_looks_at_no_value_once_a_position() -> None:
    counts = []
    for length in (3, 12):
        run = sampled(length, torch.device("cpu"))
        with Looks() as looks:
            run()
        counts.append(looks.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.device
def test_sampling_does_not_wait_for_an_accelerator_once_a_position(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA tells when it is waited for")
    counts = []
    for length in (3, 12):
        run = sampled(length, device)
        run()
        with synchronisations_are("warn"), pytest.warns(UserWarning, match="synchroniz") as warned:
            run()
        counts.append(len(warned))
    assert counts[0] == counts[1]


@contextmanager
def synchronisations_are(mode: str) -> Iterator[None]:
    """What CUDA does when it is waited for: "warn" or "error"."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
