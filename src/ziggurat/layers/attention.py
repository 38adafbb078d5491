"""Multi-head self-attention over tokens, plain and with rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ziggurat.errors import BadArgument

from .config import use_fused_attn
from .pos_embed_sincos import apply_rot_embed_cat

__all__ = ["Attention", "AttentionRope", "attend", "maybe_add_mask", "resolve_self_attn_mask"]


def maybe_add_mask(scores: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
    """The scores plus an additive mask, where there is one."""
    return scores if attn_mask is None else scores + attn_mask


def resolve_self_attn_mask(
    seq_len: int, attn: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
) -> torch.Tensor | None:
    """The additive mask for scores `attn` over `seq_len` tokens: None where nothing is hidden.

    A boolean `attn_mask` is true where a token may be read; any other is added as it is. With `is_causal` no token
    reads a later one, in addition to what the mask hides.
    """
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=attn.dtype).masked_fill_(~mask, float("-inf"))
    if is_causal:
        future = torch.full((seq_len, seq_len), float("-inf"), dtype=attn.dtype, device=attn.device).triu(diagonal=1)
        mask = future if mask is None else mask + future
    return mask


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    fused: bool,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    drop: nn.Dropout | None = None,
) -> torch.Tensor:
    """Softmax attention of queries (..., L, d) over keys (..., S, d) and values (..., S, e): (..., L, e).

    `fused` takes torch's kernel, otherwise the same is spelled out. `drop` is applied to the shares in training.
    """
    if fused:
        if is_causal and attn_mask is not None:  # the kernel takes one or the other
            attn_mask, is_causal = resolve_self_attn_mask(q.shape[-2], q, attn_mask, True), False
        rate = drop.p if drop is not None and drop.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=rate, is_causal=is_causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = maybe_add_mask(scores, resolve_self_attn_mask(q.shape[-2], scores, attn_mask, is_causal))
    shares = scores.softmax(dim=-1)
    return (shares if drop is None else drop(shares)) @ v


def norm_or_identity(wanted: bool, norm_layer: type[nn.Module] | None, dim: int) -> nn.Module:
    """The norm, where it is wanted. Raises `BadArgument` where the kind of norm is missing then."""
    if not wanted:
        return nn.Identity()
    if norm_layer is None:
        raise BadArgument("qk_norm and scale_norm need norm_layer, the kind of norm; pass for example nn.LayerNorm")
    return norm_layer(dim)


def head_dim_of(dim: int, num_heads: int, head_dim: int | None) -> int:
    """The width of a head: as given, or an equal share of the channels."""
    if head_dim is None and dim % num_heads:
        raise BadArgument(f"dim={dim} does not divide into num_heads={num_heads}; change one, or give attn_head_dim")
    return head_dim or dim // num_heads


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762): (N, L, dim) to (N, L, dim_out).

    `qk_norm` norms queries and keys by head (ViT-22B, arXiv 2302.05442), `scale_norm` norms what the heads read
    (NormFormer, arXiv 2110.09456), `gated` weighs that by a sigmoid of the input (Qiu et al. 2025, arXiv 2505.06708).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads, attn_head_dim)
        self.attn_dim = inner = num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.q_norm = norm_or_identity(qk_norm, norm_layer, self.head_dim)
        self.k_norm = norm_or_identity(qk_norm, norm_layer, self.head_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm_or_identity(scale_norm, norm_layer, inner)
        self.gate = nn.Linear(dim, inner, bias=qkv_bias) if gated else None
        self.proj = nn.Linear(inner, dim_out or dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each N, heads, L, head_dim
        q, k = self.q_norm(q), self.k_norm(k)
        read = attend(
            q, k, v, fused=self.fused_attn, attn_mask=attn_mask, is_causal=is_causal, drop=self.attn_drop
        )
        read = self.norm(read.transpose(1, 2).flatten(2))
        if self.gate is not None:
            read = read * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(read))


class AttentionRope(nn.Module):
    """Multi-head self-attention with rotary positions (Su et al. 2021, arXiv 2104.09864): (N, L, dim) to (N, L, dim_out).

    The first `num_prefix_tokens` have no position. `rotate_half` pairs the channels of a head by halves, otherwise
    neighbours are a pair. `num_kv_heads` below `num_heads` lets groups of heads share keys and values (grouped
    queries, arXiv 2305.13245) and needs `qkv_fused=False`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        dim_out: int | None = None,
        qkv_bias: bool = True,
        qkv_fused: bool = True,
        num_prefix_tokens: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        attn_head_dim: int | None = None,
        norm_layer: type[nn.Module] | None = None,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        rotate_half: bool = False,
        gated: bool = False,
        num_kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim_of(dim, num_heads, attn_head_dim)
        self.attn_dim = inner = num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.num_prefix_tokens = num_prefix_tokens
        self.rotate_half = rotate_half
        self.fused_attn = use_fused_attn()
        if num_heads % self.num_kv_heads:
            raise BadArgument(f"num_heads={num_heads} does not divide into num_kv_heads={num_kv_heads} groups")
        self.qkv: nn.Linear | None = None
        if qkv_fused:
            if self.num_kv_heads != num_heads:
                raise BadArgument(f"num_kv_heads={num_kv_heads} needs separate projections: pass qkv_fused=False")
            self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(dim, inner, bias=qkv_bias)
            self.k_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=qkv_bias)
            self.v_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.q_norm = norm_or_identity(qk_norm, norm_layer, self.head_dim)
        self.k_norm = norm_or_identity(qk_norm, norm_layer, self.head_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm_or_identity(scale_norm, norm_layer, inner)
        self.gate = nn.Linear(dim, inner, bias=qkv_bias) if gated else None
        self.proj = nn.Linear(inner, dim_out or dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values by head: (N, heads, L, head_dim)."""
        if self.qkv is not None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (t.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        return q, k, v

    def rotate(self, t: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        prefix, patches = t[:, :, : self.num_prefix_tokens], t[:, :, self.num_prefix_tokens :]
        return torch.cat((prefix, apply_rot_embed_cat(patches, rope, half=self.rotate_half)), dim=2)

    def forward(
        self,
        x: torch.Tensor,
        rope: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        q, k, v = self.project(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self.rotate(q, rope).type_as(v), self.rotate(k, rope).type_as(v)
        if self.num_kv_heads != self.num_heads:
            shared = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        read = attend(
            q, k, v, fused=self.fused_attn, attn_mask=attn_mask, is_causal=is_causal, drop=self.attn_drop
        )
        read = self.norm(read.transpose(1, 2).flatten(2))
        if self.gate is not None:
            read = read * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(read))
