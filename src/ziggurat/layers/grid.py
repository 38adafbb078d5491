"""Coordinate grids by their indexing: matrix order (the first axis counts rows) and Cartesian order."""

from __future__ import annotations

import torch

__all__ = ["meshgrid", "ndgrid"]


def ndgrid(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One coordinate grid a tensor, in matrix order: axis i of each grid follows tensor i."""
    return tuple(torch.meshgrid(*tensors, indexing="ij"))


def meshgrid(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One coordinate grid a tensor, in Cartesian order: the first two axes are exchanged against `ndgrid`."""
    return tuple(torch.meshgrid(*tensors, indexing="xy"))
