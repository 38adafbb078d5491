"""ResNeSt: a ResNet whose 3x3 convolutions attend over splits of their channels (Zhang et al. 2020, arXiv 2004.08955).

Strides are average pools beside the convolution ("avd"), before or after it.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..backbone import Family, Step
from ..layers.drop import DropPath
from ..layers.pool2d_same import AvgPool2dWithin
from ..layers.split_attn import SplitAttn
from .resnet import Cell, ResNet

__all__ = ["ResNestBottleneck"]


def strided_mean(stride: int, cell: Cell) -> nn.Module:
    """The 3x3 average pool that takes over a convolution's stride."""
    if cell.pool_pad_type == "same":
        return AvgPool2dWithin(3, stride)
    return nn.AvgPool2d(3, stride, padding=1)


class ResNestBottleneck(nn.Module):
    """A bottleneck around a split-attention convolution of `radix` splits."""

    expansion = 4

    def __init__(
        self,
        in_chs: int,
        chs: int,
        step: Step,
        downsample: nn.Module | None = None,
        cell: Cell = Cell(),
        *,
        radix: int = 1,
        avd: bool = False,
        avd_first: bool = False,
    ) -> None:
        super().__init__()
        cell.refuse(type(self), "reduce_first", "attn_layer", "aa_layer")
        width = cell.width(chs)
        pools = avd and step.stride > 1
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = cell.norm_layer(width)
        self.act1 = cell.act_layer(inplace=True)
        self.avd_first = strided_mean(step.stride, cell) if pools and avd_first else nn.Identity()
        self.conv2 = SplitAttn(
            width, width, kernel_size=3, stride=1 if pools else step.stride, padding=step.first_dilation,
            dilation=step.first_dilation, groups=cell.cardinality, radix=radix, norm_layer=cell.norm_layer,
            drop_layer=cell.drop_block,
        )  # fmt: skip
        self.avd_last = strided_mean(step.stride, cell) if pools and not avd_first else nn.Identity()
        self.conv3 = nn.Conv2d(width, chs * self.expansion, 1, bias=False)
        self.bn3 = cell.norm_layer(chs * self.expansion)
        self.drop_path = DropPath()
        self.act3 = cell.act_layer(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The norm that closes the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.avd_first(self.act1(self.bn1(self.conv1(x))))
        x = self.bn3(self.conv3(self.avd_last(self.conv2(x))))
        return self.act3(self.drop_path(x) + shortcut)


D = dict(block=ResNestBottleneck, stem_type="deep", stem_width=32, avg_down=True)
E = D | dict(stem_width=64)
R2 = dict(block_args=dict(radix=2, avd=True))

family = Family(ResNet, {
    "resnest14d": D | R2 | dict(layers=(1, 1, 1, 1)),
    "resnest26d": D | R2 | dict(layers=(2, 2, 2, 2)),
    "resnest50d": D | R2 | dict(layers=(3, 4, 6, 3)),
    "resnest101e": E | R2 | dict(layers=(3, 4, 23, 3)),
    "resnest200e": E | R2 | dict(layers=(3, 24, 36, 3)),
    "resnest269e": E | R2 | dict(layers=(3, 30, 48, 8)),
    "resnest50d_4s2x40d": D | dict(layers=(3, 4, 6, 3), base_width=40, cardinality=2,
                                   block_args=dict(radix=4, avd=True, avd_first=True)),
    "resnest50d_1s4x24d": D | dict(layers=(3, 4, 6, 3), base_width=24, cardinality=4,
                                   block_args=dict(radix=1, avd=True, avd_first=True)),
})  # fmt: skip

__getattr__ = family.entrypoint
