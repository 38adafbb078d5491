"""HRNet: parallel branches, one a resolution, that exchange what they have made (Wang et al. 2019, arXiv 1908.07919).

The branch at stride 4 runs through the whole network; every stage adds one of half the resolution. After its blocks a
module adds up, for each branch, what all branches have, resampled. The classifier widens the branches and sums them
from fine to coarse.

Levels are the stem and the branches of the last stage, widened or (`feature_location=''`) as they are. All branches come
out of the last module together, so what fuses a branch is run when its level is reached, and pruning removes what is
coarser than the levels kept; a pyramid of coarse levels alone holds and runs the finer ones' fusion too, as timm's does.
A branch that joins a finer one takes its size, whatever the image's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family, Step
from ..errors import BadArgument
from .resnet import BasicBlock, Bottleneck, downsample_conv

__all__ = ["HighResolutionModule", "HighResolutionNet"]

BLOCKS: dict[str, Any] = {"BASIC": BasicBlock, "BOTTLENECK": Bottleneck}
HEAD_CHS = (32, 64, 128, 256)  # of the bottlenecks that widen the branches, before expansion
PLAIN = Step(1, 1, 1)


@dataclass(frozen=True)
class Stage:
    """What a stage is made of: modules, the kind of their blocks, and how many blocks of what width a branch has."""

    num_modules: int
    block_type: str
    num_blocks: Sequence[int]
    num_channels: Sequence[int]
    num_branches: int = 0
    fuse_method: str = "SUM"

    def __post_init__(self) -> None:
        if self.block_type not in BLOCKS:
            raise BadArgument(f"block_type={self.block_type!r}: give one of {', '.join(BLOCKS)}")
        if self.fuse_method != "SUM":
            raise BadArgument(f"fuse_method={self.fuse_method!r}: branches are joined by 'SUM'; leave it out")
        counts = {len(self.num_blocks), len(self.num_channels), self.num_branches or len(self.num_blocks)}
        if len(counts) > 1:
            raise BadArgument(f"num_blocks={self.num_blocks}, num_channels={self.num_channels}, num_branches="
                              f"{self.num_branches}: give as many numbers of blocks and channels as there are branches")

    @property
    def widths(self) -> list[int]:
        """Channels of each branch."""
        return [chs * BLOCKS[self.block_type].expansion for chs in self.num_channels]

    def branch(self, index: int, in_chs: int) -> nn.Sequential:
        """The blocks of a branch."""
        return make_blocks(BLOCKS[self.block_type], in_chs, self.num_channels[index], self.num_blocks[index])


def make_blocks(block: Any, in_chs: int, chs: int, depth: int) -> nn.Sequential:
    """Residual blocks at one resolution."""
    out_chs = chs * block.expansion
    shortcut = None if in_chs == out_chs else downsample_conv(in_chs, out_chs, 1, PLAIN, nn.BatchNorm2d)
    rest = [block(out_chs, chs, PLAIN) for _ in range(depth - 1)]
    return nn.Sequential(block(in_chs, chs, PLAIN, shortcut), *rest)


def conv_bn(
    in_chs: int, out_chs: int, kernel_size: int = 3, stride: int = 1, act: bool = True, bias: bool = False
) -> nn.Sequential:
    """A convolution, its norm, and an activation unless told otherwise."""
    conv = nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), *([nn.ReLU(inplace=True)] if act else []))


def halvings(in_chs: int, out_chs: int, times: int, act: bool = True) -> nn.Sequential:
    """Strided convolutions, of which only the last changes the width and, unless `act`, lacks an activation."""
    widening = conv_bn(in_chs, out_chs, stride=2, act=act)
    return nn.Sequential(*(conv_bn(in_chs, in_chs, stride=2) for _ in range(times - 1)), widening)


class HighResolutionModule(nn.Module):
    """Branches side by side, then each the sum of all: finer ones strided down to it, coarser ones enlarged.

    Takes and gives a list of maps, fine to coarse. A network may also run `branches` and `fused` itself, to have one
    map at a time.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        widths = stage.widths
        self.branches = nn.ModuleList(stage.branch(i, chs) for i, chs in enumerate(widths))
        self.fuse_act = nn.ReLU(inplace=True)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._fuse_layer(widths, from_, to) for from_ in range(len(widths)))
            for to in range(len(widths))
        )

    @staticmethod
    def _fuse_layer(widths: Sequence[int], from_: int, to: int) -> nn.Module:
        """What takes a branch to another: the identity for its own, and a 1x1 convolution where enlarging follows."""
        if from_ == to:
            return nn.Identity()
        if from_ > to:
            return conv_bn(widths[from_], widths[to], 1, act=False)
        return halvings(widths[from_], widths[to], to - from_, act=False)

    def fused(self, maps: Sequence[Tensor], to: int) -> Tensor:
        """Branch `to` as the sum of what all branches have made."""
        size = maps[to].shape[2:]
        total: Any = 0
        layers: Any = self.fuse_layers[to]
        for from_, layer in enumerate(layers):
            x = layer(maps[from_])
            if from_ > to:
                x = F.interpolate(x, size=size, mode="nearest")
            total = total + x if from_ else x
        return self.fuse_act(total)

    def forward(self, maps: Sequence[Tensor], fuse: bool = True) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        return [self.fused(maps, to) for to in range(len(maps))] if fuse else maps


class HighResolutionNet(Backbone):
    """A stem of two strides, bottlenecks, three stages of parallel branches, a head that sums them.

    - `stage1`: the bottlenecks; `stage2` to `stage4`: each a dict of `num_modules`, `block_type` ('BASIC' or
      'BOTTLENECK'), and, one a branch, `num_blocks` and `num_channels`.
    - `stem_width`: channels of the first convolution; `head_conv_bias`: biases in the convolutions of the head.
    - `feature_location`: 'incre' takes levels behind the modules that widen branches, '' takes the branches.
    """

    units = r"(?:layer|stage)(\d+)\.(\d+)"
    stitches_image = True  # between levels there are several maps

    transition1: nn.ModuleList
    transition2: nn.ModuleList
    transition3: nn.ModuleList
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(
        self,
        stage1: Mapping[str, Any],
        stage2: Mapping[str, Any],
        stage3: Mapping[str, Any],
        stage4: Mapping[str, Any],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        stem_width: int = 64,
        head_conv_bias: bool = True,
        feature_location: str = "incre",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        if feature_location not in ("incre", ""):
            raise BadArgument(f"feature_location={feature_location!r}: give 'incre' for widened branches, '' for plain ones")
        self.widens_levels = bool(feature_location)
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = nn.ReLU(inplace=True)
        self.plan.spend(2)
        self.plan.mark(stem_width, "act1")
        self.conv2 = nn.Conv2d(stem_width, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.act2 = nn.ReLU(inplace=True)

        first = Stage(**stage1)
        self.layer1 = first.branch(0, 64)
        widths = first.widths
        for i, row in enumerate((stage2, stage3, stage4), start=1):
            stage = Stage(**row)
            if len(stage.widths) != i + 1:
                raise BadArgument(f"stage{i + 1} of {len(stage.widths)} branches: give it {i + 1}")
            self.add_module(f"transition{i}", self._transition(widths, stage.widths))
            modules = (HighResolutionModule(stage) for _ in range(stage.num_modules))
            self.add_module(f"stage{i + 1}", nn.Sequential(*modules))
            widths = stage.widths

        wide = [chs * Bottleneck.expansion for chs in HEAD_CHS]
        for i, chs in enumerate(wide if self.widens_levels else widths):
            self.plan.spend(2)
            self.plan.mark(chs, f"incre_modules.{i}" if self.widens_levels else self._fuse_path(i))
        self.incre_modules = nn.ModuleList(make_blocks(Bottleneck, chs, HEAD_CHS[i], 1) for i, chs in enumerate(widths))
        self.downsamp_modules = nn.ModuleList(
            conv_bn(wide[i], wide[i + 1], stride=2, bias=head_conv_bias) for i in range(len(wide) - 1)
        )
        self.final_layer = conv_bn(wide[-1], 2048, 1, bias=head_conv_bias)
        self.make_head("classifier", width=2048)

    @staticmethod
    def _transition(before: Sequence[int], widths: Sequence[int]) -> nn.ModuleList:
        """What brings branches of widths `before` to `widths`: the last one is new, of half the resolution."""
        kept = (nn.Identity() if old == new else conv_bn(old, new) for old, new in zip(before, widths))
        return nn.ModuleList([*kept, halvings(before[-1], widths[-1], 1)])

    def _fuse_path(self, branch: int) -> str:
        """Path of the layers that fuse a branch last."""
        return f"stage4.{len(self.stage4) - 1}.fuse_layers.{branch}"

    def runs_after(self, level: str) -> list[str]:
        module, _, branch = level.rpartition(".")
        if module != "incre_modules":
            return []
        last: Any = self.stage4[-1]
        return [self._fuse_path(i) for i in range(int(branch) + 1, len(last.fuse_layers))]

    def init_weights(self) -> None:
        """He initialisation of convolutions by fan out."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.act1(self.bn1(self.conv1(x)))
        yield x
        maps = [self.layer1(self.act2(self.bn2(self.conv2(x))))]
        last: Any = self.stage4[-1]
        stages = ((self.transition1, self.stage2), (self.transition2, self.stage3), (self.transition3, self.stage4))
        for transition, stage in stages:
            maps = [layer(x) for layer, x in zip(transition, (*maps, maps[-1]))]
            for module in stage:
                maps = module(maps, fuse=module is not last)
        levels = []
        for i in range(len(maps)):
            x = last.fused(maps, i)
            if self.widens_levels:
                x = self.incre_modules[i](x)
            yield x
            levels.append(x)
        if not self.widens_levels:
            levels = [widen(x) for widen, x in zip(self.incre_modules, levels)]
        x = levels[0]
        for level, halve in zip(levels[1:], self.downsamp_modules):
            x = level + halve(x)
        yield self.final_layer(x)


def stages(width: int, depth: int, modules: tuple[int, int, int]) -> dict[str, Any]:
    """Stages 2 to 4: `modules` of each, `depth` blocks a branch, `width` channels in the first branch."""
    return {
        f"stage{branches}": dict(num_modules=count, block_type="BASIC", num_blocks=(depth,) * branches,
                                 num_channels=tuple(width * 2**i for i in range(branches)))
        for branches, count in zip((2, 3, 4), modules)
    }


def bottlenecks(depth: int, width: int) -> dict[str, Any]:
    """Stage 1."""
    return dict(stage1=dict(num_modules=1, block_type="BOTTLENECK", num_blocks=(depth,), num_channels=(width,)))


FULL = bottlenecks(4, 64)
SSLD = dict(head_conv_bias=False)

family = Family(HighResolutionNet, {
    "hrnet_w18_small": bottlenecks(1, 32) | stages(16, 2, (1, 1, 1)),
    "hrnet_w18_small_v2": bottlenecks(2, 64) | stages(18, 2, (1, 3, 2)),
    "hrnet_w18": FULL | stages(18, 4, (1, 4, 3)),
    "hrnet_w30": FULL | stages(30, 4, (1, 4, 3)),
    "hrnet_w32": FULL | stages(32, 4, (1, 4, 3)),
    "hrnet_w40": FULL | stages(40, 4, (1, 4, 3)),
    "hrnet_w44": FULL | stages(44, 4, (1, 4, 3)),
    "hrnet_w48": FULL | stages(48, 4, (1, 4, 3)),
    "hrnet_w64": FULL | stages(64, 4, (1, 4, 3)),
    "hrnet_w18_ssld": FULL | stages(18, 4, (1, 4, 3)) | SSLD,
    "hrnet_w48_ssld": FULL | stages(48, 4, (1, 4, 3)) | SSLD,
})  # fmt: skip

__getattr__ = family.entrypoint
