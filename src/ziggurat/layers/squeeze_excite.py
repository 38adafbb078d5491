"""Squeeze-and-excitation gates: channels weighed by what the whole image holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .create_act import create_act_layer
from .shapes import make_divisible
from .typing import LayerType

__all__ = [
    "EffectiveSEModule",
    "EffectiveSqueezeExcite",
    "SEModule",
    "SqueezeExcite",
    "SqueezeExciteCl",
]


def squeeze(x: torch.Tensor, add_maxpool: bool) -> torch.Tensor:
    """The (N, C, 1, 1) summary of a map: its mean, or the midpoint of its mean and its maximum."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return 0.5 * (mean + x.amax(dim=(2, 3), keepdim=True)) if add_maxpool else mean


class SEModule(nn.Module):
    """A channel gate made by a two-layer bottleneck over the pooled map (Hu et al. 2017, arXiv 1709.01507).

    Maps (N, C, H, W) to the same shape. The bottleneck is `rd_channels` wide, or `channels * rd_ratio` rounded to a
    multiple of `rd_divisor`. `add_maxpool` lets the maximum count as much as the mean.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer: LayerType = nn.ReLU,
        norm_layer: type[nn.Module] | None = None,
        gate_layer: LayerType = "sigmoid",
    ) -> None:
        super().__init__()
        width = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.add_maxpool = add_maxpool
        self.fc1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.bn = nn.Identity() if norm_layer is None else norm_layer(width)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Conv2d(width, channels, 1, bias=bias)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.bn(self.fc1(squeeze(x, self.add_maxpool))))
        return x * self.gate(self.fc2(hidden))


class EffectiveSEModule(nn.Module):
    """A channel gate of one full-width layer, which loses nothing to a bottleneck (Lee & Park 2019, arXiv 1911.06667).

    Maps (N, C, H, W) to the same shape. Reduction arguments of the other gates are taken and have no meaning here.
    """

    def __init__(
        self, channels: int, add_maxpool: bool = False, gate_layer: LayerType = "hard_sigmoid", **_: Any
    ) -> None:
        super().__init__()
        self.add_maxpool = add_maxpool
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc(squeeze(x, self.add_maxpool)))


class SqueezeExciteCl(nn.Module):
    """The squeeze-and-excitation gate for channels-last maps (N, H, W, C), with linear layers."""

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        bias: bool = True,
        act_layer: LayerType = nn.ReLU,
        gate_layer: LayerType = "sigmoid",
    ) -> None:
        super().__init__()
        width = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.fc1 = nn.Linear(channels, width, bias=bias)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Linear(width, channels, bias=bias)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean(dim=(1, 2), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(pooled))))


SqueezeExcite = SEModule
EffectiveSqueezeExcite = EffectiveSEModule
