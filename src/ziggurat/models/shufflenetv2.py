"""ShuffleNet V2: units that work on half of the channels and shuffle them (Ma et al. 2018, arXiv 1807.11164).

By default it is torchvision's, whose published weights it takes. The authors' own code, which MindCV follows, shuffles
where a unit splits its input rather than where it joins its branches, leaves the first unit's shortcut at the width of the
stem, and has no bias in the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.create_act import get_act_layer
from ..layers.create_norm import get_norm_layer
from ..layers.pool2d_same import create_pool2d
from ..layers.typing import LayerType, PadType

__all__ = ["ShuffleNetV2", "ShuffleUnit"]

Layer = Callable[..., nn.Module]


def pointwise(in_chs: int, out_chs: int, norm_layer: Layer, act_layer: Layer) -> list[nn.Module]:
    """A 1x1 convolution, its norm and its activation."""
    return [nn.Conv2d(in_chs, out_chs, 1, bias=False), norm_layer(out_chs), act_layer(inplace=True)]


def depthwise(chs: int, stride: int, norm_layer: Layer) -> list[nn.Module]:
    """A depthwise 3x3 convolution and its norm."""
    return [nn.Conv2d(chs, chs, 3, stride, 1, groups=chs, bias=False), norm_layer(chs)]


class ShuffleUnit(nn.Module):
    """Two branches, joined by concatenation: `branch2` convolves, 1x1, depthwise and 1x1.

    At stride 1 each has half of the channels, and the other passes them on. At stride 2 both have all of them, and
    `branch1` convolves them to `side_chs`, depthwise and 1x1. Channels are shuffled where the branches join, or where they
    part if `shuffles_first`.
    """

    def __init__(
        self, in_chs: int, out_chs: int, side_chs: int, stride: int, shuffles_first: bool, norm_layer: Layer,
        act_layer: Layer,
    ) -> None:  # fmt: skip
        super().__init__()
        self.splits = stride == 1
        self.shuffles_first = shuffles_first
        read_chs, mid_chs = in_chs // 2 if self.splits else in_chs, out_chs // 2
        self.branch1 = nn.Sequential() if self.splits else nn.Sequential(
            *depthwise(in_chs, stride, norm_layer), *pointwise(in_chs, side_chs, norm_layer, act_layer)
        )  # fmt: skip
        self.branch2 = nn.Sequential(
            *pointwise(read_chs, mid_chs, norm_layer, act_layer), *depthwise(mid_chs, stride, norm_layer),
            *pointwise(mid_chs, out_chs - side_chs, norm_layer, act_layer),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if not self.splits:
            x = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        elif self.shuffles_first:
            return torch.cat((x[:, ::2], self.branch2(x[:, 1::2])), dim=1)
        else:
            kept, read = x.chunk(2, dim=1)
            x = torch.cat((kept, self.branch2(read)), dim=1)
        return x if self.shuffles_first else F.channel_shuffle(x, 2)


class ShuffleNetV2(Backbone):
    """A strided convolution, a max pool, three stages of shuffle units and a 1x1 convolution.

    - `channels`: of the stem, of each stage and of the last convolution; `depths`: units a stage.
    - `shuffles_first`: channels are shuffled where a unit splits them, not where it joins them.
    - `widens_first`: the first unit's shortcut makes half of the unit's channels; otherwise it keeps the stem's.
    - `classifier_bias`: whether the classifier has one.
    - `pool_pad_type`: padding of the max pool, '' one pixel all round, 'same' as TensorFlow does.
    """

    units = r"stage(\d+)\.(\d+)"

    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int] = (4, 8, 4),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        shuffles_first: bool = False,
        widens_first: bool = True,
        classifier_bias: bool = True,
        pool_pad_type: PadType = "",
        norm_layer: LayerType = "batchnorm2d",
        act_layer: LayerType = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        if pool_pad_type not in ("", "same"):
            raise BadArgument(f"pool_pad_type={pool_pad_type!r}: give '' (one pixel all round) or 'same'")
        self.classifier_bias = classifier_bias
        norm: Any = get_norm_layer(norm_layer)
        act: Any = get_act_layer(act_layer)
        width, *stage_chs, last_chs = channels
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, self.plan.spend(2), 1, bias=False), norm(width), act(inplace=True)
        )
        self.plan.mark(width, "conv1")
        self.maxpool = create_pool2d("max", 3, self.plan.spend(2), padding=pool_pad_type)
        self.plan.mark(width, "maxpool")
        for i, (out_chs, depth) in enumerate(zip(stage_chs, depths)):
            stage = []
            for stride in (self.plan.spend(2), *[1] * (depth - 1)):
                side_chs = width if i == 0 and stride > 1 and not widens_first else out_chs // 2
                stage.append(ShuffleUnit(width, out_chs, side_chs, stride, shuffles_first, norm, act))
                width = out_chs
            self.add_module(f"stage{i + 2}", nn.Sequential(*stage))
            self.plan.mark(width, f"stage{i + 2}")
        self.conv5 = nn.Sequential(*pointwise(width, last_chs, norm, act))
        self.make_head("fc", last_chs)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.conv1(x)
        yield x
        x = self.maxpool(x)
        yield x
        for stage in (self.stage2, self.stage3, self.stage4):
            x = stage(x)
            yield x
        yield self.conv5(x)


family = Family(ShuffleNetV2, {
    "shufflenet_v2_x0_5": dict(channels=(24, 48, 96, 192, 1024)),
    "shufflenet_v2_x1_0": dict(channels=(24, 116, 232, 464, 1024)),
    "shufflenet_v2_x1_5": dict(channels=(24, 176, 352, 704, 1024)),
    "shufflenet_v2_x2_0": dict(channels=(24, 244, 488, 976, 2048)),
})  # fmt: skip

__getattr__ = family.entrypoint
