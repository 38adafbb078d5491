"""Antialiased interpolation as two products of matrices, for formats that have no such operator, or another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

__all__ = ["interpolation_as_products"]

aten: Any = torch.ops.aten


def interpolation_as_products(program: ExportedProgram) -> ExportedProgram:
    """`program` with `F.interpolate(mode='bilinear' or 'bicubic', antialias=True)` written out; itself without any."""
    return program.run_decompositions(RULES) if any(node.target in RULES for node in program.graph.nodes) else program


def triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def cubic(x: Tensor) -> Tensor:
    """The cubic convolution kernel (Keys 1981) with a = -0.5, which is that of Pillow, at |x|."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def weights(kernel: Callable[[Tensor], Tensor], before: Any, after: Any, like: Tensor) -> Tensor:
    """The matrix (after, before) that resamples an axis: the kernel, as wide as a step where that is more than one."""
    places = torch.arange(after, dtype=torch.float32, device=like.device) + 0.5
    step = places.new_full((), before) / after
    offsets = torch.arange(before, dtype=torch.float32, device=like.device) + 0.5 - (places * step)[:, None]
    found = kernel((offsets / step.clamp(min=1)).abs())
    return (found / found.sum(1, keepdim=True)).to(like.dtype)


def rule(kernel: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """How torch's operators of this kernel are written out, for a size that is given."""

    def resample(x: Tensor, size: Any, align_corners: bool, *factors: Any) -> Tensor:
        if align_corners or size is None:
            return NotImplemented
        rows, columns = (weights(kernel, x.shape[axis], side, x) for axis, side in zip((2, 3), size))
        return rows @ x @ columns.mT

    return resample


RULES = {getattr(operator, overload): rule(kernel)
         for operator, kernel in ((aten._upsample_bilinear2d_aa, triangle), (aten._upsample_bicubic2d_aa, cubic))
         for overload in ("default", "vec")}
