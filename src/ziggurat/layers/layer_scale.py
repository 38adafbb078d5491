"""Layer scale: one learned factor a channel at the end of a residual branch."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LayerScale", "LayerScale2d"]


class LayerScale(nn.Module):
    """A learned factor for each of the last axis' channels (Touvron et al. 2021, CaiT, arXiv 2103.17239).

    It starts at `init_values`, small, so that a deep network begins close to its shortcuts.
    """

    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False) -> None:
        super().__init__()
        self.init_values = init_values
        self.inplace = inplace
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init_values)

    def factor(self) -> torch.Tensor:
        """The factors in a shape that broadcasts over the input."""
        return self.gamma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(self.factor()) if self.inplace else x * self.factor()


class LayerScale2d(LayerScale):
    """Layer scale for maps (N, C, H, W)."""

    def factor(self) -> torch.Tensor:
        return self.gamma.view(1, -1, 1, 1)
