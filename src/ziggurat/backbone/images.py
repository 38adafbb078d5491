"""What is asked of a batch of images before it is run, and maps brought to another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadArgument
from ..layers.guards import surely_equal, traced_whole

__all__ = ["check_images", "resized"]


@traced_whole
def check_images(x: Tensor, in_chans: int, min_size: int) -> None:
    """Raises `BadArgument` for anything but a batch (B, `in_chans`, H, W) with sides of `min_size` pixels or more."""
    if torch.compiler.is_compiling():
        return  # the shapes of a graph are checked by its guards
    if x.ndim != 4:
        raise BadArgument(f"images of shape {tuple(x.shape)}: give a batch of four axes, (B, {in_chans}, H, W)")
    _, channels, height, width = x.shape
    if channels != in_chans:
        hint = "the channels come second, permute(0, 3, 1, 2)" if width == in_chans else f"or create it with in_chans={channels}"
        raise BadArgument(f"images of {channels} channels: this model takes in_chans={in_chans}; {hint}")
    if height < min_size or width < min_size:
        raise BadArgument(f"images of {height} x {width} pixels: this model takes {min_size} x {min_size} or more; "
                          "resize them")


def resized(x: Tensor, size: Sequence[Any] | None) -> Tensor:
    """Images or maps (B C H W) at `size`, bilinear with antialiasing; as they are where that is their size."""
    if size is None or surely_equal(x.shape[-2:], size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
