"""Filter response normalisation: each channel of each sample over its root mean square (Singh and Krishnan 2019,
arXiv 1911.09737)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .create_act import create_act_layer
from .evo_norm import instance_rms
from .trace_utils import _assert
from .typing import LayerType

__all__ = ["FilterResponseNormAct2d", "FilterResponseNormTlu2d", "inv_instance_rms"]


def inv_instance_rms(x: Tensor, eps: float = 1e-5) -> Tensor:
    """One over the root mean square of each channel of each sample, (N, C, 1, 1)."""
    return instance_rms(x, eps).reciprocal()


class _FilterResponseNorm(nn.Module):
    """The norm with its affine map; `rms` is accepted as in timm and has no effect there either."""

    def __init__(self, num_features: int, apply_act: bool, eps: float, rms: bool) -> None:
        super().__init__()
        self.apply_act = apply_act
        self.rms = rms
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def normalise(self, x: Tensor) -> Tensor:
        """The norm of (N, C, H, W), affine map included."""
        _assert(x.ndim == 4, "filter response normalisation takes (N, C, H, W)")
        shape = (1, -1, 1, 1)
        x = x * inv_instance_rms(x, self.eps)
        return x * self.weight.view(shape).to(x.dtype) + self.bias.view(shape).to(x.dtype)


class FilterResponseNormTlu2d(_FilterResponseNorm):
    """The norm, then max(x, tau) with a learned threshold a channel."""

    tau: nn.Parameter | None

    def __init__(
        self, num_features: int, apply_act: bool = True, eps: float = 1e-5, rms: bool = True, **_: Any
    ) -> None:
        super().__init__(num_features, apply_act, eps, rms)
        self.register_parameter("tau", nn.Parameter(torch.zeros(num_features)) if apply_act else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        return x if self.tau is None else torch.maximum(x, self.tau.view(1, -1, 1, 1).to(x.dtype))


class FilterResponseNormAct2d(_FilterResponseNorm):
    """The norm, then an ordinary activation."""

    def __init__(
        self,
        num_features: int,
        apply_act: bool = True,
        act_layer: LayerType | None = nn.ReLU,
        inplace: bool | None = None,
        rms: bool = True,
        eps: float = 1e-5,
        **_: Any,
    ) -> None:
        super().__init__(num_features, apply_act, eps, rms)
        act = create_act_layer(act_layer, inplace=inplace) if apply_act else None
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.normalise(x))
