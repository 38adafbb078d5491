"""Normalisation layers that take the number of channels first, so that they are interchangeable.

Names ending in 2d take (N, C, H, W) and normalise over C; the others normalise over the last dimension. Names ending
in Fp32 compute in float32 whatever the dtype of the input, and give that dtype back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast_norm as N

__all__ = [
    "FrozenBatchNorm2d",
    "GroupNorm",
    "GroupNorm1",
    "LayerNorm",
    "LayerNorm2d",
    "LayerNorm2dFp32",
    "LayerNormFp32",
    "RmsNorm",
    "RmsNorm2d",
    "RmsNorm2dFp32",
    "RmsNormFp32",
    "SimpleNorm",
    "SimpleNorm2d",
    "SimpleNorm2dFp32",
    "SimpleNormFp32",
]


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494) of (N, C, *), the number of groups second."""

    def __init__(
        self, num_channels: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(num_groups, num_channels, eps=eps, affine=affine, **kwargs)
        self.fast = N.is_fast_norm()

    def forward(self, x: Tensor) -> Tensor:
        norm = N.fast_group_norm if self.fast else F.group_norm
        return norm(x, self.num_groups, self.weight, self.bias, self.eps)


class GroupNorm1(GroupNorm):
    """Group normalisation with one group: over channels and positions together."""

    def __init__(self, num_channels: int, **kwargs: Any) -> None:
        super().__init__(num_channels, num_groups=1, **kwargs)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450) over the last dimension."""

    def __init__(self, num_channels: int | Sequence[int], eps: float = 1e-6, affine: bool = True, **kwargs: Any) -> None:
        super().__init__(num_channels, eps=eps, elementwise_affine=affine, **kwargs)
        self.fast = N.is_fast_norm()

    def normalise(self, x: Tensor) -> Tensor:
        """The norm over the last dimension."""
        norm = N.fast_layer_norm if self.fast else F.layer_norm
        return norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def normalise_fp32(self, x: Tensor) -> Tensor:
        """The norm over the last dimension, computed in float32."""
        y = F.layer_norm(x.float(), self.normalized_shape, _float(self.weight), _float(self.bias), self.eps)
        return y.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x)


class LayerNormFp32(LayerNorm):
    """Layer normalisation over the last dimension in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise_fp32(x)


class LayerNorm2d(LayerNorm):
    """Layer normalisation over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return _channels_first(self.normalise(_channels_last(x)))


class LayerNorm2dFp32(LayerNorm):
    """Layer normalisation over the channels of (N, C, H, W) in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return _channels_first(self.normalise_fp32(_channels_last(x)))


class _ScaleNorm(nn.Module):
    """A norm with one weight a channel and no bias."""

    weight: nn.Parameter | None

    def __init__(self, channels: int | Sequence[int], eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.normalized_shape = (channels,) if isinstance(channels, int) else tuple(channels)
        self.eps = eps
        self.elementwise_affine = affine
        self.fast = N.is_fast_norm()
        self.register_parameter("weight", nn.Parameter(torch.ones(self.normalized_shape)) if affine else None)

    def reset_parameters(self) -> None:
        """Puts the weights back to one."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RmsNorm(_ScaleNorm):
    """The input over its root mean square, over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        norm = N.fast_rms_norm if self.fast else N.rms_norm
        return norm(x, self.normalized_shape, self.weight, self.eps)


class RmsNormFp32(_ScaleNorm):
    """`RmsNorm` in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return N.rms_norm(x.float(), self.normalized_shape, _float(self.weight), self.eps).to(x.dtype)


class RmsNorm2d(_ScaleNorm):
    """`RmsNorm` over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        norm = N.fast_rms_norm2d if self.fast else N.rms_norm2d
        return norm(x, self.normalized_shape, self.weight, self.eps)


class RmsNorm2dFp32(_ScaleNorm):
    """`RmsNorm` over the channels of (N, C, H, W) in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return N.rms_norm2d(x.float(), self.normalized_shape, _float(self.weight), self.eps).to(x.dtype)


class SimpleNorm(_ScaleNorm):
    """The input over its (unbiased) standard deviation, over the last dimension, its mean left in."""

    def forward(self, x: Tensor) -> Tensor:
        norm = N.fast_simple_norm if self.fast else N.simple_norm
        return norm(x, self.normalized_shape, self.weight, self.eps)


class SimpleNormFp32(_ScaleNorm):
    """`SimpleNorm` in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return N.simple_norm(x.float(), self.normalized_shape, _float(self.weight), self.eps).to(x.dtype)


class SimpleNorm2d(_ScaleNorm):
    """`SimpleNorm` over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return N.simple_norm2d(x, self.normalized_shape, self.weight, self.eps)


class SimpleNorm2dFp32(_ScaleNorm):
    """`SimpleNorm` over the channels of (N, C, H, W) in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return N.simple_norm2d(x.float(), self.normalized_shape, _float(self.weight), self.eps).to(x.dtype)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine are buffers: fixed, and the same in training.

    It loads a BatchNorm2d's state dict.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # a BatchNorm2d counts, this does not
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def normalise(self, x: Tensor) -> Tensor:
        """The fixed affine map."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"
