"""One step of an optimizer, the same for every trainer: what is stepped, in which precision, and what stops it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from overture.errors import OvertureError
from overture.processes import Processes
from overture.training.ema import EMA
from overture.training.optim import OptimizerConfig, set_learning_rate

__all__ = ["NonFinite", "Precision", "Trainable", "autocast"]

Precision = Literal["float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 where asked for; float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class Trainable:
    """A module in training with its optimizer, its learning-rate schedule and its averaged weights (EMA).

    ``steps`` is the length of the schedule; ``parameters`` are those that are trained (default: all). Without an
    ``ema_half_life`` nothing is averaged.

    Call ``forward`` in place of the module: its backward pass averages the gradients over processes. ``forward`` may be
    more than the module's own, a module that holds it; ``all_used`` is false if a pass may leave parameters out.
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
    ) -> None:
        self.module, self.clip, self.processes = module, config.clip, processes
        processes.share(module)
        self.ema = None if ema_half_life is None else EMA(module, ema_half_life)
        named = module.named_parameters() if parameters is None else parameters
        self.optimizer, self.schedule = config.build(named, steps)
        self.forward = processes.replicate(forward or module, all_used=all_used)

    def micro_batches(self, *batch: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Parts of a batch of at most ``size`` rows (0: all), whose gradients add up.

        Processes exchange them in the backward pass of the last part alone.
        """
        parts = list(zip(*(whole.split(size or len(whole)) for whole in batch), strict=True))
        for part in parts[:-1]:
            with self.forward.no_sync() if isinstance(self.forward, DistributedDataParallel) else nullcontext():
                yield part
        yield parts[-1]

    def optimizer_step(self, step: int) -> Tensor:
        """Apply the gradients that backward passes have left, clipped to the config's largest norm, and drop them.

        Where they are not finite, the step is skipped: weights and moments stay as they are. Returns the norm of all
        gradients as it was, by which a skipped step is known; nothing here waits for an accelerator.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip or torch.inf)
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
        return {"raw": self.module.state_dict(), **averaged}

    def state_dict(self, module: str, optimizer: str = "optimizer", ema: str = "ema") -> dict[str, Any]:
        """Everything that the next step depends on, under the given names."""
        averaged = {} if self.ema is None else {ema: self.ema.state_dict()}
        return {module: self.module.state_dict(), optimizer: self.optimizer.state_dict(), **averaged}

    def load_state_dict(
        self, state: Mapping[str, Any], module: str, optimizer: str = "optimizer", ema: str = "ema"
    ) -> None:
        """Go on from what :meth:`state_dict` gave. How the optimizer is set is the config's, as before every step."""
        self.module.load_state_dict(state[module])
        saved, own = state[optimizer], self.optimizer.state_dict()["param_groups"]
        groups = [{**new, "params": old["params"]} for old, new in zip(saved["param_groups"], own, strict=True)]
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
                fits = isinstance(moment, Tensor) and moment.shape == wanted and bool(moment.isfinite().all())
                if not fits or (name != "exp_avg" and (moment < 0).any()):
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
        self.in_row: Tensor = torch.tensor(0)
        self.row_start: Tensor = torch.tensor(0)
        self.skipped: Tensor = torch.tensor(0)

    def note(self, values: Mapping[str, Tensor], step: int) -> None:
        """Look at the losses and gradient norms of a step; costs no wait."""
        bad_step = torch.zeros((), dtype=torch.bool)
        for name, value in values.items():
            bad = ~torch.isfinite(value.detach())
            known = self.first_steps.pop(name, torch.full_like(bad, -1, dtype=torch.long))
            self.first_steps[name] = torch.where((known < 0) & bad, step, known)  # in the order of the last step
            bad_step = bad_step.to(bad.device) | bad
        self.in_row = torch.where(bad_step, self.in_row.to(bad_step.device) + 1, 0)
        self.row_start = torch.where(self.in_row == 1, step, self.row_start.to(bad_step.device))
        self.skipped = self.skipped.to(bad_step.device) + bad_step

    def check(self, processes: Processes = Processes()) -> str:
        """What was skipped since the last check, in words, or nothing; all processes stop if one has skipped too many."""
        stop = processes.any(int(self.in_row) >= PATIENCE)
        found = {name: int(first) for name, first in self.first_steps.items() if int(first) >= 0}
        skipped, self.skipped = int(self.skipped), torch.zeros_like(self.skipped)
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
