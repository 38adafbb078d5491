"""CMT: convolutional networks meet vision transformers (Guo et al. 2021, arXiv 2107.06263).

A strided stem, then four stages, each an embedding of 2 x 2 patches and blocks of three residual branches: a depthwise
convolution (local perception), attention whose keys and values come from a grid made smaller by a strided depthwise
convolution, with learned relative positions, and an inverted residual as feed-forward network.

MindCV's version keeps the relative positions at zero and so publishes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.attention import attend
from ..layers.config import use_fused_attn
from ..layers.create_act import get_act_layer
from ..layers.drop import DropPath
from ..layers.guards import blocks, surely_equal, traced_whole
from ..layers.norm import LayerNorm
from ..layers.padding import pad_to_multiple
from ..layers.patch_embed import PatchEmbed
from ..layers.pos_embed import resize_grid
from ..layers.shapes import to_2tuple
from ..layers.typing import LayerType
from ..layers.weight_init import trunc_normal_

__all__ = ["CMT"]

STAGES = "abcd"


@traced_whole
def resample_relative_pos(positions: Tensor, old: Sequence[int], new: Sequence[Any], sr_ratio: int) -> Tensor:
    """Relative positions (heads, queries, keys) of the grid `old` at the grid `new`, (rows, columns) of the queries.

    The keys' grid is `sr_ratio` times smaller a side. Bicubic over the queries' grid, then over that of the keys; those
    of the size asked for come back untouched.
    """
    if surely_equal(new, old):
        return positions
    queries = resize_grid(positions.unflatten(1, tuple(old)), new, "bicubic", antialias=False).flatten(1, 2)
    keys = queries.transpose(1, 2).unflatten(1, [blocks(side, sr_ratio) for side in old])
    keys = resize_grid(keys, [blocks(side, sr_ratio) for side in new], "bicubic", antialias=False)
    return keys.flatten(1, 2).transpose(1, 2)


class ReducedAttention(nn.Module):
    """Attention with relative positions, keys and values from a smaller grid: (B, H, W, dim) to (B, H, W, dim).

    A grid that `sr_ratio` does not divide is filled up with zeros for them, below and to the right.
    """

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool, attn_drop: float, proj_drop: float
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise BadArgument(f"a stage of {dim} channels does not divide into {num_heads} heads; change embed_dims or num_heads")
        self.head_dim = dim // num_heads
        self.sr_ratio = sr_ratio
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.sr: nn.Module | None = None
        if sr_ratio > 1:
            self.sr = nn.Sequential(nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, groups=dim), nn.BatchNorm2d(dim))
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, relative_pos: Tensor) -> Tensor:
        cells = source = x.flatten(1, 2)
        if self.sr is not None:
            source = self.sr(pad_to_multiple(x.permute(0, 3, 1, 2), self.sr_ratio)).flatten(2).transpose(1, 2)
        q, k, v = self.by_head(self.q(cells)), self.by_head(self.k(source)), self.by_head(self.v(source))
        read = attend(q, k, v, fused=self.fused_attn, attn_mask=relative_pos[None], drop=self.attn_drop)
        return self.proj_drop(self.proj(read.transpose(1, 2).reshape(x.shape)))


class InvertedResidual(nn.Module):
    """Channels widened, a residual depthwise convolution, channels narrowed: (B, dim, H, W) to (B, dim, H, W)."""

    def __init__(self, dim: int, hidden: int, act: type[nn.Module], drop: float) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(dim, hidden, 1), act(), nn.BatchNorm2d(hidden))
        self.drop1 = nn.Dropout(drop)
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_act = act()
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.conv1(x))
        x = self.proj_bn(self.proj_act(x + self.proj(x)))
        return self.drop2(self.conv2(x))


class Block(nn.Module):
    """Local perception, attention and an inverted residual, each added to its input: (B, dim, H, W) to (B, dim, H, W)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        act: type[nn.Module],
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = ReducedAttention(dim, num_heads, sr_ratio, qkv_bias, attn_drop, proj_drop)
        self.drop_path = DropPath()
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.mlp = InvertedResidual(dim, int(dim * mlp_ratio), act, proj_drop)

    def forward(self, x: Tensor, relative_pos: Tensor) -> Tensor:
        x = x + self.proj(x)
        read = self.attn(self.norm1(x.permute(0, 2, 3, 1)), relative_pos)
        x = x + self.drop_path(read.permute(0, 3, 1, 2))
        return x + self.drop_path(self.mlp(self.norm2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


class CMT(Backbone):
    """A stem of three convolutions, four stages, a 1x1 convolution, average pooling.

    - `img_size`: of the images that the relative positions are learned for, in pixels. For other images they are
      resampled (bicubic), and maps that are not of whole patches are filled up with zeros below and to the right.
    - `stem_channel`, `fc_dim`: channels of the stem and of the convolution before the pooling.
    - `embed_dims`, `depths`, `num_heads`, `mlp_ratios`, `sr_ratios`: of each stage, its width, blocks, attention
      heads, hidden width over width, and how many times smaller a side the grid of the keys is.
    - `proj_drop_rate`, `attn_drop_rate`: dropout of the branches' outputs and of attention shares.
    - `norm_eps`: of the layer norms.
    """

    units = r"blocks_(\w)\.(\d+)"
    not_decayed = frozenset({"relative_pos_*"})

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[float],
        stem_channel: int,
        num_heads: Sequence[int] = (1, 2, 4, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        fc_dim: int = 1280,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        act_layer: LayerType = nn.GELU,
        norm_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        act: Any = get_act_layer(act_layer)
        self.sr_ratios = tuple(sr_ratios)
        self.grids: list[tuple[int, int]] = []

        self.stem_act = act()
        self.stem_conv1 = nn.Conv2d(in_chans, stem_channel, 3, stride=2, padding=1)
        self.stem_norm1 = nn.BatchNorm2d(stem_channel)
        self.stem_conv2 = nn.Conv2d(stem_channel, stem_channel, 3, padding=1)
        self.stem_norm2 = nn.BatchNorm2d(stem_channel)
        self.stem_conv3 = nn.Conv2d(stem_channel, stem_channel, 3, padding=1)
        self.stem_norm3 = nn.BatchNorm2d(stem_channel)
        self.plan.spend(2)
        self.plan.mark(stem_channel, "stem_norm3")

        height, width = (blocks(side, 2) for side in to_2tuple(img_size))
        chs = stem_channel
        for i, (stage, dim) in enumerate(zip(STAGES, embed_dims)):
            height, width = blocks(height, 2), blocks(width, 2)
            self.grids.append((height, width))
            keys = blocks(height, sr_ratios[i]) * blocks(width, sr_ratios[i])
            embed = PatchEmbed(None, 2, chs, dim, output_fmt="NHWC", norm_layer=LayerNorm, dynamic_img_pad=True)
            embed.norm = LayerNorm(dim, eps=norm_eps)
            self.add_module(f"patch_embed_{stage}", embed)
            self.register_parameter(f"relative_pos_{stage}", nn.Parameter(torch.zeros(num_heads[i], height * width, keys)))
            cells = (
                Block(dim, num_heads[i], mlp_ratios[i], sr_ratios[i], qkv_bias, attn_drop_rate, proj_drop_rate, act, norm_eps)
                for _ in range(depths[i])
            )
            self.add_module(f"blocks_{stage}", nn.ModuleList(cells))
            self.plan.spend(2)
            self.plan.mark(dim, f"blocks_{stage}")
            chs = dim

        self._fc = nn.Conv2d(chs, fc_dim, 1)
        self._bn = nn.BatchNorm2d(fc_dim)
        self.make_head("head", width=fc_dim)

    def runs_after(self, level: str) -> list[str]:
        later = STAGES if level == "stem_norm3" else STAGES[STAGES.index(level[-1]) + 1 :]
        return [f"relative_pos_{stage}" for stage in later]

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.stem_norm1(self.stem_act(self.stem_conv1(x)))
        x = self.stem_norm2(self.stem_act(self.stem_conv2(x)))
        x = self.stem_norm3(self.stem_act(self.stem_conv3(x)))
        yield x
        for stage, trained_for, sr_ratio in zip(STAGES, self.grids, self.sr_ratios):
            x = self._part(f"patch_embed_{stage}")(x).permute(0, 3, 1, 2)
            positions = self._part(f"relative_pos_{stage}")
            positions = resample_relative_pos(positions, trained_for, x.shape[2:4], sr_ratio)
            for block in self._part(f"blocks_{stage}"):
                x = block(x, positions)
            yield x
        yield F.silu(self._bn(self._fc(x)))

    # ---------------------------------------------------------------- weights

    def init_weights(self) -> None:
        """Convolutions by their outgoing connections (He), linear layers with a std of 0.02, positions with 1; no biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                module.reset_parameters()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for positions in self.parameters(recurse=False):
            nn.init.normal_(positions)

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Relative positions that were learned at another (square) image size are resampled; MindCV's are zero."""
        found = dict(state_dict)
        own = dict(self.named_parameters(recurse=False))
        has_none = not any(name.startswith("relative_pos_") for name in found)
        for stage, grid, sr_ratio in zip(STAGES, self.grids, self.sr_ratios):
            name = f"relative_pos_{stage}"
            if has_none and name in own and f"patch_embed_{stage}.norm.weight" in found:
                found[name] = torch.zeros_like(own[name])
            elif name in found and name in own and found[name].shape[1] != own[name].shape[1]:
                side = int(found[name].shape[1] ** 0.5)
                found[name] = resample_relative_pos(found[name], (side, side), grid, sr_ratio)
        return found


TINY = dict(embed_dims=(46, 92, 184, 368), depths=(2, 2, 10, 2), mlp_ratios=(3.6, 3.6, 3.6, 3.6), stem_channel=16)
XSMALL = dict(embed_dims=(52, 104, 208, 416), depths=(3, 3, 12, 3), mlp_ratios=(3.8, 3.8, 3.8, 3.8), stem_channel=16)
SMALL = dict(embed_dims=(64, 128, 256, 512), depths=(3, 3, 16, 3), mlp_ratios=(4, 4, 4, 4), stem_channel=32)
BASE = dict(embed_dims=(76, 152, 304, 608), depths=(4, 4, 20, 4), mlp_ratios=(4, 4, 4, 4), stem_channel=38)

family = Family(CMT, {
    "cmt_tiny": TINY | dict(img_size=160),
    "cmt_xsmall": XSMALL | dict(img_size=192),
    "cmt_small": SMALL | dict(img_size=224),
    "cmt_base": BASE | dict(img_size=256),
})  # fmt: skip
__getattr__ = family.entrypoint
