"""Differential attention: the difference of two softmax maps, so that common noise cancels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .attention import attend, head_dim_of, norm_or_identity
from .config import use_fused_attn
from .norm import RmsNorm

__all__ = ["DiffAttention"]


class DiffAttention(nn.Module):
    """Differential self-attention (Ye et al. 2024, arXiv 2410.05258): (N, L, dim) to (N, L, dim).

    Each head has two half-width queries and keys; the second map is subtracted `lambda` times. Lambda is learned
    around a start value that grows with `depth`, by four vectors or, with `dual_lambda`, by two numbers.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False, scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0, proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        depth: int = 0,
        dual_lambda: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads, None) // 2
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.dual_lambda = dual_lambda
        self.set_lambda_init(depth)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = norm_or_identity(qk_norm, norm_layer, self.head_dim)
        self.k_norm = norm_or_identity(qk_norm, norm_layer, self.head_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm_or_identity(scale_norm, norm_layer, dim)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sub_norm = RmsNorm(2 * self.head_dim, eps=1e-5)
        if dual_lambda:
            self.lambda_a = nn.Parameter(torch.empty(()))
            self.lambda_b = nn.Parameter(torch.empty(()))
        else:
            self.lambda_q1 = nn.Parameter(torch.empty(self.head_dim))
            self.lambda_k1 = nn.Parameter(torch.empty(self.head_dim))
            self.lambda_q2 = nn.Parameter(torch.empty(self.head_dim))
            self.lambda_k2 = nn.Parameter(torch.empty(self.head_dim))
        self.reset_parameters()

    def set_lambda_init(self, depth: int) -> None:
        """Take the start value of the block at this depth, counted from 0."""
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * depth)

    def reset_parameters(self) -> None:
        if self.dual_lambda:
            nn.init.zeros_(self.lambda_a)
            nn.init.zeros_(self.lambda_b)
        else:
            for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
                nn.init.normal_(vector, std=0.1)

    def subtracted(self) -> torch.Tensor:
        """Lambda: the weight of the second map."""
        first: torch.Tensor
        second: torch.Tensor
        if self.dual_lambda:
            first, second = self.lambda_a, self.lambda_b
        else:
            first = (self.lambda_q1 * self.lambda_k1).float().sum()
            second = (self.lambda_q2 * self.lambda_k2).float().sum()
        return first.exp() - second.exp() + self.lambda_init

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        pair = (self.num_heads, 2, self.head_dim)
        q1, q2 = self.q_norm(q.unflatten(2, pair).permute(3, 0, 2, 1, 4)).unbind(0)
        k1, k2 = self.k_norm(k.unflatten(2, pair).permute(3, 0, 2, 1, 4)).unbind(0)
        v = v.unflatten(2, (self.num_heads, 2 * self.head_dim)).transpose(1, 2)
        how: dict[str, Any] = dict(fused=self.fused_attn, attn_mask=attn_mask, is_causal=is_causal, drop=self.attn_drop)
        first, second = attend(q1, k1, v, **how), attend(q2, k2, v, **how)
        read = self.sub_norm(first - self.subtracted().type_as(first) * second) * (1.0 - self.lambda_init)
        read = self.norm(read.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(read))
