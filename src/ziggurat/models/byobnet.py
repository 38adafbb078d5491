"""Bring your own blocks: one trunk for convolutional networks that are a stem, stages of stock blocks and a head.

- GENet, "GPU-efficient networks" (Lin et al. 2020, arXiv 2006.14090): `gernet_*`.
- RepVGG (Ding et al. 2021, 2101.03697) and MobileOne (Vasu et al. 2022, 2206.04040): blocks of parallel convolutions
  that `reparameterize` turns into one each, for inference.
- CLIP's ResNets (Radford et al. 2021, 2103.00020): average pools in place of strides, attention as pooling.
- RegNetZ after Dollar et al. 2021 (2103.06877): inverted bottlenecks of grouped convolutions, linear at the end.
- ResNet and ResNeXt with tiered ("t") or four-layer ("q") stems, SiLU ("s") and gates: squeeze and excitation
  (1709.01507), global context (1904.11492), ECA (1910.03151), bilinear attention (Chi et al. 2020).

The last level is what the head reads, after `final_conv` where there is one.

Under a smaller `output_stride` every convolution of a block is spread, MobileOne's too, and a stage that has no stride
by itself goes on with the dilation of the one before; self-attention works on the finer map as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family, Plan, Step
from ..errors import BadArgument
from ..layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from ..layers.classifier import ClassifierHead, NormMlpClassifierHead
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_act import get_act_layer
from ..layers.create_attn import get_attn
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.drop import DropBlock2d, DropPath
from ..layers.evo_norm import EvoNorm2dS0a
from ..layers.pool2d_ceil import AvgPool2dCeil, MaxPool2dCeil
from ..layers.pool2d_same import AvgPool2dSame
from ..layers.pos_embed import resample_abs_pos_embed
from ..layers.pos_embed_rel import resize_rel_axes
from ..layers.shapes import make_divisible, to_2tuple

__all__ = [
    "BasicBlock",
    "Blocks",
    "BottleneckBlock",
    "ByobNet",
    "DarkBlock",
    "EdgeBlock",
    "MobileOneBlock",
    "RepVggBlock",
    "SelfAttnBlock",
]

Maker = Callable[..., nn.Module]


@dataclass(frozen=True)
class Blocks:
    """A run of equal blocks; a stage is one run, or a tuple of them.

    - `kind`: a name in `KINDS`; `depth`: how many; `width`: their output channels, before `width_factor`.
    - `stride`: of the stage that the run begins (of no meaning in later runs).
    - `group_size`: channels in a group of the spatial convolution; 0 for one group of all.
    - `ratio`: width between a block's outer convolutions, of its output (of its input with `bottle_in`).
    - `attn_layer`, `self_attn_layer` and their arguments, `block_kwargs`: in place of the network's own. Each replaces
      the whole of it; '' is no layer.
    """

    kind: str
    depth: int
    width: float
    stride: int = 2
    group_size: int = 0
    ratio: float = 1.0
    attn_layer: str | None = None
    attn_kwargs: Mapping[str, Any] | None = None
    self_attn_layer: str | None = None
    self_attn_kwargs: Mapping[str, Any] | None = None
    block_kwargs: Mapping[str, Any] | None = None

    def groups(self, channels: int) -> int:
        """Groups of a convolution over so many channels."""
        if not self.group_size:
            return 1
        if channels % self.group_size:
            raise BadArgument(f"group_size={self.group_size} does not divide the {channels} channels of a block")
        return channels // self.group_size

    def middle(self, in_chs: int, out_chs: int, bottle_in: bool) -> int:
        """Channels between a block's outer convolutions."""
        return make_divisible((in_chs if bottle_in else out_chs) * self.ratio)


@dataclass(frozen=True)
class Kit:
    """What blocks are built from: makers of a convolution with norm and activation, and of everything around it."""

    conv: Maker
    norm_act: Maker
    act: Maker
    attn: Maker | None = None
    self_attn: Maker | None = None
    drop_block: Maker | None = None
    downsample: str = "conv1x1"

    def gate(self, channels: int, wanted: bool = True) -> nn.Module | None:
        """The network's channel attention, where it has one and it is wanted here."""
        return self.attn(channels) if self.attn is not None and wanted else None

    def shortcut(self, in_chs: int, out_chs: int, step: Step) -> nn.Module | None:
        """What makes a block's input fit its output; None where a network has no such shortcuts."""
        if in_chs == out_chs and step.stride == 1 and step.first_dilation == step.dilation:
            return nn.Identity()
        if self.downsample == "avg":
            return AvgShortcut(in_chs, out_chs, step, self)
        if self.downsample == "conv1x1":
            return self.conv(in_chs, out_chs, 1, stride=step.stride, apply_act=False)
        return None


class AvgShortcut(nn.Sequential):
    """An average pool in place of the stride, then a 1x1 convolution and a norm (He et al. 2018, arXiv 1812.01187)."""

    def __init__(self, in_chs: int, out_chs: int, step: Step, kit: Kit) -> None:
        super().__init__()
        pool: nn.Module = nn.Identity()
        if step.first_dilation > 1:
            pool = AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
        elif step.stride > 1:
            pool = AvgPool2dCeil()
        self.pool = pool
        self.conv = kit.conv(in_chs, out_chs, 1, apply_act=False)


class ResidualBlock(nn.Module):
    """Layers in a row, stochastic depth, a shortcut around them, an activation.

    `layers` are by the names of their parameters, None for one left out; `closing` names the convolution whose norm
    ends the row. With `linear_out` nothing follows the sum.
    """

    def __init__(
        self,
        shortcut: nn.Module | None,
        layers: dict[str, nn.Module | None],
        closing: str,
        kit: Kit,
        linear_out: bool = False,
    ) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.row = tuple(name for name, layer in layers.items() if layer is not None)
        for name in self.row:
            self.add_module(name, layers[name])
        self.closing = closing
        self.drop_path = DropPath()
        self.act: nn.Module | None = None if linear_out else kit.act(inplace=True)

    def init_weights(self, zero_init_last: bool) -> None:
        """Attention as its layers say; with `zero_init_last` the block starts as its shortcut, where it has one."""
        norm_weight = getattr(self.get_submodule(self.closing).bn, "weight", None)
        if zero_init_last and self.shortcut is not None and norm_weight is not None:
            nn.init.zeros_(norm_weight)
        reset_attention(self)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.row:
            y = getattr(self, name)(y)
        y = self.drop_path(y)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return y if self.act is None else self.act(y)


def reset_attention(block: nn.Module) -> None:
    """Draws the attention layers of a block as they would by themselves."""
    for name in ("attn", "attn_last", "self_attn"):
        layer: Any = getattr(block, name, None)
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()


class BasicBlock(ResidualBlock):
    """Two spatial convolutions, the second one grouped."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, spec: Blocks, kit: Kit, *,
        kernel_size: int = 3, attn_last: bool = True, linear_out: bool = False,
    ) -> None:  # fmt: skip
        mid_chs = spec.middle(in_chs, out_chs, False)
        layers = dict(
            conv1_kxk=kit.conv(in_chs, mid_chs, kernel_size, stride=step.stride, dilation=step.first_dilation),
            attn=kit.gate(mid_chs, not attn_last),
            conv2_kxk=kit.conv(mid_chs, out_chs, kernel_size, dilation=step.dilation, groups=spec.groups(mid_chs),
                               drop_layer=kit.drop_block, apply_act=False),
            attn_last=kit.gate(out_chs, attn_last),
        )  # fmt: skip
        super().__init__(kit.shortcut(in_chs, out_chs, step), layers, "conv2_kxk", kit, linear_out)


class BottleneckBlock(ResidualBlock):
    """A 1x1, a grouped spatial (two with `extra_conv`) and a 1x1 convolution."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, spec: Blocks, kit: Kit, *,
        kernel_size: int = 3, attn_last: bool = False, linear_out: bool = False,
        extra_conv: bool = False, bottle_in: bool = False,
    ) -> None:  # fmt: skip
        mid_chs = spec.middle(in_chs, out_chs, bottle_in)
        spatial = partial(kit.conv, mid_chs, mid_chs, kernel_size, groups=spec.groups(mid_chs))
        layers = dict(
            conv1_1x1=kit.conv(in_chs, mid_chs, 1),
            conv2_kxk=spatial(stride=step.stride, dilation=step.first_dilation, drop_layer=kit.drop_block),
            conv2b_kxk=spatial(dilation=step.dilation) if extra_conv else None,
            attn=kit.gate(mid_chs, not attn_last),
            conv3_1x1=kit.conv(mid_chs, out_chs, 1, apply_act=False),
            attn_last=kit.gate(out_chs, attn_last),
        )
        super().__init__(kit.shortcut(in_chs, out_chs, step), layers, "conv3_1x1", kit, linear_out)


class DarkBlock(ResidualBlock):
    """A 1x1 and a grouped spatial convolution, as in DarkNet (Redmon and Farhadi 2018, arXiv 1804.02767)."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, spec: Blocks, kit: Kit, *,
        kernel_size: int = 3, attn_last: bool = True, linear_out: bool = False,
    ) -> None:  # fmt: skip
        mid_chs = spec.middle(in_chs, out_chs, False)
        layers = dict(
            conv1_1x1=kit.conv(in_chs, mid_chs, 1),
            attn=kit.gate(mid_chs, not attn_last),
            conv2_kxk=kit.conv(mid_chs, out_chs, kernel_size, stride=step.stride, dilation=step.first_dilation,
                               groups=spec.groups(mid_chs), drop_layer=kit.drop_block, apply_act=False),
            attn_last=kit.gate(out_chs, attn_last),
        )  # fmt: skip
        super().__init__(kit.shortcut(in_chs, out_chs, step), layers, "conv2_kxk", kit, linear_out)


class EdgeBlock(ResidualBlock):
    """A grouped spatial convolution and a 1x1: EfficientNet's fused block, with an activation at the end."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, spec: Blocks, kit: Kit, *,
        kernel_size: int = 3, attn_last: bool = False, linear_out: bool = False,
    ) -> None:  # fmt: skip
        mid_chs = spec.middle(in_chs, out_chs, False)
        layers = dict(
            conv1_kxk=kit.conv(in_chs, mid_chs, kernel_size, stride=step.stride, dilation=step.first_dilation,
                               groups=spec.groups(mid_chs), drop_layer=kit.drop_block),
            attn=kit.gate(mid_chs, not attn_last),
            conv2_1x1=kit.conv(mid_chs, out_chs, 1, apply_act=False),
            attn_last=kit.gate(out_chs, attn_last),
        )  # fmt: skip
        super().__init__(kit.shortcut(in_chs, out_chs, step), layers, "conv2_1x1", kit, linear_out)


class SelfAttnBlock(ResidualBlock):
    """A bottleneck with self-attention between its 1x1 convolutions; the attention strides, or an extra convolution."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, spec: Blocks, kit: Kit, *,
        kernel_size: int = 3, linear_out: bool = False, extra_conv: bool = False, bottle_in: bool = False,
        post_attn_na: bool = True,
    ) -> None:  # fmt: skip
        if kit.self_attn is None:
            raise BadArgument("a self_attn block needs a layer: give self_attn_layer='halo', 'lambda' or 'bottleneck'")
        mid_chs = spec.middle(in_chs, out_chs, bottle_in)
        convolved = (
            kit.conv(
                mid_chs,
                mid_chs,
                kernel_size,
                stride=step.stride,
                dilation=step.first_dilation,
                groups=spec.groups(mid_chs),
                drop_layer=kit.drop_block,
            )
            if extra_conv
            else None
        )
        layers = dict(
            conv1_1x1=kit.conv(in_chs, mid_chs, 1),
            conv2_kxk=convolved,
            self_attn=kit.self_attn(mid_chs, stride=1 if extra_conv else step.stride),
            post_attn=kit.norm_act(mid_chs) if post_attn_na else None,
            conv3_1x1=kit.conv(mid_chs, out_chs, 1, apply_act=False),
        )  # fmt: skip
        super().__init__(kit.shortcut(in_chs, out_chs, step), layers, "conv3_1x1", kit, linear_out)


class ParallelBlock(nn.Module):
    """Convolutions of one input side by side, summed, with the input itself where it fits; then a gate, an activation.

    As every branch is linear with a norm, the sum can be written as one convolution: `reparameterize` does that, for
    inference. The output stays what it was in evaluation mode.
    """

    reparam_conv: nn.Conv2d | None
    identity: nn.Module | None
    drop_path: DropPath
    attn: nn.Module | None

    def open(self, in_chs: int, out_chs: int, step: Step, kit: Kit) -> None:
        """Registers what stands before the branches."""
        fits = in_chs == out_chs and step.stride == 1 and step.first_dilation == step.dilation
        self.reparam_conv = None
        self.identity = kit.norm_act(out_chs, apply_act=False) if fits else None

    def close(self, out_chs: int, kit: Kit) -> None:
        """Registers what follows the branches."""
        if self.identity is not None:
            self.drop_path = DropPath()
        self.attn = kit.gate(out_chs)
        self.act = kit.act(inplace=True)

    def branches(self) -> list[Any]:
        """The convolutions, a spatial one first."""
        raise NotImplementedError

    def init_weights(self, zero_init_last: bool) -> None:
        """Attention as its layers say; there is no last norm to start from zero."""
        reset_attention(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            y = self.reparam_conv(x)
        else:
            first, *others = self.branches()
            y = first(x)
            for branch in others:
                y = y + branch(x)
            if self.identity is not None:
                y = self.drop_path(y) + self.identity(x)
        if self.attn is not None:
            y = self.attn(y)
        return self.act(y)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Replaces the branches by one convolution `reparam_conv` with a bias; does nothing a second time.

        Raises `BadArgument` where the norms are not batch norms: others depend on the input.
        """
        if self.reparam_conv is not None:
            return
        like: Any = self.branches()[0].conv
        centre = F.pad(like.weight.new_ones(1, 1, 1, 1), [like.kernel_size[0] // 2] * 4)
        folded = []
        for branch in self.branches():
            conv: Any = branch.conv
            fits = conv.kernel_size == like.kernel_size
            folded.append(fold(conv.weight if fits else conv.weight * centre, branch.bn))
        if self.identity is not None:
            one_group = torch.eye(like.in_channels // like.groups, device=like.weight.device)
            folded.append(fold(one_group.repeat(like.groups, 1)[:, :, None, None] * centre, self.identity))
        fused: Any = nn.Conv2d(like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding,
                          like.dilation, like.groups).to(like.weight)  # fmt: skip
        fused.weight.copy_(torch.stack([kernel for kernel, _ in folded]).sum(0))
        fused.bias.copy_(torch.stack([bias for _, bias in folded]).sum(0))
        for name in [name for name, _ in self.named_children() if name not in ("attn", "act")]:
            delattr(self, name)
        self.identity = None
        self.reparam_conv = fused.train(self.training)


def fold(kernel: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Kernel and bias, in double precision, of a convolution without bias followed by a batch norm in evaluation."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None or norm.running_mean is None:
        raise BadArgument(
            f"{type(norm).__name__} cannot be folded into a convolution: use batch norms that have running statistics"
        )
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return kernel.double() * scale[:, None, None, None], norm.bias.double() - norm.running_mean.double() * scale


class RepVggBlock(ParallelBlock):
    """A spatial convolution, a 1x1 and the identity, side by side."""

    def __init__(self, in_chs: int, out_chs: int, step: Step, spec: Blocks, kit: Kit, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.open(in_chs, out_chs, step, kit)
        conv = partial(kit.conv, in_chs, out_chs, stride=step.stride, groups=spec.groups(in_chs), apply_act=False)
        self.conv_kxk = conv(kernel_size=kernel_size, dilation=step.first_dilation, drop_layer=kit.drop_block)
        self.conv_1x1 = conv(kernel_size=1)
        self.close(out_chs, kit)

    def branches(self) -> list[Any]:
        return [self.conv_kxk, self.conv_1x1]

    def init_weights(self, zero_init_last: bool) -> None:
        """Norms start scattered around a small scale, so that the branches differ."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 0.1, 0.1)
                nn.init.normal_(module.bias, 0.0, 0.1)
        reset_attention(self)


class MobileOneBlock(ParallelBlock):
    """`num_conv_branches` equal convolutions, a 1x1 beside spatial ones, and the identity."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, spec: Blocks, kit: Kit, *,
        kernel_size: int = 3, num_conv_branches: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.open(in_chs, out_chs, step, kit)
        conv = partial(kit.conv, in_chs, out_chs, stride=step.stride, groups=spec.groups(in_chs), apply_act=False)
        self.conv_kxk = nn.ModuleList(
            conv(kernel_size=kernel_size, dilation=step.first_dilation) for _ in range(num_conv_branches)
        )
        self.conv_scale = conv(kernel_size=1) if kernel_size > 1 else None
        self.close(out_chs, kit)

    def branches(self) -> list[Any]:
        return [*self.conv_kxk, *([] if self.conv_scale is None else [self.conv_scale])]


KINDS: dict[str, Maker] = {
    "basic": BasicBlock,
    "bottle": BottleneckBlock,
    "dark": DarkBlock,
    "edge": EdgeBlock,
    "self_attn": SelfAttnBlock,
    "rep": RepVggBlock,
    "one": MobileOneBlock,
}

STEM_POOLS: dict[str, Maker] = {
    "max": partial(nn.MaxPool2d, 3, 2, 1),
    "avg": partial(nn.AvgPool2d, 3, 2, 1, count_include_pad=False),
    "max2": partial(MaxPool2dCeil, 2),
    "avg2": AvgPool2dCeil,
}


class Stem(nn.Sequential):
    """Convolutions of `widths`, the first with stride 2; then a pool, or a stride of the last convolution instead.

    The first `bare` convolutions have neither norm nor activation. The level before the second stride is marked.
    """

    def __init__(
        self, in_chs: int, widths: Sequence[int], kit: Kit, plan: Plan,
        kernel_size: int = 3, pool: str = "", bare: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        for i, chs in enumerate(widths):
            steps = i == 0 or (i == len(widths) - 1 and not pool)
            if steps and i > 0:
                plan.mark(in_chs, f"stem.conv{i}")
            conv = create_conv2d if i < bare else kit.conv
            self.add_module(f"conv{i + 1}", conv(in_chs, chs, kernel_size, stride=plan.spend(2) if steps else 1))
            in_chs = chs
        self.last = f"conv{len(widths)}"
        if pool:
            plan.mark(in_chs, f"stem.{self.last}")
            if pool.removesuffix("pool") not in STEM_POOLS:
                raise BadArgument(f"stem_pool={pool!r}: give one of {', '.join(STEM_POOLS)}, or '' for none")
            plan.spend(2)
            self.pool = STEM_POOLS[pool.removesuffix("pool")]()
            self.last = "pool"


def rounded(width: float) -> int:
    """The nearest whole number of channels."""
    return round(width)


class ByobNet(Backbone):
    """A stem, stages of blocks, an optional last convolution, a head.

    - `blocks`: the stages, each a run of `Blocks` or a tuple of runs; `width_factor` multiplies all widths.
    - `stem_type`: '3x3', '7x7', 'deep' (three 3x3), 'tiered' (three that widen), 'quad', 'quad2' (four, NFNet's),
      'rep' or 'one' (a block), '' for 3x3 of the widths listed in `stem_chs`. `stem_pool`: '', 'max', 'avg', 'max2',
      'avg2'; without it stems of three or four convolutions stride in the last.
    - `downsample`: shortcuts by 'conv1x1', 'avg' or none at all where shapes change ('').
    - `num_features`: width of a last 1x1 convolution, 0 for none.
    - `attn_layer`: the gate of every block, `self_attn_layer`: of self-attention blocks; with their arguments.
      `block_kwargs`: more arguments for all blocks. `aa_layer`: anti-aliasing in place of strides in the stages.
    - `img_size`: that self-attention and attention pooling learn positions for, where `fixed_input_size` needs it; for
      other images they are interpolated (attention linearly, pooling bicubic and antialiased).
    - `head_type`: 'classifier'; 'mlp', a norm and a hidden layer of `head_hidden_size`; 'attn_abs' or 'attn_rot',
      attention pooling with absolute or rotary positions, where `global_pool` is 'token' or ''.
    - `drop_block_rate`, `drop_block_size`: DropBlock in the last two stages (Ghiasi et al. 2018, arXiv 1810.12890).
    - `zero_init_last`: residual branches start as zero.
    """

    units = r"stages\.(\d+)\.(\d+)"
    dilates_to = 2

    def __init__(
        self,
        blocks: Sequence[Blocks | Sequence[Blocks]],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str | None = None,
        output_stride: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        downsample: str = "conv1x1",
        stem_type: str = "3x3",
        stem_pool: str | None = "maxpool",
        stem_chs: int | Sequence[int] = 32,
        width_factor: float = 1.0,
        num_features: int = 0,
        fixed_input_size: bool = False,
        act_layer: Any = "relu",
        norm_layer: Any = "batchnorm",
        aa_layer: Any = "",
        head_type: str = "classifier",
        head_hidden_size: int | None = None,
        attn_layer: str | None = None,
        attn_kwargs: Mapping[str, Any] | None = None,
        self_attn_layer: str | None = None,
        self_attn_kwargs: Mapping[str, Any] | None = None,
        block_kwargs: Mapping[str, Any] | None = None,
        drop_block_rate: float = 0.0,
        drop_block_size: int = 3,
        zero_init_last: bool = True,
        **kwargs: Any,
    ) -> None:
        pools_by_attention = head_type.startswith("attn")
        if global_pool is None:
            global_pool = "token" if pools_by_attention else "avg"
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        if img_size is None and (fixed_input_size or head_type == "attn_abs"):
            raise BadArgument("this architecture learns positions of one image size: give img_size, such as 256")
        self.zero_init_last = zero_init_last
        whole = Blocks("", 0, 0, attn_layer=attn_layer or "", attn_kwargs=attn_kwargs,
                       self_attn_layer=self_attn_layer or "", self_attn_kwargs=self_attn_kwargs,
                       block_kwargs=block_kwargs)  # fmt: skip

        act = get_act_layer(act_layer)
        conv = partial(ConvNormAct, norm_layer=norm_layer, act_layer=act)
        norm_act = get_norm_act_layer(norm_layer, act)
        assert act is not None
        assert norm_act is not None
        kit = Kit(conv, norm_act, act, downsample=downsample)
        stem_chs = [stem_chs] if isinstance(stem_chs, int) else list(stem_chs)
        width, module = self._make_stem(stem_type, stem_pool or "", [rounded(c * width_factor) for c in stem_chs],
                                        fitted(kit, whole, whole, None))  # fmt: skip
        side = None if img_size is None else tuple(s // self.plan.reduction for s in to_2tuple(img_size))

        if aa_layer:
            kit = replace(kit, conv=partial(conv, aa_layer=aa_layer))
        self.stages = nn.Sequential()
        for i, runs in enumerate(blocks):
            runs = (runs,) if isinstance(runs, Blocks) else tuple(runs)
            if runs[0].stride > 1:
                self.plan.mark(width, module)
            step = self.plan.step(runs[0].stride)
            from_end = len(blocks) - i
            if drop_block_rate and from_end <= 2:
                size, scale = (drop_block_size, 1.0) if from_end == 1 else (drop_block_size * 2 - 1, 0.25)
                kit = replace(kit, drop_block=partial(DropBlock2d, drop_prob=drop_block_rate, block_size=size,
                                                      gamma_scale=scale))  # fmt: skip
            stage = nn.Sequential()
            for run in chain.from_iterable([r] * r.depth for r in runs):
                out_chs = make_divisible(run.width * width_factor)
                options = whole.block_kwargs if run.block_kwargs is None else run.block_kwargs
                stage.append(KINDS[run.kind](width, out_chs, step, run, fitted(kit, run, whole, side),
                                             **(options or {})))  # fmt: skip
                if side is not None:
                    side = tuple(s // step.stride for s in side)
                width, step = out_chs, Step(1, step.dilation, step.dilation)
            self.stages.append(stage)
            module = f"stages.{i}"

        self.final_conv: nn.Module = nn.Identity()
        if num_features:
            final = rounded(num_features * width_factor)
            self.final_conv, width = kit.conv(width, final, 1), final
        self.plan.mark(width, "final_conv")
        self.tapped = frozenset(level["module"] for level in self.plan.levels)
        if head_type == "mlp":
            self.head: Any = NormMlpClassifierHead(
                width, num_classes, hidden_size=head_hidden_size, pool_type=global_pool, drop_rate=self.drop_rate,
                norm_layer=norm_layer, act_layer=act_layer,
            )  # fmt: skip
            self.make_head("head.fc", width, hidden=self.head.num_features)
        elif pools_by_attention:
            pool = self._attention_pool(head_type, side)
            self.head = pool(width, embed_dim=head_hidden_size, out_features=num_classes, pool_type=global_pool,
                             drop_rate=self.drop_rate, qkv_separate=True)  # fmt: skip
            self.make_head("head.proj", width, hidden=self.head.embed_dim)
        elif head_type in ("", "classifier"):
            self.make_head("head.fc", width)
        else:
            raise BadArgument(f"head_type={head_type!r}: give 'classifier', 'mlp', 'attn_abs' or 'attn_rot'")

    def _make_stem(self, stem_type: str, pool: str, widths: list[int], kit: Kit) -> tuple[int, str]:
        """Makes the stem; gives its width and the path of its last layer, not yet marked as a level."""
        width = widths[-1]
        wide = partial(Stem, self.in_chans, kit=kit, plan=self.plan, pool=pool)
        kernel_size = 7 if stem_type == "7x7" else 3
        stem: nn.Module
        if stem_type in ("rep", "one"):
            block = KINDS[stem_type]
            stem = block(self.in_chans, width, Step(self.plan.spend(2), 1, 1), Blocks(stem_type, 1, width), kit)
        elif stem_type == "tiered":
            stem = wide([3 * width // 8, width // 2, width])
        elif stem_type == "deep":
            stem = wide([width] * 3)
        elif stem_type in ("quad", "quad2"):
            halved = [rounded(width / 2**k) for k in (3, 2, 1, 0)]
            stem = wide(halved, bare=2 if stem_type == "quad2" else 0)
        elif stem_type not in ("", "3x3", "7x7"):
            raise BadArgument(f"stem_type={stem_type!r}: give 3x3, 7x7, deep, tiered, quad, quad2, rep or one")
        elif pool or len(widths) > 1:
            stem = wide(widths, kernel_size=kernel_size)
        else:
            stem = kit.conv(self.in_chans, width, kernel_size, stride=self.plan.spend(2))
        self.stem = stem
        return width, f"stem.{stem.last}" if isinstance(stem, Stem) else "stem"

    @staticmethod
    def _attention_pool(head_type: str, side: Any) -> Maker:
        if head_type == "attn_abs":
            return partial(AttentionPool2d, feat_size=side)
        return RotAttentionPool2d if side is None else partial(RotAttentionPool2d, ref_feat_size=side)

    def init_weights(self) -> None:
        """Convolutions by fan-out (He et al. 2015, arXiv 1502.01852), linear layers small; then what blocks say."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, (ResidualBlock, ParallelBlock)):
                module.init_weights(self.zero_init_last)
        if isinstance(self.head, (AttentionPool2d, RotAttentionPool2d)):
            self.head.init_weights()

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        if isinstance(self.stem, Stem):
            for name, layer in self.stem.named_children():
                x = layer(x)
                if f"stem.{name}" in self.tapped:
                    yield x
        else:
            x = self.stem(x)
            if "stem" in self.tapped:
                yield x
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if f"stages.{i}" in self.tapped:
                yield x
        yield self.final_conv(x)

    def drop_head(self) -> None:
        """Removes the classifier; attention pooling and hidden layers give way to a head without parameters."""
        if not isinstance(self.head, ClassifierHead):
            self.head = ClassifierHead(self.num_features, 0, pool_type="").train(self.training)
            self.make_head("head.fc", self.num_features, hidden=self.num_features)
            self._hidden = None
        self.reset_classifier(0, "")

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Takes CLIP's visual tower (OpenAI, OpenCLIP), the authors' RepVGG and MobileOne, and other image sizes."""
        if "visual.conv1.weight" in state_dict:
            visual = {key[len("visual.") :]: value for key, value in state_dict.items() if key.startswith("visual.")}
            renamed = {renamed_key(key, CLIP_NAMES): value for key, value in visual.items()}
            pooled = isinstance(self.head, AttentionPool2d)
            state_dict = {key: value for key, value in renamed.items() if pooled or not key.startswith("head.")}
        elif any(key.startswith("stage0.rbr_") for key in state_dict):
            state_dict = {renamed_key(key, REP_NAMES): value for key, value in state_dict.items()}
        return self._resampled(dict(state_dict))

    def _resampled(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Position tables of attention, learned at one size of map, for the size of this model's."""
        for key, own in self.named_parameters():
            table = state_dict.get(key)
            if table is None or table.shape == own.shape:
                continue
            if key.endswith(("height_rel", "width_rel", "pos_emb")):
                state_dict[key] = resize_rel_axes(table, own.shape[:-1])
            elif key == "head.pos_embed":
                side = self.head.feat_size
                state_dict[key] = resample_abs_pos_embed(table[None], side, num_prefix_tokens=1)[0]
        return state_dict


def fitted(kit: Kit, run: Blocks, whole: Blocks, side: tuple[int, ...] | None) -> Kit:
    """The kit with the attention layers of a run of blocks, or the whole network's where the run names none."""

    def maker(layer: str | None, arguments: Any, own: str | None, own_arguments: Any) -> Maker | None:
        make = get_attn(own if layer is None else layer)
        chosen = own_arguments if arguments is None else arguments
        return partial(make, **chosen) if make is not None and chosen else make

    self_attn = maker(run.self_attn_layer, run.self_attn_kwargs, whole.self_attn_layer, whole.self_attn_kwargs)
    if self_attn is not None and side is not None:
        self_attn = partial(self_attn, feat_size=side)
    attn = maker(run.attn_layer, run.attn_kwargs, whole.attn_layer, whole.attn_kwargs)
    return replace(kit, attn=attn, self_attn=self_attn)


CLIP_NAMES = (
    (r"^(conv|bn)(\d)\.", r"stem.conv\2.\1."),
    (r"^layer(\d)\.(\d+)\.(conv|bn)([13])\.", r"stages.\1.\2.conv\4_1x1.\3."),
    (r"^layer(\d)\.(\d+)\.(conv|bn)2\.", r"stages.\1.\2.conv2_kxk.\3."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"stages.\1.\2.shortcut.conv.conv."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"stages.\1.\2.shortcut.conv.bn."),
    (r"^attnpool\.positional_embedding$", "head.pos_embed"),
    (r"^attnpool\.([qkv])_proj\.", r"head.\1."),
    (r"^attnpool\.c_proj\.", "head.proj."),
)

REP_NAMES = (
    (r"^linear\.", "head.fc."),
    (r"^stage0\.", "stem."),
    (r"^stage(\d)\.", r"stages.\1."),
    (r"\.rbr_(?:dense|conv)\.", ".conv_kxk."),
    (r"\.rbr_1x1\.", ".conv_1x1."),
    (r"\.rbr_scale\.", ".conv_scale."),
    (r"\.rbr_(?:identity|skip)\.", ".identity."),
    (r"\.rbr_reparam\.", ".reparam_conv."),
    (r"\.se\.(?:down|reduce)\.", ".attn.fc1."),
    (r"\.se\.(?:up|expand)\.", ".attn.fc2."),
)


def renamed_key(key: str, names: Sequence[tuple[str, str]]) -> str:
    """A key under our names; foreign stages count from 1, ours from 0."""
    for pattern, ours in names:
        key, found = re.subn(pattern, ours, key)
        if found and ours.startswith("stages."):
            key = re.sub(r"^stages\.(\d)", lambda m: f"stages.{int(m[1]) - 1}", key)
    return key


basic = partial(Blocks, "basic")
bottle = partial(Blocks, "bottle")


def resnet_stages(
    depths: Sequence[int],
    widths: Sequence[int] = (256, 512, 1024, 2048),
    strides: Sequence[int] = (1, 2, 2, 2),
    group_size: int = 0,
    ratio: float = 0.25,
) -> tuple[Blocks, ...]:
    """Stages of bottlenecks."""
    return tuple(bottle(d, w, s, group_size, ratio) for d, w, s in zip(depths, widths, strides))


def rep_stages(depths: Sequence[int], widths: Sequence[int], groups: int = 1) -> tuple[tuple[Blocks, ...], ...]:
    """RepVGG's stages; every second block has `groups`."""

    def run(width: int, index: int) -> Blocks:
        return Blocks("rep", 1, width, group_size=width // groups if groups > 1 and index % 2 else 0)

    return tuple(tuple(run(width, k) for k in range(depth)) for depth, width in zip(depths, widths))


def one_stages(
    first: int, widths: Sequence[int], gated: Sequence[int] = (0, 0, 0, 0), branches: int = 1
) -> tuple[tuple[Blocks, ...], ...]:
    """MobileOne's stages: depthwise and pointwise blocks in turn, the last `gated` pairs with squeeze-excitation."""
    stages = []
    for depth, width, last in zip((2, 8, 10, 1), widths, gated):
        stage: list[Blocks] = []
        for k in range(depth):
            gate = "se" if k >= depth - last else None
            depthwise, pointwise = dict(num_conv_branches=branches), dict(kernel_size=1, num_conv_branches=branches)
            stage += [Blocks("one", 1, first, group_size=1, attn_layer=gate, block_kwargs=depthwise),
                      Blocks("one", 1, width, attn_layer=gate, block_kwargs=pointwise)]  # fmt: skip
            first = width
        stages.append(tuple(stage))
    return tuple(stages)


GER_L = dict(stem_pool=None, num_features=2560)
REP = dict(stem_type="rep", stem_chs=64)
A, B, D2 = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
ONE = dict(stem_type="one", stem_chs=64)

T = dict(stem_type="tiered", stem_chs=64)  # three convolutions that widen
S = dict(act_layer="silu")
STRIDED = dict(stem_pool="")  # the stem's last convolution strides, there is no pool
Q = dict(stem_pool=None, stem_chs=128, num_features=2048) | S
SE = dict(attn_layer="se")
ECA = dict(attn_layer="eca")
GC = dict(attn_layer="gca")

RX26 = dict(blocks=resnet_stages((2, 2, 2, 2), group_size=32)) | T | S
R33 = dict(blocks=resnet_stages((2, 3, 3, 2), (256, 512, 1536, 1536))) | T | S | STRIDED

RZ = dict(
    downsample="", stem_pool="", attn_layer="se", attn_kwargs=dict(rd_ratio=0.25),
    block_kwargs=dict(bottle_in=True, linear_out=True),
) | S  # fmt: skip
RZB = RZ | dict(num_features=1536)
RZD = RZ | T | dict(num_features=1792)
EVOS = dict(norm_layer=partial(EvoNorm2dS0a, group_size=16))

CLIP = dict(stem_type="", stem_chs=(32, 32, 64), stem_pool="avg2", downsample="avg", aa_layer="avgceil")
CLIP50 = CLIP | dict(blocks=resnet_stages((3, 4, 6, 3)))
CLIP101 = CLIP | dict(blocks=resnet_stages((3, 4, 23, 3)))
CLIP50X4 = CLIP | dict(blocks=resnet_stages((4, 6, 10, 6)), width_factor=1.25)
CLIP50X16 = CLIP | dict(blocks=resnet_stages((6, 8, 18, 8)), width_factor=1.5)
CLIP50X64 = CLIP | dict(blocks=resnet_stages((3, 15, 36, 10)), width_factor=2.0)
ATTN_POOL = dict(head_type="attn_abs")

family = Family(ByobNet, {
    "gernet_l": GER_L | dict(blocks=(
        basic(1, 128), basic(2, 192), bottle(6, 640, ratio=0.25), bottle(5, 640, group_size=1, ratio=3.0),
        bottle(4, 640, stride=1, group_size=1, ratio=3.0))),
    "gernet_m": GER_L | dict(blocks=(
        basic(1, 128), basic(2, 192), bottle(6, 640, ratio=0.25), bottle(4, 640, group_size=1, ratio=3.0),
        bottle(1, 640, stride=1, group_size=1, ratio=3.0))),
    "gernet_s": dict(stem_pool=None, stem_chs=13, num_features=1920, blocks=(
        basic(1, 48), basic(3, 48), bottle(7, 384, ratio=0.25), bottle(2, 560, group_size=1, ratio=3.0),
        bottle(1, 256, stride=1, group_size=1, ratio=3.0))),

    "repvgg_a0": REP | dict(stem_chs=48, blocks=rep_stages(A, (48, 96, 192, 1280))),
    "repvgg_a1": REP | dict(blocks=rep_stages(A, (64, 128, 256, 1280))),
    "repvgg_a2": REP | dict(blocks=rep_stages(A, (96, 192, 384, 1408))),
    "repvgg_b0": REP | dict(blocks=rep_stages(B, (64, 128, 256, 1280))),
    "repvgg_b1": REP | dict(blocks=rep_stages(B, (128, 256, 512, 2048))),
    "repvgg_b1g2": REP | dict(blocks=rep_stages(B, (128, 256, 512, 2048), groups=2)),
    "repvgg_b1g4": REP | dict(blocks=rep_stages(B, (128, 256, 512, 2048), groups=4)),
    "repvgg_b2": REP | dict(blocks=rep_stages(B, (160, 320, 640, 2560))),
    "repvgg_b2g4": REP | dict(blocks=rep_stages(B, (160, 320, 640, 2560), groups=4)),
    "repvgg_b3": REP | dict(blocks=rep_stages(B, (192, 384, 768, 2560))),
    "repvgg_b3g4": REP | dict(blocks=rep_stages(B, (192, 384, 768, 2560), groups=4)),
    "repvgg_d2se": REP | dict(blocks=rep_stages(D2, (160, 320, 640, 2560)), attn_layer="se",
                              attn_kwargs=dict(rd_ratio=0.0625, rd_divisor=1)),

    "resnet51q": Q | dict(stem_type="quad2", blocks=(
        *resnet_stages((2, 4, 6), (256, 512, 1536), group_size=32), bottle(4, 1536, group_size=1))),
    "resnet61q": Q | dict(stem_type="quad", block_kwargs=dict(extra_conv=True), blocks=(
        Blocks("edge", 1, 256, stride=1, block_kwargs={}),
        *resnet_stages((4, 6), (512, 1536), (2, 2), group_size=32), bottle(4, 1536, group_size=1))),

    "resnext26ts": RX26,
    "gcresnext26ts": RX26 | GC,
    "seresnext26ts": RX26 | SE,
    "eca_resnext26ts": RX26 | ECA,
    "bat_resnext26ts": RX26 | dict(attn_layer="bat", attn_kwargs=dict(block_size=8)),
    "resnet32ts": R33,
    "resnet33ts": R33 | dict(num_features=1280),
    "gcresnet33ts": R33 | dict(num_features=1280) | GC,
    "seresnet33ts": R33 | dict(num_features=1280) | SE,
    "eca_resnet33ts": R33 | dict(num_features=1280) | ECA,
    "gcresnet50t": dict(blocks=resnet_stages((3, 4, 6, 3))) | T | STRIDED | GC,
    "gcresnext50ts": dict(blocks=resnet_stages((3, 4, 6, 3), group_size=32)) | T | S | GC,

    "regnetz_b16": RZB | dict(blocks=resnet_stages((2, 6, 12, 2), (48, 96, 192, 288), (2, 2, 2, 2), 16, 3)),
    "regnetz_c16": RZB | dict(blocks=resnet_stages((2, 6, 12, 2), (48, 96, 192, 288), (2, 2, 2, 2), 16, 4)),
    "regnetz_d32": RZD | dict(blocks=resnet_stages((3, 6, 12, 3), (64, 128, 256, 384), group_size=32, ratio=4)),
    "regnetz_d8": RZD | dict(blocks=resnet_stages((3, 6, 12, 3), (64, 128, 256, 384), group_size=8, ratio=4)),
    "regnetz_e8": RZD | dict(num_features=2048,
                             blocks=resnet_stages((3, 8, 16, 3), (96, 192, 384, 512), group_size=8, ratio=4)),
    "regnetz_b16_evos": RZB | EVOS | dict(
        blocks=resnet_stages((2, 6, 12, 2), (48, 96, 192, 288), (2, 2, 2, 2), 16, 3)),
    "regnetz_c16_evos": RZB | EVOS | dict(
        blocks=resnet_stages((2, 6, 12, 2), (48, 96, 192, 288), (2, 2, 2, 2), 16, 4)),
    "regnetz_d8_evos": RZD | EVOS | dict(
        stem_type="deep", blocks=resnet_stages((3, 6, 12, 3), (64, 128, 256, 384), group_size=8, ratio=4)),

    "mobileone_s0": ONE | dict(stem_chs=48, blocks=one_stages(48, (48, 128, 256, 1024), branches=4)),
    "mobileone_s1": ONE | dict(blocks=one_stages(64, (96, 192, 512, 1280))),
    "mobileone_s2": ONE | dict(blocks=one_stages(64, (96, 256, 640, 2048))),
    "mobileone_s3": ONE | dict(blocks=one_stages(64, (128, 320, 768, 2048))),
    "mobileone_s4": ONE | dict(blocks=one_stages(64, (192, 448, 896, 2048), gated=(0, 0, 5, 1))),

    "resnet50_clip": CLIP50 | ATTN_POOL,
    "resnet101_clip": CLIP101 | ATTN_POOL,
    "resnet50x4_clip": CLIP50X4 | ATTN_POOL,
    "resnet50x16_clip": CLIP50X16 | ATTN_POOL,
    "resnet50x64_clip": CLIP50X64 | ATTN_POOL,
    "resnet50_clip_gap": CLIP50,
    "resnet101_clip_gap": CLIP101,
    "resnet50x4_clip_gap": CLIP50X4,
    "resnet50x16_clip_gap": CLIP50X16,
    "resnet50x64_clip_gap": CLIP50X64,
    "resnet50_mlp": CLIP50 | dict(head_type="mlp", head_hidden_size=1024),

    "test_byobnet": dict(stem_chs=24, stem_pool="", downsample="avg", attn_kwargs=dict(rd_ratio=0.25), blocks=(
        Blocks("edge", 1, 32, ratio=0.5), Blocks("dark", 1, 64, ratio=0.5), basic(1, 128, group_size=32, ratio=0.25),
        bottle(1, 256, group_size=64, ratio=0.25))) | SE,
})  # fmt: skip

__getattr__ = family.entrypoint
