"""Bottleneck attention: global self-attention in the place of a 3x3 convolution, with 2D relative positions."""

from __future__ import annotations

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .attention import attend
from .config import use_fused_attn
from .pool2d_ceil import AvgPool2dCeil
from .pos_embed_rel import resize_rel_axes
from .shapes import make_divisible
from .weight_init import trunc_normal_

__all__ = ["BottleneckAttn", "PosEmbedRel", "head_widths", "relative_logits"]


def head_widths(
    dim_out: int, num_heads: int, dim_head: int | None, qk_ratio: float, stride: int, max_stride: int = 2
) -> tuple[int, int]:
    """The widths of a head's queries and values. Raises `BadArgument` where heads or stride do not fit."""
    if stride not in range(1, max_stride + 1):
        raise BadArgument(f"stride={stride}: this attention takes strides 1 to {max_stride}")
    if dim_out % num_heads:
        raise BadArgument(f"dim_out={dim_out} does not divide into num_heads={num_heads}; choose a divisor of {dim_out}")
    return dim_head or make_divisible(dim_out * qk_ratio, divisor=8) // num_heads, dim_out // num_heads


def offsets(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """The (queries, keys) rows of a table of 2 * keys - 1 relative positions; the middle row is no displacement."""
    return torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] + keys - 1


def relative_logits(q: torch.Tensor, height_rel: torch.Tensor, width_rel: torch.Tensor) -> torch.Tensor:
    """What queries (..., h, w, dim) say to the keys at every displacement: (..., h, w, keys high, keys wide).

    The tables hold 2 * keys - 1 displacements by dim, so the number of keys along an axis follows from its table.
    """
    high, wide = (height_rel.shape[0] + 1) // 2, (width_rel.shape[0] + 1) // 2
    rows = height_rel[offsets(q.shape[-3], high, q.device)]
    columns = width_rel[offsets(q.shape[-2], wide, q.device)]
    vertical = torch.einsum("...hwd,hkd->...hwk", q, rows)
    horizontal = torch.einsum("...hwd,wkd->...hwk", q, columns)
    return vertical.unsqueeze(-1) + horizontal.unsqueeze(-2)


class PosEmbedRel(nn.Module):
    """Learned relative positions of a map with itself: queries (N, H*W, dim) to logits (N, H*W, H*W).

    The positions of a map of another size than `feat_size` are interpolated linearly.
    """

    def __init__(self, feat_size: tuple[int, int], dim_head: int, scale: float) -> None:
        super().__init__()
        self.height, self.width = feat_size
        self.scale = scale
        self.height_rel = nn.Parameter(torch.empty(2 * self.height - 1, dim_head))
        self.width_rel = nn.Parameter(torch.empty(2 * self.width - 1, dim_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.height_rel, std=self.scale)
        nn.init.normal_(self.width_rel, std=self.scale)

    def forward(self, q: torch.Tensor, feat_size: tuple[int, int] | None = None) -> torch.Tensor:
        height, width = feat_size or (self.height, self.width)
        height_rel = resize_rel_axes(self.height_rel, (2 * height - 1,))
        width_rel = resize_rel_axes(self.width_rel, (2 * width - 1,))
        logits = relative_logits(q.unflatten(1, (height, width)), height_rel, width_rel)
        return logits.flatten(3).flatten(1, 2)


class BottleneckAttn(nn.Module):
    """Self-attention over a whole map (Srinivas et al. 2021, arXiv 2101.11605): (N, dim, H, W) to (N, dim_out, H', W').

    The relative positions are learned for maps of `feat_size`, which must be given, else `BadArgument`; for maps of
    another size they are interpolated linearly. `stride` 2 averages the result down. Queries and keys are `dim_head` wide a head, or `qk_ratio`
    times the width of the values. `scale_pos_embed` scales the positions' logits as the contents' are.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        feat_size: tuple[int, int] | None = None,
        stride: int = 1,
        num_heads: int = 4,
        dim_head: int | None = None,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        scale_pos_embed: bool = False,
    ) -> None:
        super().__init__()
        if feat_size is None:
            raise BadArgument("bottleneck attention learns positions of one map size: pass feat_size=(height, width)")
        dim_out = dim_out or dim
        self.num_heads = num_heads
        self.dim_qk, self.dim_v = head_widths(dim_out, num_heads, dim_head, qk_ratio, stride)
        self.scale = self.dim_qk**-0.5
        self.scale_pos_embed = scale_pos_embed
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Conv2d(dim, num_heads * (2 * self.dim_qk + self.dim_v), 1, bias=qkv_bias)
        self.pos_embed = PosEmbedRel(feat_size, dim_head=self.dim_qk, scale=self.scale)
        self.pool = AvgPool2dCeil() if stride == 2 else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.qkv.weight, std=self.qkv.in_channels**-0.5)
        self.pos_embed.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        qk, v = self.num_heads * self.dim_qk, self.num_heads * self.dim_v
        q, k, v = self.qkv(x).flatten(2).split((qk, qk, v), dim=1)
        q = q.reshape(-1, self.dim_qk, height * width).transpose(1, 2)  # batch x heads, positions, dim
        k = k.reshape(-1, self.dim_qk, height * width).transpose(1, 2)
        v = v.reshape(-1, self.dim_v, height * width).transpose(1, 2)
        position = self.pos_embed(q, (height, width))
        if self.scale_pos_embed:
            position = position * self.scale
        # contiguous, with an axis before the heads': the kernel is slower otherwise
        heads = (part.contiguous()[None] for part in (q, k, v))
        out = attend(*heads, fused=self.fused_attn, attn_mask=position[None])[0].transpose(1, 2)
        return self.pool(out.reshape(-1, self.num_heads * self.dim_v, height, width))
