"""Split attention: one grouped convolution whose radix parts are mixed channel by channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .create_act import create_act_layer
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["RadixSoftmax", "SplitAttn"]


class RadixSoftmax(nn.Module):
    """Scores of a grouped layer as shares that add up to 1 over the radix; for radix 1 a plain sigmoid.

    (N, cardinality * radix * width, 1, 1), ordered by group first, to (N, radix * channels), ordered by radix first.
    """

    def __init__(self, radix: int, cardinality: int) -> None:
        super().__init__()
        self.radix = radix
        self.cardinality = cardinality

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.radix == 1:
            return x.sigmoid()
        grouped = x.reshape(x.shape[0], self.cardinality, self.radix, -1)
        return grouped.softmax(dim=2).transpose(1, 2).flatten(1)


class SplitAttn(nn.Module):
    """The split-attention convolution of ResNeSt (Zhang et al. 2020, arXiv 2004.08955).

    (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride). `radix` is the number of parts a channel is
    mixed from. Further keywords go to the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        radix: int = 2,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        act_layer: LayerType = nn.ReLU,
        norm_layer: Callable[..., nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.radix = radix
        if rd_channels is None:
            hidden = make_divisible(in_channels * radix * rd_ratio, min_value=32, divisor=rd_divisor)
        else:
            hidden = rd_channels * radix
        reach = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(
            in_channels,
            out_channels * radix,
            kernel_size,
            stride,
            reach,
            dilation,
            groups=groups * radix,
            bias=bias,
            **kwargs,
        )
        self.bn0 = norm_layer(out_channels * radix) if norm_layer else nn.Identity()
        self.drop = drop_layer() if drop_layer is not None else nn.Identity()
        self.act0 = create_act_layer(act_layer, inplace=True)
        self.fc1 = nn.Conv2d(out_channels, hidden, 1, groups=groups)
        self.bn1 = norm_layer(hidden) if norm_layer else nn.Identity()
        self.act1 = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Conv2d(hidden, out_channels * radix, 1, groups=groups)
        self.rsoftmax = RadixSoftmax(radix, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act0(self.drop(self.bn0(self.conv(x))))
        parts = x.unflatten(1, (self.radix, -1))  # N, radix, C, H, W
        pooled = parts.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        scores = self.fc2(self.act1(self.bn1(self.fc1(pooled))))
        share = self.rsoftmax(scores).reshape(x.shape[0], self.radix, -1, 1, 1)
        return (parts * share).sum(dim=1)
