"""Accelerators by name, for the hours of a plan: what their makers' data sheets say.

Peaks are of dense bfloat16 matrix products with float32 sums; sheets that print the figure "with sparsity" are halved
(H100, H200, B200, L4). Memory is in GB of 10^9 bytes as printed; a card may have a few per cent more. Sources: NVIDIA's
data sheets of the A100, H100, H200, L4, L40S, A10 and of the DGX B200 (an eighth of it), its white papers of the GA102
and AD102 chips (RTX 3090, 4090), AMD's data sheet of the MI300X.
"""

from __future__ import annotations

from dataclasses import dataclass

from overture.errors import UsageError
from overture.registry import OpenList

__all__ = ["CARDS", "Card", "load_card"]


@dataclass(frozen=True)
class Card:
    """One accelerator: peak of dense bfloat16 products in FLOP/s, memory bandwidth in bytes/s, memory in bytes."""

    flops: float
    bandwidth: float
    memory: float

    def __post_init__(self) -> None:
        for name in ("flops", "bandwidth", "memory"):
            if not getattr(self, name) > 0:
                raise UsageError(f"card: {name} is {getattr(self, name)}, needs > 0")


A10 = Card(flops=125e12, bandwidth=600e9, memory=24e9)
A100 = Card(flops=312e12, bandwidth=2.039e12, memory=80e9)
A100_40 = Card(flops=312e12, bandwidth=1.555e12, memory=40e9)
B200 = Card(flops=2.25e15, bandwidth=8e12, memory=180e9)
H100 = Card(flops=989.5e12, bandwidth=3.35e12, memory=80e9)
H100_PCIE = Card(flops=756e12, bandwidth=2e12, memory=80e9)
H200 = Card(flops=989.5e12, bandwidth=4.8e12, memory=141e9)
L4 = Card(flops=121e12, bandwidth=300e9, memory=24e9)
L40S = Card(flops=362e12, bandwidth=864e9, memory=48e9)
MI300X = Card(flops=1.307e15, bandwidth=5.3e12, memory=192e9)
RTX_3090 = Card(flops=71e12, bandwidth=936e9, memory=24e9)
RTX_4090 = Card(flops=165.2e12, bandwidth=1.008e12, memory=24e9)

CARDS = OpenList(
    "card",
    {
        "a10": "overture.plan.cards:A10",
        "a100": "overture.plan.cards:A100",
        "a100-40": "overture.plan.cards:A100_40",
        "b200": "overture.plan.cards:B200",
        "h100": "overture.plan.cards:H100",
        "h100-pcie": "overture.plan.cards:H100_PCIE",
        "h200": "overture.plan.cards:H200",
        "l4": "overture.plan.cards:L4",
        "l40s": "overture.plan.cards:L40S",
        "mi300x": "overture.plan.cards:MI300X",
        "rtx-3090": "overture.plan.cards:RTX_3090",
        "rtx-4090": "overture.plan.cards:RTX_4090",
    },
    kind="overture.plan.cards:Card",
)
"""By name: NVIDIA's SXM forms unless the name says otherwise."""


def load_card(name: str) -> Card:
    """The card called ``name``, ours or ``module:name``."""
    card = CARDS.get(name)
    if not isinstance(card, Card):
        raise UsageError(f"{name}: is a class of cards, not a card")
    return card
