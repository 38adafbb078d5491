"""Pooling at stride 2 whose windows may reach over the far edges; but for `MaxPool2dOverhang` odd sides round up too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .guards import surely_equal
from .padding import pad_to_multiple
from .trace_utils import is_exporting

__all__ = ["AvgPool2dCeil", "MaxPool2dCeil", "MaxPool2dOverhang"]


class AvgPool2dCeil(nn.AvgPool2d):
    """The mean of each block of `side` x `side`; of a block that the border cuts, the mean of what is there.

    For maps whose sides are multiples of `side` it is `nn.AvgPool2d(side)`.
    """

    def __init__(self, side: int = 2) -> None:
        super().__init__(side, side, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if is_exporting() and self.kernel_size == 2:
            # torch.export cannot prove the size of a pool that rounds up; a last row repeated leaves the mean as it is
            return F.avg_pool2d(pad_to_multiple(x, 2, mode="replicate"), 2)
        return super().forward(x)


class MaxPool2dCeil(nn.MaxPool2d):
    """The maximum of windows of 2 x 2 or 3 x 3 that begin at every second row and column and end at the border.

    For maps of even sides it is `nn.MaxPool2d(kernel_size, 2, ceil_mode=True)`, whose 3 x 3 windows lose a last odd row.
    """

    def __init__(self, kernel_size: int = 3) -> None:
        super().__init__(kernel_size, 2, ceil_mode=True)
        self.beyond = kernel_size - 1  # how far the last window may reach

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if surely_equal((height % 2, width % 2), (0, 0)):
            return super().forward(x)
        x = F.pad(x, (0, self.beyond, 0, self.beyond), value=-float("inf"))
        return F.max_pool2d(x, self.kernel_size, 2)


class MaxPool2dOverhang(nn.MaxPool2d):
    """`nn.MaxPool2d(3, 2, ceil_mode=True)`, which makes n // 2 of a side n, in a form that torch.export takes."""

    def __init__(self) -> None:
        super().__init__(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        if is_exporting():  # see AvgPool2dCeil
            return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-float("inf")), 3, 2)
        return super().forward(x)
