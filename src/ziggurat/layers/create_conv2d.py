"""The convolution that its arguments ask for."""

from __future__ import annotations

from typing import Any

from torch import nn

from ziggurat.errors import BadArgument

from .cond_conv2d import CondConv2d
from .conv2d_same import create_conv2d_pad
from .mixed_conv2d import MixedConv2d

__all__ = ["create_conv2d"]


def create_conv2d(in_channels: int, out_channels: int, kernel_size: Any, **kwargs: Any) -> nn.Module:
    """A Conv2d; a MixedConv2d where `kernel_size` is a list, a CondConv2d where `num_experts` is given and not 0.

    `depthwise` makes one group a channel; `padding` is as in `get_padding_value`; there is no bias by default.
    Raises BadArgument where a list of kernel sizes meets experts, or groups other than 1 and one a channel.
    """
    experts = kwargs.pop("num_experts", 0)
    groups = kwargs.pop("groups", 1)
    depthwise = kwargs.pop("depthwise", False)
    if isinstance(kernel_size, list):
        if experts or groups not in (1, in_channels):
            raise BadArgument(
                f"a mixed convolution (kernel sizes {kernel_size}) cannot have groups={groups}, num_experts={experts}: "
                f"use groups=1, or {in_channels} for a depthwise one, or a single kernel size (a pair is a tuple)"
            )
        depthwise = depthwise or groups == in_channels
        return MixedConv2d(in_channels, out_channels, kernel_size, depthwise=depthwise, **kwargs)
    if depthwise:
        groups = in_channels
    if experts > 0:
        return CondConv2d(in_channels, out_channels, kernel_size, groups=groups, num_experts=experts, **kwargs)
    return create_conv2d_pad(in_channels, out_channels, kernel_size, groups=groups, **kwargs)
