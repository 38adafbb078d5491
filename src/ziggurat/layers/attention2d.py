"""Self-attention over maps (N, C, H, W), with one head of keys and values for all queries or one for each."""

from __future__ import annotations

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .attention import attend
from .config import use_fused_attn
from .create_conv2d import create_conv2d
from .pool2d_same import create_pool2d
from .shapes import to_2tuple
from .typing import PadType

__all__ = ["Attention2d", "MultiQueryAttention2d", "MultiQueryAttentionV2"]


class MultiQueryAttentionV2(nn.Module):
    """Multi-query attention as three contractions (Shazeer 2019, arXiv 1911.02150).

    Maps (N, dim, H, W) to (N, dim_out, H, W). Keys and values are read from a second map `m` of any size, or from `x`.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 8,
        key_dim: int = 64,
        value_dim: int = 64,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = key_dim**-0.5
        self.query_proj = nn.Parameter(torch.empty(num_heads, key_dim, dim))
        self.key_proj = nn.Parameter(torch.empty(dim, key_dim))
        self.value_proj = nn.Parameter(torch.empty(dim, value_dim))
        self.attn_drop = nn.Dropout(attn_drop)
        self.out_proj = nn.Parameter(torch.empty(dim_out or dim, num_heads, value_dim))
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        std = self.key_proj.shape[0] ** -0.5
        for weight in (self.query_proj, self.key_proj, self.value_proj):
            nn.init.normal_(weight, std=std)
        nn.init.normal_(self.out_proj, std=(self.num_heads * self.out_proj.shape[2]) ** -0.5)

    def forward(self, x: torch.Tensor, m: torch.Tensor | None = None) -> torch.Tensor:
        source = (x if m is None else m).flatten(2)
        q = torch.einsum("bdn,hkd->bhnk", x.flatten(2), self.query_proj)
        k = torch.einsum("bdm,dk->bmk", source, self.key_proj)
        v = torch.einsum("bdm,dv->bmv", source, self.value_proj)
        scores = torch.einsum("bhnk,bmk->bhnm", q, k) * self.scale
        read = torch.einsum("bhnm,bmv->bhnv", self.attn_drop(scores.softmax(dim=-1)), v)
        out = self.proj_drop(torch.einsum("bhnv,dhv->bdn", read, self.out_proj))
        return out.unflatten(2, (x.shape[2], x.shape[3]))


class MultiQueryAttention2d(nn.Module):
    """Mobile multi-query attention (Qin et al. 2024, MobileNetV4, arXiv 2404.10518).

    Maps (N, dim, H, W) to (N, dim_out, H, W). `query_strides` averages the map before the queries and upsamples the
    result; `kv_stride` thins keys and values by a depthwise convolution.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 8,
        key_dim: int | None = None,
        value_dim: int | None = None,
        query_strides: int | tuple[int, int] = 1,
        kv_stride: int = 1,
        dw_kernel_size: int = 3,
        dilation: int = 1,
        padding: PadType = "",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
        use_bias: bool = False,
    ) -> None:
        super().__init__()
        self.query_strides, self.kv_stride = to_2tuple(query_strides), kv_stride
        self.num_heads, share = num_heads, dim // num_heads
        self.key_dim, self.value_dim = key_dim or share, value_dim or share
        self.has_query_strides = any(stride > 1 for stride in self.query_strides)
        self.scale = self.key_dim**-0.5
        self.fused_attn = use_fused_attn()

        self.query = nn.Sequential()
        if self.has_query_strides:
            if padding == "same":
                down: nn.Module = create_pool2d("avg", self.query_strides, padding="same")
            else:
                down = nn.AvgPool2d(self.query_strides)
            self.query.add_module("down_pool", down)
            self.query.add_module("norm", norm_layer(dim))
        self.query.add_module("proj", nn.Conv2d(dim, num_heads * self.key_dim, 1, bias=use_bias))

        self.key, self.value = nn.Sequential(), nn.Sequential()
        for branch, width in ((self.key, self.key_dim), (self.value, self.value_dim)):
            if kv_stride > 1:
                conv = create_conv2d(
                    dim, dim, dw_kernel_size, stride=kv_stride, dilation=dilation, padding=padding, depthwise=True
                )
                branch.add_module("down_conv", conv)
                branch.add_module("norm", norm_layer(dim))
            branch.add_module("proj", nn.Conv2d(dim, width, 1, bias=use_bias))

        self.attn_drop = nn.Dropout(attn_drop)
        self.output = nn.Sequential()
        if self.has_query_strides:
            factor = tuple(float(stride) for stride in self.query_strides)
            self.output.add_module("upsample", nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False))
        self.output.add_module("proj", nn.Conv2d(num_heads * self.value_dim, dim_out or dim, 1, bias=use_bias))
        self.output.add_module("drop", nn.Dropout(proj_drop))
        self.init_weights()

    def init_weights(self) -> None:
        """Glorot-uniform weights throughout, biases at nothing."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        q = self.query(x)
        height, width = q.shape[2], q.shape[3]
        # contiguous: the fused kernels read whole channels, and strided ones send torch to a slower path
        q = q.flatten(2).unflatten(1, (self.num_heads, self.key_dim)).transpose(2, 3).contiguous()
        k = self.key(x).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()  # one head, read by all
        v = self.value(x).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        read = attend(q, k, v, fused=self.fused_attn, attn_mask=attn_mask, drop=self.attn_drop)
        return self.output(read.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width)))


class Attention2d(nn.Module):
    """Multi-head self-attention with 1x1 convolutions: (N, dim, H, W) to (N, dim_out, H, W).

    `expand_first` attends at `dim_out` channels rather than `dim`. `head_first` orders the projected channels by head
    and then by query, key and value. `attn_mask` is (H*W, H*W), added to the scores or true where reading is allowed.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 32,
        bias: bool = True,
        expand_first: bool = False,
        head_first: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        dim_out = dim_out or dim
        inner = dim_out if expand_first else dim
        if inner % num_heads:
            raise BadArgument(f"{inner} channels do not divide into num_heads={num_heads}; choose a divisor")
        self.num_heads = num_heads
        self.dim_head = inner // num_heads
        self.head_first = head_first
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Conv2d(dim, 3 * inner, 1, bias=bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Conv2d(inner, dim_out, 1, bias=bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        order = (self.num_heads, 3, self.dim_head) if self.head_first else (3, self.num_heads, self.dim_head)
        heads = self.qkv(x).flatten(2).unflatten(1, order).transpose(3, 4)
        q, k, v = heads.unbind(2 if self.head_first else 1)
        read = attend(q, k, v, fused=self.fused_attn, attn_mask=attn_mask, drop=self.attn_drop)
        read = read.transpose(2, 3).flatten(1, 2).unflatten(2, (x.shape[2], x.shape[3]))
        return self.proj_drop(self.proj(read))
