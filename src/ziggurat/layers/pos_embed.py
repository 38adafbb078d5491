"""Learned absolute positions at another grid size."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .guards import surely_equal, traced_whole

__all__ = ["resample_abs_pos_embed", "resample_abs_pos_embed_nhwc"]

log = logging.getLogger(__name__)


def resize_grid(
    grid: torch.Tensor, new_size: Sequence[int], interpolation: str, antialias: bool, align_corners: bool | None = None
) -> torch.Tensor:
    """A grid (N, H, W, C) at `new_size`, interpolated in float32 and returned in its own dtype."""
    resized = F.interpolate(
        grid.permute(0, 3, 1, 2).float(),
        size=tuple(new_size),
        mode=interpolation,
        antialias=antialias,
        align_corners=align_corners,
    )
    return resized.permute(0, 2, 3, 1).to(grid.dtype)


@traced_whole
def resample_abs_pos_embed(
    posemb: torch.Tensor,
    new_size: Sequence[int],
    old_size: Sequence[int] | None = None,
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
    align_corners: bool | None = None,
) -> torch.Tensor:
    """Positions (1, prefix + L, C) interpolated from one grid of patches to another, prefix tokens kept as they are.

    Without `old_size` the old grid is taken to be square. A grid of the new size comes back untouched.
    """
    patches = posemb.shape[1] - num_prefix_tokens
    if old_size is None:
        side = math.isqrt(patches)
        old_size = (side, side)
    if surely_equal(new_size, old_size):
        return posemb
    prefix, grid = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    grid = grid.reshape(1, old_size[0], old_size[1], -1)
    grid = resize_grid(grid, new_size, interpolation, antialias, align_corners).flatten(1, 2)
    if verbose:
        log.info("position embedding resized from %s to %s", tuple(old_size), tuple(new_size))
    return torch.cat((prefix, grid), dim=1) if num_prefix_tokens else grid


@traced_whole
def resample_abs_pos_embed_nhwc(
    posemb: torch.Tensor,
    new_size: Sequence[int],
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
) -> torch.Tensor:
    """Positions (1, H, W, C) interpolated to `new_size`; those of that size come back untouched."""
    if surely_equal(posemb.shape[1:3], new_size):
        return posemb
    if verbose:
        log.info("position embedding resized from %s to %s", tuple(posemb.shape[1:3]), tuple(new_size))
    return resize_grid(posemb, new_size, interpolation, antialias)
