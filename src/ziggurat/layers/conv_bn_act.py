"""Convolution, normalisation and activation as one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .blur_pool import create_aa
from .create_conv2d import create_conv2d
from .create_norm_act import get_norm_act_layer
from .typing import LayerType, PadType

__all__ = ["ConvBnAct", "ConvNormAct", "ConvNormActAa"]


class ConvNormAct(nn.Module):
    """`conv`, then `bn` (norm, drop, activation), then `aa`, an anti-aliased stride where one is asked for.

    With `aa_layer` and a stride above 1 the convolution has stride 1 and `aa` strides. Without a norm there is
    no activation either: `bn` then holds the drop alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] | list[int] = 1,
        stride: int = 1,
        padding: PadType = "",
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        apply_norm: bool = True,
        apply_act: bool = True,
        norm_layer: LayerType | None = nn.BatchNorm2d,
        act_layer: LayerType | None = nn.ReLU,
        aa_layer: LayerType | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_kwargs: dict[str, Any] | None = None,
        norm_kwargs: dict[str, Any] | None = None,
        act_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        blurs = bool(aa_layer) and stride > 1
        self.conv = create_conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=1 if blurs else stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            **(conv_kwargs or {}),
        )
        norm = get_norm_act_layer(norm_layer, act_layer) if apply_norm else None
        options = dict(norm_kwargs or {})
        if drop_layer is not None:
            options["drop_layer"] = drop_layer
        # compat: the key is `bn` whatever the norm
        if norm is not None:
            self.bn = norm(out_channels, apply_act=apply_act, act_kwargs=act_kwargs, **options)
        else:
            self.bn = nn.Sequential()
            if drop_layer is not None:
                self.bn.add_module("drop", drop_layer())
        self.aa = create_aa(aa_layer, out_channels, stride=stride, enable=blurs, noop=None)

    @property
    def in_channels(self) -> int:
        """The convolution's input channels."""
        return self.conv.in_channels  # type: ignore[return-value]

    @property
    def out_channels(self) -> int:
        """The convolution's output channels."""
        return self.conv.out_channels  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.aa is None else self.aa(x)


ConvNormActAa = ConvNormAct
ConvBnAct = ConvNormAct
