"""Core ML's packages (.mlpackage) of an ML program in fp32; they run on macOS only."""

from __future__ import annotations

import functools
import io
import logging
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from ..errors import BadArgument
from ..view import View
from .export import exported_program
from .loaded import Loaded
from .resampling import ANTIALIASED, LINEAR

__all__ = ["open", "write"]

LARGEST = 2048  # images, or pixels: Core ML wants an upper bound of each free axis

aten: Any = torch.ops.aten


def write(view: View, example: Tensor, path: Path, dynamic: Sequence[str], metadata: dict[str, str]) -> None:
    """Writes a package for iOS 17, macOS 14 and later; free axes end at `LARGEST`.

    Raises `BadArgument` for a view that takes bytes, which Core ML has no tensors of.
    """
    if view.pixels:
        raise BadArgument("pixels=True: Core ML takes no tensor of bytes; give pixels=False and normalise the images, by the "
                          "mean and std of the file's metadata")
    program = decomposed(exported_program(view, example, dynamic))
    with quiet():
        import coremltools

        divide_sizes_as_integers()
        package = coremltools.convert(
            program,
            convert_to="mlprogram",
            outputs=[coremltools.TensorType(name=name) for name in view.names],
            compute_precision=coremltools.precision.FLOAT32,
            minimum_deployment_target=coremltools.target.iOS17,
            skip_model_load=True,
        )
        package.user_defined_metadata.update(metadata)
        package.save(str(path))


def open(path: Path) -> Loaded:
    """The package at `path` in Core ML, on macOS; raises `BadArgument` elsewhere."""
    here: str = sys.platform
    if here != "darwin":
        raise BadArgument(f"{path.name} is a package of Core ML, which runs on macOS only, and this is {here}")
    with quiet():
        import coremltools

        package = coremltools.models.MLModel(str(path))
    metadata = {key: value for key, value in package.user_defined_metadata.items() if not key.startswith("com.")}
    names = [output.name for output in package.get_spec().description.output]

    def run(images: Tensor) -> Sequence[Any]:
        found = package.predict({"images": images.numpy()})
        return [found[name] for name in names]

    return Loaded("coreml", path, run, names, metadata)


def divide_sizes_as_integers() -> None:
    """Has coremltools keep the quotient of two sizes an integer: its own is a float, which cannot bound a slice."""
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    @register_torch_op(override=True)
    def floordiv(context: Any, node: Any) -> None:
        x, y = _get_inputs(context, node, expected=2)
        context.add(Builder.floor_div(x=x, y=y, name=node.name))


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """A copy of `program` without operators that coremltools or Core ML lack, its free axes no longer than `LARGEST`."""
    table = torch.export.default_decompositions()
    table.update(DECOMPOSED)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch 2.11, at itself
        program = program.run_decompositions(table)
    for symbol, allowed in program.range_constraints.items():
        program.range_constraints[symbol] = allowed & ValueRanges(0, LARGEST)
    return program


def addcmul(x: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    return x + first * second * value


def adaptive_avg_pool2d(x: Tensor, size: Sequence[Any]) -> Tensor:
    """The mean of a map; torch's own form of it says how the mean lies in memory, too."""
    return x.mean((2, 3), keepdim=True) if list(size) == [1, 1] else NotImplemented


def alias(x: Tensor) -> Tensor:
    return x


def avg_pool2d(
    x: Tensor, size: list[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:
    if divisor_override is None:
        return NotImplemented
    if any(padding):
        x = F.pad(x, [side for side in reversed(tuple(padding) * (2 // len(padding))) for _ in range(2)])
    mean = F.avg_pool2d(x, size, list(stride) or None, 0, ceil_mode)
    return mean * (math.prod(size) ** (2 // len(size)) / divisor_override)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def constant_pad_nd(x: Tensor, pad: Sequence[Any], value: float = 0) -> Tensor:
    """Padding that depends on the image's size or cuts, which Core ML lacks: by the most that it can be, cut to what it is."""
    if all(isinstance(amount, int) and amount >= 0 for amount in pad):
        return NotImplemented
    most: list[Any] = [max(amount, 0) if isinstance(amount, int) else largest(amount) for amount in pad]
    if None in most:
        return NotImplemented
    sides = list(x.shape)
    x = F.pad(x, most, value=value)
    for i in range(len(pad) // 2):
        axis, (before, after), start = x.ndim - 1 - i, pad[2 * i : 2 * i + 2], most[2 * i] - pad[2 * i]
        if before is not most[2 * i] or after is not most[2 * i + 1]:
            x = x.narrow(axis, start, sides[axis] + before + after)
    return x


def largest(amount: Any) -> int | None:
    """The largest value, at least 0, of a size that depends on a side of the images; None for one that depends on more."""
    size = amount.node.expr
    if len(size.free_symbols) != 1:
        return None
    (side,) = size.free_symbols
    smallest = int(amount.node.shape_env.bound_sympy(side).lower)
    return _largest(size, side, smallest)


@functools.cache
def _largest(size: Any, side: Any, smallest: int) -> int:
    torch_has = {"FloorDiv": operator.floordiv, "Mod": operator.mod, "PythonMod": operator.mod}
    values = sympy.lambdify(side, size, [torch_has, "numpy"])(np.arange(smallest, LARGEST + 1))
    return max(int(np.max(values)), 0)


def is_fixed(*sides: Any) -> bool:
    """Whether none of these sides depends on the image's."""
    return all(isinstance(side, int) for side in sides)


def upsample_bilinear2d(x: Tensor, size: Sequence[Any] | None, align_corners: bool, *factors: Any) -> Tensor:
    if size is None or is_fixed(*size, *x.shape[2:]):
        return NotImplemented
    return LINEAR[aten.upsample_bilinear2d.vec](x, size, align_corners, *factors)


def upsample_nearest2d(x: Tensor, size: Sequence[Any] | None, *factors: Any) -> Tensor:
    """A map of a free size made as large as another: rows and columns taken by their numbers."""
    if size is None or is_fixed(*size, *x.shape[2:]):
        return NotImplemented
    for axis, side in enumerate(size, 2):
        numbers = torch.arange(side, device=x.device) * x.shape[axis] // side
        x = x.index_select(axis, numbers.int())  # integers they are already, but in Core ML a quotient is a float
    return x


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    **ANTIALIASED,
    aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten.addcmul.default: addcmul,
    aten.alias.default: alias,
    aten.avg_pool2d.default: avg_pool2d,
    aten.channel_shuffle.default: channel_shuffle,
    aten.constant_pad_nd.default: constant_pad_nd,
    aten.upsample_bilinear2d.vec: upsample_bilinear2d,
    aten.upsample_nearest2d.vec: upsample_nearest2d,
}
"""Operators that coremltools cannot convert, by others."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps coremltools from reporting its progress, what it lacks off macOS, and that this torch is newer than it knows."""
    logger = logging.getLogger("coremltools")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # what fails is raised as well
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # where its progress bars go
            warnings.simplefilter("ignore")  # of what is deprecated in it
            yield
    finally:
        logger.setLevel(before)
