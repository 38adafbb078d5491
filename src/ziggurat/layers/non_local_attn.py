"""Non-local blocks: every position reads every other through affinities."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .conv_bn_act import ConvNormAct
from .padding import crop, pad_to_multiple
from .shapes import make_divisible
from .typing import LayerType

__all__ = ["BatNonLocalAttn", "BilinearAttnTransform", "NonLocalAttn"]


class NonLocalAttn(nn.Module):
    """The non-local block in its embedded Gaussian form (Wang et al. 2017, arXiv 1711.07971).

    Maps (N, C, H, W) to the same shape: the input plus the normed sum over all positions. `use_scale` divides the
    affinities by the square root of the channels.
    """

    def __init__(
        self,
        in_channels: int,
        use_scale: bool = True,
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        **_: Any,
    ) -> None:
        super().__init__()
        width = rd_channels or make_divisible(in_channels * rd_ratio, divisor=rd_divisor)
        self.scale = in_channels**-0.5 if use_scale else 1.0
        self.t = nn.Conv2d(in_channels, width, 1)  # compat: theta, phi, g and z of the paper
        self.p = nn.Conv2d(in_channels, width, 1)
        self.g = nn.Conv2d(in_channels, width, 1)
        self.z = nn.Conv2d(width, in_channels, 1)
        self.norm = nn.BatchNorm2d(in_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.t, self.p, self.g, self.z):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.norm.weight)  # the block begins as the identity
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (conv(x).flatten(2).transpose(1, 2) for conv in (self.t, self.p, self.g))
        affinity = (queries @ keys.transpose(1, 2)) * self.scale
        read = (affinity.softmax(dim=-1) @ values).transpose(1, 2)
        read = read.reshape(x.shape[0], -1, x.shape[2], x.shape[3])
        return self.norm(self.z(read)) + x


def spread(matrix: torch.Tensor, side: int, times: int) -> torch.Tensor:
    """The Kronecker product of square matrices (..., side, side) with the identity of side `times`."""
    cells = torch.arange(side * times, device=matrix.device)
    block, within = cells // times, cells % times
    return matrix[..., block[:, None], block] * (within[:, None] == within)


class BilinearAttnTransform(nn.Module):
    """The bilinear attentional transform: maps are multiplied by learned matrices from both sides.

    (N, C, H, W) to the same shape. Maps whose sides are no multiples of `block_size` are filled up with their last row
    and column, and cropped again.
    """

    def __init__(
        self,
        in_channels: int,
        block_size: int,
        groups: int,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer)
        entries = block_size * block_size * groups
        self.block_size = block_size
        self.groups = groups
        self.conv1 = ConvNormAct(in_channels, groups, 1, **layers)
        self.conv_p = nn.Conv2d(groups, entries, kernel_size=(block_size, 1))
        self.conv_q = nn.Conv2d(groups, entries, kernel_size=(1, block_size))
        self.conv2 = ConvNormAct(in_channels, in_channels, 1, **layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows_wanted, columns_wanted = x.shape[-2:]
        side = self.block_size
        x = pad_to_multiple(x, side, mode="replicate")
        batch, channels, height, width = x.shape
        grouped = self.conv1(x)
        rows = grouped.unflatten(2, (side, height // side)).amax(dim=(3, 4)).unsqueeze(3)
        columns = grouped.unflatten(3, (side, width // side)).amax(dim=(2, 4)).unsqueeze(2)
        left = self.conv_p(rows).reshape(batch, self.groups, side, side).sigmoid()
        right = self.conv_q(columns).reshape(batch, self.groups, side, side).sigmoid()
        left = left / left.sum(dim=3, keepdim=True)  # the left matrix has rows of sum 1, the right one columns
        right = right / right.sum(dim=2, keepdim=True)
        shared = channels // self.groups
        left = spread(left.repeat_interleave(shared, dim=1), side, height // side)
        right = spread(right.repeat_interleave(shared, dim=1), side, width // side)
        return crop(self.conv2(left @ x @ right), rows_wanted, columns_wanted)


class BatNonLocalAttn(nn.Module):
    """A non-local block of bilinear attentional transforms (Chi et al. 2020, CVPR, "Non-Local Neural Networks with
    Grouped Bilinear Attentional Transforms"). Maps (N, C, H, W) to the same shape.
    """

    def __init__(
        self,
        in_channels: int,
        block_size: int = 7,
        groups: int = 2,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        drop_rate: float = 0.2,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        **_: Any,
    ) -> None:
        super().__init__()
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer)
        width = rd_channels or make_divisible(in_channels * rd_ratio, divisor=rd_divisor)
        self.conv1 = ConvNormAct(in_channels, width, 1, **layers)
        self.ba = BilinearAttnTransform(width, block_size, groups, **layers)
        self.conv2 = ConvNormAct(width, in_channels, 1, **layers)
        self.dropout = nn.Dropout2d(p=drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.conv2(self.ba(self.conv1(x)))) + x
