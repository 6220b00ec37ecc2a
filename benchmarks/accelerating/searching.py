"""Nearest codes of VCQ, in the groups of a CPU and in those of an accelerator."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from accelerating.isolation import Emit
from accelerating.machine import Machine
from accelerating.sizes import Sizes
from overture.quantizers import code_search
from overture.schedules import Schedule

__all__ = ["search"]


def search(machine: Machine, sizes: Sizes, emit: Emit) -> None:
    """256 sizes that grow from 2 to 16,384: one group for each, or a few that hold sizes up to twice the smallest."""
    positions, codes = (16, 64) if sizes.toy else (256, 16384)
    growing = Schedule.linear(positions, 2, codes).sizes
    torch.manual_seed(0)
    z = F.normalize(torch.randn(sizes.tokenizer_batch, positions, 14, device=machine.device), dim=-1)
    table = F.normalize(torch.randn(codes, 14, device=machine.device), dim=-1)
    groupings = {"a group a size": code_search.group_by_size, "sizes within twice": code_search.group_within_twice}
    found = {}
    for name, grouping in groupings.items():
        code_search.groups_for = lambda _, sizes, grouping=grouping: grouping(sizes)  # type: ignore[misc]
        found[name] = code_search.nearest_codes(z, table, growing)
        seconds = machine.seconds(lambda: code_search.nearest_codes(z, table, growing), sizes.seconds / 4)
        equal = (found[name] == found["a group a size"]).double().mean().item()
        emit(
            {
                "batch": len(z), "seconds": seconds, "images_per_second": len(z) / seconds, "precision": "float32",
                "flops": 2 * 14 * sum(growing), "case": name, "remark": f"{equal:.3%} of the ids equal",
            }
        )  # fmt: skip
