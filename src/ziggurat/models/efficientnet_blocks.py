"""The residual blocks of networks made for phones, shared by the families efficientnet and mobilenetv3.

Each is a chain of convolutions, norms and gates that runs in the order of registration; where the shape stays, the
input is added at the end. Sources: depthwise separable convolution, Howard et al. 2017 (MobileNet, arXiv 1704.04861);
inverted residual, Sandler et al. 2018 (MobileNetV2, 1801.04381); expansion by a full convolution, Gupta and Akin 2020
(EfficientNet-EdgeTPU, 2003.02838); convolutions mixed from experts, Yang et al. 2019 (CondConv, 1904.04971); folding of
pixels into channels, Li et al. 2021 (EfficientNet-X, 2102.05610); the universal block and mobile attention, Qin et al.
2024 (MobileNetV4, 2404.10518).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadArgument
from ..layers.attention2d import Attention2d, MultiQueryAttention2d
from ..layers.blur_pool import create_aa
from ..layers.cond_conv2d import CondConv2d
from ..layers.conv_bn_act import ConvNormAct
from ..layers.create_act import create_act_layer
from ..layers.create_conv2d import create_conv2d
from ..layers.create_norm import get_norm_layer
from ..layers.create_norm_act import get_norm_act_layer
from ..layers.drop import DropPath
from ..layers.layer_scale import LayerScale2d
from ..layers.shapes import make_divisible
from ..layers.typing import LayerType, PadType

__all__ = [
    "CondConvResidual",
    "ConvBnAct",
    "DepthwiseSeparableConv",
    "EdgeResidual",
    "InvertedResidual",
    "MobileAttention",
    "SqueezeExcite",
    "UniversalInvertedResidual",
]

Kernel = int | list[int]
"""The side of a kernel; several sides where the channels are shared among kernels (MixConv)."""


class SqueezeExcite(nn.Module):
    """A channel gate, `conv_reduce` then `conv_expand` over the pooled map (Hu et al. 2017, arXiv 1709.01507).

    The bottleneck has `rd_channels`, or `in_chs * rd_ratio` rounded by `rd_round_fn` (to the nearest integer unless
    given). `force_act_layer` wins over `act_layer`, which is that of the block around it.
    """

    def __init__(
        self,
        in_chs: int,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        act_layer: LayerType = nn.ReLU,
        gate_layer: LayerType = nn.Sigmoid,
        force_act_layer: LayerType | None = None,
        rd_round_fn: Callable[[float], int] | None = None,
    ) -> None:
        super().__init__()
        width = rd_channels or (rd_round_fn or round)(in_chs * rd_ratio)
        self.conv_reduce = nn.Conv2d(in_chs, width, 1)
        self.act1 = create_act_layer(force_act_layer or act_layer, inplace=True) or nn.Identity()
        self.conv_expand = nn.Conv2d(width, in_chs, 1)
        self.gate = create_act_layer(gate_layer) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.conv_expand(squeezed))


class Residual(nn.Sequential):
    """Layers in order, None left out; their input is added to what they give where `has_skip`."""

    def __init__(self, has_skip: bool, **layers: nn.Module | None) -> None:
        if has_skip:
            layers["drop_path"] = DropPath()
        super().__init__(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))
        self.has_skip = has_skip

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + x if self.has_skip else y


def groups_of(group_size: int | None, channels: int) -> int:
    """How many groups of `group_size` there are in `channels`; one group of all of them for 0 and None."""
    if not group_size:
        return 1
    if channels % group_size:
        raise BadArgument(f"{channels} channels do not make groups of group_size={group_size}; take a divisor, or a "
                          "channel_divisor that is a multiple of it")
    return channels // group_size


def conv_and_aa(
    in_chs: int, out_chs: int, kernel_size: Kernel, stride: int, aa_layer: LayerType | None, **kwargs: Any
) -> tuple[nn.Module, nn.Module | None]:
    """A convolution, and the anti-aliasing layer that takes over its stride where there is one to take."""
    aa = create_aa(aa_layer, channels=out_chs, stride=stride, enable=stride > 1, noop=None)
    return create_conv2d(in_chs, out_chs, kernel_size, stride=stride if aa is None else 1, **kwargs), aa


def gate(se_layer: Callable[..., nn.Module] | None, channels: int, act_layer: LayerType) -> nn.Module | None:
    """The block's channel attention, if any."""
    return se_layer(channels, act_layer=act_layer) if se_layer else None


def folding(in_chs: int, norm: Callable[..., nn.Module]) -> dict[str, nn.Module]:
    """Layers that put each 2 x 2 pixels into the channels of one, by a convolution."""
    conv = create_conv2d(in_chs, 4 * in_chs, 2, stride=2, padding="same")
    return {"conv_s2d": conv, "bn_s2d": norm(4 * in_chs)}


def folded_kernel(kernel_size: int, pad_type: PadType) -> tuple[int, PadType]:
    """The kernel that sees as far on folded pixels, and its padding: an even kernel has no symmetric one."""
    side = (kernel_size + 1) // 2
    return side, "same" if side == 2 else pad_type


class ConvBnAct(Residual):
    """A convolution, a norm and an activation; with a shortcut if `skip`."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: Kernel,
        stride: int = 1,
        dilation: int = 1,
        group_size: int = 0,
        pad_type: PadType = "",
        skip: bool = False,
        act_layer: LayerType | None = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: LayerType | None = None,
    ) -> None:
        norm = get_norm_act_layer(norm_layer, act_layer)
        assert norm is not None
        conv, aa = conv_and_aa(in_chs, out_chs, kernel_size, stride, aa_layer, dilation=dilation, padding=pad_type,
                               groups=groups_of(group_size, in_chs))
        super().__init__(skip and stride == 1 and in_chs == out_chs, conv=conv, bn1=norm(out_chs), aa=aa)


class DepthwiseSeparableConv(Residual):
    """A depthwise convolution, a gate and a 1x1 convolution, which an activation follows only if `pw_act`.

    `s2d` 1 folds 2 x 2 pixels into channels first; 2 says that an earlier block did.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        dw_kernel_size: Any = 3,
        stride: int = 1,
        dilation: int = 1,
        group_size: int = 1,
        pad_type: PadType = "",
        noskip: bool = False,
        pw_kernel_size: Kernel = 1,
        pw_act: bool = False,
        s2d: int = 0,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: LayerType | None = None,
        se_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        norm = get_norm_act_layer(norm_layer, act_layer)
        assert norm is not None
        layers: dict[str, nn.Module | None] = {}
        has_skip = stride == 1 and in_chs == out_chs and not noskip and s2d != 1
        dw_pad = pad_type
        if s2d == 1:
            layers |= folding(in_chs, norm)
            in_chs *= 4
            dw_kernel_size, dw_pad = folded_kernel(dw_kernel_size, pad_type)
        layers["conv_dw"], aa = conv_and_aa(in_chs, in_chs, dw_kernel_size, stride, aa_layer, dilation=dilation,
                                            padding=dw_pad, groups=groups_of(group_size, in_chs))
        layers["bn1"] = norm(in_chs)
        layers["aa"] = aa
        layers["se"] = gate(se_layer, in_chs, act_layer)
        layers["conv_pw"] = create_conv2d(in_chs, out_chs, pw_kernel_size, padding=pad_type)
        layers["bn2"] = norm(out_chs, apply_act=pw_act)
        super().__init__(has_skip, **layers)


class InvertedResidual(Residual):
    """A 1x1 convolution that widens, a depthwise one, a gate, and a 1x1 convolution that narrows again ("MBConv").

    `s2d` as in `DepthwiseSeparableConv`; `conv_kwargs` goes to all three convolutions.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        dw_kernel_size: Any = 3,
        stride: int = 1,
        dilation: int = 1,
        group_size: int = 1,
        pad_type: PadType = "",
        noskip: bool = False,
        exp_ratio: float = 1.0,
        exp_kernel_size: Kernel = 1,
        pw_kernel_size: Kernel = 1,
        s2d: int = 0,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: LayerType | None = None,
        se_layer: Callable[..., nn.Module] | None = None,
        conv_kwargs: dict[str, Any] | None = None,
    ) -> None:
        norm = get_norm_act_layer(norm_layer, act_layer)
        assert norm is not None
        options = conv_kwargs or {}
        layers: dict[str, nn.Module | None] = {}
        has_skip = stride == 1 and in_chs == out_chs and not noskip and s2d != 1
        dw_pad = pad_type
        if s2d == 1:
            layers |= folding(in_chs, norm)
            in_chs *= 4
            dw_kernel_size, dw_pad = folded_kernel(dw_kernel_size, pad_type)
        mid_chs = make_divisible(in_chs * exp_ratio)
        layers["conv_pw"] = create_conv2d(in_chs, mid_chs, exp_kernel_size, padding=pad_type, **options)
        layers["bn1"] = norm(mid_chs)
        layers["conv_dw"], aa = conv_and_aa(mid_chs, mid_chs, dw_kernel_size, stride, aa_layer, dilation=dilation,
                                            padding=dw_pad, groups=groups_of(group_size, mid_chs), **options)
        layers["bn2"] = norm(mid_chs)
        layers["aa"] = aa
        layers["se"] = gate(se_layer, mid_chs, act_layer)
        layers["conv_pwl"] = create_conv2d(mid_chs, out_chs, pw_kernel_size, padding=pad_type, **options)
        layers["bn3"] = norm(out_chs, apply_act=False)
        super().__init__(has_skip, **layers)


class CondConvResidual(InvertedResidual):
    """An inverted residual whose kernels are mixed, for each image, from `num_experts`; `routing_fn` weighs them."""

    def __init__(self, in_chs: int, out_chs: int, num_experts: int, **kwargs: Any) -> None:
        super().__init__(in_chs, out_chs, conv_kwargs=dict(num_experts=num_experts), **kwargs)
        self.routing_fn = nn.Linear(in_chs, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.sigmoid(self.routing_fn(x.mean((2, 3))))
        y = x
        for name, layer in self.named_children():
            if name != "routing_fn":
                y = layer(y, shares) if isinstance(layer, CondConv2d) else layer(y)
        return y + x if self.has_skip else y


class EdgeResidual(Residual):
    """A full convolution that widens, a gate, and a 1x1 convolution that narrows again ("Fused-MBConv").

    The middle is `exp_ratio` times as wide as `force_in_chs`, or as the input where that is 0.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        exp_kernel_size: Kernel = 3,
        stride: int = 1,
        dilation: int = 1,
        group_size: int = 0,
        pad_type: PadType = "",
        force_in_chs: int = 0,
        noskip: bool = False,
        exp_ratio: float = 1.0,
        pw_kernel_size: Kernel = 1,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: LayerType | None = None,
        se_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        norm = get_norm_act_layer(norm_layer, act_layer)
        assert norm is not None
        mid_chs = make_divisible((force_in_chs or in_chs) * exp_ratio)
        conv, aa = conv_and_aa(in_chs, mid_chs, exp_kernel_size, stride, aa_layer, dilation=dilation,
                               padding=pad_type, groups=groups_of(group_size, mid_chs))
        super().__init__(
            stride == 1 and in_chs == out_chs and not noskip,
            conv_exp=conv,
            bn1=norm(mid_chs),
            aa=aa,
            se=gate(se_layer, mid_chs, act_layer),
            conv_pwl=create_conv2d(mid_chs, out_chs, pw_kernel_size, padding=pad_type),
            bn2=norm(out_chs, apply_act=False),
        )


class UniversalInvertedResidual(Residual):
    """An inverted residual with depthwise convolutions before, between and after its 1x1 ones, each of which may lack.

    A kernel size of 0 leaves one out; the stride is on the middle one, else on the first, else on the last. Raises
    `BadArgument` for a stride where there is no depthwise convolution.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        dw_kernel_size_start: int = 0,
        dw_kernel_size_mid: int = 3,
        dw_kernel_size_end: int = 0,
        exp_ratio: float = 1.0,
        stride: int = 1,
        dilation: int = 1,
        group_size: int = 1,
        noskip: bool = False,
        pad_type: PadType = "",
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        aa_layer: LayerType | None = None,
        se_layer: Callable[..., nn.Module] | None = None,
        layer_scale_init_value: float | None = 1e-5,
    ) -> None:
        mid_chs = make_divisible(in_chs * exp_ratio)
        strided = "mid" if dw_kernel_size_mid else "start" if dw_kernel_size_start else "end"
        if stride > 1 and not (dw_kernel_size_start or dw_kernel_size_mid or dw_kernel_size_end):
            raise BadArgument(f"stride={stride} needs a depthwise convolution; all three kernel sizes are 0")
        common: dict[str, Any] = dict(padding=pad_type, norm_layer=norm_layer, act_layer=act_layer)

        def depthwise(place: str, chs: int, kernel_size: int, has_act: bool) -> nn.Module | None:
            if not kernel_size:
                return None
            return ConvNormAct(chs, chs, kernel_size, stride=stride if place == strided else 1, dilation=dilation,
                               groups=groups_of(group_size, chs), apply_act=has_act, aa_layer=aa_layer, **common)

        super().__init__(
            stride == 1 and in_chs == out_chs and not noskip,
            dw_start=depthwise("start", in_chs, dw_kernel_size_start, has_act=False),
            pw_exp=ConvNormAct(in_chs, mid_chs, 1, **common),
            dw_mid=depthwise("mid", mid_chs, dw_kernel_size_mid, has_act=True),
            se=gate(se_layer, mid_chs, act_layer),
            pw_proj=ConvNormAct(mid_chs, out_chs, 1, apply_act=False, **common),
            dw_end=depthwise("end", out_chs, dw_kernel_size_end, has_act=False),
            layer_scale=None if layer_scale_init_value is None else LayerScale2d(out_chs, layer_scale_init_value),
        )


class MobileAttention(Residual):
    """A norm and self-attention over the map, all heads reading one head of keys and values if `use_multi_query`."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        dw_kernel_size: int = 3,
        dilation: int = 1,
        pad_type: PadType = "",
        num_heads: int = 8,
        key_dim: int = 64,
        value_dim: int = 64,
        use_multi_query: bool = True,
        query_strides: int | tuple[int, int] = 1,
        kv_stride: int = 1,
        noskip: bool = False,
        act_layer: LayerType = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        layer_scale_init_value: float | None = 1e-5,
        use_bias: bool = False,
    ) -> None:
        norm = get_norm_act_layer(norm_layer, act_layer)
        assert norm is not None
        plain_norm: Any = get_norm_layer(norm_layer)
        drops: dict[str, Any] = dict(attn_drop=attn_drop, proj_drop=proj_drop)
        if use_multi_query:
            attn: nn.Module = MultiQueryAttention2d(
                in_chs, out_chs, num_heads, key_dim, value_dim, query_strides, kv_stride, dw_kernel_size, dilation,
                padding=pad_type, norm_layer=plain_norm, use_bias=use_bias, **drops,
            )  # fmt: skip
        else:
            attn = Attention2d(in_chs, out_chs, num_heads, bias=use_bias, **drops)
        super().__init__(
            stride == 1 and in_chs == out_chs and not noskip,
            norm=norm(in_chs, apply_act=False),
            attn=attn,
            layer_scale=None if layer_scale_init_value is None else LayerScale2d(out_chs, layer_scale_init_value),
        )
