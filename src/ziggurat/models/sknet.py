"""SKNet: a ResNet whose 3x3 convolutions choose between kernel sizes (Li et al. 2019, arXiv 1903.06586).

The 18- and 34-layer networks follow "Compounding the Performance Improvements" (Lee et al. 2020, 2001.06268).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbone import Family, Step
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_attn import create_attn
from ..layers.drop import DropPath
from ..layers.selective_kernel import SelectiveKernel
from .resnet import Cell, ResNet

__all__ = ["SelectiveKernelBasic", "SelectiveKernelBottleneck"]


class SelectiveKernelBasic(nn.Module):
    """A selective-kernel convolution, a 3x3 convolution, and a shortcut."""

    expansion = 1

    def __init__(
        self,
        in_chs: int,
        chs: int,
        step: Step,
        downsample: nn.Module | None = None,
        cell: Cell = Cell(),
        *,
        sk_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        cell.refuse(type(self), "cardinality", "base_width")
        layers: dict[str, Any] = dict(act_layer=cell.act_layer, norm_layer=cell.norm_layer)
        first_chs, out_chs = chs // cell.reduce_first, chs * self.expansion
        self.conv1 = SelectiveKernel(in_chs, first_chs, stride=step.stride, dilation=step.first_dilation,
                                     aa_layer=cell.aa_layer, drop_layer=cell.drop_block, **layers, **(sk_kwargs or {}))
        self.conv2 = ConvNormAct(first_chs, out_chs, kernel_size=3, dilation=step.dilation, apply_act=False, **layers)
        self.se = create_attn(cell.attn_layer, out_chs)
        self.drop_path = DropPath()
        self.act = cell.act_layer(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv2(self.conv1(x))
        if self.se is not None:
            x = self.se(x)
        return self.act(self.drop_path(x) + shortcut)


class SelectiveKernelBottleneck(nn.Module):
    """A bottleneck around a selective-kernel convolution."""

    expansion = 4

    def __init__(
        self,
        in_chs: int,
        chs: int,
        step: Step,
        downsample: nn.Module | None = None,
        cell: Cell = Cell(),
        *,
        sk_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        layers: dict[str, Any] = dict(act_layer=cell.act_layer, norm_layer=cell.norm_layer)
        width, out_chs = cell.width(chs), chs * self.expansion
        first_chs = width // cell.reduce_first
        self.conv1 = ConvNormAct(in_chs, first_chs, kernel_size=1, **layers)
        self.conv2 = SelectiveKernel(first_chs, width, stride=step.stride, dilation=step.first_dilation,
                                     groups=cell.cardinality, aa_layer=cell.aa_layer, drop_layer=cell.drop_block, **layers,
                                     **(sk_kwargs or {}))
        self.conv3 = ConvNormAct(width, out_chs, kernel_size=1, apply_act=False, **layers)
        self.se = create_attn(cell.attn_layer, out_chs)
        self.drop_path = DropPath()
        self.act = cell.act_layer(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv3(self.conv2(self.conv1(x)))
        if self.se is not None:
            x = self.se(x)
        return self.act(self.drop_path(x) + shortcut)


basic = dict(block=SelectiveKernelBasic, zero_init_last=False,
             block_args=dict(sk_kwargs=dict(rd_ratio=1 / 8, rd_divisor=16, split_input=True)))
bottle = dict(block=SelectiveKernelBottleneck, zero_init_last=False,
              block_args=dict(sk_kwargs=dict(split_input=True)))
whole = dict(block_args=dict(sk_kwargs=dict(rd_ratio=1 / 16, rd_divisor=32, split_input=False)))

family = Family(ResNet, {
    "skresnet18": basic | dict(layers=(2, 2, 2, 2)),
    "skresnet34": basic | dict(layers=(3, 4, 6, 3)),
    "skresnet50": bottle | dict(layers=(3, 4, 6, 3)),
    "skresnet50d": bottle | dict(layers=(3, 4, 6, 3), stem_type="deep", stem_width=32, avg_down=True),
    "skresnext50_32x4d": bottle | whole | dict(layers=(3, 4, 6, 3), cardinality=32, base_width=4),
})  # fmt: skip

__getattr__ = family.entrypoint
