"""Cross-entropy through a projection, block by block, against the table of logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from overture.losses import cross_entropy
from overture.losses.cross_entropy import projected_cross_entropy


@pytest.mark.parametrize("logits", [1, 40, 10**6])
@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True), (False, False)])
def test_values_and_gradients_are_those_of_the_table(
    logits: int, learns: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CPU_LOGITS", logits)
    torch.manual_seed(0)
    x_ND, weight_VD = (
        torch.randn(*shape, requires_grad=on) for shape, on in zip([(7, 4), (11, 4)], learns, strict=True)
    )
    targets_N, share_N = torch.randint(0, 11, (7,)), torch.rand(7)
    expected_N = F.cross_entropy(x_ND @ weight_VD.t(), targets_N, reduction="none")
    loss, losses_N = projected_cross_entropy(x_ND, weight_VD, targets_N, share_N)
    torch.testing.assert_close(losses_N, expected_N.detach())
    torch.testing.assert_close(loss, (expected_N * share_N).sum())
    assert not losses_N.requires_grad
    inputs = [tensor for tensor in (x_ND, weight_VD) if tensor.requires_grad]
    if inputs:
        expected = torch.autograd.grad(0.5 * (expected_N * share_N).sum(), inputs)
        torch.testing.assert_close(torch.autograd.grad(0.5 * loss, inputs), expected)
    else:
        assert not loss.requires_grad


def test_large_logits_and_autocast_lose_nothing() -> None:
    x_ND = torch.tensor([[300.0, 1.0], [-300.0, 1.0]], requires_grad=True)
    weight_VD = torch.tensor([[1.0, 0.001], [0.0, 1.001], [-1.0, 0.0]])
    targets_N = torch.tensor([2, 2])
    expected = F.cross_entropy(x_ND.detach() @ weight_VD.t(), targets_N, reduction="none")
    with torch.autocast("cpu", torch.bfloat16):
        loss, losses_N = projected_cross_entropy(x_ND, weight_VD, targets_N, torch.ones(2))
    loss.backward()
    torch.testing.assert_close(losses_N, expected)
    assert x_ND.grad is not None
    assert x_ND.grad.isfinite().all()
