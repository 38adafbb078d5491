"""ReXNet: inverted residuals whose width grows by the same amount in every block (Han et al. 2020, arXiv 2007.00992).

A block adds its input to the first channels of its output, which has more of them; the others have no shortcut. The
depthwise convolution's activation comes after the channel gate, which has a norm inside. The `rexnetr` variants round
widths to multiples, for faster kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family, Step
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_act import create_act_layer
from ..layers.drop import DropPath
from ..layers.shapes import make_divisible
from ..layers.squeeze_excite import SEModule
from ..layers.typing import LayerType
from ..layers.weight_init import init_weight_tf

__all__ = ["LinearBottleneck", "RexNet"]

STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (5, 2))  # blocks and stride of each
GATED_FROM = 2  # the first stage with channel gates


class LinearBottleneck(nn.Module):
    """An inverted residual block: expansion by `exp_ratio`, depthwise convolution, gate, linear projection.

    The shortcut covers the first `in_chs` of the `out_chs` channels, where neither stride nor dilation changes. Widths
    inside are multiples of `ch_div`; there is no gate where `se_ratio` is 0.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        step: Step,
        exp_ratio: float = 1.0,
        se_ratio: float = 0.0,
        ch_div: int = 1,
        act_layer: LayerType = "swish",
        dw_act_layer: LayerType = "relu6",
    ) -> None:
        super().__init__()
        self.in_chs = in_chs
        self.grows = out_chs > in_chs
        self.use_shortcut = step.stride == 1 and step.dilation == step.first_dilation and in_chs <= out_chs
        width = in_chs if exp_ratio == 1 else make_divisible(round(in_chs * exp_ratio), ch_div)
        self.conv_exp = None if exp_ratio == 1 else ConvNormAct(in_chs, width, 1, act_layer=act_layer)
        self.conv_dw = ConvNormAct(width, width, 3, stride=step.stride, dilation=step.first_dilation, groups=width,
                                   apply_act=False)
        self.se = None
        if se_ratio > 0:
            squeezed = make_divisible(int(width * se_ratio), ch_div)
            self.se = SEModule(width, rd_channels=squeezed, norm_layer=nn.BatchNorm2d)
        self.act_dw = create_act_layer(dw_act_layer, inplace=True)
        self.conv_pwl = ConvNormAct(width, out_chs, 1, apply_act=False)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.conv_exp is not None:
            x = self.conv_exp(x)
        x = self.conv_dw(x)
        if self.se is not None:
            x = self.se(x)
        x = self.conv_pwl(self.act_dw(x))
        if not self.use_shortcut:
            return x
        x = self.drop_path(x)
        if not self.grows:
            return x + shortcut
        return torch.cat((x[:, : self.in_chs] + shortcut, x[:, self.in_chs :]), dim=1)


class Row(NamedTuple):
    """A block's place in the network."""

    chs: int
    stride: int
    expands: bool
    gated: bool


def block_rows(width_mult: float, depth_mult: float, initial_chs: float, final_chs: float, ch_div: int) -> list[Row]:
    """All blocks, their widths on a line from `initial_chs` to short of `initial_chs + final_chs`, times `width_mult`."""
    depths = [math.ceil(depth * depth_mult) for depth, _ in STAGES]
    total = sum(depths)
    chs = initial_chs / width_mult if width_mult < 1 else initial_chs  # no network starts narrower than that
    rows = []
    for stage, (depth, (_, stride)) in enumerate(zip(depths, STAGES)):
        for k in range(depth):
            width = make_divisible(round(chs * width_mult), ch_div)
            rows.append(Row(width, 1 if k else stride, expands=stage > 0, gated=stage >= GATED_FROM))
            chs += final_chs / total
    return rows


class RexNet(Backbone):
    """A strided stem, inverted residuals of growing width, a 1x1 convolution before pooling.

    - `initial_chs`: width of the first block; `final_chs`: what the blocks together add to it.
    - `width_mult`, `depth_mult`: multiples of widths and of the depths of stages; `ch_div`: what widths are multiples of.
    - `se_ratio`: width of the channel gates over that of the block.
    - `act_layer`: the activation of stem, expansions and last convolution; `dw_act_layer`: that after the gate.
    """

    units = r"features\.(\d+)"
    dilates_to = 8

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int | None = None,
        initial_chs: int = 16,
        final_chs: int = 180,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        se_ratio: float = 1 / 12,
        ch_div: int = 1,
        act_layer: LayerType = "swish",
        dw_act_layer: LayerType = "relu6",
        drop_rate: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, drop_rate=drop_rate, **kwargs)
        block = partial(LinearBottleneck, ch_div=ch_div, act_layer=act_layer, dw_act_layer=dw_act_layer)
        width = make_divisible(round(32 * max(width_mult, 1)), ch_div)
        self.stem = ConvNormAct(in_chans, width, 3, stride=self.plan.spend(2), act_layer=act_layer)
        self.features = nn.Sequential()
        self.level_blocks: list[int] = []  # those that a stride, or what stands for one, follows
        for i, row in enumerate(block_rows(width_mult, depth_mult, initial_chs, final_chs, ch_div)):
            if row.stride > 1:
                self._mark(width, i - 1)
            self.features.append(block(width, row.chs, self.plan.step(row.stride), 6 if row.expands else 1,
                                       se_ratio if row.gated else 0))
            width = row.chs
        self._mark(width, len(self.features) - 1)
        last = make_divisible(1280 * width_mult, ch_div)
        self.features.append(ConvNormAct(width, last, 1, act_layer=act_layer))
        self.make_head("head.fc", width=last)

    def _mark(self, width: int, block: int) -> None:
        self.level_blocks.append(block)
        self.plan.mark(width, f"features.{block}")

    def init_weights(self) -> None:
        """Normal weights by fan out, as TensorFlow's EfficientNet draws them."""
        for module in self.modules():
            init_weight_tf(module)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.stem(x)
        for i, block in enumerate(self.features):
            x = block(x)
            if i in self.level_blocks:
                yield x
        yield x


R = dict(ch_div=8)

family = Family(RexNet, {
    "rexnet_090": dict(width_mult=0.9),
    "rexnet_100": dict(width_mult=1.0),
    "rexnet_130": dict(width_mult=1.3),
    "rexnet_150": dict(width_mult=1.5),
    "rexnet_200": dict(width_mult=2.0),
    "rexnet_300": dict(width_mult=3.0),
    "rexnetr_100": R | dict(width_mult=1.0),
    "rexnetr_130": R | dict(width_mult=1.3),
    "rexnetr_150": R | dict(width_mult=1.5),
    "rexnetr_200": R | dict(width_mult=2.0),
    "rexnetr_300": dict(width_mult=3.0, ch_div=16),
})  # fmt: skip

__getattr__ = family.entrypoint
