"""Features rounded to whole numbers, for telling cheaply which distances have to be computed at all.

Sets of features are rotated at random, which changes no distance and spreads every direction over all coordinates, and
rounded to 8-bit whole numbers, up or down at random so that errors have mean zero. Products of whole numbers are exact
and, on processors that have them, four times as fast as those of float32. With ``q`` the codes of ``y`` and ``e = q - y``,

    |q_a - q_b|^2 - |e_a|^2 - |e_b|^2  =  d^2 + 2 (y_a - y_b).(e_a - e_b) - 2 e_a.e_b

and by Hoeffding's inequality the second term exceeds ``2 SURE d`` and the third ``SURE sqrt(2) |e|`` for no more than one
pair in 10^18, whatever the features are. That makes a lower and an upper limit of every distance.

Shapes: N members, B C members of a block, P pairs, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from overture.errors import OvertureError
from overture.evaluation.processes import on_threads

__all__ = ["Columns", "Grid", "Rounded", "exact_squares", "near_pairs"]

BLOCK = 512  # what rounding needs beside stays small
ENOUGH = 4096  # members of a set that tell its centre and spread
COLUMNS = 64
PAIRS = 128  # two rows of 2,048 features each: 2 MB, which stays in cache
SURE = math.sqrt(math.log(2e18))
WIDEST = 4.5  # coordinates after a random rotation are nearly normal: few lie further out, in standard deviations
FURTHEST = 2.0**31 - 128  # the last float32 that is an int32
FLOAT_ERROR = 2e-5  # of centring and rotation in float32, relative to a member's length


@dataclass(frozen=True, eq=False)
class Rounded:
    """A set of features and its codes on a grid; lengths are in steps of the grid.

    ``grid`` they lie on; ``codes_ND`` int8; ``squares_N`` int32: squared lengths of the codes less those of their
    errors; ``margins_N`` float32: what each member adds to the doubt about its distances.
    """

    grid: Grid
    features_ND: Tensor
    codes_ND: Tensor
    squares_N: Tensor
    margins_N: Tensor

    def __len__(self) -> int:
        return len(self.features_ND)

    def columns(self, members: Tensor | slice) -> Columns:
        """Some members, ready to be compared with."""
        return Columns(self.codes_ND[members].T.contiguous(), self.squares_N[members])


@dataclass(frozen=True, eq=False)
class Columns:
    """Members that many others are compared with: their codes as a product reads them fastest."""

    codes_DC: Tensor
    squares_C: Tensor


class Grid:
    """The rotation and the step that several sets share, so that their codes can be compared."""

    def __init__(self, *sets: Tensor) -> None:
        self.dims = sets[0].shape[1]
        device = sets[0].device
        self.whole_products = device.type == "cpu" and _has_int8_products()
        # A rotation of rows times columns: two small products in place of one of D x D. Zeros fill the last row.
        rows, columns = -(-self.dims // COLUMNS), COLUMNS
        # Sums of products stay exact: below 2^31 when whole (four lengths make a distance), 2^24 in float32.
        self.levels = min(127, math.isqrt((2**29 - 2**20 if self.whole_products else 2**22) // (rows * columns)))
        self.rotations = tuple(_rotation(size, seed).to(device) for seed, size in enumerate((rows, columns)))
        # Any centre and step do; near the mean and the spread, which a part of the members tells, codes serve best.
        some = [features[:: -(-len(features) // ENOUGH)].float() for features in sets]
        self.centre_D = torch.stack([part.mean(dim=0) for part in some]).mean(dim=0)
        lengths = torch.cat([(part - self.centre_D).norm(dim=1) for part in some])
        typical = float(lengths.sort().values[int(0.999 * (len(lengths) - 1))]) / math.sqrt(rows * columns)
        self.step = WIDEST * typical / self.levels or 1.0
        if not math.isfinite(self.step):
            raise OvertureError("distances of features: some are NaN, infinite or too large; check the images")
        # |e|^2 of a member is below its dimensions. SURE^2 completes a square: d^2 - 2 SURE d = (d - SURE)^2 - SURE^2.
        # 2 more, because squares are rounded to whole numbers.
        self.slack = math.ceil(SURE * math.sqrt(2 * rows * columns) + SURE**2) + 2

    def round(self, features_ND: Tensor, seed: int = 0) -> Rounded:
        """A set on this grid. Members too far out are cut off at its edge, which shows in their margins."""
        count, dims = len(features_ND), len(self.rotations[0]) * COLUMNS
        codes_ND = torch.empty(count, dims, dtype=torch.int8, device=features_ND.device)
        squares_N = torch.empty(count, dtype=torch.int32, device=features_ND.device)
        margins_N = torch.empty(count, device=features_ND.device)

        def work(start: int) -> None:
            rows = slice(start, start + BLOCK)
            codes_ND[rows], squares_N[rows], margins_N[rows] = self._round(features_ND[rows], seed * 1_000_003 + start)

        on_threads(work, range(0, count, BLOCK))
        return Rounded(self, features_ND, codes_ND, squares_N, margins_N)

    def _round(self, features_BD: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = (len(rotation) for rotation in self.rotations)
        generator = torch.Generator(features_BD.device).manual_seed(seed)
        centred_BD = torch.nn.functional.pad(features_BD.float() - self.centre_D, (0, rows * columns - self.dims))
        turned = self.rotations[0] @ centred_BD.unflatten(1, (rows, columns)) @ self.rotations[1]
        exact_BD = turned.flatten(1).div_(self.step)
        kept_BD = exact_BD.clamp(-self.levels, self.levels)
        margins_B = (exact_BD - kept_BD).norm(dim=1) + FLOAT_ERROR * exact_BD.norm(dim=1) + SURE / 2
        dither_BD = torch.rand(kept_BD.shape, generator=generator, device=kept_BD.device)
        codes_BD = dither_BD.add_(kept_BD).floor_().clamp_(-self.levels, self.levels)
        squares_B = codes_BD.to(torch.int32).square_().sum(dim=1, dtype=torch.int32)
        squares_B -= kept_BD.sub_(codes_BD).norm(dim=1).square_().round_().to(torch.int32)
        return codes_BD.to(torch.int8), squares_B, margins_B

    def squares(self, a: Rounded, rows_B: Tensor | slice, b: Columns) -> Tensor:
        """Squared distances int32 ``[B, C]`` by the codes of some members of two sets, below 0 at times.

        The true distance is at least ``sqrt(square - slack)`` and at most ``sqrt(square + slack)``, each with the
        margins of both members to spare.
        """
        products_BC = self._products(a.codes_ND[rows_B], b.codes_DC)
        return products_BC.mul_(-2).add_(b.squares_C).add_(a.squares_N[rows_B, None])

    def _products(self, a_BD: Tensor, b_DC: Tensor) -> Tensor:
        if self.whole_products:
            return torch._int_mm(a_BD, b_DC)
        return (a_BD.float() @ b_DC.float()).to(torch.int32)


def exact_squares(a_ND: Tensor, rows_P: Tensor, b_MD: Tensor, columns_P: Tensor) -> Tensor:
    """Squared distances float32 ``[P]`` of pairs of features, from their differences."""
    parts = [
        a_ND[rows].float().sub_(b_MD[columns].float()).square_().sum(dim=1)
        for rows, columns in zip(rows_P.split(PAIRS), columns_P.split(PAIRS), strict=True)
    ]
    return torch.cat(parts) if parts else a_ND.new_zeros(0, dtype=torch.float32)


def near_pairs(
    squares_BC: Tensor, reach_B: Tensor, margins_B: Tensor, margins_C: Tensor, slack: int
) -> tuple[Tensor, Tensor]:
    """Row and column ``[P]`` of all pairs that may be no further apart than ``reach_B``, by rounded squared distances."""
    # One limit a row, but for the few members that were cut off: theirs would make everything near.
    wide_C = margins_C > 2 * margins_C.median()
    near_BC = squares_BC <= _limits(reach_B + margins_B + margins_C[~wide_C].max(), slack)[:, None]
    if wide_C.any():
        limits_BW = _limits((reach_B + margins_B)[:, None] + margins_C[wide_C], slack)
        near_BC[:, wide_C] = squares_BC[:, wide_C] <= limits_BW
    if near_BC.is_contiguous():
        return _places(near_BC)
    columns_P, rows_P = _places(near_BC.T)
    return rows_P, columns_P


def _limits(distances: Tensor, slack: int) -> Tensor:
    """As whole squares, rounded up, no more than there can be."""
    return distances.square().add_(slack).ceil_().clamp_(max=FURTHEST).to(torch.int32)


def _places(mask_BC: Tensor) -> tuple[Tensor, Tensor]:
    if mask_BC.device.type == "cpu":  # numpy finds the few among the many several times faster
        found_P = torch.from_numpy(np.flatnonzero(mask_BC.numpy()))
    else:
        found_P = mask_BC.flatten().nonzero().squeeze(1)
    return found_P // mask_BC.shape[1], found_P % mask_BC.shape[1]


def _rotation(size: int, seed: int) -> Tensor:
    gaussian = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.float()


def _has_int8_products() -> bool:
    """Whether the processor multiplies 8-bit numbers faster than float32."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(hasattr(torch, "_int_mm") and torch.backends.mkldnn.is_available() and supported and supported())
