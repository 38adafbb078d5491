"""Res2Net: a ResNet whose 3x3 convolution is a ladder of small ones (Gao et al. 2019, arXiv 1904.01169)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbone import Family, Step
from ..layers.create_attn import create_attn
from ..layers.drop import DropPath
from .resnet import Cell, ResNet

__all__ = ["Bottle2neck"]


class Bottle2neck(nn.Module):
    """A bottleneck whose channels are split `scale` ways: each part but the last is convolved, fed by the one before.

    In a stage's first block the parts do not feed each other, and the last one is pooled instead of passed through.
    """

    expansion = 4

    def __init__(
        self,
        in_chs: int,
        chs: int,
        step: Step,
        downsample: nn.Module | None = None,
        cell: Cell = Cell(),
        *,
        scale: int = 4,
    ) -> None:
        super().__init__()
        cell.refuse(type(self), "reduce_first", "aa_layer")
        self.is_first = step.stride > 1 or downsample is not None
        self.width = cell.width(chs)
        ladder = max(1, scale - 1)
        self.conv1 = nn.Conv2d(in_chs, self.width * scale, 1, bias=False)
        self.bn1 = cell.norm_layer(self.width * scale)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.width, self.width, 3, step.stride, step.first_dilation, step.first_dilation,
                      groups=cell.cardinality, bias=False)
            for _ in range(ladder)
        )  # fmt: skip
        self.bns = nn.ModuleList(cell.norm_layer(self.width) for _ in range(ladder))
        self.drop_block = cell.dropped()
        self.passes_on = scale > 1
        self.pool = nn.AvgPool2d(3, step.stride, padding=1) if self.is_first and self.passes_on else nn.Identity()
        self.conv3 = nn.Conv2d(self.width * scale, chs * self.expansion, 1, bias=False)
        self.bn3 = cell.norm_layer(chs * self.expansion)
        self.se = create_attn(cell.attn_layer, chs * self.expansion)
        self.drop_path = DropPath()
        self.relu = cell.act_layer(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The norm that closes the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        parts = torch.split(self.relu(self.bn1(self.conv1(x))), self.width, 1)
        rungs: list[Tensor] = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.bns)):
            fed = parts[i] if self.is_first or not rungs else rungs[-1] + parts[i]
            rungs.append(self.relu(norm(conv(fed))))
        if self.passes_on:
            rungs.append(self.pool(parts[-1]))
        x = self.bn3(self.conv3(self.drop_block(torch.cat(rungs, 1))))
        if self.se is not None:
            x = self.se(x)
        return self.relu(self.drop_path(x) + shortcut)


R50 = dict(block=Bottle2neck, layers=(3, 4, 6, 3))
R101 = dict(block=Bottle2neck, layers=(3, 4, 23, 3))
R152 = dict(block=Bottle2neck, layers=(3, 8, 36, 3))
D = dict(stem_type="deep", stem_width=32, avg_down=True)
W14S8 = dict(base_width=14, block_args=dict(scale=8))
W26S4 = dict(base_width=26, block_args=dict(scale=4))
W26S6 = dict(base_width=26, block_args=dict(scale=6))
W26S8 = dict(base_width=26, block_args=dict(scale=8))
W48S2 = dict(base_width=48, block_args=dict(scale=2))
X4S4 = dict(base_width=4, cardinality=8, block_args=dict(scale=4))

family = Family(ResNet, {
    "res2net50_26w_4s": R50 | W26S4,
    "res2net50_26w_6s": R50 | W26S6,
    "res2net50_26w_8s": R50 | W26S8,
    "res2net50_48w_2s": R50 | W48S2,
    "res2net50_14w_8s": R50 | W14S8,
    "res2net50d": R50 | W26S4 | D,
    "res2net101_26w_4s": R101 | W26S4,
    "res2net101d": R101 | W26S4 | D,
    "res2net152": R152 | W26S4,
    "res2net152d": R152 | W26S4 | D,
    "res2next50": R50 | X4S4,
})  # fmt: skip

__getattr__ = family.entrypoint
