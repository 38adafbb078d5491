"""Selective kernels: convolutions of several reaches, mixed channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .conv_bn_act import ConvNormAct
from .create_act import create_act_layer
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["SelectiveKernel", "SelectiveKernelAttn"]


class SelectiveKernelAttn(nn.Module):
    """The share that each path has in each channel: (N, paths, C, H, W) to weights (N, paths, C, 1, 1) of sum 1."""

    def __init__(
        self,
        channels: int,
        num_paths: int = 2,
        attn_channels: int = 32,
        act_layer: LayerType = nn.ReLU,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.num_paths = num_paths
        self.fc_reduce = nn.Conv2d(channels, attn_channels, 1, bias=False)
        self.bn = norm_layer(attn_channels)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc_select = nn.Conv2d(attn_channels, channels * num_paths, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        scores = self.fc_select(self.act(self.bn(self.fc_reduce(pooled))))
        return scores.unflatten(1, (self.num_paths, -1)).softmax(dim=1)


class SelectiveKernel(nn.Module):
    """Paths of different kernels and the attention that mixes them (Li et al. 2019, arXiv 1903.06586).

    (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride). `kernel_size` is one a path; `keep_3x3` makes
    the larger ones dilated 3x3 kernels of the same reach. `split_input` gives each path its own part of the channels.
    Raises `BadArgument` for an even kernel, one below 3, or channels that do not divide among the paths.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        keep_3x3: bool = True,
        split_input: bool = True,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: LayerType | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        kernels = self.kernels_of(kernel_size)
        dilations = [dilation] * len(kernels)
        if keep_3x3:
            dilations = [dilation * (kernel - 1) // 2 for kernel in kernels]
            kernels = [3] * len(kernels)
        self.num_paths = len(kernels)
        self.split_input = split_input
        self.path_channels = in_channels
        if split_input:
            if in_channels % self.num_paths:
                raise BadArgument(
                    f"in_channels={in_channels} does not divide among {self.num_paths} paths; use split_input=False"
                )
            self.path_channels = in_channels // self.num_paths
        groups = min(out_channels, groups)
        self.paths = nn.ModuleList(
            ConvNormAct(
                self.path_channels,
                out_channels,
                kernel_size=kernel,
                dilation=spacing,
                stride=stride,
                groups=groups,
                act_layer=act_layer,
                norm_layer=norm_layer,
                aa_layer=aa_layer,
                drop_layer=drop_layer,
            )
            for kernel, spacing in zip(kernels, dilations)
        )
        hidden = rd_channels or make_divisible(out_channels * rd_ratio, divisor=rd_divisor)
        self.attn = SelectiveKernelAttn(out_channels, self.num_paths, hidden)

    @staticmethod
    def kernels_of(kernel_size: int | Sequence[int] | None) -> list[int]:
        if kernel_size is None:
            return [3, 5]  # one path of 3x3, one of 5x5: the paper's choice
        kernels = [kernel_size, kernel_size] if isinstance(kernel_size, int) else list(kernel_size)
        for kernel in kernels:
            if kernel < 3 or kernel % 2 == 0:
                raise BadArgument(f"kernel_size={kernel_size}: selective kernels are odd and 3 or more, such as (3, 5)")
        return kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(self.path_channels, dim=1) if self.split_input else (x,) * self.num_paths
        out = torch.stack([path(parts[i]) for i, path in enumerate(self.paths)], dim=1)
        return (out * self.attn(out)).sum(dim=1)
