"""Attention pooling of tokens: learned queries, or tokens refined by one another, in the place of a mean."""

from __future__ import annotations

import torch
from torch import nn

from ziggurat.errors import BadArgument

from .attention import attend, head_dim_of, norm_or_identity
from .config import use_fused_attn
from .mlp import Mlp
from .typing import LayerType
from .weight_init import trunc_normal_

__all__ = ["AttentionPoolLatent", "AttentionPoolPrr"]


class AttentionPoolLatent(nn.Module):
    """Learned latents that read all tokens, then an MLP (MAP of Zhai et al. 2021, arXiv 2106.04560).

    (N, L, in_features) to (N, out_features): the first latent (`pool_type` 'token') or the mean of `latent_len`
    ('avg'); '' leaves (N, latent_len, out_features). `out_features=0` stops after the reading. `pos_embed='abs'`
    learns a position for each of `feat_size` tokens.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        embed_dim: int | None = None,
        num_heads: int = 8,
        feat_size: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        q_proj: bool = True,
        qk_norm: bool = False,
        latent_len: int = 1,
        latent_dim: int | None = None,
        pos_embed: str = "",
        pool_type: str = "token",
        norm_layer: type[nn.Module] | None = None,
        act_layer: LayerType | None = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        inner = embed_dim or in_features
        out_features = in_features if out_features is None else out_features
        self.num_heads = num_heads
        self.head_dim = head_dim_of(inner, num_heads, None)
        self.feat_size = feat_size
        self.scale = self.head_dim**-0.5
        self.pool = pool_type
        self.fused_attn = use_fused_attn()
        self.latent_len = latent_len
        self.latent_dim = latent_dim or inner
        if not q_proj and self.latent_dim != inner:
            raise BadArgument(f"q_proj=False reads with the latents themselves: latent_dim must be {inner}")
        if pos_embed not in ("", "abs"):
            raise BadArgument(f"pos_embed={pos_embed!r}: use '' for none or 'abs' for learned absolute positions")
        self.pos_embed: nn.Parameter | None = None
        if pos_embed == "abs":
            if feat_size is None:
                raise BadArgument("pos_embed='abs' learns a position for each token: pass feat_size, their number")
            self.pos_embed = nn.Parameter(torch.empty(feat_size, in_features))
        self.latent = nn.Parameter(torch.empty(1, latent_len, self.latent_dim))
        self.q = nn.Linear(self.latent_dim, inner, bias=qkv_bias) if q_proj else nn.Identity()
        self.kv = nn.Linear(in_features, 2 * inner, bias=qkv_bias)
        kind = norm_layer or (nn.LayerNorm if qk_norm else None)
        self.q_norm = norm_or_identity(qk_norm, kind, self.head_dim)
        self.k_norm = norm_or_identity(qk_norm, kind, self.head_dim)
        self.mlp: nn.Module | None = None
        self.proj: nn.Module = nn.Identity()
        self.proj_drop = nn.Dropout(drop)
        self.norm: nn.Module = nn.Identity()
        if out_features > 0:
            self.proj = nn.Linear(inner, out_features)
            self.norm = norm_or_identity(norm_layer is not None, norm_layer, out_features)
            self.mlp = Mlp(out_features, int(out_features * mlp_ratio), act_layer=act_layer or nn.GELU)
        self.init_weights()

    def init_weights(self) -> None:
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=self.pos_embed.shape[1] ** -0.5)
        trunc_normal_(self.latent, std=self.latent_dim**-0.5)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.pos_embed is not None:
            x = x + self.pos_embed.to(x.dtype)
        heads = (self.num_heads, self.head_dim)
        q = self.q(self.latent.expand(x.shape[0], -1, -1)).unflatten(2, heads).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
        read = attend(self.q_norm(q), self.k_norm(k), v, fused=self.fused_attn, attn_mask=attn_mask)
        out = self.proj_drop(self.proj(read.transpose(1, 2).flatten(2)))
        if self.mlp is not None:
            out = out + self.mlp(self.norm(out))
        if self.pool == "token":
            return out[:, 0]
        return out.mean(dim=1) if self.pool == "avg" else out


class AttentionPoolPrr(nn.Module):
    """Tokens refined by attention without projections, then pooled ("Locality-Attending Vision Transformer", 2026).

    (N, L, dim) to (N, dim): the first token (`pool_type` 'token') or the mean ('avg'). The only parameters are those of
    the norms before and after the attention. Raises `BadArgument` for another `pool_type`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        pool_type: str = "token",
        pre_norm: bool = False,
        post_norm: bool = False,
        norm_layer: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if pool_type not in ("token", "avg"):
            raise BadArgument(f"pool_type={pool_type!r}: use 'token' or 'avg'")
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads, None)
        self.pool = pool_type
        self.fused_attn = use_fused_attn()
        kind = norm_layer or nn.LayerNorm
        self.pre_norm = norm_or_identity(pre_norm, kind, dim)
        self.post_norm = norm_or_identity(post_norm, kind, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.pre_norm(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        refined = attend(heads, heads, heads, fused=self.fused_attn).transpose(1, 2).flatten(2)
        refined = self.post_norm(refined)
        return refined[:, 0] if self.pool == "token" else refined.mean(dim=1)
