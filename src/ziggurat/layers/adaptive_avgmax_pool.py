"""Pooling of a whole map to one vector (or a small grid) by average, maximum, or both."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.errors import BadArgument

from .format import FormatT, get_channel_dim, get_spatial_dim

__all__ = [
    "AdaptiveAvgMaxPool2d",
    "AdaptiveCatAvgMaxPool2d",
    "FastAdaptiveAvgMaxPool",
    "FastAdaptiveAvgPool",
    "FastAdaptiveCatAvgMaxPool",
    "FastAdaptiveMaxPool",
    "SelectAdaptivePool2d",
    "adaptive_avgmax_pool2d",
    "adaptive_catavgmax_pool2d",
    "adaptive_pool_feat_mult",
    "select_adaptive_pool2d",
]

Size = int | tuple[int, int]


def adaptive_pool_feat_mult(pool_type: str = "avg") -> int:
    """How many times the channels a pooling gives: 2 where average and maximum are concatenated, else 1."""
    return 2 if pool_type.endswith("catavgmax") else 1


def adaptive_avgmax_pool2d(x: Tensor, output_size: Size = 1) -> Tensor:
    """The mean of average and maximum pooling of (N, C, H, W)."""
    return (F.adaptive_avg_pool2d(x, output_size) + F.adaptive_max_pool2d(x, output_size)) * 0.5


def adaptive_catavgmax_pool2d(x: Tensor, output_size: Size = 1) -> Tensor:
    """Average and maximum pooling of (N, C, H, W), the channels of the average first."""
    return torch.cat((F.adaptive_avg_pool2d(x, output_size), F.adaptive_max_pool2d(x, output_size)), dim=1)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "avg": F.adaptive_avg_pool2d,
    "max": F.adaptive_max_pool2d,
    "avgmax": adaptive_avgmax_pool2d,
    "catavgmax": adaptive_catavgmax_pool2d,
}


def select_adaptive_pool2d(x: Tensor, pool_type: str = "avg", output_size: Size = 1) -> Tensor:
    """Pooling of (N, C, H, W) to `output_size`: avg, max, avgmax (their mean) or catavgmax (concatenated).

    Raises BadArgument for another name.
    """
    if pool_type not in _FUNCTIONS:
        raise BadArgument(f"no pooling {pool_type!r}: use one of {', '.join(_FUNCTIONS)}")
    return _FUNCTIONS[pool_type](x, output_size)


class _FastPool(nn.Module):
    """Pooling to one position by a reduction over the positions of `input_fmt`; they are kept, as 1, unless flattened."""

    def __init__(self, flatten: bool = False, input_fmt: FormatT = "NCHW") -> None:
        super().__init__()
        self.flatten = flatten
        self.positions = get_spatial_dim(input_fmt)
        self.channels = get_channel_dim(input_fmt)

    def mean(self, x: Tensor) -> Tensor:
        """The average over positions."""
        return x.mean(self.positions, keepdim=not self.flatten)

    def max(self, x: Tensor) -> Tensor:
        """The maximum over positions."""
        return x.amax(self.positions, keepdim=not self.flatten)


class FastAdaptiveAvgPool(_FastPool):
    """The average over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(x)


class FastAdaptiveMaxPool(_FastPool):
    """The maximum over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.max(x)


class FastAdaptiveAvgMaxPool(_FastPool):
    """The mean of average and maximum over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.mean(x) + 0.5 * self.max(x)


class FastAdaptiveCatAvgMaxPool(_FastPool):
    """Average and maximum over all positions, concatenated along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.mean(x), self.max(x)), 1 if self.flatten else self.channels)


class AdaptiveAvgMaxPool2d(nn.Module):
    """The module of `adaptive_avgmax_pool2d`."""

    def __init__(self, output_size: Size = 1) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avgmax_pool2d(x, self.output_size)


class AdaptiveCatAvgMaxPool2d(nn.Module):
    """The module of `adaptive_catavgmax_pool2d`."""

    def __init__(self, output_size: Size = 1) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_catavgmax_pool2d(x, self.output_size)


_MODULES: dict[str, Callable[..., nn.Module]] = {
    "avg": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
    "avgmax": AdaptiveAvgMaxPool2d,
    "catavgmax": AdaptiveCatAvgMaxPool2d,
}
_FAST: dict[str, type[_FastPool]] = {
    "fast": FastAdaptiveAvgPool,
    "fastavg": FastAdaptiveAvgPool,
    "fastmax": FastAdaptiveMaxPool,
    "fastavgmax": FastAdaptiveAvgMaxPool,
    "fastcatavgmax": FastAdaptiveCatAvgMaxPool,
}


class SelectAdaptivePool2d(nn.Module):
    """Global pooling chosen by name; '' leaves the map as it is.

    avg, max, avgmax and catavgmax pool to `output_size`; the same with fast before it (fast alone is fastavg) reduces
    to one position, and is what inputs in another order than NCHW always get. `flatten` gives (N, C).
    Raises BadArgument for another name, or a fast pooling to more than one position.
    """

    def __init__(
        self, output_size: Size = 1, pool_type: str = "fast", flatten: bool = False, input_fmt: FormatT = "NCHW"
    ) -> None:
        super().__init__()
        self.pool_type = pool_type or ""  # what users compare with; the lookup below does not mind capitals
        name = self.pool_type.lower()
        if name and name not in _MODULES and name not in _FAST:
            raise BadArgument(f"no pooling {pool_type!r}: use '' or one of {', '.join((*_MODULES, *_FAST))}")
        if name and not name.startswith("fast") and input_fmt != "NCHW":
            name = "fast" + name
        self.pool: nn.Module
        self.flatten: nn.Module = nn.Identity()
        if name in _FAST:
            if output_size not in (1, (1, 1)):
                raise BadArgument(f"{pool_type!r} pools {input_fmt} to one position, not {output_size}: use output_size=1")
            self.pool = _FAST[name](flatten, input_fmt)
            return
        self.pool = _MODULES[name](output_size) if name else nn.Identity()
        if flatten:
            self.flatten = nn.Flatten(1)

    def is_identity(self) -> bool:
        """Whether nothing is pooled."""
        return not self.pool_type

    def feat_mult(self) -> int:
        """How many times the channels come out."""
        return adaptive_pool_feat_mult(self.pool_type)

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(self.pool(x))

    def extra_repr(self) -> str:
        return f"pool_type={self.pool_type!r}"
