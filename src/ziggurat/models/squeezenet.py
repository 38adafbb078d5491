"""SqueezeNet: maps squeezed to few channels and expanded again by 1x1 and 3x3 kernels (Iandola et al. 2016, arXiv 1602.07360).

Version 1.1, the authors' own, pools earlier and has a smaller stem: the same accuracy for less than half of the work.

The stem and the pools are not padded, so the published network's maps are one to three cells smaller than the image
over the stride, at every size. Scores are of those maps. Levels are the same maps, extended to the full grid by repeating
their outermost cells, each cell where it stands over the image. The classifier scores every position, and the scores are
averaged: the embedding is the average of what it reads. There is no coarser level than stride 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import UnsupportedPooling
from ..layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from ..layers.create_act import get_act_layer
from ..layers.pool2d_ceil import MaxPool2dOverhang
from ..layers.typing import LayerType

__all__ = ["Fire", "PositionHead", "SqueezeNet"]


class Fire(nn.Module):
    """A 1x1 convolution to `squeeze_chs`, and a 1x1 and a 3x3 one that each make `expand_chs` of it, side by side."""

    def __init__(self, in_chs: int, squeeze_chs: int, expand_chs: int, act_layer: type[nn.Module]) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_chs, squeeze_chs, 1)
        self.expand1x1 = nn.Conv2d(squeeze_chs, expand_chs, 1)
        self.expand3x3 = nn.Conv2d(squeeze_chs, expand_chs, 3, padding=1)
        self.act = act_layer(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return self.act(torch.cat((self.expand1x1(x), self.expand3x3(x)), dim=1))


class PositionHead(nn.Module):
    """A classifier of every position, module `1`, between dropout and an activation; its scores are pooled."""

    takes_maps = True
    takes_width = True

    def __init__(
        self, in_features: int, num_classes: int, pool_type: str, drop_rate: float, act_layer: type[nn.Module]
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.drop = nn.Dropout(drop_rate)
        self.add_module("1", self._classifier(num_classes))
        self.act = act_layer()
        self.global_pool = self._pool(pool_type)

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Conv2d(self.in_features, num_classes, 1) if num_classes else nn.Identity()

    @staticmethod
    def _pool(pool_type: str) -> SelectAdaptivePool2d:
        pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        if pool.feat_mult() != 1:
            raise UnsupportedPooling(f"global_pool={pool_type!r} would pool each score to two: use '', avg, max or avgmax")
        return pool

    def reset(self, num_classes: int, pool_type: str | None = None, in_features: int | None = None) -> None:
        """Makes the classifier anew for this many classes, 0 for none, and the pooling where one is named."""
        if in_features is not None:
            self.in_features = in_features
        if pool_type is not None:
            self.global_pool = self._pool(pool_type)
        setattr(self, "1", self._classifier(num_classes))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores (B D) of a map, or what they are made of, pooled, with `pre_logits` or without classes."""
        classify = getattr(self, "1")
        if not pre_logits and not isinstance(classify, nn.Identity):
            x = self.act(classify(self.drop(x)))
        return self.global_pool(x)


class SqueezeNet(Backbone):
    """A strided convolution and fire modules, with a max pool before each stage of them.

    - `stem_chs`, `stem_kernel_size`, `stem_padding`: of the first convolution.
    - `stages`: for each stage its fire modules, as (squeezed, expanded) channels; the module puts out twice the latter.
    - `ceil_mode`: whether the last window of a pool may hang over the edge by a row, so that maps of even sides lose
      none. Without it, images have at least 35 pixels a side for a 7x7 stem.
    """

    def __init__(
        self,
        stem_chs: int,
        stem_kernel_size: int,
        stages: Sequence[Sequence[tuple[int, int]]],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        stem_padding: int = 0,
        ceil_mode: bool = True,
        act_layer: LayerType = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        act: Any = get_act_layer(act_layer)
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, stem_chs, stem_kernel_size, self.plan.spend(2), stem_padding), act(inplace=True)
        )
        self.plan.mark(stem_chs, "features.1")
        fires = []
        width = stem_chs
        for stage in stages:
            self.features.append(MaxPool2dOverhang() if ceil_mode else nn.MaxPool2d(3, 2))
            self.plan.spend(2)
            for squeeze_chs, expand_chs in stage:
                fires.append(len(self.features))
                self.features.append(Fire(width, squeeze_chs, expand_chs, act))
                width = 2 * expand_chs
            self.plan.mark(width, f"features.{fires[-1]}")
        self.units = rf"features\.({'|'.join(map(str, fires))})"
        # by how many cells of the grid the first window of an unpadded stem stands further in than the first cell
        self.margin = (stem_kernel_size // 2 - stem_padding) // 2
        if not ceil_mode:  # three pools of 3x3 need 15 rows to leave one
            self.min_size = max(self.min_size, 2 * 14 + stem_kernel_size - 2 * stem_padding)

        self.make_head("classifier.1", head=PositionHead, act_layer=act)

    def init_weights(self) -> None:
        """He initialisation of convolutions (uniform), the classifier's normal of std 0.01; biases start as zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                if name in self.classifiers:
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        levels = [level["module"] for level in self.plan.levels]
        for name, module in self.features.named_children():
            x = module(x)
            if f"features.{name}" in levels:
                yield x


family = Family(SqueezeNet, {
    "squeezenet1_0": dict(stem_chs=96, stem_kernel_size=7, stages=(
        ((16, 64), (16, 64), (32, 128)),
        ((32, 128), (48, 192), (48, 192), (64, 256)),
        ((64, 256),),
    )),
    "squeezenet1_1": dict(stem_chs=64, stem_kernel_size=3, stages=(
        ((16, 64), (16, 64)),
        ((32, 128), (32, 128)),
        ((48, 192), (48, 192), (64, 256), (64, 256)),
    )),
})  # fmt: skip

__getattr__ = family.entrypoint
