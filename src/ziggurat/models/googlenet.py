"""GoogLeNet, the first Inception network: kernels of several sizes side by side (Szegedy et al. 2014, arXiv 1409.4842).

By default it is torchvision's, whose published weights it takes: batch normalisation after every convolution (Ioffe and
Szegedy 2015, 1502.03167) and a 3x3 kernel in the third branch. The paper's and MindCV's has no norm and a 5x5 kernel
there. Their auxiliary classifiers of training are left out: the model gives its scores alone, in training too, and what a
checkpoint holds of them is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Family
from ..errors import BadArgument
from ..layers.create_act import get_act_layer
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm import get_norm_layer
from ..layers.pool2d_ceil import MaxPool2dCeil
from ..layers.pool2d_same import MaxPool2dSame
from ..layers.typing import LayerType, PadType

__all__ = ["ConvLayer", "GoogLeNet", "Inception"]


class ConvLayer(nn.Sequential):
    """A convolution, a norm where there is one, and an activation."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int,
        stride: int = 1,
        *,
        pad_type: PadType,
        norm_layer: Callable[..., nn.Module] | None,
        act_layer: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.conv = create_conv2d(in_chs, out_chs, kernel_size, stride=stride, padding=pad_type)
        if norm_layer is not None:
            self.bn = norm_layer(out_chs)
        self.act = act_layer(inplace=True)


class Inception(nn.Module):
    """Four branches of one map, concatenated: 1x1; 1x1 and 3x3; 1x1 and a `wide` kernel; a max pool and 1x1.

    `widths` are, in this order, the channels that the convolutions put out.
    """

    def __init__(self, in_chs: int, widths: Sequence[int], wide: int, conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        one, three_in, three, wide_in, wide_out, pooled = widths
        self.out_chs = one + three + wide_out + pooled
        self.branch1 = conv(in_chs, one, 1)
        self.branch2 = nn.Sequential(conv(in_chs, three_in, 1), conv(three_in, three, 3))
        self.branch3 = nn.Sequential(conv(in_chs, wide_in, 1), conv(wide_in, wide_out, wide))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(in_chs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), dim=1)


class GoogLeNet(Backbone):
    """Three convolutions, then stages of inception blocks, with a max pool before each.

    - `stages`: for each stage its blocks, as the widths that `Inception` takes.
    - `wide_kernel_size`: of the third branch.
    - `norm_layer`: '' leaves norms out; `norm_eps`: theirs.
    - `pad_type`: '' pads convolutions symmetrically, and pools begin at the first row and column; 'same' pads both as
      TensorFlow does. Either way a side of n becomes ceil(n / 2); torchvision's pools leave out the last row of an odd one.
    """

    units = r"inception(\d)([a-z])"

    def __init__(
        self,
        stages: Sequence[Sequence[Sequence[int]]],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        wide_kernel_size: int = 3,
        norm_layer: LayerType = "batchnorm2d",
        norm_eps: float = 1e-3,
        act_layer: LayerType = "relu",
        pad_type: PadType = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, **kwargs)
        if pad_type not in ("", "same"):
            raise BadArgument(f"pad_type={pad_type!r}: give '' (symmetric) or 'same'")
        norm: Any = get_norm_layer(norm_layer) if norm_layer else None
        act: Any = get_act_layer(act_layer)
        conv = partial(ConvLayer, pad_type=pad_type, act_layer=act,
                       norm_layer=None if norm is None else partial(norm, eps=norm_eps))

        def pool(kernel_size: int) -> nn.Module:
            stride = self.plan.spend(2)
            return MaxPool2dSame(kernel_size, stride) if pad_type else MaxPool2dCeil(kernel_size)

        self.conv1 = conv(in_chans, 64, 7, self.plan.spend(2))
        self.plan.mark(64, "conv1")
        self.maxpool1 = pool(3)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.plan.mark(192, "conv3")
        width = 192
        for i, stage in enumerate(stages):
            self.add_module(f"maxpool{i + 2}", pool(3 if i < 2 else 2))
            for letter, widths in zip("abcdefgh", stage):
                name = f"inception{i + 3}{letter}"
                block = Inception(width, widths, wide_kernel_size, conv)
                self.add_module(name, block)
                width = block.out_chs
            self.plan.mark(width, name)
        self.way = tuple(self._modules)
        self.make_head("fc")

    def init_weights(self) -> None:
        """Weights of convolutions and of the classifier are normal of std 0.01, cut at 2 of them."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)

    def remap_checkpoint(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Checkpoints with auxiliary classifiers, torchvision's and MindCV's: without them."""
        return {name: tensor for name, tensor in state_dict.items() if not name.startswith(("aux1.", "aux2."))}

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        levels = [level["module"] for level in self.plan.levels]
        for name in self.way:
            x = self._part(name)(x)
            if name in levels:
                yield x


family = Family(GoogLeNet, {
    "googlenet": dict(stages=(
        (
            (64, 96, 128, 16, 32, 32),
            (128, 128, 192, 32, 96, 64),
        ),
        (
            (192, 96, 208, 16, 48, 64),
            (160, 112, 224, 24, 64, 64),
            (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64),
            (256, 160, 320, 32, 128, 128),
        ),
        (
            (256, 160, 320, 32, 128, 128),
            (384, 192, 384, 48, 128, 128),
        ),
    )),
})  # fmt: skip

__getattr__ = family.entrypoint
