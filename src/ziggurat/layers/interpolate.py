"""Multilinear interpolation of values on a regular grid, at points anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ziggurat.errors import BadArgument

__all__ = ["RegularGridInterpolator"]


class RegularGridInterpolator:
    """A function of several coordinates, linear along each between the points where it is known.

    `points` are the ascending coordinates of each axis, `values` the values at all their combinations. Beyond the
    outermost points the outermost value holds. Raises `BadArgument` where points and values do not fit.
    """

    def __init__(self, points: Sequence[torch.Tensor], values: torch.Tensor) -> None:
        shape = tuple(len(axis) for axis in points)
        if shape != tuple(values.shape):
            raise BadArgument(f"values {tuple(values.shape)} at points {shape}: pass one value for each combination")
        self.points = points
        self.values = values

    def __call__(self, points_to_interp: Sequence[torch.Tensor]) -> torch.Tensor:
        """The values at the points whose coordinates are given, one tensor an axis, all of one shape."""
        if len(points_to_interp) != len(self.points):
            raise BadArgument(f"{len(points_to_interp)} coordinates for a function of {len(self.points)}")
        corners = []
        for axis, wanted in zip(self.points, points_to_interp):
            wanted = wanted.clamp(axis[0], axis[-1]).contiguous()
            upper = torch.bucketize(wanted, axis).clamp(1, max(len(axis) - 1, 1)).clamp(max=len(axis) - 1)
            lower = (upper - 1).clamp(min=0)
            gap = axis[upper] - axis[lower]
            share = torch.where(gap > 0, (wanted - axis[lower]) / gap.clamp(min=1e-12), torch.zeros_like(wanted))
            corners.append(((lower, 1 - share), (upper, share)))
        total = torch.zeros_like(points_to_interp[0])
        for corner in itertools.product(*corners):
            weight = torch.ones_like(total)
            for _, share in corner:
                weight = weight * share
            total = total + weight * self.values[tuple(index for index, _ in corner)]
        return total
