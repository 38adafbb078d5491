"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929).

Patches become tokens, positions are added, blocks of attention and MLP keep width and grid, one vector is classified.
One class carries the recipes that share the architecture: AugReg (Steiner et al. 2021, 2106.10270), FlexiViT (Beyer et
al. 2022, 2212.08013), CLIP (Radford et al. 2021, 2103.00020), SigLIP (Zhai et al. 2023, 2303.15343; 2502.14786), DINOv2
(Oquab et al. 2023, 2304.07193) with registers (Darcet et al. 2023, 2309.16588), BEiT-3 (Wang et al. 2022, 2208.10442),
I-JEPA (Assran et al. 2023, 2301.08243), AIMv2 (Fini et al. 2024, 2411.14402), SoViT (Alabdulmohsin et al. 2023,
2305.13035), C-RADIO (Ranzinger et al. 2023, 2312.06709) and TIPS (Maninis et al. 2024, 2410.16512).

Blocks come in five forms: `Block` (norm first), `ResPostBlock` (norm at the end of the branch, Swin V2, 2111.09883),
`ParallelScalingBlock` (attention and MLP side by side from one projection, ViT-22B, 2302.05442), its differential
variant (2410.05258), and `ParallelThingsBlock` (several of each side by side, Touvron et al. 2022, 2203.09795).
"""

from __future__ import annotations

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..backbone.plan import Cut
from ..errors import BadArgument
from ..layers.attention import Attention, attend, norm_or_identity
from ..layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from ..layers.config import use_fused_attn
from ..layers.create_act import get_act_layer
from ..layers.create_norm import get_norm_layer
from ..layers.diff_attention import DiffAttention
from ..layers.drop import DropPath
from ..layers.layer_scale import LayerScale
from ..layers.mlp import Mlp, SwiGLU, SwiGLUPacked
from ..layers.norm import LayerNorm, RmsNorm
from ..layers.patch_dropout import PatchDropout
from ..layers.patch_embed import PatchEmbed, resample_patch_embed
from ..layers.pool1d import global_pool_nlc
from ..layers.pos_embed import resample_abs_pos_embed
from ..layers.shapes import to_2tuple
from ..layers.weight_init import lecun_normal_, trunc_normal_

__all__ = [
    "Block",
    "DiffParallelScalingBlock",
    "ParallelScalingBlock",
    "ParallelThingsBlock",
    "ResPostBlock",
    "VisionTransformer",
]

Layer = Callable[..., nn.Module]

ATTENTIONS: dict[str, Layer] = {"": Attention, "attn": Attention, "diff": DiffAttention}


def make_attention(attn_layer: str | Layer, depth: int, *args: Any, **options: Any) -> nn.Module:
    """An attention layer by name or class; one that depends on its `depth` in the network is told."""
    if isinstance(attn_layer, str):
        if attn_layer not in ATTENTIONS:
            raise BadArgument(f"attn_layer={attn_layer!r}: give one of {', '.join(filter(None, ATTENTIONS))}, or a class")
        attn_layer = ATTENTIONS[attn_layer]
    if "depth" in inspect.signature(attn_layer).parameters:
        options["depth"] = depth
    return attn_layer(*args, **options)


def layer_scale(dim: int, init_values: float | None) -> nn.Module:
    return nn.Identity() if init_values is None else LayerScale(dim, init_values)


class Block(nn.Module):
    """A residual branch of attention, then one of an MLP; both begin with a norm: (B, N, dim) to (B, N, dim).

    `scale_attn_norm` and `scale_mlp_norm` add norms inside the branches, before their last layers. `init_values`
    scales the branches' channels by learned factors of that size. `attn_mask` and `is_causal` are the attention's.
    """

    order: ClassVar[tuple[str, ...]] = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = LayerNorm,
        mlp_layer: Layer = Mlp,
        attn_layer: str | Layer = Attention,
        depth: int = 0,
    ) -> None:
        super().__init__()
        self.init_values = init_values
        attn = make_attention(
            attn_layer, depth, dim, num_heads=num_heads, qkv_bias=qkv_bias, qk_norm=qk_norm,
            scale_norm=scale_attn_norm, proj_bias=proj_bias, attn_drop=attn_drop, proj_drop=proj_drop,
            norm_layer=norm_layer,
        )  # fmt: skip
        mlp = mlp_layer(
            dim, int(dim * mlp_ratio), act_layer=act_layer, norm_layer=norm_layer if scale_mlp_norm else None,
            bias=proj_bias, drop=proj_drop,
        )  # fmt: skip
        parts = dict(
            norm1=norm_layer(dim), attn=attn, ls1=layer_scale(dim, init_values), drop_path1=DropPath(drop_path),
            norm2=norm_layer(dim), mlp=mlp, ls2=layer_scale(dim, init_values), drop_path2=DropPath(drop_path),
        )  # fmt: skip
        for name in self.order:
            self.add_module(name, parts[name])

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        read = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(read))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ResPostBlock(Block):
    """A block whose branches end in a norm (Liu et al. 2021, arXiv 2111.09883), which starts at `init_values`."""

    order = ("attn", "norm1", "drop_path1", "mlp", "norm2", "drop_path2")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_weights()

    def init_weights(self) -> None:
        if self.init_values is not None:
            for norm in (self.norm1, self.norm2):
                nn.init.constant_(norm.weight, self.init_values)  # type: ignore[arg-type]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x, attn_mask=attn_mask, is_causal=is_causal)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class ParallelThingsBlock(nn.Module):
    """`num_parallel` attention branches added up, then as many MLPs (Touvron et al. 2022, arXiv 2203.09795).

    The other arguments are those of `Block`.
    """

    def __init__(self, dim: int, num_heads: int, num_parallel: int = 2, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        cells = [Block(dim, num_heads, *args, **kwargs) for _ in range(num_parallel)]
        self.num_parallel = num_parallel
        self.attns = nn.ModuleList(
            nn.Sequential(OrderedDict(norm=cell.norm1, attn=cell.attn, ls=cell.ls1, drop_path=cell.drop_path1))
            for cell in cells
        )
        self.ffns = nn.ModuleList(
            nn.Sequential(OrderedDict(norm=cell.norm2, mlp=cell.mlp, ls=cell.ls2, drop_path=cell.drop_path2))
            for cell in cells
        )

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        total = x
        for branch in self.attns:
            norm, attn, scale, drop = branch.children()
            total = total + drop(scale(attn(norm(x), attn_mask=attn_mask, is_causal=is_causal)))
        x = total
        for branch in self.ffns:
            total = total + branch(x)
        return total


class ParallelScalingBlock(nn.Module):
    """Attention and MLP side by side, their first layers fused into one (Dehghani et al. 2023, arXiv 2302.05442).

    Without `qkv_bias` the MLP's share of that layer still has a bias, `mlp_bias`. `fuse_out_proj` fuses the last
    layers too. `mlp_layer` and `attn_layer` are taken for the sake of `Block`'s signature, and not used.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = LayerNorm,
        mlp_layer: Layer | None = None,
        attn_layer: str | Layer | None = None,
        depth: int = 0,
        fuse_out_proj: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise BadArgument(f"dim={dim} does not divide into num_heads={num_heads}; change one of them")
        if scale_attn_norm or scale_mlp_norm:
            raise BadArgument("scale_attn_norm and scale_mlp_norm: a parallel block has no such norms; leave them out, "
                              "or use block_fn=Block")
        hidden = int(dim * mlp_ratio)
        self.num_heads = num_heads
        self.widths = (hidden, dim, dim, dim)  # of the hidden layer, queries, keys and values
        self.fused_attn = use_fused_attn()
        self.mlp_bias = None if qkv_bias else nn.Parameter(torch.zeros(hidden))
        self.in_norm = norm_layer(dim)
        self.in_proj = nn.Linear(dim, sum(self.widths), bias=qkv_bias)
        self.make_reader(dim // num_heads, qk_norm, norm_layer, attn_drop)
        self.mlp_drop = nn.Dropout(proj_drop)
        self.mlp_act = act_layer()
        self.out_proj: nn.Module | None = None
        if fuse_out_proj:
            self.out_proj = nn.Linear(dim + hidden, dim, bias=proj_bias)
        else:
            self.attn_out_proj = nn.Linear(dim, dim, bias=proj_bias)
            self.mlp_out_proj = nn.Linear(hidden, dim, bias=proj_bias)
        self.ls = layer_scale(dim, init_values)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        if self.mlp_bias is not None:
            nn.init.zeros_(self.mlp_bias)

    def make_reader(self, head_dim: int, qk_norm: bool, norm_layer: Layer, attn_drop: float) -> None:
        """The modules of `read`."""
        self.head_dim = head_dim
        self.q_norm = norm_or_identity(qk_norm, norm_layer, head_dim)  # type: ignore[arg-type]
        self.k_norm = norm_or_identity(qk_norm, norm_layer, head_dim)  # type: ignore[arg-type]
        self.attn_drop = nn.Dropout(attn_drop)

    def read(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        """What attention reads, each argument and the result (B, N, dim)."""
        heads = (self.num_heads, self.head_dim)
        q, k = self.q_norm(q.unflatten(2, heads)), self.k_norm(k.unflatten(2, heads))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.unflatten(2, heads).transpose(1, 2)
        found = attend(q, k, v, fused=self.fused_attn, attn_mask=attn_mask, is_causal=is_causal, drop=self.attn_drop)
        return found.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        hidden, q, k, v = self.in_proj(self.in_norm(x)).split(self.widths, dim=-1)
        if self.mlp_bias is not None:
            hidden = hidden + self.mlp_bias
        read = self.read(q, k, v, attn_mask, is_causal)
        hidden = self.mlp_drop(self.mlp_act(hidden))
        if self.out_proj is not None:
            both = self.out_proj(torch.cat((read, hidden), dim=-1))
        else:
            both = self.attn_out_proj(read) + self.mlp_out_proj(hidden)
        return x + self.drop_path(self.ls(both))


class DiffParallelScalingBlock(ParallelScalingBlock):
    """A parallel block with differential attention (Ye et al. 2024, arXiv 2410.05258), its last layers fused.

    `dual_lambda` learns two numbers instead of four vectors; see `DiffAttention`.
    """

    lambda_init: float
    subtracted: Callable[..., Any] = DiffAttention.subtracted
    set_lambda_init: Callable[..., Any] = DiffAttention.set_lambda_init

    def __init__(self, *args: Any, depth: int = 0, dual_lambda: bool = False, **kwargs: Any) -> None:
        self.dual_lambda = dual_lambda
        super().__init__(*args, **kwargs, fuse_out_proj=True)  # type: ignore[misc]
        self.set_lambda_init(depth)
        self.reset_parameters()

    def make_reader(self, head_dim: int, qk_norm: bool, norm_layer: Layer, attn_drop: float) -> None:
        super().make_reader(head_dim // 2, qk_norm, norm_layer, attn_drop)
        self.sub_norm = RmsNorm(2 * self.head_dim, eps=1e-5)
        if self.dual_lambda:
            self.lambda_a = nn.Parameter(torch.empty(()))
            self.lambda_b = nn.Parameter(torch.empty(()))
        else:
            for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
                self.register_parameter(name, nn.Parameter(torch.empty(self.head_dim)))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        DiffAttention.reset_parameters(self)  # type: ignore[arg-type]

    def read(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        pair = (self.num_heads, 2, self.head_dim)
        q1, q2 = self.q_norm(q.unflatten(2, pair)).permute(3, 0, 2, 1, 4).unbind(0)
        k1, k2 = self.k_norm(k.unflatten(2, pair)).permute(3, 0, 2, 1, 4).unbind(0)
        v = v.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        how: dict[str, Any] = dict(fused=self.fused_attn, attn_mask=attn_mask, is_causal=is_causal, drop=self.attn_drop)
        first, second = attend(q1, k1, v, **how), attend(q2, k2, v, **how)
        found = self.sub_norm(first - self.subtracted().type_as(first) * second) * (1.0 - self.lambda_init)
        return found.transpose(1, 2).flatten(2)


# ---------------------------------------------------------------- first weights


def init_default(module: nn.Module) -> None:
    """What a module that is no linear layer says of itself; PyTorch's own otherwise."""
    for method in ("init_weights", "reset_parameters"):
        if hasattr(module, method):
            getattr(module, method)()
            return


def init_narrow(module: nn.Module, name: str, head_bias: float = 0.0) -> None:
    """Linear layers from a normal distribution of std 0.02, cut at 2, without bias (the PyTorch ViTs)."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        init_default(module)


def init_jax(module: nn.Module, name: str, head_bias: float = 0.0) -> None:
    """Xavier linear layers, LeCun patches, almost no bias, a classifier that starts at zero (the original)."""
    if isinstance(module, nn.Linear) and name.startswith("head"):
        nn.init.zeros_(module.weight)
        nn.init.constant_(module.bias, head_bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.normal_(module.bias, std=1e-6 if "mlp" in name else 0.0)
    elif isinstance(module, nn.Conv2d):
        lecun_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        init_default(module)


def init_moco(module: nn.Module, name: str, head_bias: float = 0.0) -> None:
    """Xavier linear layers, queries, keys and values each on their own (Chen et al. 2021, arXiv 2104.02057)."""
    if isinstance(module, nn.Linear):
        parts = 3 if "qkv" in name else 1
        reach = math.sqrt(6.0 / (module.out_features // parts + module.in_features))
        nn.init.uniform_(module.weight, -reach, reach)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        init_default(module)


def init_torch(module: nn.Module, name: str, head_bias: float = 0.0) -> None:
    """PyTorch's defaults throughout."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]


INITS: dict[str, Callable[..., None]] = {
    "": init_narrow,
    "jax": init_jax,
    "jax_nlhb": init_jax,  # the classifier's bias at the logarithm of a uniform class distribution
    "moco": init_moco,
    "reset": init_torch,
}

POOLS = ("", "token", "avg", "avgmax", "max", "map", "prr")


class VisionTransformer(Backbone):
    """Tokens from patches, `depth` equal blocks, a norm, one vector an image.

    - `img_size`, `patch_size`: of the images that the positions are learned for and of a patch, in pixels. Other
      images are padded to whole patches, with zeros below and to the right, and positions are resampled to their grid
      (bicubic, antialiased), as the authors do for other resolutions. `dynamic_img_size` and `dynamic_img_pad` are no
      longer needed for that; the latter pads images of `img_size` too, where its sides are not of whole patches.
    - `global_pool`: 'token' takes the class token; 'avg', 'max' and 'avgmax' pool the patches (all tokens with
      `pool_include_prefix`), 'map' and 'prr' pool by attention (`AttentionPoolLatent`, `AttentionPoolPrr`); '' leaves
      the tokens.
    - `embed_dim`, `depth`, `num_heads`, `mlp_ratio`: width, blocks, attention heads, hidden width over width.
    - `class_token`, `reg_tokens`: a class token, and how many registers, before the patches.
    - `pos_embed`: 'learn' or 'none'; `no_embed_class`: positions are for the patches only.
    - `pre_norm`: a norm before the blocks; `final_norm`: one after them, which `fc_norm` puts behind the pooling
      (by default where the pooling is a mean or maximum).
    - `qkv_bias`, `qk_norm`, `scale_attn_norm`, `scale_mlp_norm`, `proj_bias`, `init_values`: see `Block`.
    - `pos_drop_rate`, `patch_drop_rate`, `proj_drop_rate`, `attn_drop_rate`: dropout of embedded tokens, of whole
      patches, of the branches' outputs and of attention shares.
    - `weight_init`: '' (cut normal), 'jax', 'jax_nlhb', 'moco', or 'reset' and 'skip' (PyTorch's own); `fix_init` divides the branches' last layers by the root of twice their depth (BEiT).
    - `embed_layer`, `embed_norm_layer`, `norm_layer`, `act_layer`, `block_fn`, `mlp_layer`, `attn_layer`: what it is
      made of, classes or (norms, activations, attention) names.
    - `resampling`: how positions and patches of a checkpoint are brought to another size, as arguments of
      `torch.nn.functional.interpolate` (bicubic with antialiasing by default).

    `forward_features` and `forward_intermediates` also take `attn_mask`, (N, N) or broadcastable over (B, heads, N, N)
    with N counting the prefix tokens, true or 0 where a token may be read, and `is_causal`.
    """

    layout = "NLC"
    units = r"blocks\.(\d+)"
    final_norm = "norm"
    isotropic = True
    default_out_indices = 3
    not_decayed = frozenset({"pos_embed", "cls_token", "reg_token", "dist_token"})
    head_modules = ("attn_pool", "fc_norm")

    patch_embed: Any
    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    pos_embed: nn.Parameter | None
    global_pool: Any
    attn_pool: Any

    pools: ClassVar[tuple[str, ...]] = POOLS
    special_tokens: ClassVar[dict[str, int]] = {}
    """Names and numbers of tokens that a subclass puts between the class token and the registers."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        init_values: float | None = None,
        class_token: bool = True,
        pos_embed: str = "learn",
        no_embed_class: bool = False,
        reg_tokens: int = 0,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        pool_include_prefix: bool = False,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        weight_init: str = "",
        fix_init: bool = False,
        embed_layer: Layer = PatchEmbed,
        embed_norm_layer: str | Layer | None = None,
        norm_layer: str | Layer | None = None,
        act_layer: str | Layer | None = None,
        block_fn: Layer = Block,
        mlp_layer: Layer = Mlp,
        attn_layer: str | Layer = Attention,
        resampling: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        if pos_embed not in ("", "none", "learn"):
            raise BadArgument(f"pos_embed={pos_embed!r}: give 'learn' or 'none'")
        if weight_init not in (*INITS, "skip"):
            raise BadArgument(f"weight_init={weight_init!r}: give one of {', '.join(map(repr, (*INITS, 'skip')))}")
        norm: Any = get_norm_layer(norm_layer) or LayerNorm
        act = get_act_layer(act_layer) or nn.GELU
        self.embed_dim = embed_dim
        self.min_size = min(self.min_size, *to_2tuple(img_size))
        self.num_reg_tokens = reg_tokens
        self.has_class_token = class_token
        self.no_embed_class = no_embed_class
        self.pool_include_prefix = pool_include_prefix
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        self.fix_init = fix_init
        self.resampling: dict[str, Any] = dict(interpolation="bicubic", antialias=True) | dict(resampling or {})
        tokens = {"cls": int(class_token), **self.special_tokens, "registers": reg_tokens}
        self.prefix_tokens = {name: count for name, count in tokens.items() if count}
        self._check_pool(global_pool)
        self._new_pool: dict[str, Callable[[], nn.Module]] = {
            "map": partial(AttentionPoolLatent, embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, norm_layer=norm,
                           act_layer=act),
            "prr": partial(AttentionPoolPrr, embed_dim, num_heads=num_heads, norm_layer=norm,
                           pool_type="token" if class_token else "avg"),
        }  # fmt: skip

        # an embedding of one's own may know neither: it gives the tokens of its own grid
        any_size = dict(strict_img_size=False, output_fmt="NHWC")
        self.embeds_maps = dynamic_img_size or any_size.keys() <= inspect.signature(embed_layer).parameters.keys()
        embed: dict[str, Any] = any_size if self.embeds_maps else {}
        if embed_norm_layer is not None:
            embed["norm_layer"] = get_norm_layer(embed_norm_layer)
        self.patch_embed = embed_layer(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim,
            bias=not pre_norm, dynamic_img_pad=dynamic_img_pad, **embed,
        )  # fmt: skip
        if isinstance(self.patch_embed, PatchEmbed):
            self.patch_embed.pads_other_sizes = True
            self._note_cut()
        self.plan.spend(self._stride())

        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        positions = self.patch_embed.num_patches + self._prefix_positions
        learns = pos_embed == "learn"
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim)) if learns else None
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.patch_drop: nn.Module = nn.Identity()
        if patch_drop_rate > 0.0:
            self.patch_drop = PatchDropout(patch_drop_rate, num_prefix_tokens=self.num_prefix_tokens)
        self.norm_pre = norm(embed_dim) if pre_norm else nn.Identity()

        cell = dict(
            dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_norm=qk_norm,
            scale_attn_norm=scale_attn_norm, scale_mlp_norm=scale_mlp_norm, proj_bias=proj_bias,
            init_values=init_values, proj_drop=proj_drop_rate, attn_drop=attn_drop_rate, norm_layer=norm,
            act_layer=act, mlp_layer=mlp_layer, attn_layer=attn_layer,
        )  # fmt: skip
        self.blocks = nn.Sequential(*(block_fn(**cell, depth=i) for i in range(depth)))
        for i in range(depth):
            self.plan.mark(embed_dim, f"blocks.{i}")

        if fc_norm is None:
            fc_norm = global_pool in ("avg", "avgmax", "max")
        self.norm = norm(embed_dim) if final_norm and not fc_norm else nn.Identity()
        self.register_module("attn_pool", None)
        self.set_pool(global_pool)
        self.fc_norm = norm(embed_dim) if final_norm and fc_norm else nn.Identity()
        self.make_head("head", width=embed_dim, hidden=embed_dim)
        self.head = self.new_classifier("head")

    # ---------------------------------------------------------------- sizes

    @property
    def _prefix_positions(self) -> int:
        """How many of the learned positions are the prefix tokens'."""
        return 0 if self.no_embed_class else self.num_prefix_tokens

    def _stride(self) -> int:
        if hasattr(self.patch_embed, "feat_ratio"):
            return self.patch_embed.feat_ratio()
        return max(to_2tuple(self.patch_embed.patch_size))

    def _note_cut(self) -> None:
        """Says where the patches of images of `img_size` leave a rest out."""
        embed = self.patch_embed
        is_cut = any(side % patch for side, patch in zip(embed.img_size, embed.patch_size))
        self.plan.cut = Cut(embed.img_size, self._stride()) if is_cut and not embed.dynamic_img_pad else None

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        return self.patch_embed.dynamic_feat_size((height, width))

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Takes images, or cuts patches, of another size from now on: positions and patch weights are resampled."""
        if patch_size is not None and self.pyramid_neck is not None:
            raise BadArgument(f"patch_size={patch_size}: the pyramid was made for strides of {self.pyramid_neck.reduction}; "
                              "create the model with that patch_size")
        before = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        if isinstance(self.patch_embed, PatchEmbed):
            self._note_cut()
            self.feature_info.cut = self.plan.cut
        if self.pos_embed is not None and self.patch_embed.grid_size != before:
            with torch.no_grad():
                resized = self._resized_positions(self.pos_embed, before, self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        if img_size is not None:
            self.remember(img_size=img_size)
            if "input_size" in self.pretrained_cfg:
                self.pretrained_cfg["input_size"] = (self.in_chans, *to_2tuple(img_size))
        if patch_size is not None:
            self.remember(patch_size=patch_size)
            for level in self.plan.levels:
                level["reduction"] = self._stride()
            self._hold_stride()

    def _resized_positions(self, positions: Tensor, old: Any, new: Sequence[Any]) -> Tensor:
        return resample_abs_pos_embed(positions, new, old, num_prefix_tokens=self._prefix_positions)

    # ---------------------------------------------------------------- forward

    def prefix(self) -> list[Tensor]:
        """The learned tokens that stand before the patches, in order (1 N C each)."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def embed_tokens(self, x: Tensor) -> Tensor:
        """Prefix tokens and patches of the images, with their positions (B N C)."""
        x = self.patch_embed(x)
        positions: Tensor | None = self.pos_embed
        if self.embeds_maps:
            if positions is not None:
                positions = self._resized_positions(positions, self.patch_embed.grid_size, x.shape[1:3])
            x = x.flatten(1, 2)
        prefix = [token.expand(x.shape[0], -1, -1) for token in self.prefix()]
        if positions is not None and self.no_embed_class:
            x = x + positions
        if prefix:
            x = torch.cat((*prefix, x), dim=1)
        if positions is not None and not self.no_embed_class:
            x = x + positions
        return self.norm_pre(self.patch_drop(self.pos_drop(x)))

    def trunk(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Iterator[Tensor]:
        inputs: dict[str, Any] = {}  # a block of one's own need not know masks
        if attn_mask is not None or is_causal:
            inputs = dict(attn_mask=attn_mask, is_causal=is_causal)
        x = self.embed_tokens(x)
        for block in self.blocks:
            x = block(x, **inputs)
            yield x
        yield self.norm(x)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Any]:
        """Levels as DINO's code asks for them: the last `n`, or those listed, as tokens or (`reshape`) as maps."""
        return self.forward_intermediates(
            x, n, return_prefix_tokens=return_prefix_tokens, norm=norm, intermediates_only=True,
            output_fmt="NCHW" if reshape else "NLC", attn_mask=attn_mask,
        )  # fmt: skip

    # ---------------------------------------------------------------- head

    def _check_pool(self, global_pool: str) -> None:
        if global_pool not in self.pools:
            raise BadArgument(f"global_pool={global_pool!r}: give one of {', '.join(map(repr, self.pools))}")
        if global_pool == "token" and not self.has_class_token:
            raise BadArgument("global_pool='token' pools by a class token, which this model lacks: "
                              "give 'avg' or 'map', or create it with class_token=True")

    def pool(self, x: Tensor) -> Any:
        if self.attn_pool is not None:
            reads_all = self.pool_include_prefix or self.global_pool == "prr"
            x = self.attn_pool(x if reads_all else x[:, self.num_prefix_tokens :])
        else:
            x = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens, self.pool_include_prefix)
        return self.fc_norm(x)

    def set_pool(self, global_pool: str) -> None:
        self._check_pool(global_pool)
        if getattr(self, "global_pool", None) == global_pool:
            return
        self.global_pool = global_pool
        self.attn_pool = self._new_pool[global_pool]() if global_pool in self._new_pool else None
        if self.attn_pool is not None:
            self.attn_pool.to(dtype=next(self.parameters()).dtype)
            self._draw(self.attn_pool, "attn_pool", self.weight_init_mode)
        self.remember(fc_norm=not isinstance(getattr(self, "fc_norm", None), nn.Identity))

    def new_classifier(self, path: str) -> nn.Module:
        # without pooling it classifies each token
        return nn.Linear(self.embed_dim, self.num_classes) if self.num_classes else nn.Identity()

    def drop_head(self) -> None:
        super().drop_head()
        self.fc_norm = nn.Identity()

    # ---------------------------------------------------------------- weights

    def init_weights(self, mode: str = "") -> None:
        """Draws all weights anew, by `weight_init` or another mode of it; registers and class token start near zero."""
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        self._draw(self.patch_embed, "patch_embed", mode or self.weight_init_mode)
        for name, module in self.named_children():
            if name != "patch_embed":
                self._draw(module, name, mode or self.weight_init_mode)
        if self.fix_init:
            self._shrink_branches()

    def _draw(self, module: nn.Module, path: str, mode: str) -> None:
        head_bias = -math.log(self.num_classes) if mode == "jax_nlhb" and self.num_classes else 0.0
        for name, part in reversed(list(module.named_modules(prefix=path))):  # what is inside first
            INITS[mode](part, name, head_bias)

    def _shrink_branches(self) -> None:
        with torch.no_grad():
            for depth, block in enumerate(self.blocks, start=1):
                for name, module in block.named_modules():
                    if name.endswith(("attn.proj", "mlp.fc2")):
                        module.weight.div_(math.sqrt(2.0 * depth))

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        for wrapper in ("model", "state_dict"):
            state_dict = state_dict.get(wrapper, state_dict)
        resampling = self.resampling
        if any(name.endswith("embedding/kernel") for name in state_dict):
            state_dict = self.convert_npz(state_dict)
            resampling = dict(interpolation="bilinear", antialias=False)  # as the original code does
        for mark, translate in DIALECTS.items():
            if mark in state_dict:
                state_dict = translate(state_dict)
                break
        is_radio = RADIO in state_dict
        if is_radio:
            state_dict = self._from_radio(state_dict)
        found: dict[str, Any] = {}
        for name, value in state_dict.items():
            if name.startswith("pre_logits.") or (name.startswith("attn_pool.") and self.attn_pool is None):
                continue  # a layer that was given up; a pooling that this model does not use
            if name == "head.weight" and "head.bias" not in state_dict:
                found["head.bias"] = value.new_zeros(value.shape[0])  # a projection into CLIP's space
            found[LAYER_SCALE.sub(r"ls\1.gamma", name)] = value
        positions = found.get("pos_embed")
        kernel = found.get("patch_embed.proj.weight")
        if positions is not None and self.pos_embed is not None and not is_radio:
            found["pos_embed"] = self._fitted_positions(positions, kernel, resampling)
        if kernel is not None:
            found["patch_embed.proj.weight"] = self._fitted_kernel(kernel, resampling)
        return found

    def _fitted_kernel(self, kernel: Tensor, resampling: Mapping[str, Any]) -> Tensor:
        width, _, *size = self.patch_embed.proj.weight.shape
        if kernel.ndim < 4:  # a linear layer's, over the pixels of a patch
            kernel = kernel.reshape(width, -1, *size)
        return resample_patch_embed(kernel, size, resampling["interpolation"], resampling["antialias"])

    def _fitted_positions(self, positions: Tensor, kernel: Tensor | None, resampling: Mapping[str, Any]) -> Tensor:
        old, new = None, tuple(self.patch_embed.grid_size)
        patches = positions.shape[1] - self._prefix_positions
        if kernel is not None and kernel.ndim == 4:  # the grid that the checkpoint was made for, which need not be square
            image = self.pretrained_cfg.get("input_size", (3, 224, 224))[-2:]
            grid = tuple(side // patch for side, patch in zip(image, kernel.shape[-2:]))
            old = grid if math.prod(grid) == patches else None
        if patches == math.prod(new) and old in (None, new):
            return positions
        return resample_abs_pos_embed(positions, new, old, num_prefix_tokens=self._prefix_positions, **resampling)

    def _from_radio(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """C-RADIO: the backbone alone; a class token for each teacher, of which all but the first serve as registers.

        Positions are resampled to a square grid as long as the longer side and cropped, as RADIO does when it runs.
        """
        inner = "radio_model.model."
        parts = {name[len(inner) :]: value for name, value in state_dict.items() if name.startswith(inner)}
        found = {name.replace(".grandma", ".gamma"): v for name, v in parts.items() if name.startswith("blocks.")}
        kernel = parts["patch_generator.embedder.weight"]
        side = math.isqrt(kernel.shape[1] // 3)
        found["patch_embed.proj.weight"] = kernel.reshape(-1, 3, side, side)
        found["patch_embed.proj.bias"] = kernel.new_zeros(kernel.shape[0])
        tokens = parts["patch_generator.cls_token.token"].unsqueeze(0)
        found["cls_token"], found["reg_token"] = tokens[:, :1], tokens[:, 1:]
        rows, columns = self.patch_embed.grid_size
        longer = max(rows, columns)
        positions = resample_abs_pos_embed(
            parts["patch_generator.pos_embed"], (longer, longer), num_prefix_tokens=0, **self.resampling
        )
        found["pos_embed"] = positions.unflatten(1, (longer, longer))[:, :rows, :columns].flatten(1, 2)
        return found

    def convert_npz(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """The original JAX checkpoints (.npz of vision_transformer, AugReg and Big Vision) under our names.

        Dense kernels are (in, out) there, convolutions (height, width, in, out), attention's are split into heads;
        Big Vision counts a block's modules otherwise and may stack all blocks along the first axis.
        """
        root = next(r for r in ("", "opt/target/", "params/", "params/img/") if f"{r}embedding/kernel" in arrays)
        flax = {name[len(root) :]: as_float(value) for name, value in arrays.items() if name.startswith(root)}
        stacked = "Transformer/encoderblock/LayerNorm_0/scale" in flax
        big_vision = stacked or root.startswith("params/") or "pos_embedding" in flax
        found = {
            "patch_embed.proj.weight": flax["embedding/kernel"].permute(3, 2, 0, 1),
            "patch_embed.proj.bias": flax["embedding/bias"],
            **flax_norm(flax, "Transformer/encoder_norm", "norm"),
        }
        if self.cls_token is not None:
            found["cls_token"] = flax["cls"]
        if self.pos_embed is not None:
            found["pos_embed"] = flax["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"]
        if "head/kernel" in flax:
            found |= flax_linear(flax, "head", "head")
        if self.attn_pool is not None:
            pool, attn = "MAPHead_0", "MAPHead_0/MultiHeadDotProductAttention_0"
            found["attn_pool.latent"] = flax[f"{pool}/probe"]
            found |= flax_heads(flax, attn, ("query",), "attn_pool.q")
            found |= flax_heads(flax, attn, ("key", "value"), "attn_pool.kv")
            found |= flax_joined(flax, f"{attn}/out", "attn_pool.proj")
            found |= flax_norm(flax, f"{pool}/LayerNorm_0", "attn_pool.norm")
            found |= flax_mlp(flax, f"{pool}/MlpBlock_0", "attn_pool.mlp")
        attn, norm, mlp = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        if not big_vision:
            attn, norm, mlp = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        for i in range(len(self.blocks)):
            there = "Transformer/encoderblock/" if stacked else f"Transformer/encoderblock_{i}/"
            cell = {name[len(there) :]: value for name, value in flax.items() if name.startswith(there)}
            if stacked:
                cell = {name: value[i] for name, value in cell.items()}
            here = f"blocks.{i}"
            found |= flax_norm(cell, "LayerNorm_0", f"{here}.norm1")
            found |= flax_heads(cell, attn, ("query", "key", "value"), f"{here}.attn.qkv")
            found |= flax_joined(cell, f"{attn}/out", f"{here}.attn.proj")
            found |= flax_norm(cell, norm, f"{here}.norm2")
            found |= flax_mlp(cell, mlp, f"{here}.mlp")
        return found


# ---------------------------------------------------------------- the layouts of Flax

Arrays = Mapping[str, Tensor]


def as_float(array: Any) -> Tensor:
    tensor = torch.as_tensor(array)
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def flax_linear(flax: Arrays, there: str, here: str) -> dict[str, Tensor]:
    return {f"{here}.weight": flax[f"{there}/kernel"].t(), f"{here}.bias": flax[f"{there}/bias"]}


def flax_norm(flax: Arrays, there: str, here: str) -> dict[str, Tensor]:
    return {f"{here}.weight": flax[f"{there}/scale"].flatten(), f"{here}.bias": flax[f"{there}/bias"].flatten()}


def flax_heads(flax: Arrays, there: str, parts: Sequence[str], here: str) -> dict[str, Tensor]:
    """Kernels (in, heads, width), one a part, as one linear layer."""
    return {
        f"{here}.weight": torch.cat([flax[f"{there}/{part}/kernel"].flatten(1).t() for part in parts]),
        f"{here}.bias": torch.cat([flax[f"{there}/{part}/bias"].flatten() for part in parts]),
    }


def flax_joined(flax: Arrays, there: str, here: str) -> dict[str, Tensor]:
    """A kernel (heads, width, out) as a linear layer that reads all heads."""
    return {f"{here}.weight": flax[f"{there}/kernel"].flatten(0, 1).t(), f"{here}.bias": flax[f"{there}/bias"]}


def flax_mlp(flax: Arrays, there: str, here: str) -> dict[str, Tensor]:
    return flax_linear(flax, f"{there}/Dense_0", f"{here}.fc1") | flax_linear(flax, f"{there}/Dense_1", f"{here}.fc2")


# ---------------------------------------------------------------- other people's names

LAYER_SCALE = re.compile(r"\bgamma_([12])$")  # DeiT III
RADIO = "radio_model.model.patch_generator.embedder.weight"


def renamed(state_dict: Mapping[str, Any], names: Mapping[str, str], prefix: str = "") -> dict[str, Any]:
    """What is under `prefix`, without it, each part of a name replaced once (the longest that fits)."""
    longest_first = sorted(names, key=len, reverse=True)
    parts = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    return {
        parts.sub(lambda part: names[part[0]], name[len(prefix) :]): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }


def from_openai(state_dict: Mapping[str, Any], prefix: str = "visual.") -> dict[str, Any]:
    """OpenAI's CLIP, and OpenCLIP where it uses its own towers; the projection becomes the classifier."""
    found = renamed(state_dict, {
        "conv1": "patch_embed.proj", "class_embedding": "cls_token", "positional_embedding": "pos_embed",
        "transformer.resblocks.": "blocks.", "ln_pre": "norm_pre", "ln_post": "norm", "ln_": "norm",
        "in_proj_": "qkv.", "out_proj": "proj", "c_fc": "fc1", "c_proj": "fc2",
    }, prefix)  # fmt: skip
    found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    found["pos_embed"] = found["pos_embed"].unsqueeze(0)
    if "proj" in found:
        found["head.weight"] = found.pop("proj").t()
    return found


def from_openclip(state_dict: Mapping[str, Any], prefix: str = "visual.trunk.") -> dict[str, Any]:
    """OpenCLIP and SigLIP around one of these models; the projection behind it becomes the classifier."""
    found = renamed(state_dict, {}, prefix)
    projection = prefix.replace("trunk.", "head.proj.weight")
    if projection in state_dict:
        found["head.weight"] = state_dict[projection]
    return found


def from_dinov2(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """DINOv2 and TIPS. With registers only the class token has a position, which is added to it for good."""
    found = renamed(state_dict, {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}, prefix)
    del found["mask_token"]
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, 0]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return found


def from_beit3(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """BEiT-3: the vision expert (A) of a multimodal network; its first two positions are unused."""
    vision = {
        name: value
        for name, value in state_dict.items()
        if ".B." not in name and "text_embed" not in name and "mask_token" not in name
    }
    found = renamed(vision, {
        "beit3.": "", "encoder.": "", "vision_embed.cls_token": "cls_token", "vision_embed.": "patch_embed.",
        "embed_positions.": "pos_embed.", "layers.": "blocks.", "self_attn_layer_norm.": "norm1.",
        "final_layer_norm.": "norm2.", "self_attn.": "attn.", "ffn_layernorm.": "norm.", "ffn.": "mlp.",
        "inner_attn_ln": "norm", "out_proj": "proj", "A.": "",
    })  # fmt: skip
    found["pos_embed"] = found.pop("pos_embed.weight")[2:].unsqueeze(0)
    for name in [name for name in found if ".attn.q_proj." in name]:
        parts = [found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        found[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    return found


def from_aimv2(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return renamed(state_dict, {
        "preprocessor.patchifier.": "patch_embed.", "preprocessor.": "", "post_trunk_norm.": "norm.", "trunk.": "",
        "norm_1": "norm1", "norm_2": "norm2", "fc1": "fc1_g", "fc3": "fc1_x",
    })  # fmt: skip


def from_ijepa(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("module."): value for name, value in state_dict["encoder"].items()}


DIALECTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "visual.class_embedding": from_openai,
    "module.visual.class_embedding": partial(from_openai, prefix="module.visual."),
    "mask_token": from_dinov2,
    "vision_encoder.mask_token": partial(from_dinov2, prefix="vision_encoder."),
    "beit3.vision_embed.cls_token": from_beit3,
    "encoder": from_ijepa,
    "visual.trunk.patch_embed.proj.weight": from_openclip,
    "module.visual.trunk.patch_embed.proj.weight": partial(from_openclip, prefix="module.visual.trunk."),
    "preprocessor.patchifier.proj.weight": from_aimv2,
}
"""The tensor by which a dialect is known, and what translates it."""


# ---------------------------------------------------------------- variants

TINY = dict(embed_dim=192, num_heads=3)
SMALL = dict(embed_dim=384, num_heads=6)
MEDIUM = dict(embed_dim=512, num_heads=8)
BETWIXT = dict(embed_dim=640, num_heads=10)
BASE = dict(embed_dim=768, depth=12, num_heads=12)
PLUS = dict(embed_dim=896, num_heads=14)
LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
HUGE = dict(embed_dim=1280, depth=32, num_heads=16)
GIANT = dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=48 / 11)
GIANTOPT = dict(embed_dim=1536, depth=40, num_heads=16)
GIGANTIC = dict(embed_dim=1664, depth=48, num_heads=16, mlp_ratio=64 / 13)

# shapes found by scaling laws (SoViT), and small ones that trade width for depth
SO400M = dict(embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.7362)
SO150M = dict(embed_dim=896, depth=18, num_heads=14, mlp_ratio=2.572)
SO150M2 = dict(embed_dim=832, depth=21, num_heads=13, mlp_ratio=34 / 13, qkv_bias=False)
LITTLE = dict(embed_dim=320, depth=14, num_heads=5, mlp_ratio=5.6)
WEE = dict(embed_dim=256, depth=14, num_heads=4, mlp_ratio=5)
PWEE = WEE | dict(depth=16)
MEDIUMD = MEDIUM | dict(depth=20)

P8 = dict(patch_size=8)
P14 = dict(patch_size=14)
P16 = dict(patch_size=16)
P32 = dict(patch_size=32)

SCALE = dict(init_values=1e-5)  # layer scale
MEAN = dict(class_token=False, global_pool="avg")  # the mean of the patches, a norm behind it
GAP = MEAN | dict(fc_norm=False)  # the mean of the normed patches
REG1 = dict(reg_tokens=1, no_embed_class=True)  # registers, positions for the patches only
REG4 = dict(reg_tokens=4, no_embed_class=True)
REG7 = dict(reg_tokens=7, no_embed_class=True)
REG9 = dict(reg_tokens=9, no_embed_class=True)
MAP = dict(class_token=False, global_pool="map")  # attention pooling, SigLIP's
TANH = dict(act_layer="gelu_tanh")
CLIP = dict(pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5))
QUICK = CLIP | dict(act_layer="quick_gelu")
XP = dict(pre_norm=True, no_embed_class=True, norm_layer=RmsNorm, block_fn=ParallelScalingBlock, qkv_bias=False,
          qk_norm=True)  # fmt: skip
BEIT3 = dict(scale_attn_norm=True, scale_mlp_norm=True, global_pool="avg", norm_layer=partial(LayerNorm, eps=1e-5))
AIM2 = P14 | GAP | dict(
    depth=24, qkv_bias=False, proj_bias=False, act_layer="silu", norm_layer=partial(RmsNorm, eps=1e-5),
    embed_norm_layer=partial(RmsNorm, eps=1e-5), mlp_layer=SwiGLU,
)  # fmt: skip
AIM2_L = AIM2 | dict(embed_dim=1024, num_heads=8, mlp_ratio=2.75)
AIM2_H = AIM2 | dict(embed_dim=1536, num_heads=12, mlp_ratio=2.6667)
AIM2_1B = AIM2 | dict(embed_dim=2048, num_heads=16, mlp_ratio=2.75)
AIM2_3B = AIM2 | dict(embed_dim=3072, num_heads=24, mlp_ratio=2.6667)
DINO2_G = dict(embed_dim=1536, depth=40, num_heads=24, mlp_ratio=5.33334, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU)
TIPS = P14 | REG1 | dict(init_values=1.0)
FLEXI = P16 | dict(no_embed_class=True, resampling=dict(interpolation="bilinear", antialias=False))
RADIO_3 = dict(img_size=512, final_norm=False, resampling=dict(interpolation="bilinear", antialias=False,
               align_corners=False)) | P16 | REG7  # fmt: skip
RADIO_4 = RADIO_3 | REG9
CORNERS = dict(resampling=dict(interpolation="bilinear", antialias=False, align_corners=True))

family = Family(VisionTransformer, {
    "vit_tiny_patch16_224": P16 | TINY,
    "vit_tiny_patch16_384": P16 | TINY,
    "vit_small_patch32_224": P32 | SMALL,
    "vit_small_patch32_384": P32 | SMALL,
    "vit_small_patch16_224": P16 | SMALL,
    "vit_small_patch16_384": P16 | SMALL,
    "vit_small_patch8_224": P8 | SMALL,
    "vit_base_patch32_224": P32 | BASE,
    "vit_base_patch32_384": P32 | BASE,
    "vit_base_patch16_224": P16 | BASE,
    "vit_base_patch16_384": P16 | BASE,
    "vit_base_patch8_224": P8 | BASE,
    "vit_large_patch32_224": P32 | LARGE,
    "vit_large_patch32_384": P32 | LARGE,
    "vit_large_patch16_224": P16 | LARGE,
    "vit_large_patch16_384": P16 | LARGE,
    "vit_large_patch14_224": P14 | LARGE,
    "vit_huge_patch14_224": P14 | HUGE,
    "vit_giant_patch14_224": P14 | GIANT,
    "vit_gigantic_patch14_224": P14 | GIGANTIC,

    "vit_base_patch16_224_miil": P16 | BASE | dict(qkv_bias=False),
    "vit_medium_patch16_gap_240": P16 | MEDIUM | GAP | dict(qkv_bias=False, init_values=1e-6),
    "vit_medium_patch16_gap_256": P16 | MEDIUM | GAP | dict(qkv_bias=False, init_values=1e-6),
    "vit_medium_patch16_gap_384": P16 | MEDIUM | GAP | dict(qkv_bias=False, init_values=1e-6),
    "vit_betwixt_patch16_gap_256": P16 | BETWIXT | GAP | dict(qkv_bias=False, init_values=1e-6),
    "vit_base_patch16_gap_224": P16 | BASE | GAP | dict(num_heads=16),
    "vit_huge_patch14_gap_224": P14 | HUGE | GAP,
    "vit_huge_patch16_gap_448": P16 | HUGE | GAP,
    "vit_giant_patch16_gap_224": P16 | GIANT | GAP,

    "vit_xsmall_patch16_clip_224": P16 | CLIP | dict(embed_dim=256, depth=10, num_heads=4),
    "vit_medium_patch32_clip_224": P32 | CLIP | MEDIUM,
    "vit_medium_patch16_clip_224": P16 | CLIP | MEDIUM,
    "vit_betwixt_patch32_clip_224": P32 | CLIP | BETWIXT,
    "vit_base_patch32_clip_224": P32 | CLIP | BASE,
    "vit_base_patch32_clip_256": P32 | CLIP | BASE,
    "vit_base_patch32_clip_384": P32 | CLIP | BASE,
    "vit_base_patch32_clip_448": P32 | CLIP | BASE,
    "vit_base_patch16_clip_224": P16 | CLIP | BASE,
    "vit_base_patch16_clip_384": P16 | CLIP | BASE,
    "vit_base_patch16_plus_clip_240": P16 | CLIP | PLUS,
    "vit_large_patch14_clip_224": P14 | CLIP | LARGE,
    "vit_large_patch14_clip_336": P14 | CLIP | LARGE,
    "vit_huge_patch14_clip_224": P14 | CLIP | HUGE,
    "vit_huge_patch14_clip_336": P14 | CLIP | HUGE,
    "vit_huge_patch14_clip_378": P14 | CLIP | HUGE,
    "vit_giant_patch14_clip_224": P14 | CLIP | GIANT,
    "vit_gigantic_patch14_clip_224": P14 | CLIP | GIGANTIC,
    "vit_gigantic_patch14_clip_378": P14 | CLIP | GIGANTIC,
    "vit_base_patch32_clip_quickgelu_224": P32 | QUICK | BASE,
    "vit_base_patch16_clip_quickgelu_224": P16 | QUICK | BASE,
    "vit_large_patch14_clip_quickgelu_224": P14 | QUICK | LARGE,
    "vit_large_patch14_clip_quickgelu_336": P14 | QUICK | LARGE,
    "vit_huge_patch14_clip_quickgelu_224": P14 | QUICK | HUGE,
    "vit_huge_patch14_clip_quickgelu_378": P14 | QUICK | HUGE,
    "vit_gigantic_patch14_clip_quickgelu_224": P14 | QUICK | GIGANTIC,

    "vit_base_patch32_plus_256": P32 | PLUS | SCALE,
    "vit_base_patch16_plus_240": P16 | PLUS | SCALE,
    "vit_base_patch16_rpn_224": P16 | BASE | MEAN | SCALE | dict(qkv_bias=False, block_fn=ResPostBlock),
    "vit_small_patch16_36x1_224": P16 | SMALL | SCALE | dict(depth=36),
    "vit_small_patch16_18x2_224": P16 | SMALL | SCALE | dict(depth=18, block_fn=ParallelThingsBlock),
    "vit_base_patch16_18x2_224": P16 | BASE | SCALE | dict(depth=18, block_fn=ParallelThingsBlock),
    "vit_base_patch16_xp_224": P16 | BASE | XP,
    "vit_large_patch14_xp_224": P14 | LARGE | XP,
    "vit_huge_patch14_xp_224": P14 | HUGE | XP,

    "eva_large_patch14_196": P14 | LARGE | dict(global_pool="avg"),
    "eva_large_patch14_336": P14 | LARGE | dict(global_pool="avg"),
    "beit3_base_patch16_224": P16 | BASE | BEIT3,
    "beit3_large_patch16_224": P16 | LARGE | BEIT3,
    "beit3_giant_patch14_224": P14 | GIANT | BEIT3,
    "beit3_giant_patch14_336": P14 | GIANT | BEIT3 | dict(img_size=336),
    "flexivit_small": SMALL | FLEXI,
    "flexivit_base": BASE | FLEXI,
    "flexivit_large": LARGE | FLEXI,

    "vit_small_patch14_dinov2": P14 | SMALL | SCALE,
    "vit_base_patch14_dinov2": P14 | BASE | SCALE,
    "vit_large_patch14_dinov2": P14 | LARGE | SCALE,
    "vit_giant_patch14_dinov2": P14 | DINO2_G | SCALE,
    "vit_small_patch14_reg4_dinov2": P14 | SMALL | SCALE | REG4,
    "vit_base_patch14_reg4_dinov2": P14 | BASE | SCALE | REG4,
    "vit_large_patch14_reg4_dinov2": P14 | LARGE | SCALE | REG4,
    "vit_giant_patch14_reg4_dinov2": P14 | DINO2_G | SCALE | REG4,
    "vit_base_patch14_reg1_tipsv2": BASE | TIPS,
    "vit_large_patch14_reg1_tipsv2": LARGE | TIPS,
    "vit_so400m_patch14_reg1_tipsv2": SO400M | TIPS,
    "vit_giant_patch14_reg1_tipsv2": DINO2_G | TIPS,

    "vit_base_patch32_siglip_256": P32 | BASE | MAP | TANH,
    "vit_base_patch16_siglip_224": P16 | BASE | MAP,
    "vit_base_patch16_siglip_256": P16 | BASE | MAP,
    "vit_base_patch16_siglip_384": P16 | BASE | MAP,
    "vit_base_patch16_siglip_512": P16 | BASE | MAP,
    "vit_large_patch16_siglip_256": P16 | LARGE | MAP,
    "vit_large_patch16_siglip_384": P16 | LARGE | MAP,
    "vit_large_patch16_siglip_512": P16 | LARGE | MAP | TANH,
    "vit_so400m_patch14_siglip_224": P14 | SO400M | MAP,
    "vit_so400m_patch14_siglip_378": P14 | SO400M | MAP,
    "vit_so400m_patch14_siglip_384": P14 | SO400M | MAP,
    "vit_so400m_patch16_siglip_256": P16 | SO400M | MAP | TANH,
    "vit_so400m_patch16_siglip_384": P16 | SO400M | MAP | TANH,
    "vit_so400m_patch16_siglip_512": P16 | SO400M | MAP | TANH,
    "vit_giantopt_patch16_siglip_256": P16 | GIANTOPT | MAP | TANH,
    "vit_giantopt_patch16_siglip_384": P16 | GIANTOPT | MAP | TANH,
    "vit_base_patch32_siglip_gap_256": P32 | BASE | GAP | TANH,
    "vit_base_patch16_siglip_gap_224": P16 | BASE | GAP,
    "vit_base_patch16_siglip_gap_256": P16 | BASE | GAP,
    "vit_base_patch16_siglip_gap_384": P16 | BASE | GAP,
    "vit_base_patch16_siglip_gap_512": P16 | BASE | GAP,
    "vit_large_patch16_siglip_gap_256": P16 | LARGE | GAP,
    "vit_large_patch16_siglip_gap_384": P16 | LARGE | GAP,
    "vit_large_patch16_siglip_gap_512": P16 | LARGE | GAP | TANH,
    "vit_so400m_patch14_siglip_gap_224": P14 | SO400M | GAP,
    "vit_so400m_patch14_siglip_gap_378": P14 | SO400M | GAP,
    "vit_so400m_patch14_siglip_gap_384": P14 | SO400M | GAP,
    "vit_so400m_patch14_siglip_gap_448": P14 | SO400M | GAP,
    "vit_so400m_patch14_siglip_gap_896": P14 | SO400M | GAP,
    "vit_so400m_patch16_siglip_gap_256": P16 | SO400M | GAP | TANH,
    "vit_so400m_patch16_siglip_gap_384": P16 | SO400M | GAP | TANH,
    "vit_so400m_patch16_siglip_gap_512": P16 | SO400M | GAP | TANH,
    "vit_giantopt_patch16_siglip_gap_256": P16 | GIANTOPT | GAP | TANH,
    "vit_giantopt_patch16_siglip_gap_384": P16 | GIANTOPT | GAP | TANH,

    "vit_wee_patch16_reg1_gap_256": P16 | WEE | MEAN | SCALE | REG1,
    "vit_dwee_patch16_reg1_gap_256": P16 | WEE | MEAN | SCALE | REG1 | dict(attn_layer="diff"),
    "vit_pwee_patch16_reg1_gap_256": P16 | PWEE | MEAN | SCALE | REG1 | dict(block_fn=ParallelScalingBlock),
    "vit_dpwee_patch16_reg1_gap_256": P16 | PWEE | MEAN | SCALE | REG1 | dict(block_fn=DiffParallelScalingBlock),
    "vit_little_patch16_reg1_gap_256": P16 | LITTLE | MEAN | SCALE | REG1,
    "vit_dlittle_patch16_reg1_gap_256": P16 | LITTLE | MEAN | SCALE | REG1 | dict(attn_layer="diff"),
    "vit_little_patch16_reg4_gap_256": P16 | LITTLE | MEAN | SCALE | REG4,
    "vit_medium_patch16_reg1_gap_256": P16 | MEDIUM | MEAN | SCALE | REG1,
    "vit_medium_patch16_reg4_gap_256": P16 | MEDIUM | MEAN | SCALE | REG4,
    "vit_mediumd_patch16_reg4_gap_256": P16 | MEDIUMD | MEAN | SCALE | REG4,
    "vit_mediumd_patch16_reg4_gap_384": P16 | MEDIUMD | MEAN | SCALE | REG4,
    "vit_betwixt_patch16_reg1_gap_256": P16 | BETWIXT | MEAN | SCALE | REG1,
    "vit_betwixt_patch16_reg4_gap_256": P16 | BETWIXT | MEAN | SCALE | REG4,
    "vit_betwixt_patch16_reg4_gap_384": P16 | BETWIXT | MEAN | SCALE | REG4,
    "vit_base_patch16_reg4_gap_256": P16 | BASE | MEAN | REG4,
    "vit_so150m_patch16_reg4_map_256": P16 | SO150M | MAP | dict(reg_tokens=4),
    "vit_so150m_patch16_reg4_gap_256": P16 | SO150M | GAP | dict(reg_tokens=4),
    "vit_so150m_patch16_reg4_gap_384": P16 | SO150M | GAP | dict(reg_tokens=4),
    "vit_so150m2_patch16_reg1_gap_256": P16 | SO150M2 | MEAN | SCALE | dict(reg_tokens=1),
    "vit_so150m2_patch16_reg1_gap_384": P16 | SO150M2 | MEAN | SCALE | dict(reg_tokens=1),
    "vit_so150m2_patch16_reg1_gap_448": P16 | SO150M2 | MEAN | SCALE | dict(reg_tokens=1),
    "vit_intern300m_patch14_448": P14 | LARGE | dict(init_values=0.1, final_norm=False, dynamic_img_size=True),

    "aimv2_large_patch14_224": AIM2_L,
    "aimv2_large_patch14_336": AIM2_L,
    "aimv2_large_patch14_448": AIM2_L,
    "aimv2_huge_patch14_224": AIM2_H,
    "aimv2_huge_patch14_336": AIM2_H,
    "aimv2_huge_patch14_448": AIM2_H,
    "aimv2_1b_patch14_224": AIM2_1B,
    "aimv2_1b_patch14_336": AIM2_1B,
    "aimv2_1b_patch14_448": AIM2_1B,
    "aimv2_3b_patch14_224": AIM2_3B,
    "aimv2_3b_patch14_336": AIM2_3B,
    "aimv2_3b_patch14_448": AIM2_3B,

    "vit_base_patch16_radio_v3": BASE | RADIO_3 | SCALE | CORNERS,
    "vit_large_patch16_radio_v3": LARGE | RADIO_3 | SCALE,
    "vit_huge_patch16_radio_v3": HUGE | RADIO_3 | CORNERS,
    "vit_giant_patch16_radio_v3": GIANTOPT | RADIO_3 | dict(num_heads=24),
    "vit_so400m_patch16_radio_v4": SO400M | RADIO_4,
    "vit_huge_patch16_radio_v4": HUGE | RADIO_4,

    "test_vit": P16 | dict(embed_dim=64, depth=6, num_heads=2, mlp_ratio=3, dynamic_img_size=True),
    "test_vit2": P16 | MEAN | SCALE | dict(
        embed_dim=64, depth=8, num_heads=2, mlp_ratio=3, reg_tokens=1, dynamic_img_size=True,
    ),
    "test_vit3": P16 | MAP | SCALE | dict(
        embed_dim=96, depth=9, num_heads=3, mlp_ratio=2, reg_tokens=1, pool_include_prefix=True,
    ),
    "test_vit4": P16 | MEAN | SCALE | dict(
        embed_dim=96, depth=9, num_heads=3, mlp_ratio=3, reg_tokens=1, dynamic_img_size=True, norm_layer="rmsnorm",
    ),
})  # fmt: skip

__getattr__ = family.entrypoint
