"""Downsampling after a blur, so that a shifted image gives nearly shifted features (Zhang 2019, arXiv 1904.11486)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from math import comb
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.errors import BadArgument

from .padding import get_padding
from .pool2d_ceil import AvgPool2dCeil
from .typing import LayerType

__all__ = ["BlurPool2d", "create_aa", "get_aa_layer"]


class BlurPool2d(nn.Module):
    """A binomial blur and a stride, on each channel alone.

    `filt_size` is the side of the filter, more than 1. Without `channels` the filter fits whatever comes. The filter is
    a buffer `filt` that is not saved; `init_non_persistent_buffers` fills it again after materialising from meta.
    """

    filt: Tensor

    def __init__(
        self, channels: int | None = None, filt_size: int = 3, stride: int = 2, pad_mode: str = "reflect"
    ) -> None:
        super().__init__()
        if filt_size < 2:
            raise BadArgument(f"a blur needs a filter of 2 or more pixels a side, got filt_size={filt_size}")
        self.channels = channels
        self.filt_size = filt_size
        self.stride = stride
        self.pad_mode = pad_mode
        sides = get_padding(filt_size, stride, dilation=1)
        assert isinstance(sides, int)
        self.padding = [sides] * 4
        self.register_buffer("filt", torch.empty(channels or 1, 1, filt_size, filt_size), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fills the filter: the outer product of a row of Pascal's triangle with itself, of sum 1."""
        row = [comb(self.filt_size - 1, i) / 2 ** (self.filt_size - 1) for i in range(self.filt_size)]
        weights = torch.tensor(row, dtype=self.filt.dtype, device=self.filt.device)
        self.filt.copy_(torch.outer(weights, weights).expand_as(self.filt))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.padding, mode=self.pad_mode)
        if self.channels is None:
            # channels as samples: the filter need not be repeated for a number of channels known only now
            single = F.conv2d(x.flatten(0, 1).unsqueeze(1), self.filt, stride=self.stride)
            return single.squeeze(1).unflatten(0, (x.shape[0], x.shape[1]))
        return F.conv2d(x, self.filt, stride=self.stride, groups=self.channels)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, filt_size={self.filt_size}, stride={self.stride}"


_NAMES: dict[str, Callable[..., nn.Module]] = {
    "avg": nn.AvgPool2d,
    "avgpool": nn.AvgPool2d,
    "avgceil": AvgPool2dCeil,
    "blur": BlurPool2d,
    "blurpool": BlurPool2d,
    "blurpc": partial(BlurPool2d, pad_mode="constant"),
}


def get_aa_layer(aa_layer: LayerType | None) -> Callable[..., nn.Module] | None:
    """The downsampling layer of this name (avg, avgpool, avgceil, blur, blurpool, blurpc); a class or factory as it is.

    All but avg and avgpool round odd sides up, as a strided convolution does. None and '' give None. Raises BadArgument for an unknown name.
    """
    if not isinstance(aa_layer, str):
        return aa_layer
    if not aa_layer:
        return None
    name = aa_layer.lower().replace("_", "").replace("-", "")
    if name not in _NAMES:
        raise BadArgument(f"no anti-aliasing layer {aa_layer!r}: use one of {', '.join(_NAMES)}, or pass the class")
    return _NAMES[name]


def create_aa(
    aa_layer: LayerType | None,
    channels: int | None = None,
    stride: int = 2,
    enable: bool = True,
    noop: type[nn.Module] | None = nn.Identity,
) -> Any:
    """A downsampling layer with this stride; `noop()`, or None, where none is asked for or `enable` is off."""
    layer = get_aa_layer(aa_layer)
    if layer is None or not enable:
        return None if noop is None else noop()
    if "channels" in inspect.signature(layer).parameters:
        return layer(channels=channels, stride=stride)
    return layer(stride)  # a plain pooling: its first argument is the window, which is the stride as well
