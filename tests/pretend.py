"""An accelerator that pretends: tensors that have a device and no values, so that a step that waits for it shows.

On an accelerator, work is queued and the program runs ahead. It waits where it looks at a value (``item``, ``nonzero``, an
index by a mask, a copy to the CPU), and where it copies to the device without ``non_blocking``. Here the first kind cannot
be done, for there are no values, and the second is seen when tensors change their device.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

PRETENDED = torch.device("lazy:0")
"""A kind of device that nothing here has, whose backward passes autograd runs without asking for it."""


class Waits(TorchDispatchMode):
    """Notes every wait for the device as ``operation at file:line``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and _waits(args[0], kwargs):
            self.note(f"copy from {args[0].device.type} to {kwargs['device'].type}")
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.note(func.overloadpacket.__name__)
            raise

    def note(self, what: str) -> None:
        frames = traceback.extract_stack()
        ours = [frame for frame in frames if "/overture/" in frame.filename] or frames
        self.found.append(f"{what} at {ours[-1].filename.rpartition('/overture/')[2]}:{ours[-1].lineno}")


def _waits(tensor: Tensor, kwargs: dict[str, Any]) -> bool:
    source, target = tensor.device.type, kwargs.get("device", tensor.device).type
    return source != target and not (source == "cpu" and kwargs.get("non_blocking", False))


@contextmanager
def pretended_device() -> Iterator[Waits]:
    """Everything made inside may lie on :data:`PRETENDED`; what waits for it is noted."""
    waits = Waits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", _moved)  # torch's own swaps tensors, which these cannot be
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no such device
        patch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # it looks at what it drew
        # The check whether the fused step knows the device; it is a list of the devices that torch has.
        patch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
        with FakeTensorMode(allow_non_fake_inputs=True), waits:
            yield waits


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
    return module
