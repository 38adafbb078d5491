"""Halo attention: blocks of queries read a window a little larger than themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .bottleneck_attn import head_widths, relative_logits
from .guards import require
from .weight_init import trunc_normal_

__all__ = ["HaloAttn", "PosEmbedRel"]


class PosEmbedRel(nn.Module):
    """Learned positions of a window relative to its block.

    Queries (N, blocks, block_size**2, dim) to logits (N, blocks, block_size**2, win_size**2).
    """

    def __init__(self, block_size: int, win_size: int, dim_head: int, scale: float) -> None:
        super().__init__()
        self.block_size = block_size
        self.scale = scale
        self.height_rel = nn.Parameter(torch.empty(2 * win_size - 1, dim_head))
        self.width_rel = nn.Parameter(torch.empty(2 * win_size - 1, dim_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.height_rel, std=self.scale)
        nn.init.normal_(self.width_rel, std=self.scale)

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        square = q.unflatten(2, (self.block_size, self.block_size))
        return relative_logits(square, self.height_rel, self.width_rel).flatten(4).flatten(2, 3)


class HaloAttn(nn.Module):
    """Blocked local self-attention with a halo (Vaswani et al. 2021, arXiv 2103.12731).

    (N, dim, H, W) to (N, dim_out, H / stride, W / stride); H and W must be multiples of `block_size`, else
    `BadArgument`. Every block of queries reads the window of side `block_size + 2 * halo_size` around it. The stride
    thins out the queries, or averages the result where `avg_down` asks for it or the block does not divide by it.
    `feat_size` is taken for the sake of a common call and not used.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        feat_size: tuple[int, int] | None = None,
        stride: int = 1,
        num_heads: int = 8,
        dim_head: int | None = None,
        block_size: int = 8, halo_size: int = 3,
        qk_ratio: float = 1.0, qkv_bias: bool = False,
        avg_down: bool = False,
        scale_pos_embed: bool = False,
    ) -> None:
        super().__init__()
        dim_out = dim_out or dim
        self.num_heads = num_heads
        self.dim_qk, self.dim_v = head_widths(dim_out, num_heads, dim_head, qk_ratio, stride)
        self.scale = self.dim_qk**-0.5
        self.scale_pos_embed = scale_pos_embed
        self.block_size = block_size
        self.halo_size = halo_size
        self.win_size = block_size + 2 * halo_size
        average = stride > 1 and (avg_down or block_size % stride != 0)
        self.query_stride = 1 if average else stride
        self.query_side = block_size // self.query_stride  # of one block, in queries
        self.q = nn.Conv2d(dim, num_heads * self.dim_qk, 1, stride=self.query_stride, bias=qkv_bias)
        self.kv = nn.Conv2d(dim, num_heads * (self.dim_qk + self.dim_v), 1, bias=qkv_bias)
        self.pos_embed = PosEmbedRel(self.query_side, self.win_size, dim_head=self.dim_qk, scale=self.scale)
        self.pool = nn.AvgPool2d(2, 2) if average else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        std = self.q.in_channels**-0.5
        trunc_normal_(self.q.weight, std=std)
        trunc_normal_(self.kv.weight, std=std)
        self.pos_embed.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        require(
            (height % self.block_size == 0) & (width % self.block_size == 0),
            f"a map of {height} x {width}: halo attention needs sides that are multiples of its block size "
            f"{self.block_size}; use another image size",
        )
        down, across = height // self.block_size, width // self.block_size
        side, window = self.query_side, self.win_size

        # N * heads, blocks, queries of a block, dim
        q = self.q(x).reshape(-1, self.dim_qk, down, side, across, side)
        q = q.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)

        # N * heads, blocks, positions of a window, dim; the border is padded with keys of zeros
        kv = F.pad(self.kv(x), (self.halo_size,) * 4)
        kv = kv.unfold(2, window, self.block_size).unfold(3, window, self.block_size)
        kv = kv.reshape(-1, self.dim_qk + self.dim_v, down * across, window * window).permute(0, 2, 3, 1)
        k, v = kv.split((self.dim_qk, self.dim_v), dim=-1)

        position = self.pos_embed(q)
        logits = (q @ k.transpose(2, 3)) * self.scale + (position * self.scale if self.scale_pos_embed else position)
        out = logits.softmax(dim=-1) @ v  # N * heads, blocks, queries of a block, dim
        out = out.reshape(-1, down, across, side, side, self.dim_v).permute(0, 5, 1, 3, 2, 4)
        return self.pool(out.reshape(-1, self.num_heads * self.dim_v, down * side, across * side))
