"""The coordinates of a grid's cells, in the units that position embeddings count in, and their random distortion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ziggurat.errors import BadArgument

from .guards import traced_whole

__all__ = ["WrongKind", "augment_coords", "build_grid", "checked_distortion", "swap_shape_xy"]


class WrongKind(BadArgument, TypeError):
    """A setting that is not a number."""


def swap_shape_xy(seq: Sequence[int]) -> list[int]:
    """A shape with its first two sizes exchanged; a single size stays as it is."""
    return [*seq[1::-1], *seq[2:]]


def axis_coords(
    size: int, grid_type: str, offset: float, denominator: float, device: torch.device | str | None
) -> torch.Tensor:
    if grid_type == "pixel":
        return torch.linspace(-1.0, 1.0, steps=size, device=device, dtype=torch.float32)
    if grid_type == "index":
        return torch.arange(size, device=device, dtype=torch.float32) + offset
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5 + offset) / denominator


@traced_whole
def build_grid(
    feat_shape: Sequence[int],
    grid_type: str = "index",
    ref_feat_shape: Sequence[int] | None = None,
    grid_offset: float = 0.0,
    grid_indexing: str = "ij",
    normalize_coords: str = "separate",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    ndim: int | None = None,
) -> torch.Tensor:
    """The coordinates of every cell: a shape (H, W) to a tensor (H, W, 2), and so for any number of axes.

    `grid_type` 'index' counts cells and adds `grid_offset`; 'pixel' runs from -1 to 1 from the first cell to the last;
    'centered' takes the centres of cells from -1 to 1 over the edges, divided by the axis ('separate'), or by the
    shortest or longest axis ('min', 'max'). `ref_feat_shape` is the grid to whose coordinates these are stretched.
    With `grid_indexing` 'xy' the last axis holds the column before the row. Raises `BadArgument` for anything else,
    and for a shape without `ndim` axes.
    """
    if ndim is not None and len(feat_shape) != ndim:
        raise BadArgument(f"Expected {ndim} spatial dimensions, received the shape {tuple(feat_shape)}; pass (height, width)")
    for name, value, allowed in (
        ("grid_type", grid_type, ("index", "pixel", "centered")),
        ("normalize_coords", normalize_coords, ("separate", "min", "max")),
        ("grid_indexing", grid_indexing, ("ij", "xy")),
    ):
        if value not in allowed:
            raise BadArgument(f"{name}={value!r}: use one of {', '.join(allowed)}")
    shortest, longest = (min(feat_shape), max(feat_shape)) if len(feat_shape) else (1, 1)
    denominators = {"min": shortest, "max": longest}
    axes = []
    for i, size in enumerate(feat_shape):
        axis = axis_coords(size, grid_type, grid_offset, denominators.get(normalize_coords, size), device)
        if ref_feat_shape is not None:
            axis = axis / size * ref_feat_shape[i]
        if grid_type == "centered":
            axis = 2.0 * axis.to(dtype) - 1.0  # rounded before it is stretched, as the published models have it
        axes.append(axis.to(dtype))
    grids = torch.meshgrid(*axes, indexing="ij")
    if grid_indexing == "xy":
        grids = (*grids[1::-1], *grids[2:])
    return torch.stack(grids, dim=-1)


def checked_distortion(
    shift_coords: Any = None, jitter_coords: Any = None, rescale_coords: Any = None
) -> tuple[float | None, float | None, float | None]:
    """The three settings of `augment_coords` as numbers, None where one is off.

    Raises `WrongKind` for what is no number and `BadArgument` for a number out of its range.
    """
    checked: list[float | None] = []
    settings = (("shift_coords", shift_coords, 0), ("jitter_coords", jitter_coords, 1), ("rescale_coords", rescale_coords, 1))
    for name, value, least in settings:
        if value is None:
            checked.append(None)
            continue
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise WrongKind(f"{name}={value!r}: pass a number, or None for no such distortion")
        if not math.isfinite(value) or value < least:
            raise BadArgument(f"{name}={value}: pass a finite number of at least {least}, or None")
        checked.append(float(value))
    return checked[0], checked[1], checked[2]


@traced_whole
def augment_coords(
    coords: torch.Tensor,
    shift_coords: float | None = None,
    jitter_coords: float | None = None,
    rescale_coords: float | None = None,
) -> torch.Tensor:
    """Coordinates (cells, axes) randomly moved and stretched, one draw for all cells (Siméoni et al. 2025, DINOv3,
    arXiv 2508.10104).

    `shift_coords` is the most that an axis moves; `jitter_coords` the most, as a factor up or down, that each axis is
    stretched; `rescale_coords` the most that all axes are stretched together.
    """

    def draw(count: int, reach: float) -> torch.Tensor:
        return torch.empty(count, device=coords.device, dtype=coords.dtype).uniform_(-reach, reach)

    axes = coords.shape[-1]
    if shift_coords is not None:
        coords = coords + draw(axes, shift_coords)
    if jitter_coords is not None:
        coords = coords * draw(axes, math.log(jitter_coords)).exp()
    if rescale_coords is not None:
        coords = coords * draw(1, math.log(rescale_coords)).exp()
    return coords
