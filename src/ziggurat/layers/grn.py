"""Global response normalisation: channels compete by their energy over the whole map."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["GlobalResponseNorm"]


class GlobalResponseNorm(nn.Module):
    """Global response normalisation with its residual (Woo et al. 2023, ConvNeXt V2, arXiv 2301.00808).

    Maps (N, H, W, C) to the same shape, or (N, C, H, W) with `channels_last=False`.
    """

    def __init__(self, dim: int, eps: float = 1e-6, channels_last: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.space, self.channel = ((1, 2), -1) if channels_last else ((2, 3), 1)
        self.affine = (1, 1, 1, dim) if channels_last else (1, dim, 1, 1)
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy = x.norm(p=2, dim=self.space, keepdim=True)
        share = energy / (energy.mean(dim=self.channel, keepdim=True) + self.eps)
        return x + self.bias.view(self.affine) + self.weight.view(self.affine) * (x * share)
