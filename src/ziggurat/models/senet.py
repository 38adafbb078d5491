"""SENet as its authors first released it (Hu et al. 2017, arXiv 1709.01507), ported from their Caffe models.

Kept for its published weights; the same architectures on the ResNet trunk are `seresnet*` and `senet154` there. Caffe's
habits remain: SE-ResNet strides on the 1x1 convolution, and the stem's pool begins at the first row and may hang over
the far edge. It makes ceil(n / 2) of a side n, for odd ones as well, whose last row the ported code leaves out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.pool2d_ceil import MaxPool2dCeil
from ..layers.pool2d_same import MaxPool2dSame
from ..layers.typing import PadType

__all__ = ["SEBottleneck", "SENet", "SEResNeXtBottleneck", "SEResNetBlock", "SEResNetBottleneck"]


class SEModule(nn.Module):
    """Squeeze and excitation: channels weighted by what a small network reads from their means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class _Block(nn.Module):
    """A residual block from a list of convolutions, each (channels, kernel size, stride, groups)."""

    gate_reads_activated: ClassVar[bool] = False
    """Whether the last norm is followed by an activation before the squeeze."""

    def __init__(self, in_chs: int, convs: Sequence[tuple[int, int, int, int]], reduction: int,
                 downsample: nn.Module | None) -> None:
        super().__init__()
        self.depth = len(convs)
        for i, (chs, kernel_size, stride, groups) in enumerate(convs, 1):
            self.add_module(f"conv{i}", nn.Conv2d(in_chs, chs, kernel_size, stride, kernel_size // 2, groups=groups,
                                                  bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(chs))
            in_chs = chs
        self.relu = nn.ReLU(inplace=True)
        self.se_module = SEModule(in_chs, reduction)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            if i < self.depth or self.gate_reads_activated:
                x = self.relu(x)
        return self.relu(self.se_module(x) + shortcut)


class SEBottleneck(_Block):
    """SENet-154's bottleneck: twice as wide inside, grouped."""

    expansion = 4

    def __init__(self, in_chs: int, chs: int, groups: int, reduction: int, stride: int = 1,
                 downsample: nn.Module | None = None) -> None:
        convs = [(chs * 2, 1, 1, 1), (chs * 4, 3, stride, groups), (chs * 4, 1, 1, 1)]
        super().__init__(in_chs, convs, reduction, downsample)


class SEResNetBottleneck(_Block):
    """A ResNet bottleneck with the stride on its first convolution."""

    expansion = 4

    def __init__(self, in_chs: int, chs: int, groups: int, reduction: int, stride: int = 1,
                 downsample: nn.Module | None = None) -> None:
        convs = [(chs, 1, stride, 1), (chs, 3, 1, groups), (chs * 4, 1, 1, 1)]
        super().__init__(in_chs, convs, reduction, downsample)


class SEResNeXtBottleneck(_Block):
    """A ResNeXt bottleneck whose groups are four channels wide in the first stage."""

    expansion = 4

    def __init__(self, in_chs: int, chs: int, groups: int, reduction: int, stride: int = 1,
                 downsample: nn.Module | None = None) -> None:
        width = chs * 4 // 64 * groups
        convs = [(width, 1, 1, 1), (width, 3, stride, groups), (chs * 4, 1, 1, 1)]
        super().__init__(in_chs, convs, reduction, downsample)


class SEResNetBlock(_Block):
    """A basic ResNet block."""

    expansion = 1
    gate_reads_activated = True

    def __init__(self, in_chs: int, chs: int, groups: int, reduction: int, stride: int = 1,
                 downsample: nn.Module | None = None) -> None:
        super().__init__(in_chs, [(chs, 3, stride, 1), (chs, 3, 1, groups)], reduction, downsample)


Block: TypeAlias = type[SEBottleneck] | type[SEResNetBottleneck] | type[SEResNeXtBottleneck] | type[SEResNetBlock]


class SENet(Backbone):
    """A strided stem, a pool, and four stages of squeeze-and-excitation blocks.

    `layers`: blocks a stage; `groups`: of the 3x3 convolutions; `reduction`: of the squeeze; `inplanes`: width of the
    stem, which `input_3x3` makes of three convolutions; `downsample_kernel_size`, `downsample_padding`: of the
    shortcuts from the second stage on; `pool_pad_type` 'same': the pool padded as TensorFlow does.
    """

    units = r"layer([1-4])\.(\d+)"

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        groups: int = 1,
        reduction: int = 16,
        inplanes: int = 64,
        input_3x3: bool = False,
        downsample_kernel_size: int = 1,
        downsample_padding: int = 0,
        in_chans: int = 3,
        drop_rate: float = 0.2,
        pool_pad_type: PadType = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(in_chans=in_chans, drop_rate=drop_rate, **kwargs)
        if pool_pad_type not in ("", "same"):
            raise BadArgument(f"pool_pad_type={pool_pad_type!r}: give '' (windows from the first pixel on) or 'same'")
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        convs = [(64, 3, 2), (64, 3, 1), (inplanes, 3, 1)] if input_3x3 else [(inplanes, 7, 2)]
        width = in_chans
        for i, (chs, kernel_size, stride) in enumerate(convs, 1):
            stem[f"conv{i}"] = nn.Conv2d(width, chs, kernel_size, stride, kernel_size // 2, bias=False)
            stem[f"bn{i}"] = nn.BatchNorm2d(chs)
            stem[f"relu{i}"] = nn.ReLU(inplace=True)
            width = chs
        self.layer0 = nn.Sequential(stem)
        self.plan.spend(2)
        self.plan.mark(width, "layer0")
        self.pool0 = MaxPool2dSame(3, 2) if pool_pad_type == "same" else MaxPool2dCeil()
        self.plan.spend(2)
        for i, depth in enumerate(layers, 1):
            chs = 64 * 2 ** (i - 1)
            stride = self.plan.spend(1 if i == 1 else 2)
            out_chs = chs * block.expansion
            stage = []
            for k in range(depth):
                shortcut = None
                if k == 0 and (stride != 1 or width != out_chs):
                    kernel_size, padding = (1, 0) if i == 1 else (downsample_kernel_size, downsample_padding)
                    shortcut = nn.Sequential(
                        nn.Conv2d(width, out_chs, kernel_size, stride, padding, bias=False), nn.BatchNorm2d(out_chs)
                    )
                stage.append(block(width, chs, groups, reduction, stride if k == 0 else 1, shortcut))
                width = out_chs
            self.add_module(f"layer{i}", nn.Sequential(*stage))
            self.plan.mark(width, f"layer{i}")
        self.make_head("last_linear")

    def init_weights(self) -> None:
        """He initialisation of convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.layer0(x)
        yield x
        x = self.pool0(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            yield x


X = dict(block=SEResNeXtBottleneck, groups=32)

family = Family(SENet, {
    "legacy_seresnet18": dict(block=SEResNetBlock, layers=(2, 2, 2, 2)),
    "legacy_seresnet34": dict(block=SEResNetBlock, layers=(3, 4, 6, 3)),
    "legacy_seresnet50": dict(block=SEResNetBottleneck, layers=(3, 4, 6, 3)),
    "legacy_seresnet101": dict(block=SEResNetBottleneck, layers=(3, 4, 23, 3)),
    "legacy_seresnet152": dict(block=SEResNetBottleneck, layers=(3, 8, 36, 3)),
    "legacy_seresnext26_32x4d": X | dict(layers=(2, 2, 2, 2)),
    "legacy_seresnext50_32x4d": X | dict(layers=(3, 4, 6, 3)),
    "legacy_seresnext101_32x4d": X | dict(layers=(3, 4, 23, 3)),
    "legacy_senet154": dict(block=SEBottleneck, layers=(3, 8, 36, 3), groups=64, inplanes=128, input_3x3=True,
                            downsample_kernel_size=3, downsample_padding=1),
})  # fmt: skip

__getattr__ = family.entrypoint
