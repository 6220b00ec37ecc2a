"""Cross-entropy over a large vocabulary without ever holding its ``N x V`` table of logits.

Shapes: N rows, D channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["projected_cross_entropy"]

_CPU_LOGITS = 2**22
_GPU_LOGITS = 2**26
"""How many logits are held at a time: 16 MB on a CPU, 256 MB elsewhere; with fewer the weights are read more often."""


def projected_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, share_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of ``targets_N`` under the logits ``x_ND @ weight_VD.T``: weighted sum, and each one's value.

    ``share_N`` is how much each row counts in the sum, which is differentiable by ``x_ND`` and ``weight_VD``; the
    values ``[N]`` are not. The shares being known, gradients are made in the forward pass while a block of logits is at
    hand, and no product is computed twice; one backward pass takes them. Float32 whatever the autocast.
    """
    with torch.autocast(x_ND.device.type, enabled=False):
        return _ProjectedCrossEntropy.apply(x_ND.float(), weight_VD.float(), targets_N, share_N)  # type: ignore[return-value]


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, share):  # type: ignore[no-untyped-def]
        losses = x.new_empty(len(x))
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        limit = _CPU_LOGITS if x.device.type == "cpu" else _GPU_LOGITS
        step = max(1, limit // len(weight))
        for start in range(0, len(x), step):
            block = slice(start, start + step)
            logits, target = x[block] @ weight.t(), targets[block, None]
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            losses[block] = (log_sum - logits.gather(1, target))[:, 0]
            if grad_x is None and grad_weight is None:
                continue
            pull = logits.sub_(log_sum).exp_()  # soft-max minus one-hot, times the row's share
            pull.scatter_add_(1, target, pull.new_full(target.shape, -1.0)).mul_(share[block, None])
            if grad_x is not None:
                torch.mm(pull, weight, out=grad_x[block])
            if grad_weight is not None:
                grad_weight.addmm_(pull.t(), x[block])
        ctx.gradients = grad_x, grad_weight
        ctx.mark_non_differentiable(losses)
        return losses @ share, losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: they serve one backward pass
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad)
        return *gradients, None, None
