"""Interpolation as two products of matrices, for formats that have no such operator, or another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

__all__ = ["ANTIALIASED", "CUBIC", "LINEAR", "interpolation_as_products"]

aten: Any = torch.ops.aten


Matrix = Callable[[Any, Any, Tensor], Tensor]  # of the sides before and after, and a tensor of its type and device


def interpolation_as_products(program: ExportedProgram, rules: Mapping[Any, Callable[..., Tensor]]) -> ExportedProgram:
    """`program` with interpolation by one of the operators of `rules` written out; itself without any.

    `ANTIALIASED` are those of `F.interpolate(mode='bilinear' or 'bicubic', antialias=True)`, `CUBIC` those of 'bicubic' without,
    `LINEAR` those of 'bilinear' without.
    """
    return program.run_decompositions(dict(rules)) if any(node.target in rules for node in program.graph.nodes) else program


def triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def cubic(x: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel (Keys 1981) at |x|; torch has a = -0.5, as Pillow, if it antialiases, else -0.75."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def antialiased(kernel: Callable[[Tensor], Tensor], before: Any, after: Any, like: Tensor) -> Tensor:
    """The matrix (after, before) that resamples an axis: the kernel, as wide as a step where that is more than one."""
    places = torch.arange(after, dtype=torch.float32, device=like.device) + 0.5
    step = places.new_full((), before) / after
    offsets = torch.arange(before, dtype=torch.float32, device=like.device) + 0.5 - (places * step)[:, None]
    found = kernel((offsets / step.clamp(min=1)).abs())
    return (found / found.sum(1, keepdim=True)).to(like.dtype)


def places_in(before: Any, after: Any, like: Tensor) -> Tensor:
    """Where the `after` values of an axis lie among the `before` that it had, in steps from the first of these."""
    places = torch.arange(after, dtype=torch.float32, device=like.device) + 0.5
    return places * (places.new_full((), before) / after) - 0.5


def linear(before: Any, after: Any, like: Tensor) -> Tensor:
    """The matrix (after, before) that takes the two values around a place, the one at the border for what lies beyond it."""
    places = places_in(before, after, like).clamp(0, before - 1)
    return triangle((places[:, None] - torch.arange(before, device=like.device)).abs()).to(like.dtype)


def plain(before: Any, after: Any, like: Tensor) -> Tensor:
    """The matrix (after, before) that takes the four values around a place, those at the border for what lies beyond it."""
    places = places_in(before, after, like)
    four = places.floor()[:, None] + torch.arange(-1, 3, device=like.device)
    values = cubic((places[:, None] - four).abs(), -0.75)
    taken = four.clamp(0, before - 1)[..., None] == torch.arange(before, device=like.device)
    return (values[..., None] * taken).sum(1).to(like.dtype)


def rule(matrix: Matrix) -> Callable[..., Tensor]:
    """How torch's operators that resample an axis by this matrix are written out, for a size that is given."""

    def resample(x: Tensor, size: Any, align_corners: bool, *factors: Any) -> Tensor:
        if align_corners or size is None:
            return NotImplemented
        rows, columns = (matrix(x.shape[axis], side, x) for axis, side in zip((2, 3), size))
        return rows @ x @ columns.mT

    return resample


def rules(operator: Any, matrix: Matrix) -> dict[Any, Callable[..., Tensor]]:
    return {getattr(operator, overload): rule(matrix) for overload in ("default", "vec")}


ANTIALIASED = (rules(aten._upsample_bilinear2d_aa, partial(antialiased, triangle))
               | rules(aten._upsample_bicubic2d_aa, partial(antialiased, partial(cubic, a=-0.5))))
CUBIC = rules(aten.upsample_bicubic2d, plain)
LINEAR = rules(aten.upsample_bilinear2d, linear)
