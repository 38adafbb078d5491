"""Positions moved into channels and back, nothing lost."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DepthToSpace", "SpaceToDepth"]


class SpaceToDepth(nn.Module):
    """(N, C, H, W) to (N, b * b * C, H / b, W / b): each b x b block one position, its offsets the slowest channels."""

    def __init__(self, block_size: int = 4) -> None:
        super().__init__()
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        b = self.block_size
        x = x.unflatten(3, (-1, b)).unflatten(2, (-1, b))  # N, C, H / b, b, W / b, b
        return x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


class DepthToSpace(nn.Module):
    """The inverse of `SpaceToDepth`."""

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        b = self.block_size
        x = x.unflatten(1, (b, b, -1))  # N, b, b, C, H, W
        return x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
