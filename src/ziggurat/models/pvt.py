"""Pyramid Vision Transformer (Wang et al. 2021, arXiv 2102.12122).

Four stages of transformer blocks, each on a coarser grid of patches and with learned positions of its own. Keys and
values are read from a grid that a strided convolution made smaller (spatial-reduction attention), which is what lets
attention span the whole image at stride 4. A class token joins at the last stage and is classified.

Names are those of the authors' checkpoints, `block1.0.attn.q.weight`; MindCV's `Blocks.0.0` become them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.attention import attend
from ..layers.config import use_fused_attn
from ..layers.create_act import get_act_layer
from ..layers.drop import DropPath
from ..layers.guards import blocks
from ..layers.mlp import Mlp
from ..layers.norm import LayerNorm
from ..layers.padding import pad_to_multiple
from ..layers.patch_embed import PatchEmbed
from ..layers.pool1d import global_pool_nlc
from ..layers.pos_embed import resample_abs_pos_embed
from ..layers.shapes import to_2tuple
from ..layers.typing import LayerType
from ..layers.weight_init import trunc_normal_

__all__ = ["PyramidVisionTransformer"]

POOLS = ("", "token", "avg", "avgmax", "max")


class MapPatchEmbed(PatchEmbed):
    """Patches of a map, each through one linear layer and a norm: (B, H, W, C) to (B, H', W', embed_dim).

    A map that is not of whole patches is filled up with zeros, below and to the right.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__(None, patch_size, in_chans, embed_dim, norm_layer=LayerNorm, output_fmt="NHWC", dynamic_img_pad=True)
        self.norm = LayerNorm(embed_dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class ReducedAttention(nn.Module):
    """Attention whose keys and values come from a grid `sr_ratio` times smaller a side: (B, N, dim) to (B, N, dim).

    A grid that `sr_ratio` does not divide is filled up with zeros for them, below and to the right.
    """

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool, attn_drop: float, proj_drop: float, norm_eps: float
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise BadArgument(f"a stage of {dim} channels does not divide into {num_heads} heads; change embed_dims or num_heads")
        self.head_dim = dim // num_heads
        self.sr_ratio = sr_ratio
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio) if sr_ratio > 1 else None
        self.norm = LayerNorm(dim, eps=norm_eps) if sr_ratio > 1 else None
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, grid: Sequence[Any]) -> Tensor:
        """Tokens `x` that are the cells of a `grid`, (rows, columns), behind a class token where nothing is reduced."""
        q = self.q(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        source = x
        if self.sr is not None and self.norm is not None:
            cells = x.unflatten(1, (grid[0], grid[1])).permute(0, 3, 1, 2)
            cells = pad_to_multiple(cells, self.sr_ratio)
            source = self.norm(self.sr(cells).flatten(2).transpose(1, 2))
        k, v = self.kv(source).unflatten(2, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        read = attend(q, k, v, fused=self.fused_attn, drop=self.attn_drop)
        return self.proj_drop(self.proj(read.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """A residual branch of attention over reduced keys, then one of an MLP: (B, N, dim) to (B, N, dim)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        act_layer: LayerType,
        attn_norm_eps: float,
        sr_norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=attn_norm_eps)
        self.attn = ReducedAttention(dim, num_heads, sr_ratio, qkv_bias, attn_drop, proj_drop, sr_norm_eps)
        self.drop_path = DropPath()
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop)

    def forward(self, x: Tensor, grid: Sequence[Any]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PyramidVisionTransformer(Backbone):
    """Four stages of patch embedding, positions and blocks; the class token of the last is classified.

    - `img_size`: of the images that the positions are learned for, in pixels. For other images they are resampled
      (bilinear, as the authors do), and what is not of whole patches is filled up with zeros below and to the right.
    - `patch_size`: side of the first stage's patches; later stages embed 2 x 2 cells of the stage before.
    - `embed_dims`, `depths`, `num_heads`, `mlp_ratios`, `sr_ratios`: of each stage, its width, blocks, attention
      heads, hidden width over width, and how many times smaller a side the grid of the keys is.
    - `global_pool`: 'token' takes the class token; 'avg', 'max' and 'avgmax' pool the patches; '' leaves the tokens.
    - `pos_drop_rate`, `proj_drop_rate`, `attn_drop_rate`: dropout of embedded tokens, of the branches' outputs and of
      attention shares.
    - `attn_norm_eps`, `sr_norm_eps`: of the norm before attention and of the one before keys and values.
    """

    layout = "NHWC"
    units = r"block(\d+)\.(\d+)"
    final_norm = "norm"
    ends_in_tokens = True
    not_decayed = frozenset({"pos_embed*", "cls_token"})

    cls_token: nn.Parameter
    global_pool: Any

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float],
        sr_ratios: Sequence[int],
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        qkv_bias: bool = True,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        act_layer: LayerType = nn.GELU,
        attn_norm_eps: float = 1e-6,
        sr_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        self._check_pool(global_pool)
        if sr_ratios[-1] != 1:
            raise BadArgument(f"sr_ratios={tuple(sr_ratios)}: the last stage has a class token, which is in no grid; give it 1")
        self.depth = len(depths)
        self.grids: list[tuple[int, int]] = []
        act: Any = get_act_layer(act_layer)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        height, width = to_2tuple(img_size)
        chs, side = in_chans, patch_size
        for i, dim in enumerate(embed_dims):
            height, width = blocks(height, side), blocks(width, side)
            self.grids.append((height, width))
            positions = height * width + self._prefix(i)
            self.add_module(f"patch_embed{i + 1}", MapPatchEmbed(side, chs, dim))
            self.register_parameter(f"pos_embed{i + 1}", nn.Parameter(torch.zeros(1, positions, dim)))
            stage = (
                Block(dim, num_heads[i], mlp_ratios[i], sr_ratios[i], qkv_bias, attn_drop_rate, proj_drop_rate, act,
                      attn_norm_eps, sr_norm_eps)
                for _ in range(depths[i])
            )  # fmt: skip
            self.add_module(f"block{i + 1}", nn.ModuleList(stage))
            self.plan.spend(side)
            self.plan.mark(dim, f"block{i + 1}")
            chs, side = dim, 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, chs))
        self.norm = LayerNorm(chs, eps=1e-6)
        self.global_pool = global_pool
        self.make_head("head", width=chs, hidden=chs)
        self.head = self.new_classifier("head")

    def _prefix(self, stage: int) -> int:
        """How many tokens stand before the patches of a stage, counted from 0."""
        return int(stage == self.depth - 1)

    def runs_after(self, level: str) -> list[str]:
        reached = int(level.removeprefix("block"))
        later = [f"pos_embed{i}" for i in range(reached + 1, self.depth + 1)]
        return [*later, "cls_token"] if later else []

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = x.permute(0, 2, 3, 1)
        for i, trained_for in enumerate(self.grids):
            x = self._part(f"patch_embed{i + 1}")(x)
            grid, prefix = x.shape[1:3], self._prefix(i)
            x = x.flatten(1, 2)
            if prefix:
                x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
            positions = self._part(f"pos_embed{i + 1}")
            x = self.pos_drop(x + resample_abs_pos_embed(positions, grid, trained_for, prefix, "bilinear", antialias=False))
            for block in self._part(f"block{i + 1}"):
                x = block(x, grid)
            tokens = x
            x = tokens[:, prefix:].unflatten(1, (grid[0], grid[1]))
            yield x
        yield self.norm(tokens)

    # ---------------------------------------------------------------- head

    def _check_pool(self, global_pool: str) -> None:
        if global_pool not in POOLS:
            raise BadArgument(f"global_pool={global_pool!r}: give one of {', '.join(map(repr, POOLS))}")

    def pool(self, x: Tensor) -> Tensor:
        if self._stops_at is None:
            return global_pool_nlc(x, self.global_pool)
        if self.global_pool == "token":
            raise BadArgument("global_pool='token': the class token was pruned away; reset_classifier with 'avg' or 'max'")
        return global_pool_nlc(x.flatten(1, 2), self.global_pool, num_prefix_tokens=0) if self.global_pool else x

    def set_pool(self, global_pool: str) -> None:
        self._check_pool(global_pool)
        self.global_pool = global_pool

    def drop_head(self) -> None:
        super().drop_head()
        self._hidden = self.num_features  # less than before where later levels were pruned

    # ---------------------------------------------------------------- weights

    def init_weights(self) -> None:
        """Linear layers, positions and class token from a normal distribution of std 0.02, cut at 2; no biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv2d, nn.LayerNorm)):
                module.reset_parameters()
        for parameter in self.parameters(recurse=False):
            trunc_normal_(parameter, std=0.02)

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Positions that were learned at another (square) image size are resampled to this one."""
        found = dict(state_dict)
        for i, grid in enumerate(self.grids):
            name = f"pos_embed{i + 1}"
            if name in found and found[name].shape[1] != grid[0] * grid[1] + self._prefix(i):
                found[name] = resample_abs_pos_embed(
                    found[name], grid, num_prefix_tokens=self._prefix(i), interpolation="bilinear", antialias=False
                )
        return found


STAGES = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4), sr_ratios=(8, 4, 2, 1))

family = Family(PyramidVisionTransformer, {
    "pvt_tiny": STAGES | dict(depths=(2, 2, 2, 2)),
    "pvt_small": STAGES | dict(depths=(3, 4, 6, 3)),
    "pvt_medium": STAGES | dict(depths=(3, 4, 18, 3)),
    "pvt_large": STAGES | dict(depths=(3, 8, 27, 3)),
})  # fmt: skip
__getattr__ = family.entrypoint
