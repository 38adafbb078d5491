"""Xception as the DeepLab authors aligned it: all strides in separable convolutions (Chen et al. 2018, arXiv 1802.02611).

The depthwise separable stacks are Chollet's (2016, 1610.02357), deeper, with a norm after every depthwise convolution
and without max pools. The p variants have pre-activation. A block strides at its third convolution, and what its second
has made is a level: levels lie inside the blocks that stride, which therefore run in two parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone, Family, Step
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_act import get_act_layer
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.drop import DropPath
from ..layers.shapes import to_3tuple
from ..layers.typing import LayerType

__all__ = ["PreSeparableConv2d", "PreXceptionModule", "SeparableConv2d", "XceptionAligned", "XceptionModule"]


class SeparableConv2d(nn.Module):
    """A depthwise and a pointwise convolution, a norm after each, and activations where `act_layer` is given."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        act_layer: Any = None,
        norm_layer: Any = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv_dw = create_conv2d(in_chs, in_chs, 3, stride=stride, dilation=dilation, depthwise=True)
        self.bn_dw = norm_layer(in_chs)
        self.act_dw = act_layer(inplace=True) if act_layer else nn.Identity()
        self.conv_pw = create_conv2d(in_chs, out_chs, 1)
        self.bn_pw = norm_layer(out_chs)
        self.act_pw = act_layer(inplace=True) if act_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_dw(self.bn_dw(self.conv_dw(x)))
        return self.act_pw(self.bn_pw(self.conv_pw(x)))


class PreSeparableConv2d(nn.Module):
    """Norm and activation (unless `norm_act` is None), then a depthwise and a pointwise convolution."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, dilation: int = 1, *, norm_act: Any = None) -> None:
        super().__init__()
        self.norm = norm_act(in_chs) if norm_act else nn.Identity()
        self.conv_dw = create_conv2d(in_chs, in_chs, 3, stride=stride, dilation=dilation, depthwise=True)
        self.conv_pw = create_conv2d(in_chs, out_chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_pw(self.conv_dw(self.norm(x)))


class XceptionModule(nn.Module):
    """Three separable convolutions, the last of which strides, and a shortcut unless `no_skip`.

    `out_chs` are the widths of the three, or one for all. Activations come before each convolution, or after every
    layer of it where not `start_with_relu`.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int | Sequence[int],
        step: Step,
        *,
        no_skip: bool = False,
        start_with_relu: bool = True,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        widths = (in_chs, *to_3tuple(out_chs))
        self.shortcut: nn.Module | None = None
        if not no_skip:
            self.shortcut = nn.Identity()
            if widths[-1] != in_chs or step.stride > 1:
                self.shortcut = ConvNormAct(in_chs, widths[-1], 1, stride=step.stride, norm_layer=norm_layer,
                                            apply_act=False)
        self.norm: nn.Module = nn.Identity()
        self.stack = nn.Sequential()
        conv = partial(SeparableConv2d, act_layer=None if start_with_relu else act_layer, norm_layer=norm_layer)
        for i in (1, 2, 3):
            if start_with_relu:
                # the first reads what the shortcut reads as well
                self.stack.add_module(f"act{i}", act_layer(inplace=i > 1))
            self.stack.add_module(
                f"conv{i}", conv(widths[i - 1], widths[i], step.stride if i == 3 else 1, step.first_dilation)
            )
        self.drop_path = DropPath()

    @property
    def level(self) -> str:
        """Path, inside the block, of the layer after which only the third convolution is left."""
        return "stack.act3" if hasattr(self.stack, "act3") else "stack.conv2"

    def forward(self, x: Tensor, inner: Tensor | None = None, halt: bool = False) -> Any:
        """The block's output for its input `x`.

        With `halt` it stops before the third convolution and gives a pair: what the shortcut reads and what that
        convolution reads. Given these as `x` and `inner`, it goes on from there.
        """
        if inner is None:
            inner = x = self.norm(x)
            for name, layer in self.stack.named_children():
                if name != "conv3":
                    inner = layer(inner)
            if halt:
                return x, inner
        inner = self.stack.conv3(inner)  # type: ignore[operator]
        if self.shortcut is None:
            return inner
        return self.drop_path(inner) + self.shortcut(x)


class PreXceptionModule(XceptionModule):
    """The block with norm and activation before each separable convolution; the shortcut starts after the first."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int | Sequence[int],
        step: Step,
        *,
        no_skip: bool = False,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
    ) -> None:
        nn.Module.__init__(self)
        widths = (in_chs, *to_3tuple(out_chs))
        self.shortcut = None
        if not no_skip:
            self.shortcut = nn.Identity()
            if widths[-1] != in_chs or step.stride > 1:
                self.shortcut = create_conv2d(in_chs, widths[-1], 1, stride=step.stride)
        norm_act = get_norm_act_layer(norm_layer, act_layer)
        assert norm_act is not None
        self.norm = norm_act(in_chs)
        self.stack = nn.Sequential()
        for i in (1, 2, 3):
            stride = step.stride if i == 3 else 1
            self.stack.add_module(f"conv{i}", PreSeparableConv2d(
                widths[i - 1], widths[i], stride, step.first_dilation, norm_act=norm_act if i > 1 else None))
        self.drop_path = DropPath()


class XceptionAligned(Backbone):
    """A strided stem and a row of separable blocks, those that stride among them.

    - `block_cfg`: arguments of each block: `in_chs`, `out_chs`, `stride`, and `no_skip`, `start_with_relu`.
    - `preact`: pre-activation blocks, with an activation after the last.
    """

    units = r"blocks\.(\d+)"
    dilates_to = 8
    stitches_image = True  # levels lie inside the blocks, beside their shortcuts

    def __init__(
        self,
        block_cfg: Sequence[dict[str, Any]],
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int | None = None,
        preact: bool = False,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        global_pool: str = "avg",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, output_stride, **kwargs)
        layers: dict[str, Any] = dict(act_layer=get_act_layer(act_layer), norm_layer=norm_layer)
        width = block_cfg[0]["in_chs"]
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, 32, 3, stride=self.plan.spend(2), **layers),
            create_conv2d(32, width, 3) if preact else ConvNormAct(32, width, 3, **layers),
        )
        self.blocks = nn.Sequential()
        self.level_blocks: list[int] = []  # those that stride, or would without an output stride
        for i, row in enumerate(block_cfg):
            row = dict(row)
            stride = row.pop("stride", 1)
            reduction, step = self.plan.reduction, self.plan.step(stride)
            block = (PreXceptionModule if preact else XceptionModule)(step=step, **row, **layers)
            self.blocks.append(block)
            width = to_3tuple(row["out_chs"])[-1]
            if stride > 1:
                self.level_blocks.append(i)
                self.plan.mark(to_3tuple(row["out_chs"])[1], f"blocks.{i}.{block.level}", reduction)
        self.plan.mark(width, f"blocks.{len(self.blocks) - 1}")
        self.act = layers["act_layer"](inplace=False) if preact else None  # it reads a level, which must stay
        self.make_head("head.fc")

    def runs_after(self, level: str) -> list[str]:
        block, _, inside = level.partition(".stack.")
        return [f"{block}.shortcut"] if inside else []

    def trunk(self, x: Tensor) -> Iterator[Tensor]:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if i in self.level_blocks:
                x, inner = block(x, halt=True)
                yield inner
                x = block(x, inner)
            else:
                x = block(x)
        yield x
        if self.act is not None:
            yield self.act(x)


ENTRY = (
    dict(in_chs=64, out_chs=128, stride=2),
    dict(in_chs=128, out_chs=256, stride=2),
    dict(in_chs=256, out_chs=728, stride=2),
)
LONG_ENTRY = (
    dict(in_chs=64, out_chs=128, stride=2),
    dict(in_chs=128, out_chs=256),
    dict(in_chs=256, out_chs=256, stride=2),
    dict(in_chs=256, out_chs=728),
    dict(in_chs=728, out_chs=728, stride=2),
)
MIDDLE = (dict(in_chs=728, out_chs=728),)
LAST_STRIDE = (dict(in_chs=728, out_chs=(728, 1024, 1024), stride=2),)
LAST = dict(in_chs=1024, out_chs=(1536, 1536, 2048), no_skip=True)
EXIT = (*LAST_STRIDE, LAST | dict(start_with_relu=False))
PRE_EXIT = (*LAST_STRIDE, LAST)

TF_NORM = dict(norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1))  # epsilon of the TensorFlow original
PRE = dict(preact=True)

family = Family(XceptionAligned, {
    "xception41": TF_NORM | dict(block_cfg=ENTRY + 8 * MIDDLE + EXIT),
    "xception41p": PRE | dict(block_cfg=ENTRY + 8 * MIDDLE + PRE_EXIT),
    "xception65": TF_NORM | dict(block_cfg=ENTRY + 16 * MIDDLE + EXIT),
    "xception65p": PRE | TF_NORM | dict(block_cfg=ENTRY + 16 * MIDDLE + PRE_EXIT),
    "xception71": TF_NORM | dict(block_cfg=LONG_ENTRY + 16 * MIDDLE + EXIT),
})  # fmt: skip

__getattr__ = family.entrypoint
