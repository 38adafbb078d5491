"""ShuffleNet V1: grouped 1x1 convolutions and a shuffle of channels between them (Zhang et al. 2017, arXiv 1707.01083).

As MindCV has it, the only one whose weights are published under these names: the pools are padded as TensorFlow pads,
and the average of the shortcut leaves the padding out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..layers.create_act import get_act_layer
from ..layers.create_norm import get_norm_layer
from ..layers.drop import DropPath
from ..layers.pool2d_same import AvgPool2dWithin, MaxPool2dSame
from ..layers.typing import LayerType

__all__ = ["ShuffleNetV1", "ShuffleUnit"]


class ShuffleUnit(nn.Module):
    """A bottleneck of grouped 1x1 and depthwise convolutions, shuffled after the first.

    At stride 1 it is added to its input. At stride 2 its input is averaged over 3x3 windows, and what the bottleneck
    makes of it stands behind that, so that both are `out_chs` together. `first_groups` are those of the first convolution.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        groups: int,
        first_groups: int,
        norm_layer: Callable[..., nn.Module],
        act_layer: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.groups = groups
        mid_chs = out_chs // 4
        made_chs = out_chs - in_chs if stride > 1 else out_chs
        self.branch_main_1 = nn.Sequential(
            nn.Conv2d(in_chs, mid_chs, 1, groups=first_groups, bias=False), norm_layer(mid_chs), act_layer(inplace=True)
        )
        self.branch_main_2 = nn.Sequential(
            nn.Conv2d(mid_chs, mid_chs, 3, stride, 1, groups=mid_chs, bias=False), norm_layer(mid_chs),
            nn.Conv2d(mid_chs, made_chs, 1, groups=groups, bias=False), norm_layer(made_chs),
        )  # fmt: skip
        self.branch_proj = AvgPool2dWithin(3, stride) if stride > 1 else None
        self.drop_path = DropPath() if stride == 1 else nn.Identity()
        self.act = act_layer(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch_main_1(x)
        y = self.branch_main_2(F.channel_shuffle(y, y.shape[1] // self.groups))
        if self.branch_proj is not None:
            return self.act(torch.cat((self.branch_proj(x), y), dim=1))
        return self.act(x + self.drop_path(y))


class ShuffleNetV1(Backbone):
    """A strided convolution, a max pool and three stages of shuffle units.

    - `channels`: of the stem and of each stage; `depths`: units a stage; `groups`: of the 1x1 convolutions.
    """

    units = r"features\.(\d+)"
    classifier_bias = False

    def __init__(
        self,
        channels: Sequence[int],
        groups: int,
        depths: Sequence[int] = (4, 8, 4),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        norm_layer: LayerType = "batchnorm2d",
        act_layer: LayerType = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        norm: Any = get_norm_layer(norm_layer)
        act: Any = get_act_layer(act_layer)
        width, *stage_chs = channels
        self.first_conv = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, self.plan.spend(2), 1, bias=False), norm(width), act(inplace=True)
        )
        self.plan.mark(width, "first_conv")
        self.max_pool = MaxPool2dSame(3, self.plan.spend(2))
        self.plan.mark(width, "max_pool")
        self.features = nn.Sequential()
        for out_chs, depth in zip(stage_chs, depths):
            for stride in (self.plan.spend(2), *[1] * (depth - 1)):
                first_groups = groups if len(self.features) else 1  # the stem has too few channels for groups
                self.features.append(ShuffleUnit(width, out_chs, stride, groups, first_groups, norm, act))
                width = out_chs
            self.plan.mark(width, f"features.{len(self.features) - 1}")
        self.make_head("classifier")

    def init_weights(self) -> None:
        """Normal weights: of std 0.01 in the stem and the classifier, of one over the input channels elsewhere."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01 if name.startswith("first") else 1 / module.weight.shape[1])
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        levels = [level["module"] for level in self.plan.levels]
        x = self.first_conv(x)
        yield x
        x = self.max_pool(x)
        yield x
        for name, unit in self.features.named_children():
            x = unit(x)
            if f"features.{name}" in levels:
                yield x


family = Family(ShuffleNetV1, {
    "shufflenet_v1_g3_05": dict(groups=3, channels=(12, 120, 240, 480)),
    "shufflenet_v1_g3_10": dict(groups=3, channels=(24, 240, 480, 960)),
    "shufflenet_v1_g3_15": dict(groups=3, channels=(24, 360, 720, 1440)),
    "shufflenet_v1_g3_20": dict(groups=3, channels=(48, 480, 960, 1920)),
    "shufflenet_v1_g8_05": dict(groups=8, channels=(16, 192, 384, 768)),
    "shufflenet_v1_g8_10": dict(groups=8, channels=(24, 384, 768, 1536)),
    "shufflenet_v1_g8_15": dict(groups=8, channels=(24, 576, 1152, 2304)),
    "shufflenet_v1_g8_20": dict(groups=8, channels=(48, 768, 1536, 3072)),
})  # fmt: skip

__getattr__ = family.entrypoint
