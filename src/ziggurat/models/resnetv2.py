"""ResNet with pre-activation: norm and activation before each convolution (He et al. 2016, arXiv 1603.05027).

Big Transfer's networks (Kolesnikov et al. 2019, 1912.11370) have group norm and standardised weights, are up to four
times as wide, and pad their stem's pool as a step of its own. Where the network begins with pre-activation blocks, the
stem ends in a bare convolution, and a norm closes the trunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family, Step
from ..errors import BadArgument
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.drop import DropPath
from ..layers.evo_norm import EvoNorm2dS0
from ..layers.filter_response_norm import FilterResponseNormTlu2d
from ..layers.norm_act import BatchNormAct2d, GroupNormAct
from ..layers.pool2d_ceil import AvgPool2dCeil
from ..layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from ..layers.shapes import make_divisible
from ..layers.std_conv import StdConv2d
from ..layers.typing import LayerType

__all__ = ["Bottleneck", "DownsampleAvg", "DownsampleConv", "PreActBasic", "PreActBottleneck", "ResNetStage", "ResNetV2"]

Make = Callable[..., nn.Module]


class PreActBasic(nn.Module):
    """Two 3x3 convolutions, norm and activation before each, and a shortcut."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        step: Step,
        *,
        bottle_ratio: float = 1.0,
        groups: int = 1,
        act_layer: Make | None = None,
        conv_layer: Make,
        norm_layer: Make,
        proj_layer: Make | None = None,
    ) -> None:
        super().__init__()
        width = make_divisible(out_chs * bottle_ratio)
        changes = in_chs != out_chs or step.stride != 1 or step.first_dilation != step.dilation
        self.downsample = proj_layer(in_chs, out_chs, step) if proj_layer and changes else None
        self.norm1 = norm_layer(in_chs)
        self.conv1 = conv_layer(in_chs, width, 3, stride=step.stride, dilation=step.first_dilation, groups=groups)
        self.norm2 = norm_layer(width)
        self.conv2 = conv_layer(width, out_chs, 3, dilation=step.dilation, groups=groups)
        self.drop_path = DropPath()

    @property
    def last_weight(self) -> Tensor:
        """What scales the residual branch."""
        return self.conv2.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        ready = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(ready)
        return self.drop_path(self.conv2(self.norm2(self.conv1(ready)))) + shortcut


class PreActBottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, norm and activation before each, and a shortcut."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        step: Step,
        *,
        bottle_ratio: float = 0.25,
        groups: int = 1,
        act_layer: Make | None = None,
        conv_layer: Make,
        norm_layer: Make,
        proj_layer: Make | None = None,
    ) -> None:
        super().__init__()
        width = make_divisible(out_chs * bottle_ratio)
        self.downsample = proj_layer(in_chs, out_chs, step) if proj_layer else None
        self.norm1 = norm_layer(in_chs)
        self.conv1 = conv_layer(in_chs, width, 1)
        self.norm2 = norm_layer(width)
        self.conv2 = conv_layer(width, width, 3, stride=step.stride, dilation=step.first_dilation, groups=groups)
        self.norm3 = norm_layer(width)
        self.conv3 = conv_layer(width, out_chs, 1)
        self.drop_path = DropPath()

    @property
    def last_weight(self) -> Tensor:
        """What scales the residual branch."""
        return self.conv3.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        ready = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(ready)
        branch = self.conv2(self.norm2(self.conv1(ready)))
        return self.drop_path(self.conv3(self.norm3(branch))) + shortcut


class Bottleneck(nn.Module):
    """The bottleneck with norm and activation after each convolution, the last activation after the shortcut joins."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        step: Step,
        *,
        bottle_ratio: float = 0.25,
        groups: int = 1,
        act_layer: Make | None = nn.ReLU,
        conv_layer: Make,
        norm_layer: Make,
        proj_layer: Make | None = None,
    ) -> None:
        super().__init__()
        width = make_divisible(out_chs * bottle_ratio)
        self.downsample = proj_layer(in_chs, out_chs, step) if proj_layer else None
        self.conv1 = conv_layer(in_chs, width, 1)
        self.norm1 = norm_layer(width)
        self.conv2 = conv_layer(width, width, 3, stride=step.stride, dilation=step.first_dilation, groups=groups)
        self.norm2 = norm_layer(width)
        self.conv3 = conv_layer(width, out_chs, 1)
        self.norm3 = norm_layer(out_chs, apply_act=False)
        self.drop_path = DropPath()
        self.act3 = act_layer(inplace=True) if act_layer else nn.Identity()

    @property
    def last_weight(self) -> Tensor:
        """What scales the residual branch."""
        return self.norm3.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return self.act3(self.drop_path(self.norm3(self.conv3(branch))) + shortcut)


class DownsampleConv(nn.Sequential):
    """A strided 1x1 convolution for the shortcut, with a norm where one is given."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, *, conv_layer: Make, norm_layer: Make | None = None
    ) -> None:
        super().__init__()
        self.conv = conv_layer(in_chs, out_chs, 1, stride=step.stride)
        self.norm = norm_layer(out_chs, apply_act=False) if norm_layer else nn.Identity()


class DownsampleAvg(nn.Sequential):
    """Average pooling in place of the stride, then a 1x1 convolution and a norm where one is given."""

    def __init__(
        self, in_chs: int, out_chs: int, step: Step, *, conv_layer: Make, norm_layer: Make | None = None
    ) -> None:
        super().__init__()
        self.pool: nn.Module = nn.Identity()
        if step.dilation > 1:
            self.pool = AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
        elif step.stride > 1:
            self.pool = AvgPool2dCeil()
        self.conv = conv_layer(in_chs, out_chs, 1)
        self.norm = norm_layer(out_chs, apply_act=False) if norm_layer else nn.Identity()


class ResNetStage(nn.Module):
    """`blocks` of one width; the first strides and has a projection in its shortcut."""

    def __init__(self, in_chs: int, out_chs: int, step: Step, depth: int, block: Make, proj_layer: Make) -> None:
        super().__init__()
        after = Step(1, step.dilation, step.dilation)
        self.blocks = nn.Sequential(
            block(in_chs, out_chs, step, proj_layer=proj_layer),
            *(block(out_chs, out_chs, after) for _ in range(depth - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResNetV2(Backbone):
    """A strided stem, four stages of pre-activation blocks, a closing norm, a classifier that is a 1x1 convolution.

    - `layers`: blocks of each stage; `channels`: their widths; `width_factor` multiplies those and `stem_chs`.
    - `stem_type`: '' is one 7x7 convolution, 'deep' three 3x3 ones, 'tiered' three that widen; with 'fixed' in it the
      pool's padding is a step of its own (zeros, not minus infinity), with 'same' it is TensorFlow's.
    - `avg_down`: average pooling in the shortcuts; `basic`: basic blocks instead of bottlenecks, of which
      `bottle_ratio` is the inner width over the outer.
    - `preact`: False gives bottlenecks with norms after the convolutions, a norm in the stem and none at the end.
    - `zero_init_last`: residual branches start as zero.
    """

    units = r"stages\.(\d+)\.blocks\.(\d+)"
    dilates_to = 4
    final_norm = "norm"

    def __init__(
        self,
        layers: Sequence[int],
        channels: Sequence[int] = (256, 512, 1024, 2048),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int | None = None,
        width_factor: int = 1,
        stem_chs: int = 64,
        stem_type: str = "",
        avg_down: bool = False,
        preact: bool = True,
        basic: bool = False,
        bottle_ratio: float = 0.25,
        act_layer: Any = nn.ReLU,
        norm_layer: LayerType = GroupNormAct,
        conv_layer: Any = StdConv2d,
        zero_init_last: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        self.zero_init_last = zero_init_last
        norm_act = get_norm_act_layer(norm_layer, act_layer)
        assert norm_act is not None
        width = make_divisible(stem_chs * width_factor)
        self.stem, level = make_stem(in_chans, width, stem_type, preact, conv_layer, norm_act)
        self.plan.spend(2)
        self.plan.mark(width, f"stem.{level}")
        self.plan.spend(2)

        if preact:
            make: Make = PreActBasic if basic else PreActBottleneck
        else:
            if basic:
                raise BadArgument("basic=True with preact=False: basic blocks come with pre-activation; drop one of them")
            make = Bottleneck
        block = partial(make, bottle_ratio=bottle_ratio, act_layer=act_layer, conv_layer=conv_layer,
                        norm_layer=norm_act)
        projection = partial(DownsampleAvg if avg_down else DownsampleConv, conv_layer=conv_layer,
                             norm_layer=None if preact else norm_act)
        self.stages = nn.Sequential()
        for i, (depth, chs) in enumerate(zip(layers, channels)):
            step = self.plan.step(1 if i == 0 else 2)
            out_chs = make_divisible(chs * width_factor)
            self.stages.append(ResNetStage(width, out_chs, step, depth, block, projection))
            width = out_chs
            self.plan.mark(width, f"stages.{i}")
        self.norm = norm_act(width) if preact else nn.Identity()
        self.make_head("head.fc", use_conv=True)

    def init_weights(self) -> None:
        """He initialisation of convolutions; residual branches start as zero where `zero_init_last`."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                if name in self.classifiers:
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.zero_init_last:
            for module in self.modules():
                if isinstance(module, (PreActBasic, PreActBottleneck, Bottleneck)):
                    nn.init.zeros_(module.last_weight)

    def convert_npz(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state dict that Big Transfer's published arrays are, kernels (H W I O) turned round.

        Arrays of other names (an optimiser's) are left out.
        """
        named = ((bit_name(name), torch.as_tensor(array)) for name, array in arrays.items())
        return {
            name: array.permute(3, 2, 0, 1).contiguous() if array.ndim == 4 else array for name, array in named if name
        }

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Big Transfer's arrays, where that is what the checkpoint holds."""
        return self.convert_npz(state_dict) if BIT_MARK in state_dict else state_dict

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        level = self.plan.levels[0]["module"]
        for name, module in self.stem.named_children():
            x = module(x)
            if level == f"stem.{name}":
                yield x
        for stage in self.stages:
            x = stage(x)
            yield x
        yield self.norm(x)


def make_stem(
    in_chs: int, out_chs: int, stem_type: str, preact: bool, conv_layer: Make, norm_layer: Make
) -> tuple[nn.Sequential, str]:
    """The stem, and the name of the module in it that makes the first level. Its last norm is left out if `preact`."""
    stem = nn.Sequential()
    norm_name = "norm"
    if "deep" in stem_type or "tiered" in stem_type:
        norm_name = "norm3"
        first = 3 * out_chs // 8 if "tiered" in stem_type else out_chs // 2
        stem.conv1 = conv_layer(in_chs, first, 3, stride=2)
        stem.norm1 = norm_layer(first)
        stem.conv2 = conv_layer(first, out_chs // 2, 3)
        stem.norm2 = norm_layer(out_chs // 2)
        stem.conv3 = conv_layer(out_chs // 2, out_chs, 3)
    else:
        stem.conv = conv_layer(in_chs, out_chs, 7, stride=2)
    if not preact:
        stem.add_module(norm_name, norm_layer(out_chs))
    level = list(stem._modules)[-1]
    if "fixed" in stem_type:
        stem.pad = nn.ConstantPad2d(1, 0.0)
        stem.pool = nn.MaxPool2d(3, stride=2)
    elif "same" in stem_type:
        stem.pool = MaxPool2dSame(3, stride=2)
    else:
        stem.pool = nn.MaxPool2d(3, stride=2, padding=1)
    return stem, level


BIT_MARK = "resnet/root_block/standardized_conv2d/kernel"
BIT_BLOCK = re.compile(r"resnet/block(\d)/unit(\d+)/([abc])/(.+)/(\w+)")
BIT_ENDS = {
    BIT_MARK: "stem.conv.weight",
    "resnet/group_norm/gamma": "norm.weight", "resnet/group_norm/beta": "norm.bias",
    "resnet/head/conv2d/kernel": "head.fc.weight", "resnet/head/conv2d/bias": "head.fc.bias",
}  # fmt: skip


def bit_name(name: str) -> str | None:
    """Our name of one of Big Transfer's arrays; None where it is not part of the network."""
    found = BIT_BLOCK.fullmatch(name)
    if not found:
        return BIT_ENDS.get(name)
    stage, unit, letter, layer, kind = found.groups()
    number = "abc".index(letter) + 1
    part = {"standardized_conv2d": f"conv{number}", "group_norm": f"norm{number}",
            "proj/standardized_conv2d": "downsample.conv"}.get(layer)
    if part is None:
        return None
    return f"stages.{int(stage) - 1}.blocks.{int(unit) - 1}.{part}.{'bias' if kind == 'beta' else 'weight'}"


R50 = dict(layers=(3, 4, 6, 3))
R101 = dict(layers=(3, 4, 23, 3))
R152 = dict(layers=(3, 8, 36, 3))

BASIC = dict(channels=(64, 128, 256, 512), basic=True, bottle_ratio=1.0)
R18 = BASIC | dict(layers=(2, 2, 2, 2))
R34 = BASIC | dict(layers=(3, 4, 6, 3))

BN = dict(conv_layer=create_conv2d, norm_layer=BatchNormAct2d)
D = dict(stem_type="deep", avg_down=True)  # three 3x3 convolutions in the stem, average pooling in the shortcuts
T = dict(stem_type="tiered", avg_down=True)  # the same with a stem that widens
BIT = dict(stem_type="fixed", conv_layer=partial(StdConv2d, eps=1e-8))

family = Family(ResNetV2, {
    "resnetv2_18": R18 | BN,
    "resnetv2_18d": R18 | BN | D,
    "resnetv2_34": R34 | BN,
    "resnetv2_34d": R34 | BN | D,
    "resnetv2_50": R50 | BN,
    "resnetv2_50d": R50 | BN | D,
    "resnetv2_50t": R50 | BN | T,
    "resnetv2_101": R101 | BN,
    "resnetv2_101d": R101 | BN | D,
    "resnetv2_152": R152 | BN,
    "resnetv2_152d": R152 | BN | D,

    "resnetv2_50d_gn": R50 | BN | D | dict(norm_layer=GroupNormAct),
    "resnetv2_50d_evos": R50 | BN | D | dict(norm_layer=EvoNorm2dS0),
    "resnetv2_50d_frn": R50 | BN | D | dict(norm_layer=FilterResponseNormTlu2d),

    "resnetv2_50x1_bit": R50 | BIT,
    "resnetv2_50x3_bit": R50 | BIT | dict(width_factor=3),
    "resnetv2_101x1_bit": R101 | BIT,
    "resnetv2_101x3_bit": R101 | BIT | dict(width_factor=3),
    "resnetv2_152x2_bit": R152 | BIT | dict(width_factor=2),
    "resnetv2_152x4_bit": R152 | BIT | dict(width_factor=4),
})  # fmt: skip

__getattr__ = family.entrypoint
