"""One step of an optimizer, the same for every trainer: what is stepped, in which precision, and what stops it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from overture.errors import OvertureError
from overture.processes import Processes
from overture.training.ema import EMA
from overture.training.optim import OptimizerConfig, set_learning_rate, zero_nonfinite_gradients

__all__ = ["NonFiniteLosses", "Precision", "Trainable", "autocast"]

Precision = Literal["float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 where asked for; float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class Trainable:
    """A module in training with its optimizer, its learning-rate schedule and its averaged weights (EMA).

    ``steps`` is the length of the schedule; ``parameters`` are those that are trained (default: all). Without an
    ``ema_half_life`` nothing is averaged.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        steps: int,
        processes: Processes,
        *,
        parameters: Iterable[tuple[str, nn.Parameter]] | None = None,
        ema_half_life: float | None = None,
    ) -> None:
        self.module, self.clip, self.processes = module, config.clip, processes
        processes.share(module)
        self.ema = None if ema_half_life is None else EMA(module, ema_half_life)
        named = module.named_parameters() if parameters is None else parameters
        self.optimizer, self.schedule = config.build(named, steps)

    def optimizer_step(self, step: int) -> None:
        """Apply the gradients that backward passes have left, and drop them.

        They are averaged over processes, made finite, and clipped to the config's largest norm.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.processes.average_gradients(parameters)
        zero_nonfinite_gradients(parameters)
        if self.clip:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        set_learning_rate(self.optimizer, self.schedule.learning_rate(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # gradients must not lie about while the next forward needs room
        if self.ema is not None:
            self.ema.update(self.module)

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """Weights by role, as a model file holds them."""
        averaged = {} if self.ema is None else {"ema": self.ema.state_dict()}
        return {"raw": self.module.state_dict(), **averaged}

    def state_dict(self, module: str, optimizer: str = "optimizer", ema: str = "ema") -> dict[str, Any]:
        """Everything that the next step depends on, under the given names."""
        averaged = {} if self.ema is None else {ema: self.ema.state_dict()}
        return {module: self.module.state_dict(), optimizer: self.optimizer.state_dict(), **averaged}

    def load_state_dict(
        self, state: Mapping[str, Any], module: str, optimizer: str = "optimizer", ema: str = "ema"
    ) -> None:
        """Go on from what :meth:`state_dict` gave. How the optimizer is set is the config's."""
        self.module.load_state_dict(state[module])
        saved, own = state[optimizer], self.optimizer.state_dict()["param_groups"]
        pairs = zip(saved["param_groups"], own, strict=True)
        groups = [{**new, "params": old["params"], "lr": float(old["lr"])} for old, new in pairs]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        self._check_moments()
        if self.ema is not None:
            self.ema.load_state_dict(state[ema])

    def _check_moments(self) -> None:
        """Refuse moments that are not those of the parameters: the optimizer takes anything, and fails at its next step."""
        parameters = {p for group in self.optimizer.param_groups for p in group["params"]}
        for parameter, moments in self.optimizer.state.items():
            if parameter not in parameters or moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
                raise OvertureError("the optimizer's state is not of these parameters")
            for name, moment in moments.items():
                wanted = torch.Size() if name == "step" else parameter.shape
                fits = isinstance(moment, Tensor) and moment.is_floating_point() and moment.shape == wanted
                if not fits or not moment.isfinite().all() or (name != "exp_avg" and (moment < 0).any()):
                    raise OvertureError(
                        f"the optimizer's {name} of a parameter {tuple(parameter.shape)} does not fit it"
                    )


class NonFiniteLosses:
    """Remembers, on the device, the first step at which each loss was NaN or infinite.

    Reading a number from an accelerator waits for it, so nothing is read at every step: :meth:`check` is called when
    numbers are logged anyway, and before a state is saved.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.first_steps: dict[str, Tensor] = {}

    def note(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Look at the losses of a step; costs no wait."""
        for name, loss in losses.items():
            bad = ~torch.isfinite(loss.detach())
            known = self.first_steps.pop(name, torch.full_like(bad, -1, dtype=torch.long))
            self.first_steps[name] = torch.where((known < 0) & bad, step, known)  # in the order of the last step

    def check(self, processes: Processes = Processes()) -> None:
        """Stop with the name of the loss that was not finite first: all processes, if it happened to one."""
        found = {name: int(first) for name, first in self.first_steps.items() if int(first) >= 0}
        if processes.any(bool(found)) and not found:
            raise OvertureError(f"{self.stage}: a loss is NaN or infinite on another process, which says which")
        if found:
            name = min(found, key=lambda name: found[name])
            raise OvertureError(
                f"{self.stage}: the loss '{name}' is NaN or infinite at step {found[name]}; the last good checkpoint is "
                "kept (lower the learning rate, or look at the data of this step)"
            )
