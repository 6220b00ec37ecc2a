"""What a prior expects at every position: its cross-entropy and its own predictive entropy, in bits.

On training and on held-out tokens: the difference of the cross-entropies is the memorisation gap of a position. A prior
whose predictive entropy is far below its cross-entropy on held-out tokens is sure of itself and wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from overture.analysis.entries import ReportEntry
from overture.analysis.style import curve_style, dress, legend, new_figure
from overture.layout import Layout
from overture.priors.likelihood import Likelihood, measure_likelihood
from overture.priors.model import Prior
from overture.progress import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Expectations", "study"]


@dataclass(frozen=True, eq=False)
class Expectations:
    """The likelihood of training and of held-out tokens."""

    layout: Layout
    training: Likelihood
    held_out: Likelihood

    @property
    def gap_bits(self) -> np.ndarray:
        """``[T]``: the memorisation gap of every token, separators left out."""
        return self._tokens(self.held_out.allowed - self.training.allowed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        parts = {
            name: {
                "rows": part.rows,
                "cross_entropy_bits": self._tokens(part.allowed).tolist(),
                "predictive_entropy_bits": self._tokens(part.expected).tolist(),
            }
            for name, part in (("training", self.training), ("held_out", self.held_out))
        }
        gap = self.gap_bits
        return {**parts, "memorisation_gap_bits": gap.tolist(), "memorisation_gap_bits_per_image": float(gap.sum())}

    def describe(self) -> str:
        """Sums over the positions."""
        lines = [
            f"{'the prior on':<14} {'rows':>7}  {'cross-entropy':>13}  {'predictive entropy':>18}   (bits per image)"
        ]
        for name, part in (("training", self.training), ("held-out", self.held_out)):
            loss, entropy = float(part.allowed.sum()), float(part.expected.sum())
            lines.append(f"{name:<14} {part.rows:>7,}  {loss:>13.2f}  {entropy:>18.2f}")
        return "\n".join([*lines, f"memorisation gap: {self.gap_bits.sum():.2f} bits per image"])

    def entries(self) -> list[ReportEntry]:
        """The curves."""
        caption = (
            "The prior's cross-entropy and its own predictive entropy at every position, on "
            f"{self.training.rows:,} training and {self.held_out.rows:,} held-out rows, told the class. "
            f"Memorisation gap: {self.gap_bits.sum():.2f} bits per image."
        )
        return [ReportEntry("predictive", "What the prior expects", caption, self._figure(), self.to_dict())]

    def _tokens(self, bits_L: Tensor) -> np.ndarray:
        places = [place for place, position in enumerate(self.layout.positions) if not position.is_separator]
        return bits_L[places].numpy()

    def _figure(self) -> Figure:
        """Cross-entropy (solid) and predictive entropy (dashed) at every position, and the memorisation gap."""
        figure, (left, right) = new_figure(2)
        for place, (name, part) in enumerate((("training", self.training), ("held-out", self.held_out))):
            style = {**curve_style(place), "marker": "", "linewidth": 1.5}
            loss, entropy = self._tokens(part.allowed), self._tokens(part.expected)
            positions = range(1, len(loss) + 1)
            left.plot(positions, loss, label=f"{name}, cross-entropy", **style)
            dashed = {**style, "linestyle": (0, (3, 2)), "linewidth": 1.0}
            left.plot(positions, entropy, label=f"{name}, predictive entropy", **dashed)
        dress(left, "What the prior expects", "position t", "bits")
        left.set_ylim(bottom=0)
        legend(left)
        gap = self.gap_bits
        right.bar(range(1, len(gap) + 1), gap, color=curve_style(0)["color"], width=0.8)
        dress(right, "Memorisation gap: held-out less training", "position t", "bits")
        return figure


def study(prior: Prior, tokens: Mapping[str, tuple[Tensor, Tensor]], *, progress: bool = False) -> Expectations:
    """Run the prior once over ``training`` and ``held_out`` tokens: local ids ``[N, T]`` with their classes ``[N]``."""
    found = {}
    for name in ("training", "held_out"):
        ids, classes = tokens[name]
        with progress_bar(f"{name} tokens", len(ids), "row", shown=progress) as bar:
            batches = zip(ids.split(100), classes.split(100), strict=True)
            found[name] = measure_likelihood(prior, batches, done=bar.update)
    return Expectations(prior.layout, found["training"], found["held_out"])
