"""NASNet-A: cells found by a search on small images, repeated in wide networks (Zoph et al. 2017, arXiv 1707.07012).

A cell reads the maps of the two cells before it, puts both at its own width (and the earlier one, where it is twice as
large, at half its size), and makes five sums of two operations each, of which it joins those that nothing else read.
What a search has found is a table, a `Genotype`; one class makes cells of any.

The stem's convolution is not padded in the published networks, so its map lacks the last row and column of ceil(H / 2)
x ceil(W / 2). Here it has them, made with zeros beyond the image, and the cells go without them as published, unless
a map of theirs would then be smaller than H / stride.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.create_conv2d import create_conv2d
from ..layers.drop import DropPath
from ..layers.guards import blocks
from ..layers.padding import crop
from ..layers.pool2d_same import AvgPool2dSame, AvgPool2dWithin, create_pool2d

__all__ = [
    "ActConvBn", "BranchSeparables", "Cell", "CellBackbone", "CellPlan", "FactorizedReduction", "Genotype", "NASNet",
    "NASNetALarge", "NASNetCell", "Padding", "SeparableConv2d", "Stem",
]  # fmt: skip

BatchNorm = partial(nn.BatchNorm2d, eps=1e-3)

X, PREV, SUM0, SUM1, SUM2, SUM3, SUM4 = range(7)
"""What an operation reads: the map before the cell, the one before that, or one of the sums made so far."""


class Genotype(NamedTuple):
    """A cell as a search found it."""

    sums: tuple[tuple[tuple[str, int], tuple[str, int]], ...]
    """The two operations of each sum, and what each reads: 'sep3' (5, 7) is a separable convolution run twice, 'avg'
    and 'max' pool over 3x3, 'skip' takes what it reads as it is."""
    joined: tuple[int, ...]
    """What comes out, side by side: sums, or what the cell read."""


class Padding(NamedTuple):
    """How a cell pads what it strides over."""

    convs: str = "same"
    pools: str = "same"
    counts_zeros: bool = True
    """Whether zeros of 'same' padding count in a mean."""


SAME = Padding()


class Stem(nn.Module):
    """An unpadded 3x3 convolution of stride 2 and a norm, run on beyond the image: (B, C, H, W) to ceil(H / 2) rows."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 3, stride=2, bias=False)
        self.bn = BatchNorm(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, 2 * blocks(width, 2) + 1 - width, 0, 2 * blocks(height, 2) + 1 - height))
        return self.bn(self.conv(x))


class ActConvBn(nn.Module):
    """Activation, 1x1 convolution, norm."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False)
        self.bn = BatchNorm(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.act(x)))


class SeparableConv2d(nn.Sequential):
    """A depthwise convolution, then a pointwise one."""

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int, stride: int = 1, pad_type: str = "") -> None:
        super().__init__()
        self.depthwise_conv2d = create_conv2d(in_chs, in_chs, kernel_size, stride=stride, padding=pad_type, depthwise=True)
        self.pointwise_conv2d = nn.Conv2d(in_chs, out_chs, 1, bias=False)


class BranchSeparables(nn.Sequential):
    """Twice an activation, a separable convolution and a norm; the first strides."""

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int, stride: int = 1, pad_type: str = "") -> None:
        super().__init__()
        self.act_1 = nn.ReLU()
        self.separable_1 = SeparableConv2d(in_chs, out_chs, kernel_size, stride, pad_type)
        self.bn_sep_1 = BatchNorm(out_chs)
        self.act_2 = nn.ReLU(inplace=True)
        self.separable_2 = SeparableConv2d(out_chs, out_chs, kernel_size)
        self.bn_sep_2 = BatchNorm(out_chs)


class FactorizedReduction(nn.Module):
    """Half the size, rounded up: 1x1 convolutions of the positions that are even, and odd, in both directions; a norm."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.path_1 = nn.Sequential()
        self.path_1.add_module("conv", nn.Conv2d(in_chs, out_chs // 2, 1, stride=2, bias=False))
        self.path_2 = nn.Sequential()
        self.path_2.add_module("conv", nn.Conv2d(in_chs, out_chs - out_chs // 2, 1, stride=2, bias=False))
        self.final_path_bn = BatchNorm(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        return factorized_reduction(x, self.path_1, self.path_2, self.final_path_bn)


def factorized_reduction(x: Tensor, even: nn.Module, odd: nn.Module, norm: nn.Module) -> Tensor:
    """What the class of that name computes, of parts that lie elsewhere."""
    x = F.relu(x)
    return norm(torch.cat((even(x), odd(F.pad(x, (-1, 1, -1, 1)))), 1))


def operation(kind: str, in_chs: int, out_chs: int, stride: int, padding: Padding) -> nn.Module | None:
    """The layer of a genotype's operation; None where it is the identity."""
    if kind.startswith("sep"):
        return BranchSeparables(in_chs, out_chs, int(kind[3:]), stride, padding.convs)
    if kind == "skip":
        return None if stride == 1 else ActConvBn(in_chs, out_chs, stride)
    pool: nn.Module
    if kind == "max":
        pool = create_pool2d("max", 3, stride, padding=padding.pools)
    elif stride == 1 or padding.pools != "same":
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    else:
        pool = (AvgPool2dSame if padding.counts_zeros else AvgPool2dWithin)(3, stride)
    if in_chs == out_chs:
        return pool
    widened = nn.Sequential()
    widened.add_module(f"{kind}_pool", pool)
    widened.add_module("conv", nn.Conv2d(in_chs, out_chs, 1, bias=False))
    widened.add_module("bn", BatchNorm(out_chs))
    return widened


class Cell(nn.Module):
    """The cell of a genotype, at `width` channels a sum, for maps of `x_chs` and, one cell earlier, `prev_chs` channels.

    `prev` says what happens to the earlier map first: 'conv' puts it at the cell's width, 'halved' at half its size as
    well, 'raw' leaves it.
    """

    def __init__(
        self, genotype: Genotype, x_chs: int, prev_chs: int, width: int, stride: int = 1, prev: str = "conv",
        padding: Padding = SAME,
    ) -> None:  # fmt: skip
        super().__init__()
        self.genotype = genotype
        self.out_chs = len(genotype.joined) * width
        self.add_squeezes(x_chs, prev_chs, width, prev)
        chs = {X: width, PREV: prev_chs if prev == "raw" else width}
        for i, operations in enumerate(genotype.sums):
            for side, (kind, read) in zip(("left", "right"), operations):
                # only what is read from outside is strided over
                layer = operation(kind, chs.get(read, width), width, stride if read in chs else 1, padding)
                self.add_module(f"comb_iter_{i}_{side}", layer)
        self.drop_path = DropPath()

    def add_squeezes(self, x_chs: int, prev_chs: int, width: int, prev: str) -> None:
        """Adds the layers that put both inputs at the cell's width."""
        self.conv_prev_1x1: nn.Module | None = None
        if prev != "raw":
            self.conv_prev_1x1 = (FactorizedReduction if prev == "halved" else ActConvBn)(prev_chs, width)
        self.conv_1x1 = ActConvBn(x_chs, width)

    def squeezed(self, prev: Tensor) -> Tensor:
        """The earlier map at the cell's width and size."""
        return prev if self.conv_prev_1x1 is None else self.conv_prev_1x1(prev)

    def forward(self, x: Tensor, prev: Tensor) -> Tensor:
        maps = [self.conv_1x1(x), self.squeezed(prev)]
        for i, ((_, left), (_, right)) in enumerate(self.genotype.sums):
            maps.append(self.operate(f"comb_iter_{i}_left", maps[left]) + self.operate(f"comb_iter_{i}_right", maps[right]))
        return torch.cat([maps[i] for i in self.genotype.joined], 1)

    def operate(self, name: str, x: Tensor) -> Tensor:
        """What the operation called `name` makes of `x`."""
        layer = getattr(self, name)
        return x if layer is None else self.drop_path(layer(x))


class NASNetCell(Cell):
    """A cell whose factorized reduction has no module of its own: its parts are the cell's."""  # compat: keys

    def add_squeezes(self, x_chs: int, prev_chs: int, width: int, prev: str) -> None:
        self.halves = prev == "halved"
        super().add_squeezes(x_chs, prev_chs, width, "raw" if self.halves else prev)
        if self.halves:
            for name, part in FactorizedReduction(prev_chs, width).named_children():
                self.add_module(name, part)

    def squeezed(self, prev: Tensor) -> Tensor:
        if not self.halves:
            return super().squeezed(prev)
        return factorized_reduction(prev, self.path_1, self.path_2, self.final_path_bn)  # type: ignore[arg-type]


class CellPlan(NamedTuple):
    """One cell of a network: the path of its module, what it is and how wide."""

    name: str
    genotype: Genotype
    width: int
    stride: int = 1


class CellBackbone(Backbone):
    """A strided stem and a row of cells; before each cell that strides, and after the last, lies a level."""

    units = r"cell_(\d+)|(?:cell_stem|reduction_cell)_\d$"  # the latter are units, and grouped with what is before them
    stitches_image = True  # a cell reads two maps
    cell_class: ClassVar[type[Cell]] = Cell
    skips_reductions: bool = False
    """Whether a cell that strides is passed over as the earlier map of the cell behind it."""

    def add_cells(
        self, stem: str, stem_size: int, cells: Sequence[CellPlan], pad_type: str | Sequence[str],
        pool_pad_type: str | None, counts_zeros: bool = True,
    ) -> None:  # fmt: skip
        """Makes the stem, the cells and the last activation, and marks the levels."""
        strides = sum(cell.stride > 1 for cell in cells)
        pad_types = [pad_type] * strides if isinstance(pad_type, str) else list(pad_type)
        if len(pad_types) != strides or any(rule not in ("", "same") for rule in (*pad_types, pool_pad_type or "")):
            raise BadArgument(f"pad_type={pad_type!r}, pool_pad_type={pool_pad_type!r}: give '' (symmetric) or 'same', "
                              f"pad_type also as a list of {strides}, one for each cell that strides")
        self.stem_name = stem
        self.cell_names = [cell.name for cell in cells]
        self.strided = [cell.name for cell in cells if cell.stride > 1]
        self.add_module(stem, Stem(self.in_chans, stem_size))
        self.plan.spend(2)
        self.plan.mark(stem_size, stem)
        x_chs = prev_chs = stem_size
        x_stride, prev_stride = self.plan.reduction, 0
        for name, genotype, width, stride in cells:
            rule = pad_types.pop(0) if stride > 1 else ""
            padding = Padding(rule, rule if pool_pad_type is None else pool_pad_type, counts_zeros)
            prev = "raw" if not prev_stride else "conv" if prev_stride == x_stride else "halved"
            cell = self.cell_class(genotype, x_chs, prev_chs, width, stride, prev, padding)
            self.add_module(name, cell)
            if stride > 1 and prev_stride:
                self.plan.mark(x_chs, f"{name}.conv_1x1.act")
            self.plan.spend(stride)
            if not self.passes_over(name):
                prev_chs, prev_stride = x_chs, x_stride
            x_chs, x_stride = cell.out_chs, self.plan.reduction
        self.act = nn.ReLU()
        self.plan.mark(x_chs, "act")

    def passes_over(self, name: str) -> bool:
        """Whether the cell behind the one called `name` has the same earlier map as that."""
        return self.skips_reductions and name in self.strided[2:]

    def runs_after(self, level: str) -> list[str]:
        cell = level.partition(".conv_1x1")[0]
        squeezes = cell != level and getattr(self.get_submodule(cell), "conv_prev_1x1", None) is not None
        return [f"{cell}.conv_prev_1x1"] if squeezes else []

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = getattr(self, self.stem_name)(x)
        yield x
        # the map of an unpadded stem, but for sides with which later levels would be too small
        prev = x = crop(x, 2 * blocks(x.shape[-2], 2) - 1, 2 * blocks(x.shape[-1], 2) - 1)
        for name in self.cell_names:
            cell = getattr(self, name)
            if name in self.strided[1:]:
                x = cell.conv_1x1.act(x)  # with which all that read it begin
                yield x
            passes_over = self.passes_over(name)
            x, prev = cell(x, prev), prev if passes_over else x
        yield self.act(x)


class NASNet(CellBackbone):
    """NASNet-A.

    - `stem_size`: channels of the stem; `num_features`: of the last map.
    - `channel_multiplier`: how many times wider cells are after each stride.
    - `num_cells`: normal cells in each of the three stacks (N in the paper).
    - `skip_reduction_layer_input`: the earlier map of the first cell behind a reduction is the reduction's earlier map
      (so in the large network), not its input.
    - `pad_type`: padding of convolutions that stride, '' is symmetric, 'same' TensorFlow's; a sequence gives that of
      each cell that strides, in order. `pool_pad_type`: that of their pools, if it is another.
    - `count_include_pad`: zeros of 'same' padding count in a mean. They do in the weights converted for PyTorch, not
      in TensorFlow or MindSpore.
    """

    cell_class = NASNetCell

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        stem_size: int = 96,
        num_features: int = 4032,
        channel_multiplier: int = 2,
        num_cells: int = 6,
        skip_reduction_layer_input: bool = True,
        global_pool: str = "avg",
        output_stride: int | None = None,
        pad_type: str | Sequence[str] = "same",
        pool_pad_type: str | None = None,
        count_include_pad: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        self.skips_reductions = skip_reduction_layer_input
        last = num_features // len(NORMAL.joined)
        widths = [last // channel_multiplier**i for i in range(4, -1, -1)]
        cells = [CellPlan(f"cell_stem_{i}", REDUCTION, widths[i], 2) for i in range(2)]
        for stack, width in enumerate(widths[2:]):
            if stack:
                cells.append(CellPlan(f"reduction_cell_{stack - 1}", REDUCTION, width, 2))
            first = stack * max(num_cells, 6)  # compat: stacks of four, too, are numbered from 0, 6 and 12
            cells += [CellPlan(f"cell_{first + i}", NORMAL, width) for i in range(num_cells)]
        self.add_cells("conv0", stem_size, cells, pad_type, pool_pad_type, count_include_pad)
        self.make_head("last_linear")


NASNetALarge = NASNet  # compat: timm's name of the class

NORMAL = Genotype(
    sums=(
        (("sep5", X), ("sep3", PREV)),
        (("sep5", PREV), ("sep3", PREV)),
        (("avg", X), ("skip", PREV)),
        (("avg", PREV), ("avg", PREV)),
        (("sep3", X), ("skip", X)),
    ),
    joined=(PREV, SUM0, SUM1, SUM2, SUM3, SUM4),
)
REDUCTION = Genotype(
    sums=(
        (("sep5", X), ("sep7", PREV)),
        (("max", X), ("sep7", PREV)),
        (("avg", X), ("sep5", PREV)),
        (("skip", SUM1), ("avg", SUM0)),
        (("sep3", SUM0), ("max", X)),
    ),
    joined=(SUM1, SUM2, SUM3, SUM4),
)

family = Family(NASNet, {
    "nasnet_a_4x1056": dict(stem_size=32, num_features=1056, num_cells=4, skip_reduction_layer_input=False),
    "nasnetalarge": dict(),
})  # fmt: skip

__getattr__ = family.entrypoint
