"""ResNet and its direct descendants (He et al. 2015, arXiv 1512.03385).

One trunk carries ResNeXt (Xie et al. 2016, 1611.05431), Wide ResNet (Zagoruyko and Komodakis 2016, 1605.07146), the
c, d, s and t stems of "Bag of Tricks" (He et al. 2018, 1812.01187), SE-ResNet (Hu et al. 2017, 1709.01507), ECA-ResNet
(Wang et al. 2019, 1910.03151), anti-aliased ResNets (Zhang 2019, 1904.11486) and ResNet-RS (Bello et al. 2021,
2103.07579). The stride of a bottleneck is on its 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from ..backbone import Backbone, Family, Step
from ..errors import BadArgument
from ..layers.blur_pool import BlurPool2d, create_aa
from ..layers.create_act import get_act_layer
from ..layers.create_attn import create_attn
from ..layers.create_norm import get_norm_layer
from ..layers.drop import DropBlock2d, DropPath
from ..layers.pool2d_ceil import AvgPool2dCeil
from ..layers.pool2d_same import AvgPool2dSame, create_pool2d
from ..layers.squeeze_excite import SEModule
from ..layers.typing import PadType

__all__ = ["BasicBlock", "Bottleneck", "Cell", "ResNet"]


@dataclass(frozen=True)
class Cell:
    """What all residual blocks of a network share, but for their widths and strides."""

    cardinality: int = 1
    base_width: int = 64
    reduce_first: int = 1
    act_layer: Callable[..., nn.Module] = nn.ReLU
    norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d
    aa_layer: Any = None
    attn_layer: Any = None
    drop_block: Callable[..., nn.Module] | None = None
    pool_pad_type: PadType = ""

    def width(self, chs: int) -> int:
        """Channels of the 3x3 convolution in a block of `chs`."""
        return chs * self.base_width // 64 * self.cardinality

    def blurs(self, step: Step) -> bool:
        """Whether anti-aliasing takes the place of the stride."""
        return self.aa_layer is not None and (step.stride == 2 or step.first_dilation != step.dilation)

    def dropped(self) -> nn.Module:
        """DropBlock, or nothing."""
        return self.drop_block() if self.drop_block else nn.Identity()

    def refuse(self, block: type, *names: str) -> None:
        """Raises `BadArgument` where a setting that `block` has no use for is not the default."""
        for name in names:
            if getattr(self, name) != getattr(Cell, name):
                raise BadArgument(f"{name}={getattr(self, name)}: not defined for {block.__name__}; leave it out")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self,
        in_chs: int,
        chs: int,
        step: Step,
        downsample: nn.Module | None = None,
        cell: Cell = Cell(),
    ) -> None:
        super().__init__()
        cell.refuse(type(self), "cardinality", "base_width")
        first_chs, out_chs = chs // cell.reduce_first, chs * self.expansion
        blurs = cell.blurs(step)
        self.conv1 = nn.Conv2d(in_chs, first_chs, 3, 1 if blurs else step.stride, step.first_dilation,
                               step.first_dilation, bias=False)
        self.bn1 = cell.norm_layer(first_chs)
        self.drop_block = cell.dropped()
        self.act1 = cell.act_layer(inplace=True)
        self.aa = create_aa(cell.aa_layer, channels=first_chs, stride=step.stride, enable=blurs)
        self.conv2 = nn.Conv2d(first_chs, out_chs, 3, 1, step.dilation, step.dilation, bias=False)
        self.bn2 = cell.norm_layer(out_chs)
        self.se = create_attn(cell.attn_layer, out_chs)
        self.drop_path = DropPath()
        self.act2 = cell.act_layer(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The norm that closes the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        return self.act2(self.drop_path(x) + shortcut)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 (grouped, perhaps) and a 1x1 convolution that quadruples the channels, and a shortcut."""

    expansion = 4

    def __init__(
        self,
        in_chs: int,
        chs: int,
        step: Step,
        downsample: nn.Module | None = None,
        cell: Cell = Cell(),
    ) -> None:
        super().__init__()
        width, out_chs = cell.width(chs), chs * self.expansion
        first_chs = width // cell.reduce_first
        blurs = cell.blurs(step)
        self.conv1 = nn.Conv2d(in_chs, first_chs, 1, bias=False)
        self.bn1 = cell.norm_layer(first_chs)
        self.act1 = cell.act_layer(inplace=True)
        self.conv2 = nn.Conv2d(first_chs, width, 3, 1 if blurs else step.stride, step.first_dilation,
                               step.first_dilation, groups=cell.cardinality, bias=False)
        self.bn2 = cell.norm_layer(width)
        self.drop_block = cell.dropped()
        self.act2 = cell.act_layer(inplace=True)
        self.aa = create_aa(cell.aa_layer, channels=width, stride=step.stride, enable=blurs)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = cell.norm_layer(out_chs)
        self.se = create_attn(cell.attn_layer, out_chs)
        self.drop_path = DropPath()
        self.act3 = cell.act_layer(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The norm that closes the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        return self.act3(self.drop_path(x) + shortcut)


def downsample_conv(
    in_chs: int, out_chs: int, kernel_size: int, step: Step, norm_layer: Callable[..., nn.Module]
) -> nn.Module:
    """A strided convolution and a norm, for the shortcut."""
    if step.stride == 1 and step.dilation == 1:
        kernel_size = 1
    dilation = step.first_dilation if kernel_size > 1 else 1
    padding = dilation * (kernel_size - 1) // 2
    return nn.Sequential(
        nn.Conv2d(in_chs, out_chs, kernel_size, step.stride, padding, dilation, bias=False), norm_layer(out_chs)
    )


def downsample_avg(
    in_chs: int, out_chs: int, kernel_size: int, step: Step, norm_layer: Callable[..., nn.Module]
) -> nn.Module:
    """An average pool in place of the stride, a 1x1 convolution and a norm, for the shortcut (the "d" variants)."""
    pool: nn.Module = nn.Identity()
    if step.stride > 1 and step.dilation == 1:
        pool = AvgPool2dCeil()
    elif step.stride > 1 or step.dilation > 1:
        pool = AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(in_chs, out_chs, 1, bias=False), norm_layer(out_chs))


class ResNet(Backbone):
    """A strided stem, four stages of residual blocks, average pooling.

    - `block`: the residual block, one for all stages or one a stage; `layers`: how many a stage; `channels`: their
      width before expansion.
    - `stem_type`: '' is one 7x7 convolution, 'deep' three 3x3 ones, 'deep_tiered' three that widen; `stem_width` is
      the first one's width. `replace_stem_pool` uses a strided convolution for the max pool.
    - `avg_down`: average pooling in the shortcuts; `down_kernel_size`: of the shortcut's convolution.
    - `cardinality`, `base_width`: groups and their width in bottlenecks; `block_reduce_first`: divides the width of a
      block's first convolution.
    - `pool_pad_type`: padding of pools of 3x3, '' one pixel all round, 'same' as TensorFlow and MindSpore do, which an
      average leaves out.
    - `aa_layer`: anti-aliasing in place of strides; `drop_block_rate`: DropBlock in the last two stages;
      `zero_init_last`: residual branches start as zero; `block_args`: more arguments for the blocks.
    """

    units = r"layer(\d+)\.(\d+)"
    dilates_to = 8

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    drop_block_settings: ClassVar[tuple] = (None, None, (5, 0.25), (3, 1.0))  # block size, gamma scale of each stage

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int | None = None,
        global_pool: str = "avg",
        cardinality: int = 1,
        base_width: int = 64,
        stem_width: int = 64,
        stem_type: str = "",
        replace_stem_pool: bool = False,
        block_reduce_first: int = 1,
        down_kernel_size: int = 1,
        avg_down: bool = False,
        channels: Sequence[int] = (64, 128, 256, 512),
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        aa_layer: Any = None,
        drop_block_rate: float = 0.0,
        zero_init_last: bool = True,
        block_args: dict[str, Any] | None = None,
        pool_pad_type: PadType = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        if pool_pad_type not in ("", "same"):
            raise BadArgument(f"pool_pad_type={pool_pad_type!r}: give '' (one pixel all round) or 'same'")
        self.zero_init_last = zero_init_last
        act_layer, norm_layer = get_act_layer(act_layer), get_norm_layer(norm_layer)
        assert act_layer is not None and norm_layer is not None

        width = stem_width * 2 if "deep" in stem_type else 64
        if "deep" in stem_type:
            first = 3 * (stem_width // 4) if "tiered" in stem_type else stem_width
            self.conv1: nn.Module = nn.Sequential(
                nn.Conv2d(in_chans, first, 3, stride=2, padding=1, bias=False), norm_layer(first),
                act_layer(inplace=True),
                nn.Conv2d(first, stem_width, 3, padding=1, bias=False), norm_layer(stem_width),
                act_layer(inplace=True),
                nn.Conv2d(stem_width, width, 3, padding=1, bias=False),
            )  # fmt: skip
        else:
            self.conv1 = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(width)
        self.act1 = act_layer(inplace=True)
        self.plan.spend(2)
        self.plan.mark(width, "act1")

        self.maxpool = self._stem_pool(width, replace_stem_pool, aa_layer, act_layer, norm_layer, pool_pad_type)
        self.plan.spend(2)

        blocks = tuple(block) if isinstance(block, (tuple, list)) else (block,) * len(channels)
        shared = {field.name for field in fields(Cell)}
        own_args = {name: value for name, value in (block_args or {}).items() if name not in shared}
        cell = Cell(cardinality, base_width, block_reduce_first, act_layer, norm_layer, aa_layer,
                    pool_pad_type=pool_pad_type, **{name: value for name, value in (block_args or {}).items() if name in shared})
        for i, (make, chs, depth) in enumerate(zip(blocks, channels, layers)):
            make = BLOCKS.get(make, make) if isinstance(make, str) else make
            step = self.plan.step(1 if i == 0 else 2)
            if drop_block_rate and self.drop_block_settings[i]:
                size, gamma = self.drop_block_settings[i]
                cell = replace(cell, drop_block=partial(DropBlock2d, drop_prob=drop_block_rate, block_size=size,
                                                        gamma_scale=gamma))
            out_chs = chs * make.expansion
            stage = []
            for _ in range(depth):
                shortcut = None
                if step.stride != 1 or width != out_chs:
                    shape = downsample_avg if avg_down else downsample_conv
                    shortcut = shape(width, out_chs, down_kernel_size, step, norm_layer)
                stage.append(make(width, chs, step, shortcut, cell, **own_args))
                width, step = out_chs, Step(1, step.dilation, step.dilation)
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
            self.plan.mark(width, f"layer{i + 1}")
        self.make_head("fc")

    @staticmethod
    def _stem_pool(
        width: int, as_conv: bool, aa_layer: Any, act_layer: Any, norm_layer: Any, pad_type: PadType
    ) -> nn.Module:
        if as_conv:
            conv = nn.Conv2d(width, width, 3, stride=1 if aa_layer else 2, padding=1, bias=False)
            blur = [create_aa(aa_layer, channels=width, stride=2)] if aa_layer else []
            return nn.Sequential(conv, *blur, norm_layer(width), act_layer(inplace=True))
        if aa_layer is None:
            return create_pool2d("max", 3, 2, padding=pad_type)
        blur = create_aa(aa_layer, channels=width, stride=2)
        return blur if isinstance(blur, nn.AvgPool2d) else nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), blur)

    def init_weights(self) -> None:
        """He initialisation of convolutions; residual branches start as zero where `zero_init_last`."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            last_norm: Any = getattr(module, "last_norm", None)
            if self.zero_init_last and last_norm is not None:
                nn.init.zeros_(last_norm.weight)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.act1(self.bn1(self.conv1(x)))
        yield x
        x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            yield x


BLOCKS: dict[str, Any] = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}

basic = dict(block=BasicBlock)
bottle = dict(block=Bottleneck)

R10 = basic | dict(layers=(1, 1, 1, 1))
R14 = bottle | dict(layers=(1, 1, 1, 1))
R18 = basic | dict(layers=(2, 2, 2, 2))
R26 = bottle | dict(layers=(2, 2, 2, 2))
R34 = basic | dict(layers=(3, 4, 6, 3))
R50 = bottle | dict(layers=(3, 4, 6, 3))
R101 = bottle | dict(layers=(3, 4, 23, 3))
R152 = bottle | dict(layers=(3, 8, 36, 3))
R200 = bottle | dict(layers=(3, 24, 36, 3))
R269 = bottle | dict(layers=(3, 30, 48, 8))

C = dict(stem_type="deep", stem_width=32)  # three 3x3 convolutions in the stem
S = dict(stem_type="deep", stem_width=64)  # the same, twice as wide
D = C | dict(avg_down=True)  # and average pooling in the shortcuts
T = dict(stem_type="deep_tiered", stem_width=32, avg_down=True)  # a stem that widens

X4 = dict(cardinality=32, base_width=4)
X8 = dict(cardinality=32, base_width=8)
X16 = dict(cardinality=32, base_width=16)
X32 = dict(cardinality=32, base_width=32)
X64 = dict(cardinality=64, base_width=4)

SE = dict(block_args=dict(attn_layer="se"))
ECA = dict(block_args=dict(attn_layer="eca"))
RS = D | dict(replace_stem_pool=True, block_args=dict(attn_layer=partial(SEModule, rd_ratio=0.25)))
AVG = dict(aa_layer="avgceil")
BLUR = dict(aa_layer=BlurPool2d)

family = Family(ResNet, {
    "resnet10t": R10 | T,
    "resnet14t": R14 | T,
    "resnet18": R18,
    "resnet18d": R18 | D,
    "resnet26": R26,
    "resnet26d": R26 | D,
    "resnet26t": R26 | T,
    "resnet34": R34,
    "resnet34d": R34 | D,
    "resnet50": R50,
    "resnet50_gn": R50 | dict(norm_layer="groupnorm"),
    "resnet50c": R50 | C,
    "resnet50d": R50 | D,
    "resnet50s": R50 | S,
    "resnet50t": R50 | T,
    "resnet101": R101,
    "resnet101c": R101 | C,
    "resnet101d": R101 | D,
    "resnet101s": R101 | S,
    "resnet152": R152,
    "resnet152c": R152 | C,
    "resnet152d": R152 | D,
    "resnet152s": R152 | S,
    "resnet200": R200,
    "resnet200d": R200 | D,
    "wide_resnet50_2": R50 | dict(base_width=128),
    "wide_resnet101_2": R101 | dict(base_width=128),

    "resnext50_32x4d": R50 | X4,
    "resnext50d_32x4d": R50 | X4 | D,
    "resnext101_32x4d": R101 | X4,
    "resnext101_32x8d": R101 | X8,
    "resnext101_32x16d": R101 | X16,
    "resnext101_32x32d": R101 | X32,
    "resnext101_64x4d": R101 | X64,
    "resnext152_64x4d": R152 | X64,

    "ecaresnet26t": R26 | T | ECA,
    "ecaresnet50d": R50 | D | ECA,
    "ecaresnet50d_pruned": R50 | D | ECA | dict(pruned=True),
    "ecaresnet50t": R50 | T | ECA,
    "ecaresnetlight": bottle | dict(layers=(1, 1, 11, 3), stem_width=32, avg_down=True) | ECA,
    "ecaresnet101d": R101 | D | ECA,
    "ecaresnet101d_pruned": R101 | D | ECA | dict(pruned=True),
    "ecaresnet200d": R200 | D | ECA,
    "ecaresnet269d": R269 | D | ECA,
    "ecaresnext26t_32x4d": R26 | X4 | T | ECA,
    "ecaresnext50t_32x4d": R50 | X4 | T | ECA,

    "seresnet18": R18 | SE,
    "seresnet34": R34 | SE,
    "seresnet50": R50 | SE,
    "seresnet50t": R50 | T | SE,
    "seresnet101": R101 | SE,
    "seresnet152": R152 | SE,
    "seresnet152d": R152 | D | SE,
    "seresnet200d": R200 | D | SE,
    "seresnet269d": R269 | D | SE,
    "seresnext26d_32x4d": R26 | X4 | D | SE,
    "seresnext26t_32x4d": R26 | X4 | T | SE,
    "seresnext50_32x4d": R50 | X4 | SE,
    "seresnext101_32x4d": R101 | X4 | SE,
    "seresnext101_32x8d": R101 | X8 | SE,
    "seresnext101d_32x8d": R101 | X8 | D | SE,
    "seresnext101_64x4d": R101 | X64 | SE,
    "senet154": R152 | X64 | dict(stem_type="deep", down_kernel_size=3, block_reduce_first=2) | SE,

    "resnetaa34d": R34 | D | AVG,
    "resnetaa50": R50 | AVG,
    "resnetaa50d": R50 | D | AVG,
    "resnetaa101d": R101 | D | AVG,
    "seresnetaa50d": R50 | D | AVG | SE,
    "seresnextaa101d_32x8d": R101 | X8 | D | AVG | SE,
    "seresnextaa201d_32x8d": bottle | dict(layers=(3, 24, 36, 4)) | X8 | D | dict(stem_width=64) | AVG | SE,
    "resnetblur18": R18 | BLUR,
    "resnetblur50": R50 | BLUR,
    "resnetblur50d": R50 | D | BLUR,
    "resnetblur101d": R101 | D | BLUR,

    "resnetrs50": R50 | RS,
    "resnetrs101": R101 | RS,
    "resnetrs152": R152 | RS,
    "resnetrs200": R200 | RS,
    "resnetrs270": bottle | dict(layers=(4, 29, 53, 4)) | RS,
    "resnetrs350": bottle | dict(layers=(4, 36, 72, 4)) | RS,
    "resnetrs420": bottle | dict(layers=(4, 44, 87, 4)) | RS,

    "test_resnet": dict(block=(BasicBlock, BasicBlock, Bottleneck, BasicBlock), layers=(1, 1, 1, 1),
                        channels=(32, 48, 48, 96)) | D | dict(stem_width=16),
})  # fmt: skip

__getattr__ = family.entrypoint
