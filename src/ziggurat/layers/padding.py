"""Padding by rule: symmetric, none ('valid'), or as TensorFlow pads ('same'), which depends on the input's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .guards import blocks, surely_equal
from .shapes import to_2tuple
from .trace_utils import is_exporting
from .typing import PadType

__all__ = [
    "crop",
    "extend",
    "get_padding",
    "get_padding_value",
    "get_same_padding",
    "is_static_pad",
    "pad_same",
    "pad_same_arg",
    "pad_to_multiple",
]

Size = int | Sequence[int]


def _each_side(kernel: Any, stride: Any, dilation: Any) -> list[tuple[int, int, int]]:
    return list(zip(to_2tuple(kernel), to_2tuple(stride), to_2tuple(dilation)))


def get_padding(kernel_size: Size, stride: Size = 1, dilation: Size = 1, **_: Any) -> int | list[int]:
    """The padding on either side that keeps the size at stride 1, and divides it evenly at other strides.

    A list where any argument is one, else a number.
    """
    sides = [((s - 1) + d * (k - 1)) // 2 for k, s, d in _each_side(kernel_size, stride, dilation)]
    return sides if any(isinstance(a, (tuple, list)) for a in (kernel_size, stride, dilation)) else sides[0]


def get_same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    """The total padding along one side of length `x` with which the output has ceil(x / stride) positions.

    `x` may be a number, a symbolic size or, under torch.jit.trace, a tensor.
    """
    reach = (kernel_size - 1) * dilation + 1
    lacking = (blocks(x, stride) - 1) * stride + reach - x
    if reach >= stride:  # windows leave nothing out, so nothing can be left over; and traced sizes stay simple
        return lacking
    if isinstance(lacking, Tensor):
        return lacking.clamp(min=0)
    # the built-in max would ask a traced size for its truth value
    return torch.sym_max(lacking, 0)


def is_static_pad(kernel_size: Size, stride: Size = 1, dilation: Size = 1, **_: Any) -> bool:
    """Whether 'same' padding is symmetric and independent of the input's size: stride 1 and an even reach."""
    return all(s == 1 and d * (k - 1) % 2 == 0 for k, s, d in _each_side(kernel_size, stride, dilation))


def pad_same_arg(
    input_size: Sequence[Any], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> list[Any]:
    """The padding for `torch.nn.functional.pad`, [left, right, top, bottom], that 'same' asks for at this (H, W)."""
    out: list[Any] = []
    for side in (1, 0):
        total = get_same_padding(input_size[side], kernel_size[side], stride[side], dilation[side])
        before = total // 2
        out += [before, total - before]
    return out


def pad_same(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1), value: float = 0
) -> Tensor:
    """`x`, its last two sides padded with `value` as TensorFlow's 'SAME' rule says, the odd pixel right and below."""
    padding = pad_same_arg(x.shape[-2:], kernel_size, stride, dilation)
    # Spares eager mode a copy. Traced sizes are not asked: that would tie the graph to the size traced with.
    if not torch.compiler.is_compiling() and all(type(p) is int and p == 0 for p in padding):
        return x
    return F.pad(x, padding, value=value)


def pad_to_multiple(x: Tensor, side: Size, mode: str = "constant", value: float | None = None) -> Tensor:
    """A map (N, C, H, W), filled up below and to the right until its sides are multiples of `side`."""
    height, width = x.shape[-2:]
    down, right = (blocks(length, s) * s - length for length, s in zip((height, width), to_2tuple(side)))
    if surely_equal((down, right), (0, 0)):
        return x
    return F.pad(x, (0, right, 0, down), mode, value)


def crop(x: Tensor, height: Any, width: Any) -> Tensor:
    """The first `height` rows and `width` columns of a map (N, C, H, W), which has at least these."""
    if surely_equal(x.shape[-2:], (height, width)):
        return x
    if is_exporting():  # a slice would ask how the sizes compare, and tie the program to the answer
        rows, columns = (torch.arange(length, device=x.device) for length in (height, width))
        return x.index_select(-2, rows).index_select(-1, columns)
    return x[..., :height, :width]


def extend(x: Tensor, height: Any, width: Any, before: int = 0) -> Tensor:
    """A map (N, C, H, W), its outermost cells repeated to `height` x `width`: `before` times above and to the left."""
    down, right = height - x.shape[-2] - before, width - x.shape[-1] - before
    if surely_equal((before, down, right), (0, 0, 0)):
        return x
    return F.pad(x, (before, right, before, down), "replicate")


def get_padding_value(padding: PadType, kernel_size: Size, **kwargs: Any) -> tuple[Any, bool]:
    """(padding for the layer, whether the input must be padded by `pad_same` instead).

    `padding` is a number or pair, taken as it is, or '' (symmetric), 'same', 'valid'. `kwargs` are the layer's stride
    and dilation.
    """
    if not isinstance(padding, str):
        return padding, False
    rule = padding.lower()
    if rule == "valid":
        return 0, False
    if rule == "same" and not is_static_pad(kernel_size, **kwargs):
        return 0, True
    return get_padding(kernel_size, **kwargs), False
