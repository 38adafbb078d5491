"""Attention pooling of maps: a mean or a learned token reads the map, in the place of average pooling."""

from __future__ import annotations

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .attention import attend
from .config import use_fused_attn
from .pos_embed import resample_abs_pos_embed
from .pos_embed_sincos import apply_rot_embed_cat, create_rope_embed
from .shapes import to_2tuple
from .weight_init import trunc_normal_

__all__ = ["AttentionPool2d", "RotAttentionPool2d"]


class AttentionPoolBase(nn.Module):
    """What both pools share: tokens of the map behind one summary token, attention among them, a projection."""

    takes_maps = True
    """The projection applies to each position, so it classifies a map that is left unpooled as well."""

    def set_up(
        self,
        in_features: int,
        out_features: int | None,
        embed_dim: int | None,
        head_dim: int | None,
        num_heads: int | None,
        pool_type: str,
        class_token: bool,
    ) -> None:
        self.embed_dim = embed_dim or in_features
        self.in_features = in_features
        self.out_features = self.embed_dim if out_features == 0 else (out_features or in_features)
        width = num_heads or head_dim
        if not width or self.embed_dim % width:
            raise BadArgument(
                f"embed_dim={self.embed_dim} does not divide into num_heads={num_heads} or by head_dim={head_dim}; "
                "give one that divides it"
            )
        self.num_heads = num_heads or self.embed_dim // width
        self.head_dim = self.embed_dim // self.num_heads
        self.take_pool(pool_type)
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.cls_token = nn.Parameter(torch.zeros(1, in_features)) if class_token else None

    def add_projections(self, out_features: int | None, qkv_bias: bool, qkv_separate: bool, drop_rate: float) -> None:
        wide = self.embed_dim
        self.q: nn.Linear | None = None
        if qkv_separate:
            self.q = nn.Linear(self.in_features, wide, bias=qkv_bias)
            self.k = nn.Linear(self.in_features, wide, bias=qkv_bias)
            self.v = nn.Linear(self.in_features, wide, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(self.in_features, 3 * wide, bias=qkv_bias)
        self.drop = nn.Dropout(drop_rate)
        self.proj: nn.Module = nn.Identity() if out_features == 0 else nn.Linear(wide, self.out_features)

    def take_pool(self, pool_type: str) -> None:
        if pool_type not in ("", "token"):
            raise BadArgument(f"pool_type={pool_type!r}: attention is the pooling here, use 'token', or '' to leave the map")
        self.pool_type = pool_type

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Draw the weights of the attention; `zero_init_last` starts the projection at nothing."""
        layers = (self.qkv,) if self.q is None else (self.q, self.k, self.v)
        for layer in layers:
            trunc_normal_(layer.weight, std=self.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if zero_init_last and isinstance(self.proj, nn.Linear):
            nn.init.zeros_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)

    def reset(
        self,
        num_classes: int | None = None,
        pool_type: str | None = None,
        reset_other: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Project to another number of classes, 0 for none, or pool in another way; nothing else there is to reset.

        The new projection is where and what the old weights are, unless device or dtype are given.
        """
        if pool_type is not None:
            self.take_pool(pool_type)
        if num_classes is None:
            return
        some = (self.qkv if self.q is None else self.q).weight
        self.out_features = num_classes or self.embed_dim
        proj: nn.Module = nn.Identity()
        if num_classes > 0:
            proj = nn.Linear(self.embed_dim, num_classes, device=device or some.device, dtype=dtype or some.dtype)
        self.proj = proj.train(self.training)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """The map as tokens behind their mean, or behind the class token."""
        flat = x.flatten(2).transpose(1, 2)
        if self.cls_token is None:
            first = flat.mean(dim=1, keepdim=True)
        else:
            first = self.cls_token.unsqueeze(0).expand(x.shape[0], -1, -1)
        return torch.cat((first, flat), dim=1)

    def project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.q is None:
            q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        else:
            q, k, v = self.q(tokens), self.k(tokens), self.v(tokens)
        q, k, v = (part.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for part in (q, k, v))
        return q, k, v

    def finish(
        self,
        heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        height: int,
        width: int,
        pre_logits: bool,
    ) -> torch.Tensor:
        read = attend(*heads, fused=self.fused_attn).transpose(1, 2).flatten(2)
        out = self.drop(read)
        if not pre_logits:
            out = self.proj(out)
        if self.pool_type == "token":
            return out[:, 0]
        return out[:, 1:].transpose(1, 2).unflatten(2, (height, width))


class RotAttentionPool2d(AttentionPoolBase):
    """Attention pooling with rotary positions: (N, in_features, H, W) to (N, out_features), at any map size.

    The first token is the map's mean, or learned with `class_token`, and has no position. `pool_type=''` leaves the
    map, (N, out_features, H, W); `out_features=0` leaves out the projection. `rope_type` as in `create_rope_embed`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        ref_feat_size: int | tuple[int, int] = 7,
        embed_dim: int | None = None,
        head_dim: int | None = 64,
        num_heads: int | None = None,
        qkv_bias: bool = True,
        qkv_separate: bool = False,
        pool_type: str = "token",
        class_token: bool = False,
        drop_rate: float = 0.0,
        rope_type: str = "cat",
    ) -> None:
        super().__init__()
        self.set_up(in_features, out_features, embed_dim, head_dim, num_heads, pool_type, class_token)
        self.rope_type = rope_type
        self.rotate_half = rope_type == "mrope"
        self.add_projections(out_features, qkv_bias, qkv_separate, drop_rate)
        self.pos_embed = create_rope_embed(
            rope_type,
            dim=self.embed_dim,
            num_heads=self.num_heads,
            in_pixels=False,
            ref_feat_shape=to_2tuple(ref_feat_size),
            rotate_half=self.rotate_half,
        )
        self.init_weights()

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        q, k, v = self.project(self.tokens(x))
        rope = self.pos_embed.get_embed((height, width))  # type: ignore[operator]
        q, k = (
            torch.cat((t[:, :, :1], apply_rot_embed_cat(t[:, :, 1:], rope, half=self.rotate_half)), dim=2).type_as(v)
            for t in (q, k)
        )
        return self.finish((q, k, v), height, width, pre_logits)


class AttentionPool2d(AttentionPoolBase):
    """Attention pooling with learned positions (Radford et al. 2021, CLIP, arXiv 2103.00020).

    (N, in_features, H, W) to (N, out_features). The positions are learned for `feat_size` and interpolated for maps of
    another size. The first token is the map's mean, or learned with `class_token`. `pool_type=''` leaves the map,
    (N, out_features, H, W); `out_features=0` leaves out the projection.
    """

    def __init__(
        self,
        in_features: int,
        feat_size: int | tuple[int, int] = 7,
        out_features: int | None = None,
        embed_dim: int | None = None,
        head_dim: int | None = 64,
        num_heads: int | None = None,
        qkv_bias: bool = True,
        qkv_separate: bool = False,
        pool_type: str = "token",
        class_token: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.set_up(in_features, out_features, embed_dim, head_dim, num_heads, pool_type, class_token)
        self.feat_size: tuple[int, int] = to_2tuple(feat_size)
        self.seq_len = self.feat_size[0] * self.feat_size[1]
        self.pos_embed = nn.Parameter(torch.zeros(self.seq_len + 1, in_features))
        self.add_projections(out_features, qkv_bias, qkv_separate, drop_rate)
        self.init_weights()

    def init_weights(self, zero_init_last: bool = False) -> None:
        super().init_weights(zero_init_last)
        trunc_normal_(self.pos_embed, std=self.in_features**-0.5)

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        position = resample_abs_pos_embed(self.pos_embed.unsqueeze(0), (height, width), self.feat_size)
        heads = self.project(self.tokens(x) + position.to(x.dtype))
        return self.finish(heads, height, width, pre_logits)
