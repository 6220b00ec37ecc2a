"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from overture.errors import OvertureError, UsageError

__all__ = ["EMA"]


class EMA:
    """Shadow weights ``shadow <- decay * shadow + (1 - decay) * weight``, starting at the weights themselves.

    ``half_life`` is in updates: after so many, half of the old value is left. Shadows are kept by the parameter's name,
    in float32 at least. Persistent buffers are copied, not averaged. Give the bare module, not a wrapper that renames
    its parameters.
    """

    def __init__(self, module: nn.Module, half_life: float) -> None:
        if not half_life > 0:
            raise UsageError(f"EMA: half-life is {half_life} steps, needs > 0")
        self.half_life = half_life
        self.parameters = {name: _shadow(parameter) for name, parameter in module.named_parameters()}
        self.buffers = {name: buffer.detach().clone() for name, buffer in _persistent_buffers(module).items()}

    @property
    def decay(self) -> float:
        """Share of the old value kept by one update."""
        return 0.5 ** (1 / self.half_life)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the shadows towards the module's weights; copy its buffers."""
        weights = dict(module.named_parameters())
        if weights:
            shadows = list(self.parameters.values())
            targets = [weights[name].detach().to(shadow.dtype) for name, shadow in self.parameters.items()]
            torch._foreach_lerp_(shadows, targets, 1 - self.decay)
        buffers = _persistent_buffers(module)
        for name, shadow in self.buffers.items():
            shadow.copy_(buffers[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The shadows themselves (no copies), under the names the module's own state dict has."""
        return {**self.parameters, **self.buffers}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over shadows saved by :meth:`state_dict`; names and shapes have to be the same."""
        shadows = self.state_dict()
        _require_same_names(state, shadows)
        for name, shadow in shadows.items():
            if state[name].shape != shadow.shape:
                shapes = f"{tuple(state[name].shape)}, not {tuple(shadow.shape)}"
                raise OvertureError(f"EMA: '{name}' is saved with shape {shapes}; the checkpoint is of another model")
        for name, shadow in shadows.items():
            shadow.copy_(state[name])


def _shadow(parameter: Tensor) -> Tensor:
    # Steps of (1 - decay), about 1e-3, vanish in half precision.
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to(dtype, copy=True)


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def _require_same_names(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    if missing := sorted(wanted.keys() - given.keys()):
        raise OvertureError(f"EMA: '{missing[0]}' has no average ({len(missing)} missing); it is of another model")
    if extra := sorted(given.keys() - wanted.keys()):
        raise OvertureError(f"EMA: average of '{extra[0]}' which the model lacks ({len(extra)} too many)")
