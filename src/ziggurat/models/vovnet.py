"""VoVNet: blocks that concatenate all of their layers once, at the end (Lee et al. 2019, arXiv 1904.09730).

Version 2 (Lee and Park 2019, CenterMask, 1911.06667) adds a shortcut around blocks and effective squeeze and
excitation (`ese_*`); `eca_*` gates with ECA (1910.03151) instead, `*_dw` has depthwise separable convolutions, `*_evos`
EvoNorm-S0 (2004.02967) for batch normalisation.

Only the last block of a stage is gated and the first one has no shortcut, as the published weights have it. The stride
of a stage is a 3x3 max pool whose window may hang over the far edge: a side of n becomes ceil(n / 2), where the authors'
code leaves out the last row of an odd one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_attn import create_attn
from ..layers.drop import DropPath
from ..layers.pool2d_ceil import MaxPool2dCeil
from ..layers.separable_conv import SeparableConvNormAct

__all__ = ["OsaBlock", "OsaStage", "VovNet"]


class OsaBlock(nn.Module):
    """One-shot aggregation: 3x3 layers in a row, and a 1x1 convolution that reads the input and all of them.

    The layers have `mid_chs` channels; depthwise ones begin with a 1x1 convolution where the input has others.
    `layer` holds the arguments of every convolution's norm and activation.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        depth: int,
        *,
        residual: bool = False,
        depthwise: bool = False,
        attn: str = "",
        **layer: Any,
    ) -> None:
        super().__init__()
        spatial = SeparableConvNormAct if depthwise else ConvNormAct
        self.residual = residual
        self.conv_reduction = ConvNormAct(in_chs, mid_chs, 1, **layer) if depthwise and in_chs != mid_chs else None
        first_chs = in_chs if self.conv_reduction is None else mid_chs
        self.conv_mid = nn.ModuleList(spatial(mid_chs if i else first_chs, mid_chs, 3, **layer) for i in range(depth))
        self.conv_concat = ConvNormAct(in_chs + depth * mid_chs, out_chs, 1, **layer)
        self.attn = create_attn(attn, out_chs)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        held = [x]
        y = x if self.conv_reduction is None else self.conv_reduction(x)
        for conv in self.conv_mid:
            y = conv(y)
            held.append(y)
        y = self.conv_concat(torch.cat(held, dim=1))
        if self.attn is not None:
            y = self.attn(y)
        y = self.drop_path(y)
        return y + x if self.residual else y


class OsaStage(nn.Module):
    """A max pool where the stage strides, and its blocks."""

    def __init__(self, blocks: Sequence[OsaBlock], strides: bool) -> None:
        super().__init__()
        self.pool = MaxPool2dCeil() if strides else None
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x if self.pool is None else self.pool(x))


class VovNet(Backbone):
    """Three convolutions as the stem and stages of one-shot aggregation.

    - `stem_chs`: channels of the stem's convolutions; `stem_stride`: 4, or 2 to let the first stage stride too.
    - `stage_conv_chs`, `stage_out_chs`: channels of the layers in a stage's blocks, and of what the blocks put out;
      `block_per_stage`, `layer_per_block`: how many.
    - `residual`: shortcuts around blocks; `depthwise`: separable convolutions; `attn`: the gate, '' for none.
    """

    units = r"stages\.(\d+)\.blocks\.(\d+)"

    def __init__(
        self,
        stem_chs: Sequence[int],
        stage_conv_chs: Sequence[int],
        stage_out_chs: Sequence[int],
        layer_per_block: int,
        block_per_stage: Sequence[int],
        residual: bool = False,
        depthwise: bool = False,
        attn: str = "",
        stem_stride: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        norm_layer: Any = nn.BatchNorm2d,
        act_layer: Any = nn.ReLU,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        if stem_stride not in (2, 4):
            raise BadArgument(f"stem_stride={stem_stride}: give 4, or 2 to let the first stage stride too")
        layer = dict(norm_layer=norm_layer, act_layer=act_layer)
        spatial = SeparableConvNormAct if depthwise else ConvNormAct
        first, second, width = stem_chs
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, first, 3, stride=self.plan.spend(2), **layer),
            spatial(first, second, 3, **layer),
            spatial(second, width, 3, stride=stem_stride // 2, **layer),
        )
        self.stem_level = "1" if stem_stride == 4 else "2"  # the last convolution of stride 2
        self.plan.mark(second if stem_stride == 4 else width, f"stem.{self.stem_level}")
        self.plan.spend(stem_stride // 2)

        stages = []
        for i, (mid_chs, out_chs, depth) in enumerate(zip(stage_conv_chs, stage_out_chs, block_per_stage)):
            blocks = []
            for k in range(depth):
                blocks.append(OsaBlock(width, mid_chs, out_chs, layer_per_block, residual=residual and k > 0,
                                       depthwise=depthwise, attn=attn if k == depth - 1 else "", **layer))
                width = out_chs
            strides = i > 0 or stem_stride == 2
            stages.append(OsaStage(blocks, strides))
            self.plan.spend(2 if strides else 1)
            self.plan.mark(width, f"stages.{i}")
        self.stages = nn.Sequential(*stages)
        self.make_head("head.fc")

    def init_weights(self) -> None:
        """He initialisation of convolutions, no bias in the classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        for name, conv in self.stem.named_children():
            x = conv(x)
            if name == self.stem_level:
                yield x
        for stage in self.stages:
            x = stage(x)
            yield x


SHAPE = dict(stem_chs=(64, 64, 128), stage_conv_chs=(128, 160, 192, 224), stage_out_chs=(256, 512, 768, 1024))
SLIM = dict(stage_conv_chs=(64, 80, 96, 112), stage_out_chs=(112, 256, 384, 512))
DW = dict(stem_chs=(64, 64, 64), depthwise=True)

V19 = SHAPE | dict(layer_per_block=3, block_per_stage=(1, 1, 1, 1))
V39 = SHAPE | dict(layer_per_block=5, block_per_stage=(1, 1, 2, 2))
V57 = SHAPE | dict(layer_per_block=5, block_per_stage=(1, 1, 4, 3))
V99 = SHAPE | dict(layer_per_block=5, block_per_stage=(1, 3, 9, 3))

ESE = dict(residual=True, attn="ese")
ECA = dict(residual=True, attn="eca")

family = Family(VovNet, {
    "vovnet39a": V39,
    "vovnet57a": V57,
    "ese_vovnet19b_slim_dw": V19 | SLIM | DW | ESE,
    "ese_vovnet19b_dw": V19 | DW | ESE,
    "ese_vovnet19b_slim": V19 | SLIM | ESE,
    "ese_vovnet39b": V39 | ESE,
    "ese_vovnet57b": V57 | ESE,
    "ese_vovnet99b": V99 | ESE,
    "eca_vovnet39b": V39 | ECA,
    "ese_vovnet39b_evos": V39 | ESE | dict(norm_layer="evonorms0"),
})  # fmt: skip

__getattr__ = family.entrypoint
