"""Convolutions that standardise their weights.

`StdConv2d` is weight standardisation (Qiao et al. 2019, arXiv 1903.10520); `ScaledStdConv2d` adds the gain and the
scale that let a network go without normalisation (Brock et al. 2021, arXiv 2101.08692). Names ending in Same pad as
TensorFlow does where no symmetric padding does it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .padding import get_padding, get_padding_value, pad_same
from .typing import PadType

__all__ = ["ScaledStdConv2d", "ScaledStdConv2dSame", "StdConv2d", "StdConv2dSame"]

Pair = int | tuple[int, int]


class _StandardisedConv(nn.Conv2d):
    """A convolution with each output channel's weights brought to mean 0 and variance 1 before use."""

    eps: float
    same_pad: bool = False

    @property
    def fan_in(self) -> int:
        """The number of weights of one output channel."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    def standardised(self) -> Tensor:
        """The weights that the convolution uses."""
        # over a row of weights this is just what layer normalisation computes
        rows = F.layer_norm(self.weight.flatten(1), (self.fan_in,), eps=self.eps)
        return rows.unflatten(1, (self.in_channels // self.groups, *self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        if self.same_pad:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return self._conv_forward(x, self.standardised(), self.bias)


class StdConv2d(_StandardisedConv):
    """A convolution with standardised weights; without `padding` it pads symmetrically."""

    def __init__(
        self,
        in_channel: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        sides = get_padding(kernel_size, stride, dilation) if padding is None else padding
        super().__init__(in_channel, out_channels, kernel_size, stride, sides, dilation, groups, bias)  # type: ignore[arg-type]
        self.eps = eps


class StdConv2dSame(_StandardisedConv):
    """`StdConv2d` with padding by rule, 'SAME' unless named otherwise."""

    def __init__(
        self,
        in_channel: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: PadType = "SAME",
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        sides, by_size = get_padding_value(padding, kernel_size, stride=stride, dilation=dilation)
        super().__init__(in_channel, out_channels, kernel_size, stride, sides, dilation, groups, bias)
        self.same_pad = by_size
        self.eps = eps


class ScaledStdConv2d(_StandardisedConv):
    """A convolution with standardised weights, times a learned `gain` a channel, times `gamma` / sqrt(fan in)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: PadType | None = None,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        gamma: float = 1.0,
        eps: float = 1e-6,
        gain_init: float = 1.0,
    ) -> None:
        sides, by_size = get_padding_value("" if padding is None else padding, kernel_size, stride=stride, dilation=dilation)
        super().__init__(in_channels, out_channels, kernel_size, stride, sides, dilation, groups, bias)
        self.same_pad = by_size
        self.gain = nn.Parameter(torch.full((out_channels, 1, 1, 1), gain_init))
        self.scale = gamma * self.fan_in**-0.5
        self.eps = eps

    def standardised(self) -> Tensor:
        return super().standardised() * (self.gain * self.scale)


class ScaledStdConv2dSame(ScaledStdConv2d):
    """`ScaledStdConv2d` that pads by 'SAME' unless another rule is named."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: PadType = "SAME",
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        gamma: float = 1.0,
        eps: float = 1e-6,
        gain_init: float = 1.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, gamma, eps, gain_init
        )
