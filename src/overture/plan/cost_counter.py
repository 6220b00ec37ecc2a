"""Operations and memory of a forward pass, counted on tensors that have shapes but no memory.

Operations are those of matrix products, convolutions and attention (a multiply and an add are two), as
``torch.utils.flop_counter`` counts them: causal attention is counted whole. Memory is what autograd keeps for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["Cost", "CostCounter", "parameters"]


class Cost(NamedTuple):
    """What one image costs in a forward pass."""

    flops: int
    kept: int
    """Bytes that its backward pass needs."""


class CostCounter:
    """Builds modules and runs them without memory."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def build(self, make: Callable[[], nn.Module]) -> Any:
        """The module that ``make`` makes, with weights that have no memory."""
        with torch.device("meta"):
            module = make()
        with self.mode:  # the modules look at the device of their inputs, so they are told of a CPU
            for part in module.modules():
                for name, parameter in list(part.named_parameters(recurse=False)):
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                    setattr(part, name, nn.Parameter(fake, parameter.requires_grad))
                for name, buffer in list(part.named_buffers(recurse=False)):
                    setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        return module

    def cost(self, run: Callable[[int], Any]) -> Cost:
        """Cost of the forward pass ``run(batch)``, which has to make its inputs itself."""
        flops, one = self._pass(run, 1)
        _, two = self._pass(run, 2)
        return Cost(flops, two - one)  # what is kept once for all images, such as weights in bf16, drops out

    def _pass(self, run: Callable[[int], Any], batch: int) -> tuple[int, int]:
        attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        counter = FlopCounterMode(display=False, custom_mapping=attention)
        storages: dict[int, Tensor] = {}  # holding the tensors keeps two storages from having one name

        def keep(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                storages[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with self.mode, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = run(batch)
        del out
        return counter.get_total_flops(), sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def parameters(module: nn.Module | None) -> int:
    """How many numbers the module learns (no buffers)."""
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)
