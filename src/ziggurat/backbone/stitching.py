"""Output strides by shift and stitch: dense maps from a network as it is, whatever it is made of.

Where a level would go too coarse, what goes into it is shifted by each of k x k phases and run on as a batch; what
comes out is interleaved into one map k times as fine (Sermanet et al. 2013, OverFeat, arXiv 1312.6229; Long et al. 2014,
arXiv 1411.4038). The phase (0, 0) is the undisturbed network, so at the native grid's positions a stitched map is the
native map. That holds for windows, global attention, pooling and patch merging alike, which dilation cannot do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.padding import crop

__all__ = ["Boundary", "boundaries", "interleaved", "shifted"]


class Boundary(NamedTuple):
    """A place where a network would go coarser than the output stride allows."""

    level: int
    """The first level behind it."""
    phases: int
    """Phases along each axis."""
    step: int
    """Cells of the map before the boundary between one phase and the next."""


def boundaries(reductions: Sequence[int], output_stride: int) -> tuple[list[int], list[Boundary]]:
    """Strides of the levels held to `output_stride`, and the boundaries that do it, for their native strides.

    A level keeps the coarsest stride that divides its native one and is allowed: patches of 14 pixels give stride 7
    for an output stride of 8.
    """
    strides: list[int] = []
    found: list[Boundary] = []
    native = stride = 1
    for level, reduction in enumerate(reductions):
        factor = reduction // native
        assert factor * native == reduction, f"stride {reduction} after {native}"
        phases = next(k for k in range(1, factor + 1) if factor % k == 0 and stride * factor // k <= output_stride)
        if phases > 1:
            found.append(Boundary(level, phases, factor // phases))
        native, stride = reduction, stride * factor // phases
        strides.append(stride)
    return strides, found


def shifted(x: Tensor, phases: int, step: int, channels_last: bool = False) -> Tensor:
    """Maps (B C H W, or B H W C) moved up and left by every phase, as one batch of `phases`² times as many.

    Zeros come in from below and from the right, as if the map went on there as convolutions see it.
    """
    height, width = x.shape[1:3] if channels_last else x.shape[2:4]
    reach = (phases - 1) * step
    x = F.pad(x, (0, 0, 0, reach, 0, reach) if channels_last else (0, reach, 0, reach))
    rows, columns = (1, 2) if channels_last else (2, 3)
    offsets = [phase * step for phase in range(phases)]
    parts = [x.narrow(rows, down, height).narrow(columns, right, width) for down in offsets for right in offsets]
    return torch.stack(parts, 1).flatten(0, 1)


def interleaved(x: Tensor, phases: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Maps (B' C H W) of phases, innermost boundary last, as the dense maps (B C *size) that they are parts of."""
    for k in reversed(phases):
        x = F.pixel_shuffle(x.unflatten(0, (-1, k * k)).transpose(1, 2).flatten(1, 2), k)
    return crop(x, size[0], size[1])


class ShiftsInput:
    """A forward pre-hook that gives a module the shifted phases of its input; a class, so that models pickle."""

    def __init__(self, boundary: Boundary, channels_last: bool) -> None:
        self.boundary = boundary
        self.channels_last = channels_last

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _, phases, step = self.boundary
        return (shifted(args[0], phases, step, self.channels_last), *args[1:])
