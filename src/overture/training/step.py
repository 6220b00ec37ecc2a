"""One step of an optimizer, the same for every trainer: what is stepped, in which precision, and what stops it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from overture.errors import OvertureError
from overture.processes import Processes
from overture.training.ema import EMA
from overture.training.optim import OptimizerConfig, set_learning_rate
from overture.training.sharding import gathered, shard, spread_as, spread_like

__all__ = ["NonFinite", "Precision", "Trainable", "autocast", "chosen_precision"]

Precision = Literal["float32", "bfloat16", "auto"]
"""The number type of matrix products; ``auto`` is :func:`chosen_precision`."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 where asked for; float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen_precision(precision, device) == "bfloat16")


def chosen_precision(precision: Precision, device: torch.device) -> Precision:
    """What ``auto`` means on a device: bfloat16 where it has such arithmetic, float32 where that would be slower."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if device.type == "cpu" else ()
    return "bfloat16" if any(getattr(torch.cpu, kind, lambda: False)() for kind in kinds) else "float32"


class Trainable:
    """A module in training with its optimizer, its learning-rate schedule and its averaged weights (EMA).

    ``steps`` is the length of the schedule; ``parameters`` are those that are trained (default: all). Without an
    ``ema_half_life`` nothing is averaged.

    Call ``forward`` in place of the module: its backward pass averages the gradients over processes. ``forward`` may be
    more than the module's own, a module that holds it; ``all_used`` is false if a pass may leave parameters out. With
    ``sharded_layers`` the parameters are spread over processes (:mod:`overture.training.sharding`); the states below are
    whole all the same, on the main process, and all processes have to ask for them.
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
        forward: nn.Module | None = None,
        all_used: bool = True,
        sharded_layers: Iterable[nn.Module] | None = None,
    ) -> None:
        self.module, self.clip, self.processes = module, config.clip, processes
        self.forward = forward or module
        self.sharded = processes.size > 1 and sharded_layers is not None
        # Both give everyone the main process's weights, so they come before whatever is made of these.
        if processes.size > 1 and sharded_layers is not None:
            shard(self.forward, sharded_layers, processes)
        else:
            self.forward = processes.replicate(self.forward, all_used=all_used)
        self.ema = None if ema_half_life is None else EMA(module, ema_half_life)
        named = module.named_parameters() if parameters is None else parameters
        self.optimizer, self.schedule = config.build(named, steps)

    def micro_batches(self, *batch: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Parts of a batch of at most ``size`` rows (0: all), whose gradients add up.

        Processes exchange them in the backward pass of the last part alone.
        """
        parts = list(zip(*(whole.split(size or len(whole)) for whole in batch), strict=True))
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            if isinstance(self.forward, DistributedDataParallel):
                self.forward.require_backward_grad_sync = last  # what its no_sync() sets
            elif self.sharded:
                self.forward.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield part

    def optimizer_step(self, step: int) -> Tensor:
        """Apply the gradients that backward passes have left, clipped to the config's largest norm, and drop them.

        Where they are not finite, the step is skipped: weights and moments stay as they are. Returns the norm of all
        gradients as it was, by which a skipped step is known; nothing here waits for an accelerator.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip or torch.inf)
        norm = norm.full_tensor() if self.sharded else norm  # type: ignore[attr-defined]
        # The switch by which torch's own gradient scaler has a fused step do nothing, on the device.
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        set_learning_rate(self.optimizer, self.schedule.learning_rate(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # gradients must not lie about while the next forward needs room
        if self.ema is not None:
            self.ema.update(self.module)
        return norm

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """Weights by role, as a model file holds them."""
        averaged = {} if self.ema is None else {"ema": self.ema.state_dict()}
        weights: dict[str, Mapping[str, Tensor]] = {"raw": self.module.state_dict(), **averaged}
        if self.sharded:
            weights = gathered(weights, keep=self.processes.is_main)
        return weights

    def state_dict(self, module: str, optimizer: str = "optimizer", ema: str = "ema") -> dict[str, Any]:
        """Everything that the next step depends on, under the given names."""
        averaged = {} if self.ema is None else {ema: self.ema.state_dict()}
        state = {module: self.module.state_dict(), optimizer: self.optimizer.state_dict(), **averaged}
        return gathered(state, keep=self.processes.is_main) if self.sharded else state

    def load_state_dict(
        self, state: Mapping[str, Any], module: str, optimizer: str = "optimizer", ema: str = "ema"
    ) -> None:
        """Go on from what :meth:`state_dict` gave. How the optimizer is set is the config's."""
        self.module.load_state_dict(spread_as(state[module], self.module.state_dict()))
        saved, own = state[optimizer], self.optimizer.state_dict()["param_groups"]
        pairs = zip(saved["param_groups"], own, strict=True)
        groups = [{**new, "params": old["params"], "lr": float(old["lr"])} for old, new in pairs]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            place: {name: self._spread_moment(name, value, parameters[place]) for name, value in of_one.items()}
            for place, of_one in saved["state"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._check_moments()
        if self.ema is not None:
            self.ema.load_state_dict(spread_as(state[ema], self.ema.state_dict()))

    @staticmethod
    def _spread_moment(name: str, value: Any, parameter: Tensor) -> Any:
        """A moment as its parameter is: spread over processes, and in the same order in memory.

        The fused step goes through both side by side, whatever their strides.
        """
        if name == "step" or not isinstance(value, Tensor):
            return value
        moment = spread_like(value, parameter)
        if moment.shape != parameter.shape or moment.stride() == parameter.stride():
            return moment
        return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)

    def _check_moments(self) -> None:
        """Refuse moments that are not those of the parameters: the optimizer takes anything, and fails at its next step."""
        parameters = {p for group in self.optimizer.param_groups for p in group["params"]}
        for parameter, moments in self.optimizer.state.items():
            if parameter not in parameters or moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
                raise OvertureError("the optimizer's state is not of these parameters")
            for name, moment in moments.items():
                wanted = torch.Size() if name == "step" else parameter.shape
                fits = isinstance(moment, Tensor) and moment.is_floating_point() and moment.shape == wanted
                part = moment.to_local() if fits and self.sharded and name != "step" else moment
                if not fits or not part.isfinite().all() or (name != "exp_avg" and (part < 0).any()):
                    raise OvertureError(
                        f"the optimizer's {name} of a parameter {tuple(parameter.shape)} does not fit it"
                    )


PATIENCE = 10
"""Steps in a row that may be skipped; a run whose every step is skipped learns nothing more."""


class NonFinite:
    """Counts, on the device, the steps at which a loss or a gradient was NaN or infinite. Such steps are skipped.

    Reading a number from an accelerator waits for it, so nothing is read at every step: :meth:`check` is called when
    numbers are logged anyway, and before a state is saved.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.first_steps: dict[str, Tensor] = {}
        self.in_row: Tensor | int = 0
        self.row_start: Tensor | int = 0
        self.skipped: Tensor | int = 0

    def note(self, values: Mapping[str, Tensor], step: int) -> None:
        """Look at the losses and gradient norms of a step; costs no wait."""
        found = {name: ~torch.isfinite(value.detach()) for name, value in values.items()}
        for name, bad in found.items():
            known = self.first_steps.pop(name, torch.full_like(bad, -1, dtype=torch.long))
            self.first_steps[name] = torch.where((known < 0) & bad, step, known)  # in the order of the last step
        bad_step = torch.stack(list(found.values())).any()
        self.in_row = torch.where(bad_step, self.in_row + 1, 0)
        self.row_start = torch.where(self.in_row == 1, step, self.row_start)
        self.skipped = self.skipped + bad_step

    def check(self, processes: Processes = Processes()) -> str:
        """What was skipped since the last check, in words, or nothing; all processes stop if one has skipped too many."""
        stop = processes.any(int(self.in_row) >= PATIENCE)
        found = {name: int(first) for name, first in self.first_steps.items() if int(first) >= 0}
        skipped, self.skipped = int(self.skipped), 0
        self.first_steps = {}
        if stop and not found:
            raise OvertureError(f"{self.stage}: a loss is NaN or infinite on another process, which says which")
        if not found:
            return ""
        name = min(found, key=lambda name: found[name])
        if stop:
            raise OvertureError(
                f"{self.stage}: '{name}' is NaN or infinite from step {int(self.row_start)} on, {PATIENCE} steps or more; the "
                "last good checkpoint is kept (lower the learning rate, or look at the data of this step)"
            )
        return f"{skipped} steps skipped: '{name}' was NaN or infinite at step {found[name]}"

    def clean(self, processes: Processes = Processes()) -> bool:
        """Whether the last step was taken, on all processes: a state to keep."""
        return not processes.any(int(self.in_row) > 0)
