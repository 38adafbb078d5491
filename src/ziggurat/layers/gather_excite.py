"""Gather-excite: a gate whose summary may be local, taken over an extent of the map."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ziggurat.errors import BadArgument

from .create_act import create_act_layer
from .create_conv2d import create_conv2d
from .mlp import ConvMlp
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["GatherExcite"]


class GatherExcite(nn.Module):
    """Gather over an extent, excite by a gate (Hu et al. 2018, arXiv 1810.12348). Maps (N, C, H, W) to the same shape.

    `extent` is the side of the neighbourhood in positions, 0 the whole map. With `extra_params` the gathering is
    learned by depthwise convolutions; for the whole map that needs `feat_size`, its side. Raises `BadArgument` where
    it is missing, or where a learned extent is no power of two.
    """

    def __init__(
        self,
        channels: int,
        feat_size: int | tuple[int, int] | None = None,
        extra_params: bool = False,
        extent: int = 0,
        use_mlp: bool = True,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        add_maxpool: bool = False,
        act_layer: LayerType = nn.ReLU,
        norm_layer: type[nn.Module] | None = nn.BatchNorm2d,
        gate_layer: LayerType = "sigmoid",
    ) -> None:
        super().__init__()
        self.extent = extent
        self.add_maxpool = add_maxpool
        self.gather: nn.Sequential | None = None
        if extra_params:
            self.gather = self.learned_gather(channels, feat_size, act_layer, norm_layer)
        width = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.mlp = ConvMlp(channels, width, act_layer=act_layer) if use_mlp else nn.Identity()
        self.gate = create_act_layer(gate_layer)

    def learned_gather(
        self,
        channels: int,
        feat_size: int | tuple[int, int] | None,
        act_layer: LayerType,
        norm_layer: type[nn.Module] | None,
    ) -> nn.Sequential:
        gather = nn.Sequential()
        if self.extent == 0:
            if feat_size is None:
                raise BadArgument("extra_params=True with extent=0 gathers the whole map: pass feat_size, its side")
            # A valid convolution as large as the map leaves one position.
            gather.add_module("conv1", nn.Conv2d(channels, channels, feat_size, groups=channels, bias=False))
            if norm_layer is not None:
                gather.add_module("norm1", norm_layer(channels))
            return gather
        steps = int(math.log2(self.extent))
        if 2**steps != self.extent or steps < 1:
            raise BadArgument(f"extent={self.extent}: a learned gathering halves the map, so use 0, 2, 4, 8, ...")
        for step in range(1, steps + 1):
            gather.add_module(f"conv{step}", create_conv2d(channels, channels, 3, stride=2, depthwise=True))
            if norm_layer is not None:
                gather.add_module(f"norm{step}", norm_layer(channels))
            if step < steps:
                gather.add_module(f"act{step}", create_act_layer(act_layer, inplace=True))
        return gather

    def summarize(self, x: torch.Tensor) -> torch.Tensor:
        if self.gather is not None:
            return self.gather(x)
        if self.extent == 0:
            mean = x.mean(dim=(2, 3), keepdim=True)
            return 0.5 * mean + 0.5 * x.amax((2, 3), keepdim=True) if self.add_maxpool else mean
        kernel = 2 * self.extent - 1
        window: dict[str, Any] = dict(kernel_size=kernel, stride=self.extent, padding=kernel // 2)
        mean = F.avg_pool2d(x, count_include_pad=False, **window)
        return 0.5 * mean + 0.5 * F.max_pool2d(x, **window) if self.add_maxpool else mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.mlp(self.summarize(x))
        if self.extent != 0:
            gate = F.interpolate(gate, size=x.shape[-2:])  # each gate covers the neighbourhood it came from
        return x * self.gate(gate)
