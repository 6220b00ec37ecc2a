"""Weights spread over processes: torch's FSDP2, for priors that do not fit a device beside their optimizer's moments.

A spread tensor is a ``DTensor``: each process holds a part of its rows. Layers are put together while they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from overture.processes import Processes

__all__ = ["gathered", "shard", "spread_as", "spread_like"]


def shard(module: nn.Module, layers: Iterable[nn.Module], processes: Processes) -> nn.Module:
    """Spread the main process's parameters of ``module``, in place; each of ``layers`` is put together by itself, the rest
    at once.

    Gradients become means over processes in the backward pass, each process keeping its part.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    processes.share(module)
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def gathered(state: Any, *, keep: bool) -> Any:
    """A nested state with every spread tensor put together, on the CPU; where it is not ``keep``, dropped again at once.

    All processes take part. Other tensors and values stay as they are.
    """
    if isinstance(state, Mapping):
        return {key: gathered(value, keep=keep) for key, value in state.items()}
    if isinstance(state, Tensor) and _is_spread(state):
        whole = state.full_tensor()  # type: ignore[attr-defined]
        return whole.cpu() if keep else torch.empty(0)
    return state


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """``whole``, which all processes hold, spread as ``like`` is (or as it is, if that is not spread)."""
    if not _is_spread(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(like.device), mesh, placements, src_data_rank=None)


def spread_as(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, each spread as its namesake in ``own`` is."""
    return {name: spread_like(value, own.get(name, value)) for name, value in state.items()}


def _is_spread(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
