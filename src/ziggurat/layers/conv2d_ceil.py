"""Convolution of patches side by side that gives ceil(H / side) x ceil(W / side), for sides of any length."""

from __future__ import annotations

from torch import Tensor, nn

from .padding import pad_to_multiple

__all__ = ["Conv2dCeil"]


class Conv2dCeil(nn.Conv2d):
    """A convolution of `side` x `side` at stride `side`, its input filled up with zeros below and to the right.

    For maps whose sides are multiples of `side` it is `nn.Conv2d(in_channels, out_channels, side, side)`, which leaves
    the rest of other maps out.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, side, side, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_to_multiple(x, self.stride))
