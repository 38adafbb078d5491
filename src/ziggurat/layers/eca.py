"""Efficient channel attention: a gate made by a short convolution across neighbouring channels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ziggurat.errors import BadArgument

from .create_act import create_act_layer
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["CecaModule", "CircularEfficientChannelAttn", "EcaModule", "EfficientChannelAttn"]


def adaptive_kernel(channels: int | None, kernel_size: int, gamma: float, beta: float) -> int:
    """The odd kernel, at least 3, that grows with the logarithm of the channels; `kernel_size` where none are given."""
    if channels is None:
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise BadArgument(f"kernel_size={kernel_size}: channel attention needs an odd kernel of 3 or more")
        return kernel_size
    reach = int(abs(math.log2(channels) + beta) / gamma)
    return max(reach | 1, 3)


class EcaModule(nn.Module):
    """A channel gate made by a 1D convolution over the pooled channels (Wang et al. 2019, arXiv 1910.03151).

    Maps (N, C, H, W) to the same shape. With `channels` the kernel follows from them by `gamma` and `beta`, without
    it is `kernel_size`. `use_mlp` puts a pointwise layer and an activation before the convolution.
    """

    def __init__(
        self,
        channels: int | None = None,
        kernel_size: int = 3,
        gamma: float = 2,
        beta: float = 1,
        act_layer: LayerType | None = None,
        gate_layer: LayerType = "sigmoid",
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        use_mlp: bool = False,
    ) -> None:
        super().__init__()
        kernel = adaptive_kernel(channels, kernel_size, gamma, beta)
        reach = (kernel - 1) // 2
        self.act: nn.Module | None = None
        self.conv2: nn.Module | None = None
        if use_mlp:
            if channels is None:
                raise BadArgument("use_mlp=True needs channels: the width of the hidden layer follows from them")
            width = rd_channels or make_divisible(channels * rd_ratio, divisor=rd_divisor)
            self.conv = nn.Conv1d(1, width, 1)
            self.act = create_act_layer(act_layer or nn.ReLU)
            self.conv2 = nn.Conv1d(width, 1, kernel, padding=reach)
        else:
            self.conv = nn.Conv1d(1, 1, kernel, padding=reach, bias=False)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv(x.mean(dim=(2, 3)).unsqueeze(1))  # channels stand where a 1D convolution has its length
        if self.act is not None and self.conv2 is not None:
            weight = self.conv2(self.act(weight))
        return x * self.gate(weight).transpose(1, 2).unsqueeze(-1)


class CecaModule(nn.Module):
    """Efficient channel attention whose first and last channels are neighbours (circular padding).

    Maps (N, C, H, W) to the same shape. Channels have no natural ends, so wrapping around treats them alike.
    """

    def __init__(
        self,
        channels: int | None = None,
        kernel_size: int = 3,
        gamma: float = 2,
        beta: float = 1,
        act_layer: LayerType | None = None,
        gate_layer: LayerType = "sigmoid",
        **_: Any,
    ) -> None:
        super().__init__()
        kernel = adaptive_kernel(channels, kernel_size, gamma, beta)
        self.reach = (kernel - 1) // 2
        self.conv = nn.Conv1d(1, 1, kernel, bias=False)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean(dim=(2, 3)).unsqueeze(1)
        weight = self.conv(F.pad(pooled, (self.reach, self.reach), mode="circular"))
        return x * self.gate(weight).transpose(1, 2).unsqueeze(-1)


EfficientChannelAttn = EcaModule
CircularEfficientChannelAttn = CecaModule
