"""A pyramid from a network of one stride: what makes finer and coarser levels of a plain ViT's map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import BadArgument
from ..layers.guards import blocks, traced_whole
from ..layers.norm import LayerNorm2d
from ..layers.padding import crop

__all__ = ["PYRAMIDS", "InterpolatedPyramid", "PyramidNeck", "SimplePyramid", "resample_map"]


class PyramidNeck(nn.Module):
    """Levels of several strides from one map.

    `strides` are those of the levels, in the order asked for, `channels` the width of each. `reduction` is the stride
    of the map that they are made from.
    """

    channels: int

    def __init__(self, reduction: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.reduction = reduction
        self.strides = tuple(strides)

    def forward(self, x: Tensor, size: Sequence[int], strides: Sequence[int]) -> list[Tensor]:
        """Levels (B C ceil(H/s) ceil(W/s)), one a stride s, from the map `x` of images of `size` H, W."""
        raise NotImplementedError


class InterpolatedPyramid(PyramidNeck):
    """The map itself at every stride, resampled (`resample_map`); no parameters."""

    def __init__(self, in_chs: int, reduction: int, strides: Sequence[int]) -> None:
        super().__init__(reduction, strides)
        self.channels = in_chs

    def forward(self, x: Tensor, size: Sequence[int], strides: Sequence[int]) -> list[Tensor]:
        return [resample_map(x, self.reduction, stride, size) for stride in strides]


class SimplePyramid(PyramidNeck):
    """The simple feature pyramid of ViTDet (Li et al. 2022, arXiv 2203.16527): a branch a stride, from the map alone.

    A branch doubles the resolution by transposed convolutions of 2 x 2, each halving the width, with a norm and a GELU
    between two; or takes the maximum over what a coarser position covers; or neither. Then come a 1 x 1 and a 3 x 3
    convolution to `channels`, without bias, a norm behind each. Norms are over channels.

    Branches start at the power of two nearest to `reduction`: a map of stride 14 is resampled to stride 16 first.
    Raises `BadArgument` for a stride that is no power of two.
    """

    def __init__(self, in_chs: int, reduction: int, strides: Sequence[int], channels: int = 256) -> None:
        super().__init__(reduction, strides)
        self.channels = channels
        self.start = min((1 << k for k in range(reduction.bit_length() + 1)), key=lambda s: abs(s - reduction))
        for stride in strides:
            if stride & (stride - 1):
                raise BadArgument(f"out_strides={list(strides)}: pyramid='simple' doubles and halves, {stride} is no "
                                  "power of two; give powers of two, or pyramid='interpolate'")
            self.add_module(f"stride{stride}", self._branch(in_chs, stride))

    def _branch(self, width: int, stride: int) -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        doublings = (self.start // stride).bit_length() - 1
        for i in range(doublings):
            if i:
                layers[f"norm{i}"] = LayerNorm2d(width)
                layers[f"act{i}"] = nn.GELU()
            layers[f"up{i + 1}"] = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
            width //= 2
        if stride > self.start:
            covered = stride // self.start
            layers["pad"] = nn.ConstantPad2d((0, covered - 1, 0, covered - 1), -torch.inf)  # rounds up, and exports
            layers["pool"] = nn.MaxPool2d(covered)
        layers["project"] = nn.Conv2d(width, self.channels, kernel_size=1, bias=False)
        layers["project_norm"] = LayerNorm2d(self.channels)
        layers["smooth"] = nn.Conv2d(self.channels, self.channels, kernel_size=3, padding=1, bias=False)
        layers["smooth_norm"] = LayerNorm2d(self.channels)
        return nn.Sequential(layers)

    def forward(self, x: Tensor, size: Sequence[int], strides: Sequence[int]) -> list[Tensor]:
        x = resample_map(x, self.reduction, self.start, size)
        levels = []
        for stride in strides:
            level = getattr(self, f"stride{stride}")(x)
            if stride < self.start:  # doubling makes more than the image has
                level = crop(level, blocks(size[0], stride), blocks(size[1], stride))
            levels.append(level)
        return levels


PYRAMIDS: dict[str, Callable[..., PyramidNeck]] = {"interpolate": InterpolatedPyramid, "simple": SimplePyramid}


@traced_whole
def resample_map(x: Tensor, stride: int, new_stride: int, size: Sequence[int]) -> Tensor:
    """A map (B C h w) of images of `size` H, W, brought from `stride` to `new_stride`: B C ceil(H/s) ceil(W/s).

    Bilinear; a coarser map is averaged over what its positions cover, with triangular weights (antialiased). Every
    position keeps its place in the image also where the strides do not divide the sides, as a mere resize to the new
    size would not. Where they do, the two agree.
    """
    if stride == new_stride:
        return x
    rows, columns = (
        _shares(old, blocks(side, new_stride), new_stride / stride, x) for old, side in zip(x.shape[2:], size)
    )
    return (rows @ x @ columns.mT).to(x.dtype)  # autocast multiplies in half precision


def _shares(old: int, new: int, step: float, like: Tensor) -> Tensor:
    """How much each of `old` positions gives to each of `new`, which lie `step` old ones apart (new old)."""
    centres = (torch.arange(new, device=like.device, dtype=torch.float32) + 0.5) * step - 0.5
    distances = (centres[:, None] - torch.arange(old, device=like.device, dtype=torch.float32)).abs()
    weights = (1 - distances / max(step, 1.0)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)
