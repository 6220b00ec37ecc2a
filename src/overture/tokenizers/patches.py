"""Images to rows of patches and back (docs/prologue.md, section 2).

Shapes: B images, C colour channels, H x W pixels, R x S patches, P pixels on a patch's side.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["join_patches", "split_patches"]


def split_patches(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """``[B, C, H, W] -> [B, R * S, P * P * C]``: patches in raster order, each as (row, column, channel)."""
    patches = images_BCHW.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B C R P S P
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def join_patches(patches_BLX: Tensor, patch_size: int, rows: int, channels: int) -> Tensor:
    """The inverse of :func:`split_patches`, for ``rows`` rows of patches."""
    patches = patches_BLX.unflatten(2, (patch_size, patch_size, channels)).unflatten(1, (rows, -1))  # B R S P P C
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
