"""Convolutional block attention: a gate over channels, then a gate over positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .conv_bn_act import ConvNormAct
from .create_act import create_act_layer
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["CbamModule", "ChannelAttn", "LightCbamModule", "LightChannelAttn", "LightSpatialAttn", "SpatialAttn"]


class ChannelAttn(nn.Module):
    """The channel gate of CBAM: mean and maximum pass one shared bottleneck, and the results add up."""

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        act_layer: LayerType = nn.ReLU,
        gate_layer: LayerType = "sigmoid",
        mlp_bias: bool = False,
    ) -> None:
        super().__init__()
        width = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.fc1 = nn.Conv2d(channels, width, 1, bias=mlp_bias)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Conv2d(width, channels, 1, bias=mlp_bias)
        self.gate = create_act_layer(gate_layer)

    def score(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(pooled)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return x * self.gate(self.score(mean) + self.score(peak))


class LightChannelAttn(ChannelAttn):
    """The channel gate with mean and maximum averaged first, so that the bottleneck runs once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)
        return x * self.gate(self.score(pooled))


class SpatialAttn(nn.Module):
    """The position gate of CBAM: one convolution over the mean and the maximum of the channels."""

    def __init__(self, kernel_size: int = 7, gate_layer: LayerType = "sigmoid") -> None:
        super().__init__()
        self.conv = ConvNormAct(2, 1, kernel_size, apply_act=False)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summary = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)
        return x * self.gate(self.conv(summary))


class LightSpatialAttn(nn.Module):
    """The position gate over the midpoint of mean and maximum: one input channel in place of two."""

    def __init__(self, kernel_size: int = 7, gate_layer: LayerType = "sigmoid") -> None:
        super().__init__()
        self.conv = ConvNormAct(1, 1, kernel_size, apply_act=False)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summary = 0.5 * x.mean(1, keepdim=True) + 0.5 * x.amax(1, keepdim=True)
        return x * self.gate(self.conv(summary))


class CbamModule(nn.Module):
    """Channel gate, then position gate (Woo et al. 2018, arXiv 1807.06521). Maps (N, C, H, W) to the same shape."""

    channel_gate: type[ChannelAttn] = ChannelAttn
    spatial_gate: type[nn.Module] = SpatialAttn

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        act_layer: LayerType = nn.ReLU,
        gate_layer: LayerType = "sigmoid",
        mlp_bias: bool = False,
    ) -> None:
        super().__init__()
        reduction: dict[str, Any] = dict(rd_ratio=rd_ratio, rd_channels=rd_channels, rd_divisor=rd_divisor)
        self.channel = self.channel_gate(
            channels, act_layer=act_layer, gate_layer=gate_layer, mlp_bias=mlp_bias, **reduction
        )
        self.spatial = self.spatial_gate(spatial_kernel_size, gate_layer=gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spatial(self.channel(x))


class LightCbamModule(CbamModule):
    """CBAM with both gates in their light form. Maps (N, C, H, W) to the same shape."""

    channel_gate = LightChannelAttn
    spatial_gate = LightSpatialAttn
