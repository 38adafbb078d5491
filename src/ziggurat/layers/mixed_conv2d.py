"""A convolution whose channels are split among kernels of several sizes (MixConv, Tan and Le 2019, arXiv 1907.09595)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .conv2d_same import create_conv2d_pad
from .typing import PadType

__all__ = ["MixedConv2d"]


def _split(channels: int, parts: int) -> list[int]:
    """Nearly equal shares; the first takes what is left over."""
    share, rest = divmod(channels, parts)
    return [share + rest] + [share] * (parts - 1)


class MixedConv2d(nn.ModuleDict):
    """One convolution a kernel size, each on its share of the channels; children are named '0', '1', ..."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | list[int] = 3,
        stride: int = 1,
        padding: PadType = "",
        dilation: int = 1,
        depthwise: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        kernels = kernel_size if isinstance(kernel_size, list) else [kernel_size]
        self.splits = _split(in_channels, len(kernels))
        self.in_channels = in_channels
        self.out_channels = out_channels
        for i, (kernel, inputs, outputs) in enumerate(zip(kernels, self.splits, _split(out_channels, len(kernels)))):
            self[str(i)] = create_conv2d_pad(
                inputs,
                outputs,
                kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=inputs if depthwise else 1,
                **kwargs,
            )

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.split(x, self.splits, dim=1)
        return torch.cat([conv(shares[i]) for i, conv in enumerate(self.values())], dim=1)
