"""Lambda layers: the context is turned into linear functions, which the queries then apply."""

from __future__ import annotations

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .bottleneck_attn import head_widths, offsets
from .pool2d_ceil import AvgPool2dCeil
from .pos_embed_rel import resize_rel_axes
from .weight_init import trunc_normal_

__all__ = ["LambdaLayer"]


class LambdaLayer(nn.Module):
    """Content and position lambdas (Bello 2021, arXiv 2102.08602): (N, dim, H, W) to (N, dim_out, H', W').

    Positions within `r` x `r` are read by a convolution. With `r=None` they are learned for the whole map of
    `feat_size`, and interpolated linearly for maps of another size. `stride` 2 averages the result down.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        feat_size: tuple[int, int] | None = None,
        stride: int = 1,
        num_heads: int = 4,
        dim_head: int | None = 16,
        r: int | None = 9,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        dim_out = dim_out or dim
        self.num_heads = num_heads
        self.dim_qk, self.dim_v = head_widths(dim_out, num_heads, dim_head, qk_ratio, stride)
        self.qkv = nn.Conv2d(dim, (num_heads + 1) * self.dim_qk + self.dim_v, 1, bias=qkv_bias)
        self.norm_q = nn.BatchNorm2d(num_heads * self.dim_qk)
        self.norm_v = nn.BatchNorm2d(self.dim_v)
        self.conv_lambda: nn.Conv3d | None = None
        self.pos_emb: nn.Parameter | None = None
        if r is not None:
            self.conv_lambda = nn.Conv3d(1, self.dim_qk, (r, r, 1), padding=(r // 2, r // 2, 0))
        elif feat_size is None:
            raise BadArgument("r=None learns positions of one map size: pass feat_size=(height, width), or an odd r")
        else:
            self.pos_emb = nn.Parameter(torch.empty(2 * feat_size[0] - 1, 2 * feat_size[1] - 1, self.dim_qk))
        self.pool = AvgPool2dCeil() if stride == 2 else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.qkv.weight, std=self.qkv.in_channels**-0.5)
        if self.conv_lambda is not None:
            trunc_normal_(self.conv_lambda.weight, std=self.dim_qk**-0.5)
        if self.pos_emb is not None:
            trunc_normal_(self.pos_emb, std=0.02)

    def position_lambdas(self, v: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The linear function of every position, (N, dim_qk, H*W, dim_v), from values (N, H*W, dim_v)."""
        if self.conv_lambda is not None:
            return self.conv_lambda(v.unflatten(1, (height, width)).unsqueeze(1)).flatten(2, 3)
        assert self.pos_emb is not None
        table = resize_rel_axes(self.pos_emb, (2 * height - 1, 2 * width - 1))
        rows, columns = offsets(height, height, v.device), offsets(width, width, v.device)
        relative = table[rows[:, None, :, None], columns[None, :, None, :]]  # H, W, H, W, dim_qk
        relative = relative.flatten(2, 3).flatten(0, 1)
        return torch.einsum("mnk,bnv->bkmv", relative, v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        q, k, v = self.qkv(x).split((self.num_heads * self.dim_qk, self.dim_qk, self.dim_v), dim=1)
        q = self.norm_q(q).flatten(2).unflatten(1, (self.num_heads, self.dim_qk))
        k = k.flatten(2).softmax(dim=-1)
        v = self.norm_v(v).flatten(2).transpose(1, 2)
        content = torch.einsum("bhkm,bkv->bhvm", q, k @ v)
        position = torch.einsum("bhkm,bkmv->bhvm", q, self.position_lambdas(v, height, width))
        out = (content + position).reshape(-1, self.num_heads * self.dim_v, height, width)
        return self.pool(out)
