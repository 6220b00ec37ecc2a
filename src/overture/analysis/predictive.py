"""What a prior expects at every position: its cross-entropy and its own predictive entropy, in bits.

On training and on held-out tokens: the difference of the cross-entropies is the memorisation gap of a position. A prior
whose predictive entropy is far below its cross-entropy on held-out tokens is sure of itself and wrong.

Shapes: N rows, B rows of a batch, T local tokens, L sequence positions, V vocabulary, K ids a position allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from overture.errors import OvertureError
from overture.priors.model import Prior

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Means over ``rows`` rows, softmax over the ids that each position allows."""

    loss_bits: NDArray[np.float64]
    """``[T]``: cross-entropy of the true token."""
    entropy_bits: NDArray[np.float64]
    """``[T]``: entropy of the predicted distribution, what the prior itself expects the loss to be."""
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rows": self.rows,
            "cross_entropy_bits": self.loss_bits.tolist(),
            "predictive_entropy_bits": self.entropy_bits.tolist(),
        }


@torch.inference_mode()
def predict(
    prior: Prior, ids_NT: Tensor, classes_N: Tensor, *, batch_size: int = 100, name: str = "", progress: bool = False
) -> Prediction:
    """Run the prior over local ids ``[N, T]`` with their classes."""
    if len(ids_NT) == 0 or len(ids_NT) != len(classes_N):
        raise OvertureError(f"predictions: {len(ids_NT)} rows and {len(classes_N)} classes")
    layout, device = prior.layout, prior.token_embedding.weight.device
    places = [(place, position) for place, position in enumerate(layout.positions) if not position.is_separator]
    loss_T = torch.zeros(len(places), dtype=torch.float64)
    entropy_T = torch.zeros(len(places), dtype=torch.float64)
    with tqdm(total=len(ids_NT), desc=f"{name} tokens", unit="row", disable=not progress) as bar:
        for ids_BT, classes_B in zip(ids_NT.split(batch_size), classes_N.split(batch_size), strict=True):
            sequence_BL = layout.to_sequence(ids_BT.to(device))
            logits_BLV = prior(sequence_BL, classes_B.to(device))
            for token, (place, position) in enumerate(places):
                log_p_BK = logits_BLV[:, place, position.low : position.high].double().log_softmax(dim=-1)
                targets_B1 = (sequence_BL[:, place] - position.low)[:, None]
                loss_T[token] -= log_p_BK.gather(1, targets_B1).sum().cpu()
                entropy_T[token] += torch.special.entr(log_p_BK.exp()).sum().cpu()
            bar.update(len(ids_BT))
    scale = 1 / (len(ids_NT) * float(np.log(2)))
    return Prediction((loss_T * scale).numpy(), (entropy_T * scale).numpy(), len(ids_NT))
