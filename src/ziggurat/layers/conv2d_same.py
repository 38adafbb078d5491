"""Convolution padded as TensorFlow does, for weights trained there."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .padding import get_padding_value, pad_same
from .typing import PadType

__all__ = ["Conv2dSame", "conv2d_same", "create_conv2d_pad"]

Pair = int | tuple[int, int]


def conv2d_same(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """2-d convolution with 'SAME' padding; `padding` is taken so that it can replace `F.conv2d`, and not used."""
    kernel = (weight.shape[-2], weight.shape[-1])
    return F.conv2d(pad_same(x, kernel, stride, dilation), weight, bias, stride, 0, dilation, groups)


class Conv2dSame(nn.Conv2d):
    """A Conv2d whose padding follows TensorFlow's 'SAME' rule, computed from each input's size.

    Output (N, out_channels, ceil(H / stride), ceil(W / stride)). `padding` is accepted and not used.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: PadType = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias)

    def forward(self, x: Tensor) -> Tensor:
        # sizes from the module, not from the weight: a traced weight would have traced sizes
        return self._conv_forward(pad_same(x, self.kernel_size, self.stride, self.dilation), self.weight, self.bias)


def create_conv2d_pad(in_chs: int, out_chs: int, kernel_size: Pair, **kwargs: Any) -> nn.Conv2d:
    """A Conv2d, or a Conv2dSame where `padding` is 'same' and no symmetric padding does it; without bias by default."""
    rule = kwargs.pop("padding", "")
    kwargs.setdefault("bias", False)
    padding, by_size = get_padding_value(rule, kernel_size, **kwargs)
    if by_size:
        return Conv2dSame(in_chs, out_chs, kernel_size, **kwargs)
    return nn.Conv2d(in_chs, out_chs, kernel_size, padding=padding, **kwargs)
