"""Cross Stage Partial networks, and DarkNet, which they grew from.

- CSPNet (Wang et al. 2019, arXiv 1911.11929): blocks work on half of a stage's channels, the other half goes around
  them. `cspresnet50*`, `cspresnext50` and, after YOLOv4 (Bochkovskiy et al. 2020, 2004.10934), `cspdarknet53`.
- DarkNet (Redmon and Farhadi 2018, YOLOv3, 1804.02767): `darknet*`, with gates (SE, 1709.01507) `sedarknet21`.
- CS3 stages, the lighter form of YOLOv5 and YOLOX (Ge et al. 2021, 2107.08430): `cs3darknet_*`, and with fused blocks
  (EfficientNetV2's, 2104.00298) `cs3edgenet_x`. `focus` stems are one 6x6 convolution.

A stage has a convolution that strides, where the paper's ResNet strides in its blocks. The two halves come from one
1x1 convolution, `conv_exp`. DarkNet and YOLOv4 start at full resolution, so their first level has stride 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family, Step
from ..errors import BadArgument
from ..layers.blur_pool import create_aa, get_aa_layer
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_act import create_act_layer
from ..layers.create_attn import get_attn
from ..layers.drop import DropPath
from ..layers.padding import pad_to_multiple
from ..layers.pool2d_ceil import AvgPool2dCeil

__all__ = ["BottleneckBlock", "Cs3Stage", "CspNet", "CspStage", "DarkBlock", "DarkStage", "EdgeBlock"]


class DarkBlock(nn.Module):
    """A 1x1 convolution to the middle width, a 3x3 one from there, and a shortcut after the activation.

    `ratio` is the middle width over `channels`. `layer` holds the arguments of every convolution's norm and
    activation; `gate` makes an attention layer for the middle channels.
    """

    kernel_sizes = (1, 3)

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 1.0,
        groups: int = 1,
        dilation: int = 1,
        gate: Callable[..., nn.Module] | None = None,
        **layer: Any,
    ) -> None:
        super().__init__()
        mid_chs = round(channels * ratio)
        spatial = dict(groups=groups, dilation=dilation)
        first, second = (layer if size == 1 else layer | spatial for size in self.kernel_sizes)
        self.conv1 = ConvNormAct(channels, mid_chs, self.kernel_sizes[0], **first)
        self.attn = gate(mid_chs) if gate else None
        self.conv2 = ConvNormAct(mid_chs, channels, self.kernel_sizes[1], **second)
        self.drop_path = DropPath()

    @property
    def last_norm(self) -> Any:
        """The norm that closes the residual branch."""
        return self.conv2.bn

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if self.attn is not None:
            y = self.attn(y)
        return self.drop_path(self.conv2(y)) + x


class EdgeBlock(DarkBlock):
    """A dark block turned around: the 3x3 convolution widens, the 1x1 one closes (a fused inverted bottleneck)."""

    kernel_sizes = (3, 1)


class BottleneckBlock(nn.Module):
    """ResNet's bottleneck: 1x1, 3x3 and 1x1 convolutions, a shortcut, an activation. Arguments as in `DarkBlock`."""

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 0.25,
        groups: int = 1,
        dilation: int = 1,
        gate: Callable[..., nn.Module] | None = None,
        **layer: Any,
    ) -> None:
        super().__init__()
        mid_chs = round(channels * ratio)
        self.conv1 = ConvNormAct(channels, mid_chs, 1, **layer)
        self.conv2 = ConvNormAct(mid_chs, mid_chs, 3, groups=groups, dilation=dilation, **layer)
        self.attn2 = gate(mid_chs) if gate else None
        self.conv3 = ConvNormAct(mid_chs, channels, 1, apply_act=False, **layer)
        self.drop_path = DropPath()
        self.act3 = create_act_layer(layer["act_layer"], inplace=True) or nn.Identity()

    @property
    def last_norm(self) -> Any:
        """The norm that closes the residual branch."""
        return self.conv3.bn

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        if self.attn2 is not None:
            y = self.attn2(y)
        return self.act3(self.drop_path(self.conv3(y)) + x)


BLOCKS = {"dark": DarkBlock, "edge": EdgeBlock, "bottle": BottleneckBlock}


def strided_conv(
    in_chs: int,
    out_chs: int,
    step: Step,
    groups: int = 1,
    avg_down: bool = False,
    aa_layer: Any = None,
    **layer: Any,
) -> nn.Module:
    """What a stage begins with: a 3x3 convolution that strides (blurred with `aa_layer`), or a pool and a 1x1 one.

    The pool goes where the stride is traded for dilation, and the 1x1 convolution spreads nothing.
    """
    if avg_down:
        pool = AvgPool2dCeil() if step.stride == 2 else nn.Identity()
        return nn.Sequential(pool, ConvNormAct(in_chs, out_chs, 1, groups=groups, **layer))
    return ConvNormAct(in_chs, out_chs, 3, stride=step.stride, dilation=step.first_dilation, groups=groups,
                       aa_layer=aa_layer, **layer)


class DarkStage(nn.Module):
    """A convolution that strides and widens, then blocks on all channels.

    `block(channels)` makes a block; `down` holds what `strided_conv` takes beyond channels and stride.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        depth: int,
        step: Step,
        block: Callable[[int], nn.Module],
        **down: Any,
    ) -> None:
        super().__init__()
        self.conv_down = strided_conv(in_chs, out_chs, step, **down)
        self.blocks = nn.Sequential(*(block(out_chs) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.conv_down(x))


class CspStage(nn.Module):
    """A convolution that strides, a 1x1 one whose output is halved, blocks on the second half, and a 1x1 over both.

    - `expand_ratio`: channels before halving, over the stage's; blocks have half of that.
    - `cross_linear`: no activation before halving; `down_growth`: the strided convolution widens already.
    - `block`, `down`: as in `DarkStage`. A stage that does not stride begins with the 1x1 convolution.
    """

    closes_blocks = True  # a 1x1 convolution after the blocks, before the halves meet

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        depth: int,
        step: Step,
        block: Callable[[int], nn.Module],
        *,
        expand_ratio: float = 1.0,
        cross_linear: bool = False,
        down_growth: bool = False,
        groups: int = 1,
        avg_down: bool = False,
        aa_layer: Any = None,
        **layer: Any,
    ) -> None:
        super().__init__()
        width = in_chs
        self.conv_down: nn.Module | None = None
        if step.stride != 1 or step.first_dilation != step.dilation:
            width = out_chs if down_growth else in_chs
            self.conv_down = strided_conv(in_chs, width, step, groups, avg_down, aa_layer, **layer)
        half = round(out_chs * expand_ratio) // 2
        self.conv_exp = ConvNormAct(width, 2 * half, 1, apply_act=not cross_linear, **layer)
        self.blocks = nn.Sequential(*(block(half) for _ in range(depth)))
        if self.closes_blocks:
            self.conv_transition_b = ConvNormAct(half, half, 1, **layer)
        self.conv_transition = ConvNormAct(2 * half, out_chs, 1, **layer)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the second half of the channels that a stage works on, from the stage's input."""
        if self.conv_down is not None:
            x = self.conv_down(x)
        first, second = self.conv_exp(x).chunk(2, dim=1)
        return first, second

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.halves(x)
        through = self.conv_transition_b(self.blocks(through))
        return self.conv_transition(torch.cat([around, through], dim=1))


class Cs3Stage(CspStage):
    """A cross stage of three convolutions: blocks work on the first half, and nothing follows them before the merge."""

    closes_blocks = False

    def forward(self, x: Tensor) -> Tensor:
        through, around = self.halves(x)
        return self.conv_transition(torch.cat([self.blocks(through), around], dim=1))


STAGES = {"dark": DarkStage, "csp": CspStage, "cs3": Cs3Stage}


class CspNet(Backbone):
    """A stem, stages whose channels go half through blocks and half around them, average pooling.

    What concerns stages is one value for all of them, or a sequence of one a stage.

    - `depths`, `widths`, `strides`: blocks, output channels and stride of each stage.
    - `stage`: 'csp', 'cs3', or 'dark' for stages that are not halved; `block`: 'bottle', 'dark' or 'edge'.
    - `groups`: of 3x3 convolutions; `bottle_ratio`: a block's middle width over its channels; `avg_down`,
      `expand_ratio`, `cross_linear`, `down_growth`: see the stages ('dark' ones lack the last three).
    - `attn_layer`, `attn_kwargs`: a gate in every block.
    - `stem_chs`: channels of the stem's convolutions, `stem_kernel` pixels wide; the first one strides if `stem_stride`
      is 2, the last or a max pool (`stem_pool='max'`) too if it is 4. For an even kernel an odd image is padded with zeros.
    - `aa_layer`: blurs in place of strides; `zero_init_last`: residual branches start as zero.
    """

    units = r"stages\.(\d+)\.blocks\.(\d+)"
    dilates_to = 8

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        strides: int | Sequence[int] = 2,
        stage: str | Sequence[str] = "csp",
        block: str | Sequence[str] = "bottle",
        groups: int | Sequence[int] = 1,
        bottle_ratio: float | Sequence[float] = 1.0,
        expand_ratio: float | Sequence[float] = 1.0,
        cross_linear: bool = False,
        down_growth: bool = False,
        avg_down: bool = False,
        attn_layer: Any = None,
        attn_kwargs: dict[str, Any] | None = None,
        stem_chs: Sequence[int] = (32,),
        stem_stride: int = 2,
        stem_kernel: int = 3,
        stem_padding: Any = "",
        stem_pool: str = "",
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int | None = None,
        global_pool: str = "avg",
        act_layer: Any = "leaky_relu",
        norm_layer: Any = "batchnorm",
        aa_layer: Any = None,
        zero_init_last: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        self.zero_init_last = zero_init_last
        layer = dict(norm_layer=norm_layer, act_layer=act_layer)
        aa_layer = get_aa_layer(aa_layer)
        self.stem = nn.Sequential()
        self._make_stem(stem_chs, stem_stride, stem_kernel, stem_padding, stem_pool, aa_layer, layer)

        make_gate = get_attn(attn_layer)
        gate = None if make_gate is None else partial(make_gate, act_layer=act_layer, **(attn_kwargs or {}))
        per_stage = [_each(value, len(depths)) for value in
                     (strides, stage, block, groups, bottle_ratio, expand_ratio)]
        width = stem_chs[-1]
        stages = []
        for i, (depth, out_chs, stride, kind, name, groups_, ratio, expand) in enumerate(
            zip(depths, widths, *per_stage)
        ):
            step = self.plan.step(stride)
            make = partial(BLOCKS[name], ratio=ratio, groups=groups_, dilation=step.dilation, gate=gate, **layer)
            options = dict(groups=groups_, avg_down=avg_down, aa_layer=aa_layer, **layer)
            if kind != "dark":
                options |= dict(expand_ratio=expand, cross_linear=cross_linear, down_growth=down_growth)
            stages.append(STAGES[kind](width, out_chs, depth, step, make, **options))
            width = out_chs
            self.plan.mark(width, f"stages.{i}")
        self.stages = nn.Sequential(*stages)
        self.make_head("head.fc")

    def _make_stem(
        self, widths: Sequence[int], stride: int, kernel_size: int, padding: Any, pool: str, aa_layer: Any,
        layer: dict[str, Any],
    ) -> None:  # fmt: skip
        if stride not in (1, 2, 4) or (pool and stride != 4):
            raise BadArgument(f"stem_stride={stride}, stem_pool={pool!r}: give 1, 2 or 4, and a pool with 4 only")
        # an even kernel leaves out the last row of an odd side
        self.image_multiple = 2 if stride > 1 and kernel_size % 2 == 0 else 1
        last = len(widths) - 1
        strides = [2 if (i == 0 and stride > 1) or (i == last and stride > 2 and not pool) else 1
                   for i in range(len(widths))]
        in_chs = self.in_chans
        for i, (out_chs, step) in enumerate(zip(widths, strides)):
            self.stem.add_module(f"conv{i + 1}", ConvNormAct(in_chs, out_chs, kernel_size, stride=step,
                                                             padding=padding, **layer))
            self.plan.spend(step)
            in_chs = out_chs
            if i == last - (stride > 2 and not pool):
                self.stem_level = f"conv{i + 1}"  # the last one before another stride
                self.plan.mark(out_chs, f"stem.{self.stem_level}")
        if pool:
            self.stem.add_module("pool", nn.MaxPool2d(3, stride=1 if aa_layer else 2, padding=1))
            if aa_layer:
                self.stem.add_module("aa", create_aa(aa_layer, channels=in_chs, stride=2))
            self.plan.spend(2)

    def init_weights(self) -> None:
        """He initialisation of convolutions; residual branches start as zero where `zero_init_last`."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if self.zero_init_last and isinstance(module, (DarkBlock, BottleneckBlock)):
                nn.init.zeros_(module.last_norm.weight)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = pad_to_multiple(x, self.image_multiple)
        for name, layer in self.stem.named_children():
            x = layer(x)
            if name == self.stem_level:
                yield x
        for stage in self.stages:
            x = stage(x)
            yield x


def _each(value: Any, count: int) -> tuple[Any, ...]:
    """One value a stage."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * count


CSP50 = dict(depths=(3, 3, 5, 2), strides=(1, 2, 2, 2), stage="csp", block="bottle", cross_linear=True,
             stem_chs=(64,), stem_kernel=7, stem_stride=4, stem_pool="max")
TIERED = dict(stem_chs=(32, 32, 64), stem_kernel=3)  # three 3x3 convolutions in the stem
NARROW = dict(widths=(128, 256, 512, 1024), expand_ratio=2.0, bottle_ratio=0.5)  # each half is as wide as the stage
WIDE = dict(widths=(256, 512, 1024, 2048))

DARK = dict(widths=(64, 128, 256, 512, 1024), stage="dark", block="dark", bottle_ratio=0.5, stem_stride=1)
DARK21 = DARK | dict(depths=(1, 1, 1, 2, 2))
DARK53 = DARK | dict(depths=(1, 2, 8, 8, 4))

CS3 = dict(stage="cs3", block="dark", act_layer="silu")
CS3_S = CS3 | dict(depths=(1, 3, 4, 1), widths=(64, 128, 256, 512), stem_chs=(16, 32))
CS3_M = CS3 | dict(depths=(2, 4, 6, 2), widths=(96, 192, 384, 768), stem_chs=(24, 48))
CS3_L = CS3 | dict(depths=(3, 6, 9, 3), widths=(128, 256, 512, 1024), stem_chs=(32, 64))
CS3_X = CS3 | dict(depths=(3, 7, 11, 3), widths=(160, 320, 640, 1280), stem_chs=(40, 80))
FOCUS = dict(stem_kernel=6, stem_padding=2)  # one convolution, as wide as the other stems end
EDGE = dict(block="edge", bottle_ratio=1.5)

SE = dict(attn_layer="se")
SE4 = dict(attn_layer="se", attn_kwargs=dict(rd_ratio=0.25))

family = Family(CspNet, {
    "cspresnet50": CSP50 | NARROW,
    "cspresnet50d": CSP50 | NARROW | TIERED,
    "cspresnet50w": CSP50 | WIDE | TIERED | dict(bottle_ratio=0.25),
    "cspresnext50": CSP50 | WIDE | dict(groups=32),
    "cspdarknet53": DARK53 | dict(stage="csp", down_growth=True, bottle_ratio=(0.5, 1.0, 1.0, 1.0, 1.0),
                                  expand_ratio=(2.0, 1.0, 1.0, 1.0, 1.0)),
    "darknet17": DARK | dict(depths=(1, 1, 1, 1, 1)),
    "darknet21": DARK21,
    "sedarknet21": DARK21 | SE | dict(feature_cfg=dict(out_indices=(0, 1, 2, 3, 4))),  # as timm gives them: five of six
    "darknet53": DARK53,
    "darknetaa53": DARK53 | dict(avg_down=True),
    "cs3darknet_s": CS3_S,
    "cs3darknet_m": CS3_M,
    "cs3darknet_l": CS3_L,
    "cs3darknet_x": CS3_X,
    "cs3darknet_focus_s": CS3_S | FOCUS | dict(stem_chs=(32,)),
    "cs3darknet_focus_m": CS3_M | FOCUS | dict(stem_chs=(48,)),
    "cs3darknet_focus_l": CS3_L | FOCUS | dict(stem_chs=(64,)),
    "cs3darknet_focus_x": CS3_X | FOCUS | dict(stem_chs=(80,)),
    "cs3sedarknet_l": CS3_L | SE4,
    "cs3sedarknet_x": CS3_X | SE,
    "cs3sedarknet_xdw": CS3 | SE | dict(stage="csp", block="bottle", depths=(3, 6, 12, 4), bottle_ratio=0.5,
                                        widths=(256, 512, 1024, 2048), groups=(1, 1, 256, 512), stem_chs=(32, 64)),
    "cs3edgenet_x": CS3_X | EDGE,
    "cs3se_edgenet_x": CS3_X | EDGE | SE4,
})  # fmt: skip

__getattr__ = family.entrypoint
