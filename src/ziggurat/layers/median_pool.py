"""Pooling by the median, which also removes speckle from an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .padding import pad_same_arg
from .shapes import to_2tuple, to_4tuple

__all__ = ["MedianPool2d"]


class MedianPool2d(nn.Module):
    """The median of each window of (N, C, H, W), the lower of the two middle values for even windows.

    `padding` is one number or (left, right, top, bottom); `same` pads as TensorFlow does instead. Borders are mirrored.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int, int, int] = 0,
        same: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = to_2tuple(kernel_size)
        self.stride = to_2tuple(stride)
        self.padding = to_4tuple(padding)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        padding = pad_same_arg(x.shape[-2:], self.kernel_size, self.stride) if self.same else self.padding
        windows = F.pad(x, list(padding), mode="reflect")
        for dim, size, step in zip((2, 3), self.kernel_size, self.stride):
            windows = windows.unfold(dim, size, step)
        return windows.flatten(4).median(dim=-1).values
