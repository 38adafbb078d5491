"""The order of a feature map's dimensions."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

__all__ = ["Format", "FormatT", "get_channel_dim", "get_spatial_dim", "nchw_to", "nhwc_to"]


class Format(str, Enum):
    """An order of dimensions: batch N, channels C, height H, width W, positions in one row L."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NCL = "NCL"
    NLC = "NLC"


FormatT = str | Format


def get_spatial_dim(fmt: FormatT) -> tuple[int, ...]:
    """Where the positions are: (2, 3) for NCHW, (1,) for NLC."""
    return tuple(i for i, letter in enumerate(Format(fmt).value) if letter in "HWL")


def get_channel_dim(fmt: FormatT) -> int:
    """Where the channels are: 1 for NCHW, 3 for NHWC."""
    return Format(fmt).value.index("C")


def nchw_to(x: Tensor, fmt: FormatT) -> Tensor:
    """(N, C, H, W) in another order; positions in one row go line by line."""
    fmt = Format(fmt)
    if fmt in (Format.NCL, Format.NLC):
        x = x.flatten(2)
    return x.movedim(1, -1) if get_channel_dim(fmt) > 1 else x


def nhwc_to(x: Tensor, fmt: FormatT) -> Tensor:
    """(N, H, W, C) in another order; positions in one row go line by line."""
    fmt = Format(fmt)
    if fmt in (Format.NCL, Format.NLC):
        x = x.flatten(1, 2)
    return x.movedim(-1, 1) if get_channel_dim(fmt) == 1 else x
