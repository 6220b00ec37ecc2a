"""One step of one optimiser down the gradient of a loss, and backward passes that are run early.

Both are about when memory is free again: gradients of parameters at once where nothing needs all of them together, and
the activations behind an intermediate result before more of them are made.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from overture.training.distributed import World
from overture.training.optim import set_learning_rate, zero_nonfinite_gradients

__all__ = ["Leaf", "descend", "give_back_freed"]


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, *, world: World, clip: float = 0.0) -> None:
    """Backward pass from ``loss``, then the step of ``optimizer`` at ``rate``; leaves no gradients.

    Gradients are averaged over processes and made finite; ``clip`` is the largest norm of all of them (0: any).
    The norm, and the exchange between processes, need all gradients at once. Where neither is asked for, every
    parameter takes its step inside the backward pass and drops its gradient: the same numbers, and the memory of one
    gradient instead of all. An exception on the way leaves some parameters moved and others not.
    """
    set_learning_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    if world.size == 1 and not clip:
        with _steps_inside(optimizer):
            loss.backward()
        return
    loss.backward()
    parameters = [parameter for parameter in _parameters(optimizer) if parameter.grad is not None]
    world.average_gradients(parameters)
    zero_nonfinite_gradients(parameters)
    if clip:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # gradients must not lie about while the next forward pass needs room


@contextmanager
def _steps_inside(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within, each parameter takes its step as soon as a backward pass has its whole gradient, which it then drops.

    By then nothing else in the backward pass needs the parameter's old value, since autograd counts the users of each
    tensor. That holds as long as no parameter is also used detached, least of all in blocks that are computed again.
    """
    groups = optimizer.param_groups
    group_of = {parameter: group for group in groups for parameter in group["params"]}

    def step(parameter: Tensor) -> None:
        zero_nonfinite_gradients([parameter])
        optimizer.param_groups = [{**group_of[parameter], "params": [parameter]}]
        optimizer.step()
        parameter.grad = None

    handles = []
    try:
        for parameter in _parameters(optimizer):
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(step))
        yield
    finally:
        optimizer.param_groups = groups
        for handle in handles:
            handle.remove()


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Leaf:
    """A cut through a graph: losses on the far side run their backward passes early, one after the other.

    Hand ``tensor`` to whatever makes a loss, and the loss to :meth:`descend_from`: its graph is gone before the next
    one is built. :attr:`owed` hands the collected gradient on to ``output`` when the near side's backward pass comes.
    """

    def __init__(self, output: Tensor) -> None:
        self.output, self.tensor = output, output.detach().requires_grad_(output.requires_grad)

    def descend_from(self, loss: Tensor) -> Tensor:
        """Collect the gradient of a scalar loss by ``tensor``; returns its value."""
        if loss.requires_grad:
            # Autocast is for forward passes: left on, it would round gradients of float32 parts to bfloat16.
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward(inputs=[self.tensor])
        return loss.detach()

    @property
    def owed(self) -> Tensor:
        """A scalar of value 0 whose gradient by ``output`` is what was collected."""
        gradient = self.tensor.grad
        if gradient is None:
            return self.output.new_zeros((), dtype=torch.float32)
        owed: Tensor = _Owed.apply(self.output, gradient)
        return owed


class _Owed(torch.autograd.Function):
    """0, whatever the gradient that it hands on."""

    @staticmethod
    def forward(context: Any, output: Tensor, gradient: Tensor) -> Tensor:  # type: ignore[override]
        context.save_for_backward(gradient)
        return output.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(context: Any, factor: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gradient,) = context.saved_tensors
        return gradient * factor.to(gradient.dtype), None


def give_back_freed() -> None:
    """Return freed memory to the system, where the C library keeps it for later (glibc); does nothing elsewhere.

    What one part of a step leaves behind are holes that the tensors of the next part often do not fit.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
