"""What one forward pass costs, counted on tensors that have shapes but no memory.

Floating-point operations are those of matrix products, convolutions and attention (a multiply and an add are two), as
``torch.utils.flop_counter`` counts them: causal attention is counted whole. The memory is what autograd keeps for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["Cost", "Shapes", "parameters"]


@dataclass(frozen=True)
class Cost:
    """Operations of a forward pass, and bytes kept for its backward pass."""

    flops: int
    kept: int


class Shapes:
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

    def cost(self, module: nn.Module, run: Callable[[], Any], *, bfloat16: bool) -> Cost:
        """Run the forward pass ``run`` of ``module``; its copies of weights in bfloat16 are not counted as kept."""
        weights = {tuple(p.shape) for p in module.parameters()} | {tuple(p.shape)[::-1] for p in module.parameters()}
        own = {p.untyped_storage()._cdata for p in module.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in own and not (tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in weights):
                kept[storage] = tensor
            return tensor

        counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        )
        with ExitStack() as stack:
            stack.enter_context(self.mode)
            stack.enter_context(counter)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=bfloat16))
            result = run()
        del result
        return Cost(counter.get_total_flops(), sum(t.untyped_storage().nbytes() for t in kept.values()))


def parameters(module: nn.Module | None) -> int:
    """How many numbers the module learns (no buffers)."""
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)
