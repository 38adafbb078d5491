"""Global pooling between average and maximum, and by attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.errors import BadArgument

from .config import use_fused_attn

__all__ = ["LsePlus1d", "LsePlus2d", "SimPool1d", "SimPool2d"]


class _LsePlus(nn.Module):
    """log(mean(exp(r x))) / r: the average for small r, the maximum for large; `r` is learned, or a buffer."""

    r: Tensor

    def __init__(self, r: float, r_learnable: bool) -> None:
        super().__init__()
        value = torch.tensor(float(r))
        if r_learnable:
            self.r = nn.Parameter(value)
        else:
            self.register_buffer("r", value)

    def reduce(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The pooled values, `dims` kept as 1."""
        top = x.amax(dims, keepdim=True)  # taken out first, so that the exponential cannot overflow
        return top + ((x - top) * self.r).exp().mean(dims, keepdim=True).log() / self.r


class LsePlus2d(_LsePlus):
    """Log-sum-exp pooling of (N, C, H, W) to (N, C), or (N, C, 1, 1) where not flattened."""

    def __init__(self, r: float = 10.0, r_learnable: bool = True, flatten: bool = True) -> None:
        super().__init__(r, r_learnable)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x, (2, 3))
        return x.flatten(1) if self.flatten else x


class LsePlus1d(_LsePlus):
    """Log-sum-exp pooling of (N, L, C) to (N, C)."""

    def __init__(self, r: float = 10.0, r_learnable: bool = True) -> None:
        super().__init__(r, r_learnable)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x, (1,)).squeeze(1)


class SimPool1d(nn.Module):
    """SimPool (Psomas et al. 2023, arXiv 2309.06891): (N, L, C) to (N, C) by attention from the average token.

    Values are not projected. With `gamma` the attention averages powers of the values, shifted to be positive.
    Raises BadArgument where the heads do not divide the channels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        gamma: float | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise BadArgument(f"{num_heads} heads do not divide {dim} channels: use a number that does")
        make_norm = norm_layer or nn.LayerNorm
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.gamma = gamma
        self.fused_attn = use_fused_attn()
        self.norm = make_norm(dim)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.q_norm = make_norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = make_norm(self.head_dim) if qk_norm else nn.Identity()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused_attn:
            return F.scaled_dot_product_attention(q, k, v)
        return (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        average = x.mean(dim=1, keepdim=True)
        x = self.norm(x)
        q = self.q_norm(self._heads(self.q(average)))
        k = self.k_norm(self._heads(self.k(x)))
        v = self._heads(x)
        if self.gamma is not None:
            v = (v - v.amin(dim=-2, keepdim=True) + 1e-6).pow(self.gamma)
        out = self._attend(q, k, v)
        if self.gamma is not None:
            out = out.pow(1 / self.gamma)
        return out.transpose(1, 2).flatten(1)


class SimPool2d(SimPool1d):
    """`SimPool1d` of the positions of (N, C, H, W), to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2).transpose(1, 2))
