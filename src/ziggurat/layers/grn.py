"""Global response normalisation: channels compete by their energy over the whole map."""

from __future__ import annotations

import torch
from torch import nn

from .guards import traced_whole

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
        strength = energy(x, self.space)
        share = strength / (strength.mean(dim=self.channel, keepdim=True) + self.eps)
        # the residual is a one in the factor of each channel: one pass over the map, not four
        return torch.addcmul(self.bias.view(self.affine), x, 1 + self.weight.view(self.affine) * share)


@traced_whole
def energy(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """The Euclidean norm over `dims`, which stay with length 1."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and dims == (1, 2):
        # torch's own norm takes several times as long where channels come last; clamped, for a gradient at zero
        return x.square().sum(dims, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True)
