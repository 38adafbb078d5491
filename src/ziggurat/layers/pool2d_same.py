"""Pooling padded as TensorFlow does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.errors import BadArgument

from .padding import get_padding_value, pad_same
from .shapes import to_2tuple

__all__ = [
    "AvgPool2dSame",
    "AvgPool2dWithin",
    "MaxPool2dSame",
    "avg_pool2d_same",
    "create_pool2d",
    "max_pool2d_same",
]

Size = int | Sequence[int]


def avg_pool2d_same(
    x: Tensor,
    kernel_size: Size,
    stride: Size,
    padding: Size = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Average pooling of (N, C, H, W) with 'SAME' padding, whose zeros count; `padding` is accepted and not used."""
    kernel, step = to_2tuple(kernel_size), to_2tuple(stride)
    return F.avg_pool2d(pad_same(x, kernel, step), kernel, step, 0, ceil_mode, count_include_pad)


def max_pool2d_same(
    x: Tensor,
    kernel_size: Size,
    stride: Size,
    padding: Size = (0, 0),
    dilation: Size = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Maximum pooling of (N, C, H, W) with 'SAME' padding, which never wins; `padding` is accepted and not used."""
    kernel, step, spread = to_2tuple(kernel_size), to_2tuple(stride), to_2tuple(dilation)
    x = pad_same(x, kernel, step, spread, value=-float("inf"))
    return F.max_pool2d(x, kernel, step, 0, spread, ceil_mode)


class AvgPool2dSame(nn.AvgPool2d):
    """The module of `avg_pool2d_same`."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        kernel = to_2tuple(kernel_size)
        super().__init__(kernel, kernel if stride is None else to_2tuple(stride), 0, ceil_mode, count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d_same(x, self.kernel_size, self.stride, 0, self.ceil_mode, self.count_include_pad)


class AvgPool2dWithin(AvgPool2dSame):
    """The mean of what lies of the map in each window of 'SAME' padding: the padding does not count.

    So pools TensorFlow, and MindSpore with `pad_mode="same"`.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, step = to_2tuple(self.kernel_size), to_2tuple(self.stride)
        inside = torch.ones_like(x[:1, :1])
        means, shares = (F.avg_pool2d(pad_same(t, kernel, step), kernel, step) for t in (x, inside))
        return means / shares


class MaxPool2dSame(nn.MaxPool2d):
    """The module of `max_pool2d_same`."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        kernel = to_2tuple(kernel_size)
        step = kernel if stride is None else to_2tuple(stride)
        super().__init__(kernel, step, 0, to_2tuple(dilation), ceil_mode=ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d_same(x, self.kernel_size, self.stride, 0, self.dilation, self.ceil_mode)


def create_pool2d(pool_type: str, kernel_size: Size, stride: Size | None = None, **kwargs: Any) -> nn.Module:
    """A pooling module, avg or max, with `padding` by rule as in `get_padding_value`.

    `dilation` is for max. Raises BadArgument for another pooling, or a dilated average.
    """
    if pool_type not in ("avg", "max"):
        raise BadArgument(f"no pooling {pool_type!r}: use avg or max")
    step = kernel_size if stride is None else stride
    spread = kwargs.get("dilation", 1)
    padding, by_size = get_padding_value(kwargs.pop("padding", ""), kernel_size, stride=step, dilation=spread)
    if pool_type == "avg":
        if to_2tuple(kwargs.pop("dilation", 1)) != (1, 1):
            raise BadArgument(f"an average cannot be dilated, got dilation={spread}: use max, or dilation=1")
        if by_size:
            return AvgPool2dSame(kernel_size, step, **kwargs)
        return nn.AvgPool2d(kernel_size, step, padding=padding, **kwargs)  # type: ignore[arg-type]
    if by_size:
        return MaxPool2dSame(kernel_size, step, **kwargs)
    return nn.MaxPool2d(kernel_size, step, padding=padding, **kwargs)  # type: ignore[arg-type]
