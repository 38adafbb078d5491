"""Halo attention: blocks of queries read a window a little larger than themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .attention import attend
from .bottleneck_attn import head_widths, relative_logits
from .config import use_fused_attn
from .guards import blocks, surely_equal
from .padding import crop, pad_to_multiple
from .pool2d_ceil import AvgPool2dCeil
from .weight_init import trunc_normal_

__all__ = ["HaloAttn", "PosEmbedRel"]


class PosEmbedRel(nn.Module):
    """Learned positions of a window relative to its block.

    Queries (..., block_size**2, dim) to logits (..., block_size**2, win_size**2).
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
        square = q.unflatten(-2, (self.block_size, self.block_size))
        return relative_logits(square, self.height_rel, self.width_rel).flatten(-2).flatten(-3, -2)


class HaloAttn(nn.Module):
    """Blocked local self-attention with a halo (Vaswani et al. 2021, arXiv 2103.12731).

    (N, dim, H, W) to (N, dim_out, H', W'), the sides divided by the stride and rounded up. Every block of queries reads
    the window of side `block_size + 2 * halo_size` around it; beyond the border of the map lies a halo of zeros. Where
    sides are no multiples of `block_size`, the last blocks are filled up, and what lies beyond that halo is masked. The
    stride thins out the queries, or averages the result where `avg_down` asks for it or the block does not divide by
    it. `feat_size` is taken for the sake of a common call and not used.
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
        self.fused_attn = use_fused_attn()
        self.block_size = block_size
        self.halo_size = halo_size
        self.win_size = block_size + 2 * halo_size
        average = stride > 1 and (avg_down or block_size % stride != 0)
        self.query_stride = 1 if average else stride
        self.query_side = block_size // self.query_stride  # of one block, in queries
        self.q = nn.Conv2d(dim, num_heads * self.dim_qk, 1, stride=self.query_stride, bias=qkv_bias)
        self.kv = nn.Conv2d(dim, num_heads * (self.dim_qk + self.dim_v), 1, bias=qkv_bias)
        self.pos_embed = PosEmbedRel(self.query_side, self.win_size, dim_head=self.dim_qk, scale=self.scale)
        self.pool = AvgPool2dCeil() if average else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        std = self.q.in_channels**-0.5
        trunc_normal_(self.q.weight, std=std)
        trunc_normal_(self.kv.weight, std=std)
        self.pos_embed.reset_parameters()

    def by_head(self, cut: torch.Tensor, width: int) -> torch.Tensor:
        """Parts of a map, (N, heads * width * area, parts) as `unfold` gives them, as (N * heads, parts, area, width)."""
        return cut.unflatten(1, (self.num_heads, width, -1)).flatten(0, 1).permute(0, 3, 2, 1)

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """The window of every block, of a map that has its halo: (N, C, H, W) to (N, C * window ** 2, blocks)."""
        return F.unfold(x, self.win_size, stride=self.block_size)

    def beyond(self, height: int, width: int, like: torch.Tensor) -> torch.Tensor:
        """Where windows reach past the halo of a map that was filled up: (1, blocks, 1, positions of a window)."""
        right, down = (blocks(length, self.block_size) * self.block_size - length for length in (width, height))
        inside = like.new_zeros(1, 1, height + 2 * self.halo_size, width + 2 * self.halo_size)
        marked = F.pad(inside, (0, right, 0, down), value=1.0)
        return self.windows(marked).transpose(1, 2).unsqueeze(2) > 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width, side = x.shape[2], x.shape[3], self.query_side
        filled = pad_to_multiple(x, self.block_size)
        q = self.by_head(F.unfold(self.q(filled), side, stride=side), self.dim_qk)
        # the border is padded with keys of zeros, and so is what was filled up
        kv = F.pad(pad_to_multiple(self.kv(x), self.block_size), (self.halo_size,) * 4)
        k, v = self.by_head(self.windows(kv), self.dim_qk + self.dim_v).split((self.dim_qk, self.dim_v), dim=-1)

        position = self.pos_embed(q)
        if self.scale_pos_embed:
            position = position * self.scale
        if not surely_equal(filled.shape, x.shape):
            position = position.masked_fill(self.beyond(height, width, x), -float("inf"))
        # contiguous: the kernel is slower where channels are strided; N * heads, blocks, queries of a block, dim
        out = attend(q.contiguous(), k.contiguous(), v.contiguous(), fused=self.fused_attn, attn_mask=position)
        out = out.permute(0, 3, 2, 1).flatten(1, 2).unflatten(0, (-1, self.num_heads)).flatten(1, 2)
        whole = (blocks(height, self.block_size) * side, blocks(width, self.block_size) * side)
        out = F.fold(out, whole, side, stride=side)
        return self.pool(crop(out, blocks(height, self.query_stride), blocks(width, self.query_stride)))
