"""Regularisation by leaving out: blocks of a feature map, or a residual branch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.errors import BadArgument

__all__ = ["DropBlock2d", "DropPath", "calculate_drop_path_rates", "drop_block_2d", "drop_path"]


def drop_block_2d(
    x: Tensor, drop_prob: float = 0.1, block_size: int = 7, gamma_scale: float = 1.0, with_noise: bool = False,
    inplace: bool = False, couple_channels: bool = True, scale_by_keep: bool = True,
) -> Tensor:
    """DropBlock (Ghiasi et al. 2018, arXiv 1810.12890): squares of a (N, C, H, W) map set to zero.

    `drop_prob` is the fraction to drop (times `gamma_scale`), `block_size` the side of a square, cut to the map's own.
    `with_noise` fills squares with unit noise in place of zeros; `couple_channels` drops the same squares in all
    channels of a sample; `scale_by_keep` scales what is kept so that the mean stays.
    """
    n, c, height, width = x.shape
    block_h, block_w = min(block_size, height), min(block_size, width)
    # the probability that a square is centred on a position where a whole one fits
    gamma = gamma_scale * drop_prob * height * width
    gamma /= block_h * block_w * (height - block_h + 1) * (width - block_w + 1)

    with torch.no_grad():
        shape = (n, 1 if couple_channels else c, height - block_h + 1, width - block_w + 1)
        corners = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(min(gamma, 1.0))
        # A window of the padded map that holds a corner is a position that the corner's square covers.
        padded = F.pad(corners, (block_w - 1, block_w - 1, block_h - 1, block_h - 1))
        keep = 1 - F.max_pool2d(padded, (block_h, block_w), stride=1)

    if with_noise:
        filling = torch.randn_like(x) * (1 - keep)
        return x.mul_(keep).add_(filling) if inplace else x * keep + filling
    if scale_by_keep:
        keep = keep * (keep.numel() / keep.float().sum().add(1e-7)).to(x.dtype)
    return x.mul_(keep) if inplace else x * keep


class DropBlock2d(nn.Module):
    """`drop_block_2d` while training, nothing otherwise. `batchwise` and `fast`, of old code, are accepted."""

    def __init__(
        self, drop_prob: float = 0.1, block_size: int = 7, gamma_scale: float = 1.0, with_noise: bool = False,
        inplace: bool = False, couple_channels: bool = True, scale_by_keep: bool = True, **kwargs: Any,
    ) -> None:
        super().__init__()
        for name in kwargs.keys() - {"batchwise", "fast"}:
            warnings.warn(f"DropBlock2d() got an unexpected keyword argument '{name}'", stacklevel=2)
        self.drop_prob = drop_prob
        self.block_size = block_size
        self.gamma_scale = gamma_scale
        self.with_noise = with_noise
        self.inplace = inplace
        self.couple_channels = couple_channels
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        return drop_block_2d(
            x, self.drop_prob, self.block_size, self.gamma_scale, self.with_noise, self.inplace, self.couple_channels,
            self.scale_by_keep,
        )

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:0.3f}, block_size={self.block_size}"


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True) -> Tensor:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): whole samples of a residual branch set to zero.

    `scale_by_keep` divides the kept samples by the probability of keeping, so that the mean stays.
    """
    if not training or drop_prob == 0.0:
        return x
    keep = 1 - drop_prob
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    if scale_by_keep and keep > 0:
        mask = mask / keep
    return x * mask


class DropPath(nn.Module):
    """`drop_path` while training, nothing otherwise."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:0.3f}"


def calculate_drop_path_rates(
    drop_path_rate: float, depths: int | Sequence[int], stagewise: bool = False
) -> list[float] | list[list[float]]:
    """Drop rates of blocks, rising linearly with depth from 0 to `drop_path_rate`: one list, or one list a stage.

    Raises BadArgument where one list a stage is asked for and `depths` is one number.
    """
    if isinstance(depths, int) and stagewise:
        raise BadArgument(f"stagewise rates need the depth of each stage, got depths={depths}: pass a list")
    stages = [depths] if isinstance(depths, int) else list(depths)
    total = sum(stages)
    rates = [drop_path_rate * i / max(total - 1, 1) for i in range(total)]
    if not stagewise:
        return rates
    ends = [sum(stages[: i + 1]) for i in range(len(stages))]
    return [rates[end - depth : end] for end, depth in zip(ends, stages)]
