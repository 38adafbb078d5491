"""Depthwise separable convolution: each channel on its own in space, then channels mixed point by point
(Chollet 2016, arXiv 1610.02357)."""

from __future__ import annotations

from torch import Tensor, nn

from .create_conv2d import create_conv2d
from .create_norm_act import get_norm_act_layer
from .typing import LayerType, PadType

__all__ = ["SeparableConv2d", "SeparableConvBnAct", "SeparableConvNormAct"]


class SeparableConv2d(nn.Module):
    """`conv_dw`, then `conv_pw`, nothing between or after.

    `channel_multiplier` is how many times the input's channels the depthwise convolution gives.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        padding: PadType = "",
        bias: bool = False,
        channel_multiplier: float = 1.0,
        pw_kernel_size: int = 1,
    ) -> None:
        super().__init__()
        between = int(in_channels * channel_multiplier)
        self.conv_dw = create_conv2d(
            in_channels,
            between,
            kernel_size,
            stride=stride,
            dilation=dilation,
            padding=padding,
            depthwise=True,
        )
        self.conv_pw = create_conv2d(between, out_channels, pw_kernel_size, padding=padding, bias=bias)

    @property
    def in_channels(self) -> int:
        """The depthwise convolution's input channels."""
        return self.conv_dw.in_channels  # type: ignore[return-value]

    @property
    def out_channels(self) -> int:
        """The pointwise convolution's output channels."""
        return self.conv_pw.out_channels  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_pw(self.conv_dw(x))


class SeparableConvNormAct(SeparableConv2d):
    """A separable convolution with `bn`, norm and activation, after it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        padding: PadType = "",
        bias: bool = False,
        channel_multiplier: float = 1.0,
        pw_kernel_size: int = 1,
        norm_layer: LayerType = nn.BatchNorm2d,
        act_layer: LayerType | None = nn.ReLU,
        apply_act: bool = True,
        drop_layer: type[nn.Module] | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, dilation, padding, bias, channel_multiplier, pw_kernel_size
        )
        norm = get_norm_act_layer(norm_layer, act_layer)
        drop = {} if drop_layer is None else {"drop_layer": drop_layer}
        # compat: the key is `bn` whatever the norm
        self.bn = nn.Identity() if norm is None else norm(out_channels, apply_act=apply_act, **drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(super().forward(x))


SeparableConvBnAct = SeparableConvNormAct
