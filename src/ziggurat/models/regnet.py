"""RegNet: networks whose stage widths follow one quantised line (Radosavovic et al. 2020, arXiv 2003.13678).

X has plain bottlenecks with grouped convolutions, Y adds squeeze-and-excitation. Z is the inverted form of "Fast and
Accurate Model Scaling" (Dollar et al. 2021, 2103.06877): bottlenecks that widen and have linear outputs. V has
pre-activation (He et al. 2016, 1603.05027). The rows state the line, not the widths: `stage_shapes` draws them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from math import log
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..backbone import Backbone, Family, Step
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_act import create_act_layer
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.drop import DropPath
from ..layers.norm_act import GroupNormAct
from ..layers.pool2d_ceil import AvgPool2dCeil
from ..layers.pool2d_same import AvgPool2dSame
from ..layers.shapes import make_divisible
from ..layers.squeeze_excite import SEModule
from ..layers.typing import LayerType

__all__ = ["Bottleneck", "PreBottleneck", "RegNet", "Stage", "stage_shapes"]


class Stage(NamedTuple):
    """What the design space fixes of one stage."""

    width: int
    depth: int
    group_size: int


def stage_shapes(
    depth: int, w0: int, wa: float, wm: float, group_size: int, bottle_ratio: float = 1.0, group_min_ratio: float = 0.0
) -> list[Stage]:
    """Stages of the network whose block j wants a width of `w0 + wa * j` (section 3.3 of the paper).

    Wanted widths are snapped to the nearest power of `wm` times `w0`, then to a multiple of 8; blocks of one width
    are a stage. Widths are then fitted to whole groups: to the nearest multiple, and with `group_min_ratio` to the
    next above where rounding down would leave less than that part.
    """
    widths = Counter(
        8 * round(w0 * wm ** round(log((w0 + wa * j) / w0) / log(wm)) / 8) for j in range(depth)
    )
    stages = []
    for width, count in widths.items():
        inner = int(width * bottle_ratio)
        group = min(group_size, inner)
        if group_min_ratio:
            inner = make_divisible(inner, group, round_limit=group_min_ratio)
        else:
            inner = group * round(inner / group)
        stages.append(Stage(int(inner / bottle_ratio), count, group))
    return stages


def shortcut(
    in_chs: int, out_chs: int, step: Step, kind: str | None, norm_layer: LayerType | None
) -> nn.Module | None:
    """What brings a block's input to the shape of its output; None where nothing can (no `kind`: no shortcut then).

    `kind` is 'conv1x1', or 'avg' for average pooling before a convolution without stride. Without `norm_layer` the
    convolution comes alone.
    """
    if in_chs == out_chs and step.stride == 1 and step.dilation == step.first_dilation:
        return nn.Identity()
    if not kind:
        return None
    stride = 1 if kind == "avg" else step.stride
    conv: nn.Module
    if norm_layer is None:
        conv = create_conv2d(in_chs, out_chs, 1, stride=stride)
    else:
        conv = ConvNormAct(in_chs, out_chs, 1, stride=stride, norm_layer=norm_layer, apply_act=False)
    if kind != "avg":
        return conv
    pool: nn.Module = nn.Identity()
    if step.first_dilation > 1:
        pool = AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
    elif step.stride > 1:
        pool = AvgPool2dCeil()
    return nn.Sequential(pool, conv)


def squeeze_excite(channels: int, in_chs: int, se_ratio: float, act_layer: LayerType) -> nn.Module:
    """A gate whose bottleneck is sized by the width of the block's input; the identity at ratio 0."""
    if not se_ratio:
        return nn.Identity()
    return SEModule(channels, rd_channels=round(in_chs * se_ratio), act_layer=act_layer)


class Bottleneck(nn.Module):
    """A 1x1, a grouped 3x3 and a 1x1 convolution, each with a norm, and a shortcut where shapes allow one."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        step: Step,
        *,
        group_size: int = 1,
        bottle_ratio: float = 1.0,
        se_ratio: float = 0.25,
        downsample: str | None = "conv1x1",
        linear_out: bool = False,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        width = round(out_chs * bottle_ratio)
        unit = partial(ConvNormAct, act_layer=act_layer, norm_layer=norm_layer)
        self.conv1 = unit(in_chs, width, 1)
        self.conv2 = unit(width, width, 3, stride=step.stride, dilation=step.first_dilation, groups=width // group_size)
        self.se = squeeze_excite(width, in_chs, se_ratio, act_layer)
        self.conv3 = unit(width, out_chs, 1, apply_act=False)
        self.act3: Any = nn.Identity() if linear_out else create_act_layer(act_layer)
        self.downsample = shortcut(in_chs, out_chs, step, downsample, norm_layer)
        self.drop_path = DropPath()

    @property
    def last_norm(self) -> nn.Module:
        """The norm that closes the residual branch."""
        return self.conv3.bn

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv3(self.se(self.conv2(self.conv1(x))))
        if self.downsample is not None:
            branch = self.drop_path(branch) + self.downsample(x)
        return self.act3(branch)


class PreBottleneck(nn.Module):
    """The bottleneck with norm and activation before each convolution; the shortcut, too, starts after the first."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        step: Step,
        *,
        group_size: int = 1,
        bottle_ratio: float = 1.0,
        se_ratio: float = 0.25,
        downsample: str | None = "conv1x1",
        linear_out: bool = False,  # its outputs are linear in any case
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        norm_act = get_norm_act_layer(norm_layer, act_layer)
        assert norm_act is not None
        width = round(out_chs * bottle_ratio)
        self.norm1 = norm_act(in_chs)
        self.conv1 = create_conv2d(in_chs, width, 1)
        self.norm2 = norm_act(width)
        self.conv2 = create_conv2d(width, width, 3, stride=step.stride, dilation=step.first_dilation,
                                   groups=width // group_size)
        self.se = squeeze_excite(width, in_chs, se_ratio, act_layer)
        self.norm3 = norm_act(width)
        self.conv3 = create_conv2d(width, out_chs, 1)
        self.downsample = shortcut(in_chs, out_chs, step, downsample, None)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        branch = self.conv2(self.norm2(self.conv1(x)))
        branch = self.conv3(self.norm3(self.se(branch)))
        if self.downsample is None:
            return branch
        return self.drop_path(branch) + self.downsample(x)


class RegNet(Backbone):
    """A strided stem and stages of bottlenecks, each at half the size of the one before.

    - `depth`, `w0`, `wa`, `wm`: blocks in all, first width, slope and step of the line of widths.
    - `group_size`: channels a group of the 3x3 convolutions; `bottle_ratio`: their width over the block's;
      `group_min_ratio`: see `stage_shapes`.
    - `se_ratio`: width of the gate's bottleneck over the block's input; 0 leaves the gate out.
    - `downsample`: how shortcuts change shape: 'conv1x1', 'avg', or None for no shortcut there.
    - `linear_out`: no activation after blocks; `preact`: pre-activation blocks. One activation follows the last stage
      in both, or a 1x1 convolution to `num_features` channels where that is not 0.
    - `zero_init_last`: residual branches start as zero.
    """

    units = r"s(\d+)\.b(\d+)"
    dilates_to = 8

    def __init__(
        self,
        depth: int = 21,
        w0: int = 80,
        wa: float = 42.63,
        wm: float = 2.66,
        group_size: int = 24,
        bottle_ratio: float = 1.0,
        se_ratio: float = 0.0,
        group_min_ratio: float = 0.0,
        stem_width: int = 32,
        downsample: str | None = "conv1x1",
        linear_out: bool = False,
        preact: bool = False,
        num_features: int = 0,
        act_layer: LayerType = "relu",
        norm_layer: LayerType = "batchnorm",
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int | None = None,
        global_pool: str = "avg",
        zero_init_last: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        self.zero_init_last = zero_init_last
        layers: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer)
        stride = self.plan.spend(2)
        if preact:
            self.stem: nn.Module = create_conv2d(in_chans, stem_width, 3, stride=stride)
        else:
            self.stem = ConvNormAct(in_chans, stem_width, 3, stride=stride, **layers)
        self.plan.mark(stem_width, "stem")

        cell = layers | dict(bottle_ratio=bottle_ratio, se_ratio=se_ratio, downsample=downsample, linear_out=linear_out)
        make: type[nn.Module] = PreBottleneck if preact else Bottleneck
        stages = stage_shapes(depth, w0, wa, wm, group_size, bottle_ratio, group_min_ratio)
        self.stage_names = [f"s{i + 1}" for i in range(len(stages))]
        chs = stem_width
        for name, (width, count, group) in zip(self.stage_names, stages):
            step = self.plan.step(2)
            stage = nn.Sequential()
            for j in range(count):
                stage.add_module(f"b{j + 1}", make(chs, width, step, group_size=group, **cell))
                chs, step = width, Step(1, step.dilation, step.dilation)
            self.add_module(name, stage)
            self.plan.mark(width, name)

        self.final_conv: nn.Module | None = None
        if num_features:
            self.final_conv = ConvNormAct(chs, num_features, 1, **layers)
        elif linear_out or preact:
            self.final_conv = create_act_layer(act_layer)
        self.make_head("head.fc", num_features or chs)

    def init_weights(self) -> None:
        """He initialisation by the fan out of a group; residual branches start as zero where `zero_init_last`."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                rows, columns = module.kernel_size
                nn.init.normal_(module.weight, std=(2 * module.groups / (rows * columns * module.out_channels)) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
            elif self.zero_init_last and isinstance(module, Bottleneck):
                nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Names of torchvision's checkpoints, and of Classy Vision's and VISSL's (SEER), which come in two parts."""
        if "classy_state_dict" in state_dict:
            parts = state_dict["classy_state_dict"]["base_model"]["model"]
            state_dict = parts["trunk"] | {
                name: tensor for name, tensor in parts["heads"].items()
                if "projection_head" not in name and "prototypes" not in name  # of the self-supervised training
            }
        return {foreign_name(name): tensor for name, tensor in state_dict.items()}

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.stem(x)
        yield x
        for name in self.stage_names:
            x = getattr(self, name)(x)
            yield x
        if self.final_conv is not None:
            yield self.final_conv(x)


# torchvision: trunk_output.block1.block1-0.f.a.0.weight; Classy Vision: _feature_blocks.res2.block1-0.f.a.0.weight
FOREIGN_BLOCK = re.compile(r"(?:trunk_output\.block\d|_feature_blocks\.res\d)\.block(\d)-(\d+)\.(.+)\.(\w+)")
FOREIGN_PARTS = {
    "f.a.0": "conv1.conv", "f.a.1": "conv1.bn",
    "f.b.0": "conv2.conv", "f.b.1": "conv2.bn",
    "f.se.excitation.0": "se.fc1", "f.se.excitation.2": "se.fc2", "f.se.fc1": "se.fc1", "f.se.fc2": "se.fc2",
    "f.c": "conv3.conv", "f.final_bn": "conv3.bn", "f.c.0": "conv3.conv", "f.c.1": "conv3.bn",
    "proj": "downsample.conv", "bn": "downsample.bn", "proj.0": "downsample.conv", "proj.1": "downsample.bn",
}  # fmt: skip
FOREIGN_ENDS = {
    "stem.0": "stem.conv", "stem.1": "stem.bn", "fc": "head.fc",
    "_feature_blocks.conv1.stem.0": "stem.conv", "_feature_blocks.conv1.stem.1": "stem.bn", "0.clf.0": "head.fc",
}  # fmt: skip


def foreign_name(name: str) -> str:
    """Our name of a tensor that torchvision or Classy Vision names otherwise; other names as they are."""
    found = FOREIGN_BLOCK.fullmatch(name)
    if found:
        stage, block, part, kind = found.groups()
        return f"s{stage}.b{int(block) + 1}.{FOREIGN_PARTS.get(part, part)}.{kind}"
    owner, _, kind = name.rpartition(".")
    return f"{FOREIGN_ENDS[owner]}.{kind}" if owner in FOREIGN_ENDS else name


Y = dict(se_ratio=0.25)
Z = Y | dict(bottle_ratio=4.0, downsample=None, linear_out=True, act_layer="silu", zero_init_last=False)
V = Y | dict(preact=True, act_layer="silu")
TV = dict(group_min_ratio=0.9)  # torchvision's way of fitting widths to groups

# depth and line of a row, where rows share them
M200 = dict(depth=13, w0=24, wa=36.44, wm=2.49, group_size=8)
M400 = dict(depth=22, w0=24, wa=24.48, wm=2.54, group_size=16)
Y008 = Y | dict(depth=14, w0=56, wa=38.84, wm=2.4, group_size=16)
Y040 = Y | dict(depth=22, w0=96, wa=31.41, wm=2.24, group_size=64)
Y064 = Y | dict(depth=25, w0=112, wa=33.22, wm=2.27, group_size=72)
Y080 = Y | dict(depth=17, w0=192, wa=76.82, wm=2.19, group_size=56)
G12 = dict(depth=19, w0=168, wa=73.36, wm=2.37, group_size=112)
Z040 = Z | dict(depth=28, w0=48, wa=14.5, wm=2.226, group_size=8)

family = Family(RegNet, {
    "regnetx_002": M200,
    "regnetx_004": M400,
    "regnetx_004_tv": M400 | TV,
    "regnetx_006": dict(depth=16, w0=48, wa=36.97, wm=2.24, group_size=24),
    "regnetx_008": dict(depth=16, w0=56, wa=35.73, wm=2.28, group_size=16),
    "regnetx_016": dict(depth=18, w0=80, wa=34.01, wm=2.25, group_size=24),
    "regnetx_032": dict(depth=25, w0=88, wa=26.31, wm=2.25, group_size=48),
    "regnetx_040": dict(depth=23, w0=96, wa=38.65, wm=2.43, group_size=40),
    "regnetx_064": dict(depth=17, w0=184, wa=60.83, wm=2.07, group_size=56),
    "regnetx_080": dict(depth=23, w0=80, wa=49.56, wm=2.88, group_size=120),
    "regnetx_120": G12,
    "regnetx_160": dict(depth=22, w0=216, wa=55.59, wm=2.1, group_size=128),
    "regnetx_320": dict(depth=23, w0=320, wa=69.86, wm=2.0, group_size=168),

    "regnety_002": Y | M200,
    "regnety_004": Y | dict(depth=16, w0=48, wa=27.89, wm=2.09, group_size=8),
    "regnety_006": Y | dict(depth=15, w0=48, wa=32.54, wm=2.32, group_size=16),
    "regnety_008": Y008,
    "regnety_008_tv": Y008 | TV,
    "regnety_016": Y | dict(depth=27, w0=48, wa=20.71, wm=2.65, group_size=24),
    "regnety_032": Y | dict(depth=21, w0=80, wa=42.63, wm=2.66, group_size=24),
    "regnety_040": Y040,
    "regnety_040_sgn": Y040 | dict(act_layer="silu", norm_layer=partial(GroupNormAct, group_size=16)),
    "regnety_064": Y064,
    "regnety_080": Y080,
    "regnety_080_tv": Y080 | TV,
    "regnety_120": Y | G12,
    "regnety_160": Y | dict(depth=18, w0=200, wa=106.23, wm=2.48, group_size=112),
    "regnety_320": Y | dict(depth=20, w0=232, wa=115.89, wm=2.53, group_size=232),
    "regnety_640": Y | dict(depth=20, w0=352, wa=147.48, wm=2.4, group_size=328),
    "regnety_1280": Y | dict(depth=27, w0=456, wa=160.83, wm=2.52, group_size=264),
    "regnety_2560": Y | dict(depth=27, w0=640, wa=230.83, wm=2.53, group_size=373),

    "regnetv_040": Y040 | V,
    "regnetv_064": Y064 | V | dict(downsample="avg"),
    "regnetz_005": Z | dict(depth=21, w0=16, wa=10.7, wm=2.51, group_size=4, num_features=1024),
    "regnetz_040": Z040,
    "regnetz_040_h": Z040 | dict(num_features=1536),
})  # fmt: skip

__getattr__ = family.entrypoint
