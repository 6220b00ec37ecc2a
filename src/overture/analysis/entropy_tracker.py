"""Conditional entropy of tokens while their tokenizer trains: batches of ids go in, bits and cliff come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overture.analysis.entropy import ConditionalEntropy, conditional_entropy
from overture.errors import OvertureError, UsageError
from overture.layout import Layout

__all__ = ["EntropyTracker"]


class EntropyTracker:
    """Keeps the last ``rows`` rows of ids that it was given, and measures H(x_t | x_<t) of these, exactly.

    ``sizes`` is the codebook size of every position (a quantizer's ``sizes``, a layout's, a schedule's). Memory:
    ``rows`` x T ids of 2 bytes (4, where a codebook is larger than 65,536). Ids of a batch cost a copy; measuring them
    a sort, when :meth:`result` is called::

        tracker = EntropyTracker(quantizer.sizes, rows=10_000)
        tracker.update(ids)               # [B, T], at every step
        tracker.result().cliff            # from time to time
        tracker.reset()                   # the tokenizer has changed: begin anew

    A tokenizer in training gives an image other ids than before, so ``rows`` of about one epoch, or a call of
    :meth:`reset` before a pass over the same images, says most. Every process of several has a tracker of its own.
    """

    def __init__(self, sizes: Sequence[int], rows: int = 65_536) -> None:
        if rows < 1:
            raise UsageError(f"entropy tracker: rows is {rows}, needs >= 1")
        self.layout, self.rows = Layout.single(sizes), rows
        dtype = np.uint16 if max(sizes) <= 2**16 else np.uint32
        self._ids: NDArray[np.unsignedinteger[Any]] = np.empty((rows, len(sizes)), dtype)  # a ring
        self.seen = 0
        """Rows given since the beginning, or since :meth:`reset`."""

    def __len__(self) -> int:
        """Rows held now."""
        return min(self.seen, self.rows)

    def update(self, ids: Any) -> None:
        """Add local ids ``[B, T]``: numpy or torch integers, on any device.

        Raises :class:`~overture.errors.OvertureError` for another shape or type, and for an id outside its codebook.
        """
        array_BT = ids.detach().cpu().numpy() if hasattr(ids, "detach") else np.asarray(ids)
        self.layout.check(array_BT, "entropy tracker: ids")
        new_BT = array_BT[-self.rows :]
        places = (self.seen + len(array_BT) - len(new_BT) + np.arange(len(new_BT))) % self.rows
        self._ids[places] = new_BT
        self.seen += len(array_BT)

    def result(self) -> ConditionalEntropy:
        """What the rows held now say: ``bits``, ``cliff``, ``predicted_cliff``, ``total_bits`` and more."""
        if not self.seen:
            raise OvertureError("entropy tracker: no ids were given")
        return conditional_entropy(self._ids[: len(self)], layout=self.layout)

    def reset(self) -> None:
        """Forget all rows."""
        self.seen = 0
