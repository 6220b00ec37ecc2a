"""Nearest-code search, and the soft look-up, without ever holding an N x K table.

Positions of one codebook size are searched together, in blocks of rows whose scores fit a small buffer; only the
winning index survives. Position t looks at its first K_t codes only, so VCQ costs the sum of K_t, not T * K_max.

Shapes: B images, L positions, N = rows searched together, K codes, Z channels of a code, D channels of a looked-up row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["group_by_size", "nearest_codes", "soft_lookup"]

_CPU_SCORES = 2**19
_GPU_SCORES = 2**26
"""How many scores a block may hold: 2 MB on a CPU (larger blocks leave its cache and take longer), 256 MB elsewhere."""


def group_by_size(sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Positions that share a codebook size: ``[(size, positions), ...]``, in the order sizes first appear."""
    groups: dict[int, list[int]] = {}
    for position, size in enumerate(sizes):
        groups.setdefault(size, []).append(position)
    return list(groups.items())


@torch.no_grad()
def nearest_codes(z_BLZ: Tensor, codes_KZ: Tensor, sizes: Sequence[int]) -> Tensor:
    """The index ``[B, L]`` of the largest dot product among the first ``sizes[l]`` codes; the first one on a tie.

    With unit vectors on both sides this is the nearest code. Float32 whatever the autocast.
    """
    batch, length, channels = z_BLZ.shape
    ids_BL = torch.empty(batch, length, dtype=torch.long, device=z_BLZ.device)
    with torch.autocast(z_BLZ.device.type, enabled=False):
        codes_ZK = codes_KZ.float().t().contiguous()  # the first K_t codes are then a cheap slice of columns
        for size, positions in group_by_size(sizes):
            whole = len(positions) == length  # one size everywhere: no copies of positions in and out
            rows_NZ = (z_BLZ if whole else z_BLZ[:, positions]).reshape(-1, channels).float()
            found_N = torch.empty(len(rows_NZ), dtype=torch.long, device=z_BLZ.device)
            for block in _blocks(len(rows_NZ), size, z_BLZ.device):
                # The scores of a block die here; only the winner is kept.
                torch.argmax(rows_NZ[block] @ codes_ZK[:, :size], dim=1, out=found_N[block])
            if whole:
                return found_N.view(batch, length)
            ids_BL[:, positions] = found_N.view(batch, len(positions))
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
        looked_up: Tensor = _SoftLookup.apply(
            z_BLZ.float(), codes_KZ.float(), rows_KD.float(), ids_BL, tuple(sizes), temperature
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
        for size, positions in group_by_size(ctx.sizes):
            z_NZ = z[:, positions].reshape(-1, z.shape[-1])
            grad_ND = grad_BLD[:, positions].reshape(-1, grad_BLD.shape[-1])
            grad_z_NZ = torch.empty_like(z_NZ)
            for block in _blocks(len(z_NZ), size, z.device):
                probability = (z_NZ[block] @ codes[:size].t()).div_(ctx.temperature).softmax(dim=1)
                # The gradient of a soft-max: p * (pull - sum p pull), where pull is what each row would gain.
                pull = grad_ND[block] @ rows[:size].t()
                pull -= (pull * probability).sum(dim=1, keepdim=True)
                score_grad = pull.mul_(probability).div_(ctx.temperature)
                grad_z_NZ[block] = score_grad @ codes[:size]
                grad_codes[:size] += score_grad.t() @ z_NZ[block]
            grad_z[:, positions] = grad_z_NZ.view(len(z), len(positions), -1)
        grad_rows = None
        if ctx.needs_input_grad[2]:
            # Forward was a plain look-up, so the rows get the gradient of the hard choice.
            grad_rows = torch.zeros_like(rows).index_add_(0, ids.flatten(), grad_BLD.flatten(0, 1))
        return grad_z, grad_codes, grad_rows, None, None, None


def _blocks(rows: int, size: int, device: torch.device) -> Iterator[slice]:
    scores = _CPU_SCORES if device.type == "cpu" else _GPU_SCORES
    step = max(1, scores // size)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
