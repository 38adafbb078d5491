"""Attention along the axes: a gate for every row and one for every column."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .create_act import create_act_layer
from .norm import GroupNorm1
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["CoordAttn", "EfficientLocalAttn", "SimpleCoordAttn", "StripAttn"]


class CoordAttn(nn.Module):
    """Coordinate attention (Hou et al. 2021, arXiv 2103.02907). Maps (N, C, H, W) to the same shape.

    Row means and column means pass one bottleneck together, so that each knows the other's scale, and come out as
    two gates. `se_factor` narrows the bottleneck because there are two; `has_skip` adds the input.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        se_factor: float = 2 / 3,
        bias: bool = False,
        act_layer: LayerType = nn.Hardswish,
        norm_layer: type[nn.Module] | None = nn.BatchNorm2d,
        gate_layer: LayerType = "sigmoid",
        has_skip: bool = False,
    ) -> None:
        super().__init__()
        self.has_skip = has_skip
        width = rd_channels or make_divisible(channels * rd_ratio * se_factor, rd_divisor, round_limit=0.0)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.bn1 = nn.Identity() if norm_layer is None else norm_layer(width)
        self.act = create_act_layer(act_layer)
        self.conv_h = nn.Conv2d(width, channels, 1, bias=bias)
        self.conv_w = nn.Conv2d(width, channels, 1, bias=bias)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        rows = x.mean(3, keepdim=True)
        columns = x.mean(2, keepdim=True).transpose(2, 3)
        hidden = self.act(self.bn1(self.conv1(torch.cat((rows, columns), dim=2))))
        rows, columns = hidden.split((height, width), dim=2)
        out = x * self.gate(self.conv_h(rows)) * self.gate(self.conv_w(columns.transpose(2, 3)))
        return out + x if self.has_skip else out


class SimpleCoordAttn(nn.Module):
    """Coordinate attention with linear layers, no norm, and one gate for both axes. Maps (N, C, H, W) to the same shape."""

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        se_factor: float = 2 / 3,
        bias: bool = True,
        act_layer: LayerType = nn.SiLU,
        gate_layer: LayerType = "sigmoid",
        has_skip: bool = False,
    ) -> None:
        super().__init__()
        self.has_skip = has_skip
        width = rd_channels or make_divisible(channels * rd_ratio * se_factor, rd_divisor, round_limit=0.0)
        self.fc1 = nn.Linear(channels, width, bias=bias)
        self.act = create_act_layer(act_layer)
        self.fc_h = nn.Linear(width, channels, bias=bias)
        self.fc_w = nn.Linear(width, channels, bias=bias)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.act(self.fc1(x.mean(dim=3).transpose(1, 2)))  # N, H, C
        columns = self.act(self.fc1(x.mean(dim=2).transpose(1, 2)))  # N, W, C
        score = self.fc_h(rows).transpose(1, 2).unsqueeze(3) + self.fc_w(columns).transpose(1, 2).unsqueeze(2)
        out = x * self.gate(score)
        return out + x if self.has_skip else out


class EfficientLocalAttn(nn.Module):
    """Efficient local attention: a depthwise 1D convolution per axis (Xu & Wan 2024, arXiv 2403.01123).

    Maps (N, C, H, W) to the same shape.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        bias: bool = False,
        act_layer: LayerType = nn.SiLU,
        gate_layer: LayerType = "sigmoid",
        norm_layer: type[nn.Module] | None = GroupNorm1,
        has_skip: bool = False,
    ) -> None:
        super().__init__()
        self.has_skip = has_skip
        k, reach = kernel_size, kernel_size // 2
        self.conv_h = nn.Conv2d(channels, channels, (k, 1), padding=(reach, 0), groups=channels, bias=bias)
        self.conv_w = nn.Conv2d(channels, channels, (1, k), padding=(0, reach), groups=channels, bias=bias)
        self.norm_h = nn.Identity() if norm_layer is None else norm_layer(channels)
        self.norm_w = nn.Identity() if norm_layer is None else norm_layer(channels)
        self.act = create_act_layer(act_layer)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.act(self.norm_h(self.conv_h(x.mean(3, keepdim=True))))
        columns = self.act(self.norm_w(self.conv_w(x.mean(2, keepdim=True))))
        out = x * self.gate(rows) * self.gate(columns)
        return out + x if self.has_skip else out


class StripAttn(nn.Module):
    """Strip attention: one gate from the sum of row and column summaries. Maps (N, C, H, W) to the same shape.

    `use_conv` smooths the summaries by depthwise 1D convolutions; without it the layer has no parameters.
    """

    def __init__(
        self,
        channels: int,
        use_conv: bool = True,
        kernel_size: int = 3,
        bias: bool = False,
        gate_layer: LayerType = "sigmoid",
        has_skip: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        self.has_skip = has_skip
        k, reach = kernel_size, kernel_size // 2
        self.conv_h: nn.Module = nn.Identity()
        self.conv_w: nn.Module = nn.Identity()
        if use_conv:
            self.conv_h = nn.Conv2d(channels, channels, (k, 1), padding=(reach, 0), groups=channels, bias=bias)
            self.conv_w = nn.Conv2d(channels, channels, (1, k), padding=(0, reach), groups=channels, bias=bias)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.conv_h(x.mean(3, keepdim=True))
        columns = self.conv_w(x.mean(2, keepdim=True))
        out = x * self.gate(rows + columns)
        return out + x if self.has_skip else out
