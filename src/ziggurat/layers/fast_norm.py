"""Normalisation as functions, and the switch that lets them run in autocast's low precision.

Under autocast torch normalises in float32. With `set_fast_norm()` layers built from then on normalise in the autocast
dtype instead: faster, and a little less exact. NVIDIA's Apex kernels are used there where Apex is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from apex.normalization.fused_layer_norm import fused_rms_norm, fused_rms_norm_affine

    has_apex_rmsnorm = True
except ImportError:
    has_apex_rmsnorm = False

__all__ = [
    "fast_group_norm",
    "fast_layer_norm",
    "fast_rms_norm",
    "fast_rms_norm2d",
    "fast_simple_norm",
    "is_fast_norm",
    "rms_norm",
    "rms_norm2d",
    "set_fast_norm",
    "simple_norm",
    "simple_norm2d",
]

_switch = {"fast": False}


def is_fast_norm() -> bool:
    """Whether norm layers built now will use the fast path."""
    return _switch["fast"]


def set_fast_norm(enable: bool = True) -> None:
    """Turns the fast path on or off for norm layers built from now on."""
    _switch["fast"] = bool(enable)


def _dtype(x: Tensor) -> torch.dtype:
    """The autocast dtype where autocast is on, else the input's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _low(x: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    """The parameters in the dtype that `x` is normalised in; where autocast is off they stay as they are."""
    if not torch.is_autocast_enabled(x.device.type):
        return list(parameters)
    return [None if p is None else p.to(_dtype(x)) for p in parameters]


def fast_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation in the autocast dtype."""
    dtype, (weight, bias) = _dtype(x), _low(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x.to(dtype), num_groups, weight, bias, eps)


def fast_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation over the last dimensions in the autocast dtype."""
    dtype, (weight, bias) = _dtype(x), _low(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.to(dtype), normalized_shape, weight, bias, eps)


def rms_norm(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The input over its root mean square along the last dimensions (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    return F.rms_norm(x, list(normalized_shape), weight, eps)


def rms_norm2d(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`rms_norm` over the channels of (N, C, H, W)."""
    x = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    return x if weight is None else x * weight.view(1, -1, 1, 1)


def fast_rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`rms_norm` in the autocast dtype, by Apex's kernel where it is installed."""
    if has_apex_rmsnorm:
        if weight is None:
            return fused_rms_norm(x, normalized_shape, eps)
        return fused_rms_norm_affine(x, weight, normalized_shape, eps)
    dtype, (weight,) = _dtype(x), _low(x, weight)
    with torch.autocast(x.device.type, enabled=False):
        return rms_norm(x.to(dtype), normalized_shape, weight, eps)


def fast_rms_norm2d(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`fast_rms_norm` over the channels of (N, C, H, W)."""
    return fast_rms_norm(x.permute(0, 2, 3, 1), normalized_shape, weight, eps).permute(0, 3, 1, 2)


def simple_norm(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The input over its standard deviation along the last dimensions, its mean left in."""
    dims = tuple(range(-len(normalized_shape), 0))
    x = x * torch.rsqrt(x.var(dim=dims, keepdim=True) + eps)
    return x if weight is None else x * weight


def simple_norm2d(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`simple_norm` over the channels of (N, C, H, W)."""
    x = x * torch.rsqrt(x.var(dim=1, keepdim=True) + eps)
    return x if weight is None else x * weight.view(1, -1, 1, 1)


def fast_simple_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`simple_norm` in the autocast dtype."""
    dtype, (weight,) = _dtype(x), _low(x, weight)
    with torch.autocast(x.device.type, enabled=False):
        return simple_norm(x.to(dtype), normalized_shape, weight, eps)
