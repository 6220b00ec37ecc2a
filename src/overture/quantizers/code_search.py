"""Nearest-code search, and the soft look-up, without ever holding an N x K table.

Positions are searched together in groups, in blocks of rows whose scores fit a small buffer; only the winning index
survives. Position t looks at its first K_t codes only. On a CPU a group has one size, so VCQ costs the sum of K_t, not
T * K_max. An accelerator would then start a handful of operations for each of up to T sizes, and that is what it would
wait for: there a group holds all sizes up to twice the smallest, codes beyond a position's own are masked, and the work
is at most twice as much in a few groups.

Shapes: B images, L positions, P positions of a group, N = rows searched together, K codes, Z channels of a code, D
channels of a looked-up row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from overture.processes import placed

__all__ = ["Group", "group_by_size", "group_within_twice", "nearest_codes", "soft_lookup"]

_CPU_SCORES = 2**19
_GPU_SCORES = 2**26
"""How many scores a block may hold: 2 MB on a CPU (larger blocks leave its cache and take longer), 256 MB elsewhere."""
_ALL_TOGETHER = 256
"""Sizes up to this one make one group on an accelerator: their products take no time beside starting them."""


class Group(NamedTuple):
    """Positions that are searched together."""

    positions: list[int]
    sizes: list[int]
    """How many codes each of them may hold."""

    @property
    def size(self) -> int:
        """How many codes are looked at."""
        return max(self.sizes)


def group_by_size(sizes: Sequence[int]) -> list[Group]:
    """Positions that share a codebook size, in the order sizes first appear."""
    return _grouped(sizes, lambda size: size)


def group_within_twice(sizes: Sequence[int]) -> list[Group]:
    """Positions whose sizes lie between the same powers of two: a few groups, whatever the sizes."""
    return _grouped(sizes, lambda size: (max(size, _ALL_TOGETHER) - 1).bit_length())


def groups_for(device: torch.device, sizes: Sequence[int]) -> list[Group]:
    """The groups that are fastest on a device."""
    return group_by_size(sizes) if device.type == "cpu" else group_within_twice(sizes)


@torch.no_grad()
def nearest_codes(z_BLZ: Tensor, codes_KZ: Tensor, sizes: Sequence[int]) -> Tensor:
    """The index ``[B, L]`` of the largest dot product among the first ``sizes[l]`` codes; the first one on a tie.

    With unit vectors on both sides this is the nearest code. Float32 whatever the autocast.
    """
    batch, length = z_BLZ.shape[:2]
    ids_BL = torch.empty(batch, length, dtype=torch.long, device=z_BLZ.device)
    with torch.autocast(z_BLZ.device.type, enabled=False):
        codes_ZK = codes_KZ.float().t().contiguous()  # the first K_t codes are then a cheap slice of columns
        for group in groups_for(z_BLZ.device, sizes):
            rows = _Rows(group, batch, length, z_BLZ.device)
            rows_NZ = rows.take(z_BLZ).float()
            found_N = torch.empty(len(rows_NZ), dtype=torch.long, device=z_BLZ.device)
            for block in _blocks(len(rows_NZ), group.size, z_BLZ.device):
                # The scores of a block die here, before the next ones come; only the winner is kept.
                torch.argmax(rows.mask(rows_NZ[block] @ codes_ZK[:, : group.size], block), dim=1, out=found_N[block])
            rows.put(ids_BL, found_N)
    return ids_BL


def soft_lookup(
    z_BLZ: Tensor, codes_KZ: Tensor, rows_KD: Tensor, ids_BL: Tensor, sizes: Sequence[int], temperature: float
) -> Tensor:
    """``one_hot @ rows`` for the hard-forward, soft-backward one-hot of Prologue (docs/prologue.md, section 5).

    ``one_hot = softmax(z codes' / temperature) + stopgrad(hard - softmax)``: forward it is the nearest code's row,
    backward it is the softmax over the first ``sizes[l]`` codes. Returns ``rows[ids]`` ``[B, L, D]`` for the ids of the
    nearest codes. The backward recomputes the scores block by block.
    """
    with torch.autocast(z_BLZ.device.type, enabled=False):
        rows_KD = rows_KD.float().view_as(rows_KD)  # the compiler wants no tensor twice, and codes may be the rows
        looked_up: Tensor = _SoftLookup.apply(
            z_BLZ.float(), codes_KZ.float(), rows_KD, ids_BL, tuple(sizes), temperature
        )
    return looked_up


class _SoftLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, codes, rows, ids, sizes, temperature):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, codes, rows, ids)
        ctx.sizes, ctx.temperature = sizes, temperature
        return rows[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BLD):  # type: ignore[no-untyped-def]
        z, codes, rows, ids = ctx.saved_tensors
        grad_z, grad_codes = torch.zeros_like(z), torch.zeros_like(codes)
        for group in groups_for(z.device, ctx.sizes):
            rows_of, size = _Rows(group, len(z), len(ctx.sizes), z.device), group.size
            z_NZ, grad_ND = rows_of.take(z), rows_of.take(grad_BLD)
            grad_z_NZ = torch.empty_like(z_NZ)
            for block in _blocks(len(z_NZ), size, z.device):
                probability = rows_of.mask((z_NZ[block] @ codes[:size].t()).div_(ctx.temperature), block).softmax(dim=1)
                # The gradient of a soft-max: p * (pull - sum p pull), where pull is what each row would gain.
                pull = grad_ND[block] @ rows[:size].t()
                pull -= (pull * probability).sum(dim=1, keepdim=True)
                score_grad = pull.mul_(probability).div_(ctx.temperature)
                grad_z_NZ[block] = score_grad @ codes[:size]
                grad_codes[:size] += score_grad.t() @ z_NZ[block]
            rows_of.put(grad_z, grad_z_NZ)
        grad_rows = None
        if ctx.needs_input_grad[2]:
            # Forward was a plain look-up, so the rows get the gradient of the hard choice.
            grad_rows = torch.zeros_like(rows).index_add_(0, ids.flatten(), grad_BLD.flatten(0, 1))
        return grad_z, grad_codes, grad_rows, None, None, None


class _Rows:
    """The rows of a group: its positions of all images, one image after another."""

    def __init__(self, group: Group, batch: int, length: int, device: torch.device) -> None:
        self.at_P: Tensor | None = None
        self.limit_N1: Tensor | None = None
        self.columns_K: Tensor | None = None
        table = placed(torch.tensor([group.positions, group.sizes]), device)  # one copy, and nobody waits for it
        if len(group.positions) < length:  # all of them need no copies in and out
            self.at_P = table[0]
        if min(group.sizes) < group.size:
            self.limit_N1 = table[1].repeat(batch)[:, None]
            self.columns_K = torch.arange(group.size, device=device)

    def take(self, x_BLD: Tensor) -> Tensor:
        """``[B, L, D] -> [N, D]``."""
        taken = x_BLD if self.at_P is None else x_BLD.index_select(1, self.at_P)
        return taken.reshape(-1, x_BLD.shape[-1])

    def put(self, out_BL: Tensor, values_N: Tensor) -> None:
        """Write ``[N, ...]`` to where it belongs in ``[B, L, ...]``."""
        if self.at_P is None:
            out_BL.copy_(values_N.view_as(out_BL))
        else:
            out_BL.index_copy_(1, self.at_P, values_N.view(len(out_BL), len(self.at_P), *out_BL.shape[2:]))

    def mask(self, scores_NK: Tensor, block: slice) -> Tensor:
        """Put the codes out of reach that a row may not hold, in place."""
        if self.limit_N1 is None or self.columns_K is None:
            return scores_NK
        return scores_NK.masked_fill_(self.columns_K >= self.limit_N1[block], -torch.inf)


def _grouped(sizes: Sequence[int], key: Callable[[int], int]) -> list[Group]:
    groups: dict[int, Group] = {}
    for position, size in enumerate(sizes):
        group = groups.setdefault(key(size), Group([], []))
        group.positions.append(position)
        group.sizes.append(size)
    return list(groups.values())


def _blocks(rows: int, size: int, device: torch.device) -> Iterator[slice]:
    scores = _CPU_SCORES if device.type == "cpu" else _GPU_SCORES
    step = max(1, scores // size)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
